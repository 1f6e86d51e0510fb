// Bindings of the codebook operators.
#include "bindings/bindings.h"
#include "codebook/params.h"

namespace showo {
namespace {

Fields lfq_fields(LfqParams& p) {
  return {{"z", p.z},
          {"ids", p.ids},
          {"dtype", p.dtype},
          {"batch", p.batch},
          {"bits", p.bits},
          {"height", p.height},
          {"width", p.width},
          {"stride_batch", p.stride_batch},
          {"stride_bit", p.stride_bit},
          {"stride_row", p.stride_row},
          {"stride_column", p.stride_column},
          {"offset", p.offset}};
}

Fields vq_encode_fields(VqEncodeParams& p) {
  return {{"z", p.z},         {"codebook", p.codebook}, {"ids", p.ids},
          {"dtype", p.dtype}, {"num_rows", p.num_rows}, {"num_codes", p.num_codes},
          {"dim", p.dim},     {"z_stride", p.z_stride}, {"codebook_stride", p.codebook_stride}};
}

Fields vq_encode_cpu_fields(VqEncodeParams& p) { return vq_encode_fields(p) + Fields{{"workspace", p.workspace}}; }

Fields lookup_forward_fields(CodebookLookupParams& p) {
  return {{"codebook", p.codebook}, {"ids", p.ids},
          {"out", p.out},           {"dtype", p.dtype},
          {"num_rows", p.num_rows}, {"num_codes", p.num_codes},
          {"dim", p.dim},           {"codebook_stride", p.codebook_stride}};
}

Fields lookup_backward_fields(CodebookLookupParams& p) {
  return {{"grad", p.grad},
          {"grad_codebook", p.grad_codebook},
          {"dtype", p.dtype},
          {"num_rows", p.num_rows},
          {"num_codes", p.num_codes},
          {"dim", p.dim},
          {"grad_stride", p.grad_stride}};
}

Fields lookup_backward_cpu_fields(CodebookLookupParams& p) {
  return lookup_backward_fields(p) + Fields{{"ids", p.ids}, {"workspace", p.workspace}};
}

#if defined(SHOWO_HAS_CUDA)
Fields vq_encode_cuda_fields(VqEncodeParams& p) {
  return vq_encode_fields(p) +
         Fields{{"offsets", p.offsets}, {"halves", p.halves}, {"tops", p.tops}, {"candidates", p.candidates}};
}

Fields lookup_backward_cuda_fields(CodebookLookupParams& p) {
  return lookup_backward_fields(p) + Fields{{"order", p.order}, {"starts", p.starts}};
}
#endif

std::array<int64_t, 2> encode_cuda_sizes(int64_t dtype, int64_t num_rows, int64_t num_codes, int64_t dim) {
  const VqEncodeSizes sizes = vq_encode_cuda_sizes(num_rows, num_codes, dim, static_cast<DType>(dtype));
  return {sizes.splits, sizes.offset_bytes};
}

}  // namespace

SHOWO_BINDINGS(m) {
  def_launcher(m, "lfq_encode_cpu", lfq_fields, lfq_encode_cpu);
  def_launcher(m, "lfq_decode_cpu", lfq_fields, lfq_decode_cpu);
  def_launcher(m, "vq_encode_cpu", vq_encode_cpu_fields, vq_encode_cpu);
  def_launcher(m, "codebook_lookup_forward_cpu", lookup_forward_fields, codebook_lookup_forward_cpu);
  def_launcher(m, "codebook_lookup_backward_cpu", lookup_backward_cpu_fields, codebook_lookup_backward_cpu);
#if defined(SHOWO_HAS_CUDA)
  def_launcher(m, "lfq_encode_cuda", lfq_fields, lfq_encode_cuda);
  def_launcher(m, "lfq_decode_cuda", lfq_fields, lfq_decode_cuda);
  def_launcher(m, "vq_encode_cuda", vq_encode_cuda_fields, vq_encode_cuda);
  def_launcher(m, "codebook_lookup_forward_cuda", lookup_forward_fields, codebook_lookup_forward_cuda);
  def_launcher(m, "codebook_lookup_backward_cuda", lookup_backward_cuda_fields, codebook_lookup_backward_cuda);
#endif
  def_sizes(m, "vq_encode_workspace_size", {"num_codes", "dim"}, vq_encode_workspace_size);
  def_sizes(m, "vq_encode_cuda_sizes", {"dtype", "num_rows", "num_codes", "dim"}, encode_cuda_sizes);
}

}  // namespace showo
