// The running bound of a row's scores in fp32: what the forward and the decode kernel do with new scores of a row.
#pragma once

#include "common/ptx.cuh"
#include "omni_attention/forward_tile.cuh"

namespace showo {

// Raises the bound of a row, which eight neighbouring lanes share, where a score has outgrown it, and scales the row's
// sums down to the new bound. top: the lane's largest new score. bound: minus a score, as the scores yet to be scaled.
template <int D>
__device__ __forceinline__ void raise_bound(float top, float scale, float& bound, float& sum, float (&out)[D / 32][4]) {
#pragma unroll
  for (int distance = 1; distance < 8; distance *= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, distance));
  if ((top + bound) * scale > kMaxGrowth) {
    const float keep = exp2_approx((-bound - top) * scale);
    bound = -top;
    sum *= keep;
#pragma unroll
    for (int c = 0; c < D / 32; ++c)
#pragma unroll
      for (int e = 0; e < 4; ++e) out[c][e] *= keep;
  }
}

}  // namespace showo
