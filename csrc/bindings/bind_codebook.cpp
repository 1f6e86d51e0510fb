// Bindings of the codebook operators.
#include "bindings/bindings.h"
#include "codebook/params.h"

namespace py = pybind11;

namespace showo {
namespace {

LfqParams lfq_params(uintptr_t z, uintptr_t ids, int dtype, int64_t batch, int64_t bits, int64_t height, int64_t width,
                     int64_t stride_batch, int64_t stride_bit, int64_t stride_row, int64_t stride_column,
                     int64_t offset) {
  LfqParams p{};
  p.z = as_pointer(z);
  p.ids = as_pointer<int64_t>(ids);
  p.batch = batch;
  p.bits = bits;
  p.height = height;
  p.width = width;
  p.stride_batch = stride_batch;
  p.stride_bit = stride_bit;
  p.stride_row = stride_row;
  p.stride_column = stride_column;
  p.offset = offset;
  p.dtype = static_cast<DType>(dtype);
  return p;
}

using LfqCpuLauncher = Status (*)(const LfqParams&, int);

void def_lfq_cpu(py::module_& m, const char* name, LfqCpuLauncher launcher) {
  m.def(
      name,
      [launcher](uintptr_t z, uintptr_t ids, int dtype, int64_t batch, int64_t bits, int64_t height, int64_t width,
                 int64_t stride_batch, int64_t stride_bit, int64_t stride_row, int64_t stride_column, int64_t offset,
                 int num_threads) {
        const LfqParams p = lfq_params(z, ids, dtype, batch, bits, height, width, stride_batch, stride_bit, stride_row,
                                       stride_column, offset);
        launch([&] { return launcher(p, num_threads); });
      },
      py::kw_only(), py::arg("z"), py::arg("ids"), py::arg("dtype"), py::arg("batch"), py::arg("bits"),
      py::arg("height"), py::arg("width"), py::arg("stride_batch"), py::arg("stride_bit"), py::arg("stride_row"),
      py::arg("stride_column"), py::arg("offset"), py::arg("num_threads"));
}

}  // namespace

void bind_codebook(py::module_& m) {
  def_lfq_cpu(m, "lfq_encode_cpu", &lfq_encode_cpu);
  def_lfq_cpu(m, "lfq_decode_cpu", &lfq_decode_cpu);
}

}  // namespace showo
