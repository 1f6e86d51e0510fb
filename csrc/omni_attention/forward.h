// The forward and decode kernels of each dtype, in files of their own so that they compile side by side; `forward.cu`
// and `decode.cu` check the parameters and call them.
#pragma once

#include <cuda_runtime_api.h>

#include "omni_attention/params.h"

namespace showo {

Status omni_forward_f16(const OmniForwardParams& params, cudaStream_t stream);
Status omni_forward_bf16(const OmniForwardParams& params, cudaStream_t stream);
Status omni_forward_f32(const OmniForwardParams& params, cudaStream_t stream);
Status omni_decode_f32(const OmniDecodeParams& params, cudaStream_t stream);

// The same with strides in units of 16 bits, of which fp32 rows have 2 D: copies are the same for all dtypes then.
template <class Params>
Params in_halves(Params p) {
  for (OmniStrides* s : {&p.in.q_strides, &p.in.k_strides, &p.in.v_strides, &p.out_strides})
    *s = {2 * s->batch, 2 * s->head, 2 * s->row};
  return p;
}

}  // namespace showo
