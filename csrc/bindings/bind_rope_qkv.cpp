// Bindings of rope_qkv.
#include "bindings/bindings.h"
#include "rope_qkv/params.h"

namespace showo {
namespace {

Field strides(const char* name, RopeRows& x) { return {name, {&x.batch_stride, &x.row_stride}}; }
Field strides(const char* name, RopeHeads& x) { return {name, {&x.batch_stride, &x.head_stride, &x.row_stride}}; }

Fields inputs(RopeQkvParams& p) {
  return {{"q_in", p.in[0].data},
          {"k_in", p.in[1].data},
          {"v_in", p.in[2].data},
          strides("q_in_strides", p.in[0]),
          strides("k_in_strides", p.in[1]),
          strides("v_in_strides", p.in[2]),
          {"q", p.out[0].data},
          {"k", p.out[1].data},
          {"v", p.out[2].data},
          strides("q_strides", p.out[0]),
          strides("k_strides", p.out[1]),
          strides("v_strides", p.out[2]),
          {"cos", p.cos},
          {"sin", p.sin},
          {"table_batch_stride", p.table_batch_stride},
          {"bias", p.bias, "bias_dtype"},
          {"norm", p.norm},
          {"sizes", {&p.batch, &p.length, &p.heads, &p.kv_heads, &p.head_dim, &p.rotary_dim}},
          {"eps", p.eps},
          {"dtype", p.dtype},
          {"bias_dtype", p.bias_dtype}};
}

Fields forward_fields(RopeQkvParams& p) {
  return inputs(p) +
         Fields{{"slots", p.slots}, {"slots_batch_stride", p.slots_batch_stride}, {"num_slots", p.num_slots}};
}

Fields backward_fields(RopeQkvParams& p) {
  return inputs(p) + Fields{{"dqkv", p.dqkv}, {"in_three", p.in_three}, {"dbias", p.dbias}, {"dnorm", p.dnorm}};
}

}  // namespace

SHOWO_BINDINGS(m) {
  def_launcher(m, "rope_qkv_forward_cpu", forward_fields, rope_qkv_forward_cpu);
  def_launcher(m, "rope_qkv_backward_cpu", backward_fields, rope_qkv_backward_cpu);
#if defined(SHOWO_HAS_CUDA)
  def_launcher(m, "rope_qkv_forward_cuda", forward_fields, rope_qkv_forward_cuda);
  def_launcher(m, "rope_qkv_backward_cuda", backward_fields, rope_qkv_backward_cuda);
#endif
  def_sizes(m, "rope_qkv_chunks", {"num_rows", "total_heads"}, rope_qkv_chunks);
  def_sizes(m, "rope_qkv_splits", {"total_heads"}, rope_qkv_splits);
}

}  // namespace showo
