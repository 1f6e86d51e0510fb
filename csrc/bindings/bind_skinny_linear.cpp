// Binding of skinny_linear.
#include "bindings/bindings.h"
#include "skinny_linear/params.h"

namespace showo {
namespace {

Fields skinny_linear_fields(SkinnyLinearParams& p) {
  return {{"x", p.x},
          {"weight", p.weight},
          {"weight_int8", p.weight_int8},
          {"scale", p.scale},
          {"bias", p.bias},
          {"y", p.y},
          {"workspace", p.workspace},
          {"dtype", p.dtype},
          {"rows", p.rows},
          {"in_features", p.in_features},
          {"out_features", p.out_features},
          {"x_stride", p.x_stride},
          {"weight_stride", p.weight_stride}};
}

}  // namespace

SHOWO_BINDINGS(m) { def_launcher(m, "skinny_linear_cpu", skinny_linear_fields, skinny_linear_cpu); }

}  // namespace showo
