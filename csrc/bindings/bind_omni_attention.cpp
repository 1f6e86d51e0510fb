// Bindings of omni_attention.
#include "bindings/bindings.h"
#include "omni_attention/params.h"

namespace showo {
namespace {

Field strides(const char* name, OmniStrides& s) { return {name, {&s.batch, &s.head, &s.row}}; }

Fields inputs(OmniInputs& in) {
  return {{"q", in.q},
          {"k", in.k},
          {"v", in.v},
          {"intervals", in.intervals},
          {"sizes", {&in.batch, &in.heads, &in.kv_heads, &in.q_length, &in.kv_length, &in.head_dim, &in.num_intervals}},
          strides("q_strides", in.q_strides),
          strides("k_strides", in.k_strides),
          strides("v_strides", in.v_strides),
          {"intervals_strides", {&in.intervals_batch_stride, &in.intervals_row_stride}},
          {"block_states", in.block_states},
          {"block_states_batch_stride", in.block_states_batch_stride},
          {"seen", in.seen},
          {"scale", in.scale},
          {"softcap", in.softcap},
          {"dtype", in.dtype}};
}

template <class Params>  // of forward or decode
Fields forward_fields(Params& p) {
  return inputs(p.in) + Fields{{"out", p.out}, {"lse", p.lse}, strides("out_strides", p.out_strides)};
}

template <class Params>  // for the CPU or CUDA, which differ in the type of the gradients
Fields backward_fields(Params& p) {
  return inputs(p.in) + Fields{{"out", p.out},
                               {"lse", p.lse},
                               {"dout", p.dout},
                               {"dlse", p.dlse},
                               strides("out_strides", p.out_strides),
                               strides("dout_strides", p.dout_strides),
                               {"dq", p.dq},
                               {"dk", p.dk},
                               {"dv", p.dv}};
}

Fields backward_cpu_fields(OmniBackwardParams& p) { return backward_fields(p) + Fields{{"summands", p.summands}}; }

Fields block_table_fields(OmniBlockTableParams& p) {
  return {{"intervals", p.intervals},
          {"states", p.states},
          {"seen", p.seen},
          {"sizes", {&p.batch, &p.q_length, &p.kv_length, &p.num_intervals}},
          {"intervals_strides", {&p.intervals_batch_stride, &p.intervals_row_stride}}};
}

#if defined(SHOWO_HAS_CUDA)
Fields forward_cuda_fields(OmniForwardParams& p) {
  return forward_fields(p) + Fields{{"tile_rows", p.tile_rows}, {"order", p.order}, {"order_length", p.order_length}};
}

Fields decode_fields(OmniDecodeParams& p) {
  return forward_fields(p) +
         Fields{{"splits", p.splits}, {"partial_out", p.partial_out}, {"partial_stats", p.partial_stats}};
}

Fields backward_cuda_fields(OmniBackwardCudaParams& p) {
  return backward_fields(p) + Fields{{"stats", p.stats}, {"dq_sums", p.dq_sums}};
}
#endif

}  // namespace

SHOWO_BINDINGS(m) {
  def_launcher(m, "omni_block_table_cpu", block_table_fields, omni_block_table_cpu);
  def_launcher(m, "omni_attention_forward_cpu", forward_fields<OmniForwardParams>, omni_attention_forward_cpu);
  def_launcher(m, "omni_attention_backward_cpu", backward_cpu_fields, omni_attention_backward_cpu);
#if defined(SHOWO_HAS_CUDA)
  def_launcher(m, "omni_attention_forward_cuda", forward_cuda_fields, omni_attention_forward_cuda);
  def_launcher(m, "omni_attention_decode_cuda", decode_fields, omni_attention_decode_cuda);
  def_launcher(m, "omni_attention_backward_cuda", backward_cuda_fields, omni_attention_backward_cuda);
  def_launcher(m, "omni_block_table_cuda", block_table_fields, omni_block_table_cuda);
#endif
  def_sizes(m, "omni_attention_block_rows", {}, omni_attention_block_rows);
  def_sizes(m, "omni_attention_backward_summands", {"batch", "heads", "kv_heads", "q_length"},
            omni_attention_backward_summands);
}

}  // namespace showo
