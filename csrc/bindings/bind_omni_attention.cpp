// Bindings of omni_attention.
#include <pybind11/stl.h>

#include <array>

#include "bindings/bindings.h"
#include "omni_attention/params.h"

namespace py = pybind11;

namespace showo {
namespace {

using Strides = std::array<int64_t, 3>;  // batch, head, row

OmniStrides strides_of(const Strides& s) { return OmniStrides{s[0], s[1], s[2]}; }

// sizes: batch, heads, kv_heads, q_length, kv_length, head_dim, num_intervals
OmniInputs inputs(uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t intervals, const std::array<int64_t, 7>& sizes,
                  const Strides& q_strides, const Strides& k_strides, const Strides& v_strides,
                  const std::array<int64_t, 2>& intervals_strides, uintptr_t block_states,
                  int64_t block_states_batch_stride, double scale, int dtype) {
  OmniInputs in{};
  in.q = as_pointer(q);
  in.k = as_pointer(k);
  in.v = as_pointer(v);
  in.intervals = as_pointer<const int32_t>(intervals);
  in.batch = sizes[0];
  in.heads = sizes[1];
  in.kv_heads = sizes[2];
  in.q_length = sizes[3];
  in.kv_length = sizes[4];
  in.head_dim = sizes[5];
  in.num_intervals = sizes[6];
  in.q_strides = strides_of(q_strides);
  in.k_strides = strides_of(k_strides);
  in.v_strides = strides_of(v_strides);
  in.intervals_batch_stride = intervals_strides[0];
  in.intervals_row_stride = intervals_strides[1];
  in.block_states = as_pointer<const uint8_t>(block_states);
  in.block_states_batch_stride = block_states_batch_stride;
  in.scale = static_cast<float>(scale);
  in.dtype = static_cast<DType>(dtype);
  return in;
}

}  // namespace

void bind_omni_attention(py::module_& m) {
  m.def(
      "omni_attention_forward_cpu",
      [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t intervals, uintptr_t out, uintptr_t lse,
         const std::array<int64_t, 7>& sizes, const Strides& q_strides, const Strides& k_strides,
         const Strides& v_strides, const std::array<int64_t, 2>& intervals_strides, const Strides& out_strides,
         uintptr_t block_states, int64_t block_states_batch_stride, double scale, int dtype, int num_threads) {
        OmniForwardParams p{};
        p.in = inputs(q, k, v, intervals, sizes, q_strides, k_strides, v_strides, intervals_strides, block_states,
                      block_states_batch_stride, scale, dtype);
        p.out = as_pointer(out);
        p.lse = as_pointer<float>(lse);
        p.out_strides = strides_of(out_strides);
        launch([&] { return omni_attention_forward_cpu(p, num_threads); });
      },
      py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("intervals"), py::arg("out"), py::arg("lse"),
      py::arg("sizes"), py::arg("q_strides"), py::arg("k_strides"), py::arg("v_strides"), py::arg("intervals_strides"),
      py::arg("out_strides"), py::arg("block_states") = 0, py::arg("block_states_batch_stride") = 0, py::arg("scale"),
      py::arg("dtype"), py::arg("num_threads"));

  m.def(
      "omni_attention_backward_cpu",
      [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t intervals, uintptr_t out, uintptr_t lse, uintptr_t dout,
         uintptr_t dlse, uintptr_t dq, uintptr_t dk, uintptr_t dv, int64_t parts, const std::array<int64_t, 7>& sizes,
         const Strides& q_strides, const Strides& k_strides, const Strides& v_strides,
         const std::array<int64_t, 2>& intervals_strides, const Strides& out_strides, const Strides& dout_strides,
         uintptr_t block_states, int64_t block_states_batch_stride, double scale, int dtype, int num_threads) {
        OmniBackwardParams p{};
        p.in = inputs(q, k, v, intervals, sizes, q_strides, k_strides, v_strides, intervals_strides, block_states,
                      block_states_batch_stride, scale, dtype);
        p.out = as_pointer(out);
        p.lse = as_pointer<const float>(lse);
        p.dout = as_pointer(dout);
        p.dlse = as_pointer<const float>(dlse);
        p.out_strides = strides_of(out_strides);
        p.dout_strides = strides_of(dout_strides);
        p.dq = as_pointer<float>(dq);
        p.dk = as_pointer<float>(dk);
        p.dv = as_pointer<float>(dv);
        p.parts = parts;
        launch([&] { return omni_attention_backward_cpu(p, num_threads); });
      },
      py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("intervals"), py::arg("out"), py::arg("lse"),
      py::arg("dout"), py::arg("dlse"), py::arg("dq"), py::arg("dk"), py::arg("dv"), py::arg("parts"), py::arg("sizes"),
      py::arg("q_strides"), py::arg("k_strides"), py::arg("v_strides"), py::arg("intervals_strides"),
      py::arg("out_strides"), py::arg("dout_strides"), py::arg("block_states") = 0,
      py::arg("block_states_batch_stride") = 0, py::arg("scale"), py::arg("dtype"), py::arg("num_threads"));

#if defined(SHOWO_HAS_CUDA)
  m.def(
      "omni_attention_forward_cuda",
      [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t intervals, uintptr_t out, uintptr_t lse,
         const std::array<int64_t, 7>& sizes, const Strides& q_strides, const Strides& k_strides,
         const Strides& v_strides, const std::array<int64_t, 2>& intervals_strides, const Strides& out_strides,
         uintptr_t block_states, int64_t block_states_batch_stride, double scale, int dtype, int64_t tile_rows,
         uintptr_t order, int64_t order_length, uintptr_t stream) {
        OmniForwardParams p{};
        p.in = inputs(q, k, v, intervals, sizes, q_strides, k_strides, v_strides, intervals_strides, block_states,
                      block_states_batch_stride, scale, dtype);
        p.out = as_pointer(out);
        p.lse = as_pointer<float>(lse);
        p.out_strides = strides_of(out_strides);
        p.tile_rows = tile_rows;
        p.order = as_pointer<const int32_t>(order);
        p.order_length = order_length;
        launch([&] { return omni_attention_forward_cuda(p, as_pointer(stream)); });
      },
      py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("intervals"), py::arg("out"), py::arg("lse"),
      py::arg("sizes"), py::arg("q_strides"), py::arg("k_strides"), py::arg("v_strides"), py::arg("intervals_strides"),
      py::arg("out_strides"), py::arg("block_states"), py::arg("block_states_batch_stride"), py::arg("scale"),
      py::arg("dtype"), py::arg("tile_rows"), py::arg("order"), py::arg("order_length"), py::arg("stream"));

  m.def(
      "omni_attention_decode_cuda",
      [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t intervals, uintptr_t out, uintptr_t lse,
         const std::array<int64_t, 7>& sizes, const Strides& q_strides, const Strides& k_strides,
         const Strides& v_strides, const std::array<int64_t, 2>& intervals_strides, const Strides& out_strides,
         uintptr_t block_states, int64_t block_states_batch_stride, double scale, int dtype, int64_t splits,
         uintptr_t partial_out, uintptr_t partial_stats, uintptr_t stream) {
        OmniDecodeParams p{};
        p.in = inputs(q, k, v, intervals, sizes, q_strides, k_strides, v_strides, intervals_strides, block_states,
                      block_states_batch_stride, scale, dtype);
        p.out = as_pointer(out);
        p.lse = as_pointer<float>(lse);
        p.out_strides = strides_of(out_strides);
        p.splits = splits;
        p.partial_out = as_pointer<float>(partial_out);
        p.partial_stats = as_pointer<float>(partial_stats);
        launch([&] { return omni_attention_decode_cuda(p, as_pointer(stream)); });
      },
      py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("intervals"), py::arg("out"), py::arg("lse"),
      py::arg("sizes"), py::arg("q_strides"), py::arg("k_strides"), py::arg("v_strides"), py::arg("intervals_strides"),
      py::arg("out_strides"), py::arg("block_states") = 0, py::arg("block_states_batch_stride") = 0, py::arg("scale"),
      py::arg("dtype"), py::arg("splits"), py::arg("partial_out"), py::arg("partial_stats"), py::arg("stream"));

  m.def(
      "omni_attention_backward_cuda",
      [](uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t intervals, uintptr_t out, uintptr_t lse, uintptr_t dout,
         uintptr_t dlse, uintptr_t dq, uintptr_t dk, uintptr_t dv, uintptr_t stats, uintptr_t dq_sums,
         const std::array<int64_t, 7>& sizes, const Strides& q_strides, const Strides& k_strides,
         const Strides& v_strides, const std::array<int64_t, 2>& intervals_strides, const Strides& out_strides,
         const Strides& dout_strides, uintptr_t block_states, int64_t block_states_batch_stride, double scale,
         int dtype, uintptr_t stream) {
        OmniBackwardCudaParams p{};
        p.in = inputs(q, k, v, intervals, sizes, q_strides, k_strides, v_strides, intervals_strides, block_states,
                      block_states_batch_stride, scale, dtype);
        p.out = as_pointer(out);
        p.lse = as_pointer<const float>(lse);
        p.dout = as_pointer(dout);
        p.dlse = as_pointer<const float>(dlse);
        p.out_strides = strides_of(out_strides);
        p.dout_strides = strides_of(dout_strides);
        p.dq = as_pointer(dq);
        p.dk = as_pointer(dk);
        p.dv = as_pointer(dv);
        p.stats = as_pointer<float>(stats);
        p.dq_sums = as_pointer<float>(dq_sums);
        launch([&] { return omni_attention_backward_cuda(p, as_pointer(stream)); });
      },
      py::kw_only(), py::arg("q"), py::arg("k"), py::arg("v"), py::arg("intervals"), py::arg("out"), py::arg("lse"),
      py::arg("dout"), py::arg("dlse"), py::arg("dq"), py::arg("dk"), py::arg("dv"), py::arg("stats"),
      py::arg("dq_sums"), py::arg("sizes"), py::arg("q_strides"), py::arg("k_strides"), py::arg("v_strides"),
      py::arg("intervals_strides"), py::arg("out_strides"), py::arg("dout_strides"), py::arg("block_states"),
      py::arg("block_states_batch_stride"), py::arg("scale"), py::arg("dtype"), py::arg("stream"));

  m.def(
      "omni_block_table_cuda",
      [](uintptr_t intervals, uintptr_t states, const std::array<int64_t, 4>& sizes,
         const std::array<int64_t, 2>& intervals_strides, uintptr_t stream) {
        OmniBlockTableParams p{};
        p.intervals = as_pointer<const int32_t>(intervals);
        p.states = as_pointer<uint8_t>(states);
        p.batch = sizes[0];
        p.q_length = sizes[1];
        p.kv_length = sizes[2];
        p.num_intervals = sizes[3];
        p.intervals_batch_stride = intervals_strides[0];
        p.intervals_row_stride = intervals_strides[1];
        launch([&] { return omni_block_table_cuda(p, as_pointer(stream)); });
      },
      py::kw_only(), py::arg("intervals"), py::arg("states"), py::arg("sizes"), py::arg("intervals_strides"),
      py::arg("stream"));
#endif

  m.def("omni_attention_backward_parts", &omni_attention_backward_parts, py::kw_only(), py::arg("batch"),
        py::arg("heads"), py::arg("kv_heads"), py::arg("q_length"));
}

}  // namespace showo
