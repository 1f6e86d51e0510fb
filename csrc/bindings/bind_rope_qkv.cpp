// Bindings of rope_qkv.
#include <pybind11/stl.h>

#include <array>

#include "bindings/bindings.h"
#include "rope_qkv/params.h"

namespace py = pybind11;

namespace showo {
namespace {

using Strides = std::array<int64_t, 3>;     // batch, head, row
using RowStrides = std::array<int64_t, 2>;  // batch, row
using Sources = std::array<RopeRows, 3>;

RopeHeads heads(uintptr_t data, const Strides& strides) {
  return RopeHeads{as_pointer(data), strides[0], strides[1], strides[2]};
}

// sizes: batch, length, heads, kv_heads, head_dim, rotary_dim
RopeRows rows(uintptr_t data, const RowStrides& strides) { return RopeRows{as_pointer(data), strides[0], strides[1]}; }

RopeQkvParams inputs(const Sources& in, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t cos, uintptr_t sin,
                     uintptr_t bias, uintptr_t norm, const std::array<int64_t, 6>& sizes, const Strides& q_strides,
                     const Strides& k_strides, const Strides& v_strides, int64_t table_batch_stride, double eps,
                     int dtype, int bias_dtype) {
  RopeQkvParams p{};
  for (int i = 0; i < 3; ++i) p.in[i] = in[i];
  p.out[0] = heads(q, q_strides);
  p.out[1] = heads(k, k_strides);
  p.out[2] = heads(v, v_strides);
  p.cos = as_pointer<const float>(cos);
  p.sin = as_pointer<const float>(sin);
  p.bias = as_pointer(bias);
  p.norm = as_pointer<const float>(norm);
  p.batch = sizes[0];
  p.length = sizes[1];
  p.heads = sizes[2];
  p.kv_heads = sizes[3];
  p.head_dim = sizes[4];
  p.rotary_dim = sizes[5];
  p.table_batch_stride = table_batch_stride;
  p.eps = static_cast<float>(eps);
  p.dtype = static_cast<DType>(dtype);
  p.bias_dtype = static_cast<DType>(bias_dtype);
  return p;
}

// `Target` is int (number of threads) for the CPU and a stream for CUDA.
template <class Target, class Launcher>
void def_forward(py::module_& m, const char* name, const char* target_name, Launcher launcher) {
  m.def(
      name,
      [launcher](uintptr_t q_in, uintptr_t k_in, uintptr_t v_in, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t cos,
                 uintptr_t sin, uintptr_t bias, uintptr_t norm, uintptr_t slots, const std::array<int64_t, 6>& sizes,
                 const RowStrides& q_in_strides, const RowStrides& k_in_strides, const RowStrides& v_in_strides,
                 const Strides& q_strides, const Strides& k_strides, const Strides& v_strides,
                 int64_t table_batch_stride, int64_t slots_batch_stride, int64_t num_slots, double eps, int dtype,
                 int bias_dtype, Target target) {
        RopeQkvParams p =
            inputs({rows(q_in, q_in_strides), rows(k_in, k_in_strides), rows(v_in, v_in_strides)}, q, k, v, cos, sin,
                   bias, norm, sizes, q_strides, k_strides, v_strides, table_batch_stride, eps, dtype, bias_dtype);
        p.slots = as_pointer<const int64_t>(slots);
        p.slots_batch_stride = slots_batch_stride;
        p.num_slots = num_slots;
        launch([&] { return launcher(p, target); });
      },
      py::kw_only(), py::arg("q_in"), py::arg("k_in"), py::arg("v_in"), py::arg("q"), py::arg("k"), py::arg("v"),
      py::arg("cos"), py::arg("sin"), py::arg("bias"), py::arg("norm"), py::arg("slots"), py::arg("sizes"),
      py::arg("q_in_strides"), py::arg("k_in_strides"), py::arg("v_in_strides"), py::arg("q_strides"),
      py::arg("k_strides"), py::arg("v_strides"), py::arg("table_batch_stride"), py::arg("slots_batch_stride"),
      py::arg("num_slots"), py::arg("eps"), py::arg("dtype"), py::arg("bias_dtype"), py::arg(target_name));
}

template <class Target, class Launcher>
void def_backward(py::module_& m, const char* name, const char* target_name, Launcher launcher) {
  m.def(
      name,
      [launcher](uintptr_t q_in, uintptr_t k_in, uintptr_t v_in, uintptr_t q, uintptr_t k, uintptr_t v, uintptr_t cos,
                 uintptr_t sin, uintptr_t bias, uintptr_t norm, uintptr_t dqkv, bool in_three, uintptr_t dbias,
                 uintptr_t dnorm, const std::array<int64_t, 6>& sizes, const RowStrides& q_in_strides,
                 const RowStrides& k_in_strides, const RowStrides& v_in_strides, const Strides& q_strides,
                 const Strides& k_strides, const Strides& v_strides, int64_t table_batch_stride, double eps, int dtype,
                 int bias_dtype, Target target) {
        RopeQkvParams p =
            inputs({rows(q_in, q_in_strides), rows(k_in, k_in_strides), rows(v_in, v_in_strides)}, q, k, v, cos, sin,
                   bias, norm, sizes, q_strides, k_strides, v_strides, table_batch_stride, eps, dtype, bias_dtype);
        p.dqkv = as_pointer(dqkv);
        p.in_three = in_three;
        p.dbias = as_pointer<float>(dbias);
        p.dnorm = as_pointer<float>(dnorm);
        launch([&] { return launcher(p, target); });
      },
      py::kw_only(), py::arg("q_in"), py::arg("k_in"), py::arg("v_in"), py::arg("q"), py::arg("k"), py::arg("v"),
      py::arg("cos"), py::arg("sin"), py::arg("bias"), py::arg("norm"), py::arg("dqkv"), py::arg("in_three"),
      py::arg("dbias"), py::arg("dnorm"), py::arg("sizes"), py::arg("q_in_strides"), py::arg("k_in_strides"),
      py::arg("v_in_strides"), py::arg("q_strides"), py::arg("k_strides"), py::arg("v_strides"),
      py::arg("table_batch_stride"), py::arg("eps"), py::arg("dtype"), py::arg("bias_dtype"), py::arg(target_name));
}

}  // namespace

void bind_rope_qkv(py::module_& m) {
  m.def("rope_qkv_chunks", &rope_qkv_chunks, py::kw_only(), py::arg("num_rows"), py::arg("total_heads"));
  m.def("rope_qkv_splits", &rope_qkv_splits, py::kw_only(), py::arg("total_heads"));
  def_forward<int>(m, "rope_qkv_forward_cpu", "num_threads", &rope_qkv_forward_cpu);
  def_backward<int>(m, "rope_qkv_backward_cpu", "num_threads", &rope_qkv_backward_cpu);
#if defined(SHOWO_HAS_CUDA)
  def_forward<uintptr_t>(m, "rope_qkv_forward_cuda", "stream", [](const RopeQkvParams& p, uintptr_t stream) {
    return rope_qkv_forward_cuda(p, as_pointer(stream));
  });
  def_backward<uintptr_t>(m, "rope_qkv_backward_cuda", "stream", [](const RopeQkvParams& p, uintptr_t stream) {
    return rope_qkv_backward_cuda(p, as_pointer(stream));
  });
#endif
}

}  // namespace showo
