// c[m, n] = sum over k of a[m, k] b[n, k]: bf16 in, fp32 out. 64x64 tiles, 32 deep, four warps of 32x32, two cp.async
// stages. A row of a tile is four 16-byte chunks; the swizzle puts chunk c of row r at c ^ (r / 2 % 4), which spreads
// the eight rows of an ldmatrix over all banks. Without it they fall on two of eight bank groups: four wavefronts.
#include "ptx.cuh"

constexpr int kTile = 64, kDepth = 32, kChunks = kDepth / 8;

// Planted faults, one at a time: what the emulator must find.
#ifndef FAULT
#define FAULT 0
#endif
enum { kNoWait = 1, kNoBarrier = 2, kNoSecondBarrier = 3 };

template <bool kSwizzle>
__device__ __nv_bfloat16* chunk_at(__nv_bfloat16* tile, int row, int chunk) {
  return tile + row * kDepth + (kSwizzle ? chunk ^ (row / 2 % 4) : chunk) * 8;
}

template <bool kSwizzle>
__device__ void gemm(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int m, int n, int k) {
  __shared__ __align__(128) __nv_bfloat16 tiles[2][2][kTile * kDepth];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_row = blockIdx.y * kTile, first_column = blockIdx.x * kTile;
  const auto fetch = [&](int stage, int depth) {
    for (int i = threadIdx.x; i < kTile * kChunks; i += blockDim.x) {
      const int row = i / kChunks, chunk = i % kChunks;
      cp_async16(chunk_at<kSwizzle>(tiles[stage][0], row, chunk), a + (first_row + row) * k + depth + chunk * 8);
      cp_async16(chunk_at<kSwizzle>(tiles[stage][1], row, chunk), b + (first_column + row) * k + depth + chunk * 8);
    }
    cp_async_commit();
  };
  float sum[2][4][4] = {};
  fetch(0, 0);
  for (int step = 0; step < k / kDepth; ++step) {
    if (step + 1 < k / kDepth) {
      fetch((step + 1) % 2, (step + 1) * kDepth);
      if (FAULT != kNoWait) cp_async_wait<1>();
    } else if (FAULT != kNoWait) {
      cp_async_wait<0>();
    }
    if (FAULT != kNoBarrier) __syncthreads();
    for (int kk = 0; kk < kDepth / 16; ++kk) {
      uint32_t fa[2][4], fb[2][4];
      for (int i = 0; i < 2; ++i) {
        ldmatrix_x4(fa[i],
                    chunk_at<kSwizzle>(tiles[step % 2][0], warp / 2 * 32 + i * 16 + lane % 16, kk * 2 + lane / 16));
        ldmatrix_x4(fb[i],
                    chunk_at<kSwizzle>(tiles[step % 2][1], warp % 2 * 32 + i * 16 + lane % 16, kk * 2 + lane / 16));
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) mma_bf16(sum[i][j], fa[i], fb[j / 2][j % 2], fb[j / 2][j % 2 + 2]);
      }
    }
    if (FAULT != kNoSecondBarrier) __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int row = first_row + warp / 2 * 32 + i * 16 + lane / 4,
                column = first_column + warp % 2 * 32 + j * 8 + lane % 4 * 2;
      *reinterpret_cast<float2*>(c + row * n + column) = make_float2(sum[i][j][0], sum[i][j][1]);
      *reinterpret_cast<float2*>(c + (row + 8) * n + column) = make_float2(sum[i][j][2], sum[i][j][3]);
    }
  }
}

extern "C" __global__ void __launch_bounds__(128)
    gemm_swizzled(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int m, int n, int k) {
  gemm<true>(c, a, b, m, n, k);
}
extern "C" __global__ void __launch_bounds__(128)
    gemm_plain(float* c, const __nv_bfloat16* a, const __nv_bfloat16* b, int m, int n, int k) {
  gemm<false>(c, a, b, m, n, k);
}
