// Bindings of scale_rows.
#include "bindings/bindings.h"
#include "scale_rows/params.h"

namespace showo {
namespace {

Fields inputs(ScaleRowsParams& p) {
  return {{"x", p.x},       {"scale", p.scale},     {"dtype", p.dtype},
          {"rows", p.rows}, {"columns", p.columns}, {"x_stride", p.x_stride}};
}

Fields forward_fields(ScaleRowsParams& p) { return inputs(p) + Fields{{"y", p.y}}; }

Fields backward_fields(ScaleRowsParams& p) {
  return inputs(p) + Fields{{"dy", p.dy}, {"dy_stride", p.dy_stride}, {"dx", p.dx}, {"dscale", p.dscale}};
}

}  // namespace

SHOWO_BINDINGS(m) {
  def_launcher(m, "scale_rows_forward_cpu", forward_fields, scale_rows_forward_cpu);
  def_launcher(m, "scale_rows_backward_cpu", backward_fields, scale_rows_backward_cpu);
#if defined(SHOWO_HAS_CUDA)
  def_launcher(m, "scale_rows_forward_cuda", forward_fields, scale_rows_forward_cuda);
  def_launcher(m, "scale_rows_backward_cuda", backward_fields, scale_rows_backward_cuda);
#endif
}

}  // namespace showo
