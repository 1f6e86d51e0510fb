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

// Every launcher exists twice: (params, num_threads) for the CPU and (params, stream) for CUDA.
template <class Params>
using CpuLauncher = Status (*)(const Params&, int);
template <class Params>
using CudaLauncher = Status (*)(const Params&, void*);

void def_lfq_cpu(py::module_& m, const char* name, CpuLauncher<LfqParams> launcher) {
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

VqEncodeParams vq_encode_params(uintptr_t z, uintptr_t codebook, uintptr_t ids, int dtype, int64_t num_rows,
                                int64_t num_codes, int64_t dim, int64_t z_stride, int64_t codebook_stride) {
  VqEncodeParams p{};
  p.z = as_pointer(z);
  p.codebook = as_pointer(codebook);
  p.ids = as_pointer<int64_t>(ids);
  p.num_rows = num_rows;
  p.num_codes = num_codes;
  p.dim = dim;
  p.z_stride = z_stride;
  p.codebook_stride = codebook_stride;
  p.dtype = static_cast<DType>(dtype);
  return p;
}

CodebookLookupParams lookup_forward_params(uintptr_t codebook, uintptr_t ids, uintptr_t out, int dtype,
                                           int64_t num_rows, int64_t num_codes, int64_t dim, int64_t codebook_stride) {
  CodebookLookupParams p{};
  p.codebook = as_pointer(codebook);
  p.ids = as_pointer<int64_t>(ids);
  p.out = as_pointer(out);
  p.num_rows = num_rows;
  p.num_codes = num_codes;
  p.dim = dim;
  p.codebook_stride = codebook_stride;
  p.dtype = static_cast<DType>(dtype);
  return p;
}

CodebookLookupParams lookup_backward_params(uintptr_t grad, uintptr_t ids, uintptr_t grad_codebook, int dtype,
                                            int64_t num_rows, int64_t num_codes, int64_t dim, int64_t grad_stride) {
  CodebookLookupParams p{};
  p.grad = as_pointer(grad);
  p.ids = as_pointer<int64_t>(ids);
  p.grad_codebook = as_pointer(grad_codebook);
  p.num_rows = num_rows;
  p.num_codes = num_codes;
  p.dim = dim;
  p.grad_stride = grad_stride;
  p.dtype = static_cast<DType>(dtype);
  return p;
}

void bind_cpu(py::module_& m) {
  def_lfq_cpu(m, "lfq_encode_cpu", &lfq_encode_cpu);
  def_lfq_cpu(m, "lfq_decode_cpu", &lfq_decode_cpu);
  m.def("vq_encode_workspace_size", &vq_encode_workspace_size, py::kw_only(), py::arg("num_codes"), py::arg("dim"));
  m.def(
      "vq_encode_cpu",
      [](uintptr_t z, uintptr_t codebook, uintptr_t ids, uintptr_t workspace, int dtype, int64_t num_rows,
         int64_t num_codes, int64_t dim, int64_t z_stride, int64_t codebook_stride, int num_threads) {
        VqEncodeParams p =
            vq_encode_params(z, codebook, ids, dtype, num_rows, num_codes, dim, z_stride, codebook_stride);
        p.workspace = as_pointer<float>(workspace);
        launch([&] { return vq_encode_cpu(p, num_threads); });
      },
      py::kw_only(), py::arg("z"), py::arg("codebook"), py::arg("ids"), py::arg("workspace"), py::arg("dtype"),
      py::arg("num_rows"), py::arg("num_codes"), py::arg("dim"), py::arg("z_stride"), py::arg("codebook_stride"),
      py::arg("num_threads"));
  m.def(
      "codebook_lookup_forward_cpu",
      [](uintptr_t codebook, uintptr_t ids, uintptr_t out, int dtype, int64_t num_rows, int64_t num_codes, int64_t dim,
         int64_t codebook_stride, int num_threads) {
        const CodebookLookupParams p =
            lookup_forward_params(codebook, ids, out, dtype, num_rows, num_codes, dim, codebook_stride);
        launch([&] { return codebook_lookup_forward_cpu(p, num_threads); });
      },
      py::kw_only(), py::arg("codebook"), py::arg("ids"), py::arg("out"), py::arg("dtype"), py::arg("num_rows"),
      py::arg("num_codes"), py::arg("dim"), py::arg("codebook_stride"), py::arg("num_threads"));
  m.def(
      "codebook_lookup_backward_cpu",
      [](uintptr_t grad, uintptr_t ids, uintptr_t grad_codebook, uintptr_t workspace, int dtype, int64_t num_rows,
         int64_t num_codes, int64_t dim, int64_t grad_stride, int num_threads) {
        CodebookLookupParams p =
            lookup_backward_params(grad, ids, grad_codebook, dtype, num_rows, num_codes, dim, grad_stride);
        p.workspace = as_pointer<float>(workspace);
        launch([&] { return codebook_lookup_backward_cpu(p, num_threads); });
      },
      py::kw_only(), py::arg("grad"), py::arg("ids"), py::arg("grad_codebook"), py::arg("workspace"), py::arg("dtype"),
      py::arg("num_rows"), py::arg("num_codes"), py::arg("dim"), py::arg("grad_stride"), py::arg("num_threads"));
}

#if defined(SHOWO_HAS_CUDA)

void def_lfq_cuda(py::module_& m, const char* name, CudaLauncher<LfqParams> launcher) {
  m.def(
      name,
      [launcher](uintptr_t z, uintptr_t ids, int dtype, int64_t batch, int64_t bits, int64_t height, int64_t width,
                 int64_t stride_batch, int64_t stride_bit, int64_t stride_row, int64_t stride_column, int64_t offset,
                 uintptr_t stream) {
        const LfqParams p = lfq_params(z, ids, dtype, batch, bits, height, width, stride_batch, stride_bit, stride_row,
                                       stride_column, offset);
        launch([&] { return launcher(p, as_pointer(stream)); });
      },
      py::kw_only(), py::arg("z"), py::arg("ids"), py::arg("dtype"), py::arg("batch"), py::arg("bits"),
      py::arg("height"), py::arg("width"), py::arg("stride_batch"), py::arg("stride_bit"), py::arg("stride_row"),
      py::arg("stride_column"), py::arg("offset"), py::arg("stream"));
}

void bind_cuda(py::module_& m) {
  def_lfq_cuda(m, "lfq_encode_cuda", &lfq_encode_cuda);
  def_lfq_cuda(m, "lfq_decode_cuda", &lfq_decode_cuda);
  m.def(
      "vq_encode_cuda",
      [](uintptr_t z, uintptr_t codebook, uintptr_t ids, uintptr_t offsets, uintptr_t halves, uintptr_t tops,
         uintptr_t candidates, int dtype, int64_t num_rows, int64_t num_codes, int64_t dim, int64_t z_stride,
         int64_t codebook_stride, uintptr_t stream) {
        VqEncodeParams p =
            vq_encode_params(z, codebook, ids, dtype, num_rows, num_codes, dim, z_stride, codebook_stride);
        p.offsets = as_pointer(offsets);
        p.halves = as_pointer(halves);
        p.tops = as_pointer(tops);
        p.candidates = as_pointer(candidates);
        launch([&] { return vq_encode_cuda(p, as_pointer(stream)); });
      },
      py::kw_only(), py::arg("z"), py::arg("codebook"), py::arg("ids"), py::arg("offsets"), py::arg("halves"),
      py::arg("tops"), py::arg("candidates"), py::arg("dtype"), py::arg("num_rows"), py::arg("num_codes"),
      py::arg("dim"), py::arg("z_stride"), py::arg("codebook_stride"), py::arg("stream"));
  m.def(
      "vq_encode_cuda_sizes",
      [](int dtype, int64_t num_rows, int64_t num_codes, int64_t dim) {
        const VqEncodeSizes sizes = vq_encode_cuda_sizes(num_rows, num_codes, dim, static_cast<DType>(dtype));
        return py::make_tuple(sizes.splits, sizes.offset_bytes);
      },
      py::kw_only(), py::arg("dtype"), py::arg("num_rows"), py::arg("num_codes"), py::arg("dim"));
  m.def(
      "codebook_lookup_forward_cuda",
      [](uintptr_t codebook, uintptr_t ids, uintptr_t out, int dtype, int64_t num_rows, int64_t num_codes, int64_t dim,
         int64_t codebook_stride, uintptr_t stream) {
        const CodebookLookupParams p =
            lookup_forward_params(codebook, ids, out, dtype, num_rows, num_codes, dim, codebook_stride);
        launch([&] { return codebook_lookup_forward_cuda(p, as_pointer(stream)); });
      },
      py::kw_only(), py::arg("codebook"), py::arg("ids"), py::arg("out"), py::arg("dtype"), py::arg("num_rows"),
      py::arg("num_codes"), py::arg("dim"), py::arg("codebook_stride"), py::arg("stream"));
  m.def(
      "codebook_lookup_backward_cuda",
      [](uintptr_t grad, uintptr_t order, uintptr_t starts, uintptr_t grad_codebook, int dtype, int64_t num_rows,
         int64_t num_codes, int64_t dim, int64_t grad_stride, uintptr_t stream) {
        CodebookLookupParams p =
            lookup_backward_params(grad, 0, grad_codebook, dtype, num_rows, num_codes, dim, grad_stride);
        p.order = as_pointer<int64_t>(order);
        p.starts = as_pointer<int64_t>(starts);
        launch([&] { return codebook_lookup_backward_cuda(p, as_pointer(stream)); });
      },
      py::kw_only(), py::arg("grad"), py::arg("order"), py::arg("starts"), py::arg("grad_codebook"), py::arg("dtype"),
      py::arg("num_rows"), py::arg("num_codes"), py::arg("dim"), py::arg("grad_stride"), py::arg("stream"));
}

#endif

}  // namespace

void bind_codebook(py::module_& m) {
  bind_cpu(m);
#if defined(SHOWO_HAS_CUDA)
  bind_cuda(m);
#endif
}

}  // namespace showo
