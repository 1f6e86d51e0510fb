// vq_encode on the GPU, in three launches: the codes' norms, scores on the tensor cores (vq_scores.cuh, which derives
// how far apart two scores must be to leave no doubt about the order of the two distances), and the decision. The ids
// are those of a plain search with fp32 sums of squared differences, formed in rising order of channels: distances of
// codes that the scores cannot tell apart are computed in that very way, and so is every row with numbers that the
// tensor cores cannot be trusted with (vq_scores.cuh says which). Deterministic.
//
// vq_prepare_kernel: a block of 128 threads per group of 32 codes, as many lanes per code as it has 16-byte chunks, 8
// at most. Reads the codebook once; writes a record of 288 bytes a group and, for fp32, four channels at a time as four
// high and four low halves in bf16, 16 bytes in the place of the 16 that they came from.
//
// vq_decide_kernel: a block of 256 threads per kTile rows. One thread per row joins the candidates of the splits: the
// largest threshold of all splits counts, and a single candidate is the answer. For several candidates the thread
// computes the exact distances, one after another. Rows with more candidates than were listed, or without a trustworthy
// candidate, are collected and compared with the whole codebook by all threads: in tiles of kTile rows and kTile codes,
// kDepth channels at a time, transposed in shared memory so that a thread reads its 4 rows and its 4 codes as one
// float4 each. Each thread keeps the best (distance, index) of its rows over its own codes; the 16 threads that share
// rows are half a warp and meet by shuffles at the end. Ties: lowest index. Reads 16 bytes per row and split, and the
// rows and codes whose exact distances are needed.
#include <cuda_runtime.h>

#include "codebook/params.h"
#include "codebook/vq_scores.h"
#include "common/cuda_check.h"
#include "common/floats.cuh"
#include "common/launch.h"
#include "common/ptx.cuh"

namespace showo {
namespace {

// --------------------------------------------------------------------------------------------------------- the norms

constexpr int kPrepareThreads = 128;

template <class T>
struct VqPrepareParams {
  const T* codebook;
  uint4* halves;  // [num_codes, chunks], fp32 only
  char* offsets;
  int64_t codebook_stride;
  int num_codes;
  int chunks;  // of a code
  int lanes;   // per code: a power of two
  float margin;
};

// Four channels as four high and four low halves: x is high + low but for 2^-18 of it.
__device__ inline uint4 split(const Chunk<float>& x) {
  float low[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) low[i] = x.element[i] - as_float(__nv_bfloat16(x.element[i]));
  return make_uint4(pack<__nv_bfloat16>(x.element[0], x.element[1]), pack<__nv_bfloat16>(x.element[2], x.element[3]),
                    pack<__nv_bfloat16>(low[0], low[1]), pack<__nv_bfloat16>(low[2], low[3]));
}

template <class T>
__global__ void __launch_bounds__(kPrepareThreads) vq_prepare_kernel(VqPrepareParams<T> p) {
  __shared__ float norms[kVqGroup];
  const int lane = threadIdx.x % p.lanes;
  const int first = static_cast<int>(blockIdx.x) * kVqGroup;
  for (int i = threadIdx.x / p.lanes; i < kVqGroup; i += kPrepareThreads / p.lanes) {
    const int code = first + i;
    float sum = code < p.num_codes ? 0.0f : INFINITY;
    for (int chunk = lane; code < p.num_codes && chunk < p.chunks; chunk += p.lanes) {
      const Chunk<T> x = load_chunk(p.codebook + code * p.codebook_stride, chunk);
#pragma unroll
      for (int e = 0; e < Chunk<T>::kCount; ++e) sum = fmaf(as_float(x.element[e]), as_float(x.element[e]), sum);
      if constexpr (sizeof(T) == 4) p.halves[static_cast<int64_t>(code) * p.chunks + chunk] = split(x);
    }
    for (int step = p.lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (lane == 0) norms[i] = sum;
  }
  __syncthreads();
  if (threadIdx.x >= kVqGroup) return;

  const float norm = norms[threadIdx.x];
  const bool ordinary = norm <= kVqLargestNorm;
  const float offset = ordinary ? -(0.5f - p.margin) * norm : -INFINITY;
  float reach = ordinary ? 2 * p.margin * norm : 0.0f;
#pragma unroll
  for (int step = 16; step > 0; step /= 2) reach = fmaxf(reach, __shfl_xor_sync(kAllLanes, reach, step));
  const float even = __shfl_sync(kAllLanes, offset, 2 * threadIdx.x),
              odd = __shfl_sync(kAllLanes, offset, 2 * threadIdx.x + 1);
  float4* record = reinterpret_cast<float4*>(p.offsets + static_cast<int64_t>(blockIdx.x) * kVqGroupBytes);
  if (threadIdx.x < kVqGroupBytes / 16)
    record[threadIdx.x] = threadIdx.x < 16 ? make_float4(even, odd, even, odd) : make_float4(reach, 0.0f, 0.0f, 0.0f);
}

// ------------------------------------------------------------------------------------------------------ the decision

constexpr int kTile = 64;   // rows of z, and codes, per tile
constexpr int kDepth = 16;  // channels in shared memory at a time
constexpr int kPerThread = 4;
constexpr int kThreadsPerSide = kTile / kPerThread;
constexpr int kDecideThreads = kThreadsPerSide * kThreadsPerSide;
constexpr int kRowStride = kTile + 4;  // keeps float4 alignment; four channels later is another bank group
constexpr int kAll = -1;               // in the place of an id: compare with the whole codebook

template <class T>
struct VqDecideParams {
  const T* z;
  const T* codebook;
  int64_t* ids;
  const float4* tops;
  const int4* candidates;
  int64_t num_rows;
  int64_t z_stride;
  int64_t codebook_stride;
  int64_t dim;
  int num_codes;
  int splits;
};

__device__ inline bool is_better(float distance, int index, float other_distance, int other_index) {
  return distance < other_distance || (distance == other_distance && index < other_index);
}

// The distance of the definition.
template <class T>
__device__ inline float distance(const T* z, const T* code, int64_t dim) {
  float sum = 0.0f;
  for (int64_t chunk = 0; chunk < dim / Chunk<T>::kCount; ++chunk) {
    const Chunk<T> x = load_chunk(z, chunk), c = load_chunk(code, chunk);
#pragma unroll
    for (int e = 0; e < Chunk<T>::kCount; ++e) {
      const float difference = as_float(x.element[e]) - as_float(c.element[e]);
      sum = fmaf(difference, difference, sum);
    }
  }
  return sum;
}

// The row's id, or kAll.
template <class T>
__device__ inline int decide(const VqDecideParams<T>& p, int64_t row) {
  float threshold = -INFINITY, best = -INFINITY;
  for (int split = 0; split < p.splits; ++split) {
    const float4 top = p.tops[split * p.num_rows + row];
    threshold = fmaxf(threshold, top.x);
    best = fmaxf(best, top.y);
  }
  // `best > threshold` fails for a row whose own norm the tensor cores cannot be trusted with: its threshold is
  // infinite. A best score below -kVqLargestNorm / 64 is no proof: a code whose norm is too large, and whose score is
  // therefore -inf, may be nearer.
  if (!(best > threshold && best >= -kVqLargestNorm / 64)) return kAll;

  int count = 0, only = 0;
  for (int split = 0; split < p.splits; ++split) {
    const float4 top = p.tops[split * p.num_rows + row];
    const int here = __float_as_int(top.z);
    if (!(top.y > threshold)) continue;
    if (here > kVqListed) return kAll;
    count += here;
    only = p.candidates[split * p.num_rows + row].x;
  }
  if (count == 1) return only;

  float least = INFINITY;
  int id = 0;
  for (int split = 0; split < p.splits; ++split) {
    const float4 top = p.tops[split * p.num_rows + row];
    if (!(top.y > threshold)) continue;
    const int4 listed = p.candidates[split * p.num_rows + row];
    const int here = __float_as_int(top.z);
    for (int i = 0; i < here; ++i) {
      const int code = i == 0 ? listed.x : i == 1 ? listed.y : i == 2 ? listed.z : listed.w;
      const float d = distance(p.z + row * p.z_stride, p.codebook + code * p.codebook_stride, p.dim);
      if (is_better(d, code, least, id)) least = d, id = code;
    }
  }
  return id;
}

// Where row i of a tile lies in the line of a channel. Lines of channels d and d + 8 use different halves of the banks.
template <class T>
__device__ inline int place(int i, int channel) {
  return i ^ (channel / 8 * 2 * Chunk<T>::kCount);
}

// Copies channels [d0, d0 + kDepth) of kTile rows into shared memory, transposed; `outside` stands for missing rows,
// and missing channels are 0 on both sides, so that they add nothing. index(i): where row i of the tile is, or -1.
template <class T, class Index>
__device__ inline void load_tile(float (&shared)[kDepth][kRowStride], const T* source, int64_t stride, Index index,
                                 int64_t d0, int64_t dim, float outside) {
  constexpr int kCount = Chunk<T>::kCount, kChunks = kDepth / kCount;
  if (threadIdx.x >= kTile * kChunks) return;
  static_assert(kTile * kChunks <= kDecideThreads, "one chunk a thread");
  const int i = threadIdx.x / kChunks, d = threadIdx.x % kChunks * kCount;
  const int64_t row = index(i);
  const bool exists = row >= 0 && d0 + d < dim;
  const Chunk<T> chunk = load_chunk(source + (exists ? row * stride + d0 + d : 0), 0);
  const float otherwise = row >= 0 ? 0.0f : outside;
#pragma unroll
  for (int e = 0; e < kCount; ++e) shared[d + e][place<T>(i, d + e)] = exists ? as_float(chunk.element[e]) : otherwise;
}

template <class T>
__global__ void __launch_bounds__(kDecideThreads, 2) vq_decide_kernel(VqDecideParams<T> p) {
  __shared__ alignas(16) float z_tile[kDepth][kRowStride];
  __shared__ alignas(16) float code_tile[kDepth][kRowStride];
  __shared__ int open[kTile];             // rows to compare with the whole codebook
  __shared__ uint32_t marks[kTile / 32];  // the same as bits
  const int64_t first_row = static_cast<int64_t>(blockIdx.x) * kTile;
  if (threadIdx.x < kTile) {
    const int64_t row = first_row + threadIdx.x;
    const int id = row < p.num_rows ? decide(p, row) : 0;
    if (row < p.num_rows && id != kAll) p.ids[row] = id;
    const uint32_t mark = __ballot_sync(kAllLanes, id == kAll);
    if (threadIdx.x % 32 == 0) marks[threadIdx.x / 32] = mark;
  }
  __syncthreads();
  const int num_open = __popc(marks[0]) + __popc(marks[1]);
  if (num_open == 0) return;
  if (threadIdx.x < kTile && marks[threadIdx.x / 32] >> threadIdx.x % 32 & 1) {
    const int before = __popc(marks[threadIdx.x / 32] & ((1u << threadIdx.x % 32) - 1));
    open[before + (threadIdx.x >= 32 ? __popc(marks[0]) : 0)] = static_cast<int>(threadIdx.x);
  }
  __syncthreads();

  const int row_group = threadIdx.x / kThreadsPerSide;   // my rows: row_group * 4 + 0..3 of the open ones
  const int code_group = threadIdx.x % kThreadsPerSide;  // my codes of each tile: code_group * 4 + 0..3
  const auto open_row = [&](int i) -> int64_t { return i < num_open ? first_row + open[i] : -1; };

  float best[kPerThread];
  int best_code[kPerThread];
#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
    best[r] = INFINITY;
    best_code[r] = 0;
  }

  for (int64_t first_code = 0; first_code < p.num_codes; first_code += kTile) {
    float sum[kPerThread][kPerThread] = {};
    for (int64_t d0 = 0; d0 < p.dim; d0 += kDepth) {
      __syncthreads();  // the previous tiles have been read
      load_tile(z_tile, p.z, p.z_stride, open_row, d0, p.dim, 0.0f);
      // A missing code is NaN: its distance never wins.
      load_tile(
          code_tile, p.codebook, p.codebook_stride,
          [&](int i) -> int64_t { return first_code + i < p.num_codes ? first_code + i : -1; }, d0, p.dim, NAN);
      __syncthreads();
      if (row_group * kPerThread >= num_open) continue;
#pragma unroll
      for (int d = 0; d < kDepth; ++d) {
        const float4 z = *reinterpret_cast<const float4*>(&z_tile[d][place<T>(row_group * kPerThread, d)]);
        const float4 c = *reinterpret_cast<const float4*>(&code_tile[d][place<T>(code_group * kPerThread, d)]);
        const float z_value[kPerThread] = {z.x, z.y, z.z, z.w};
        const float c_value[kPerThread] = {c.x, c.y, c.z, c.w};
#pragma unroll
        for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
          for (int k = 0; k < kPerThread; ++k) {
            const float difference = z_value[r] - c_value[k];
            sum[r][k] = fmaf(difference, difference, sum[r][k]);
          }
        }
      }
    }
    // Codes rise with k and with the tile, so "less than" alone keeps the lowest index of a tie.
#pragma unroll
    for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
      for (int k = 0; k < kPerThread; ++k) {
        if (sum[r][k] < best[r]) {
          best[r] = sum[r][k];
          best_code[r] = static_cast<int>(first_code) + code_group * kPerThread + k;
        }
      }
    }
  }

#pragma unroll
  for (int r = 0; r < kPerThread; ++r) {
#pragma unroll
    for (int step = kThreadsPerSide / 2; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(kAllLanes, best[r], step);
      const int other_code = __shfl_xor_sync(kAllLanes, best_code[r], step);
      if (is_better(other, other_code, best[r], best_code[r])) {
        best[r] = other;
        best_code[r] = other_code;
      }
    }
    const int i = row_group * kPerThread + r;
    if (code_group == 0 && i < num_open) p.ids[first_row + open[i]] = best_code[r];
  }
}

// ---------------------------------------------------------------------------------------------------------- launchers

template <class T>
Status launch_prepare(const VqEncodeParams& p, const VqPlan& plan, float margin, cudaStream_t stream) {
  VqPrepareParams<T> prepare{};
  prepare.codebook = static_cast<const T*>(p.codebook);
  prepare.halves = reinterpret_cast<uint4*>(p.halves);
  prepare.offsets = reinterpret_cast<char*>(p.offsets);
  prepare.codebook_stride = p.codebook_stride;
  prepare.num_codes = static_cast<int>(p.num_codes);
  prepare.chunks = static_cast<int>(p.dim / Chunk<T>::kCount);
  prepare.lanes = 1;
  while (prepare.lanes < prepare.chunks && prepare.lanes < 8) prepare.lanes *= 2;
  prepare.margin = margin;
  vq_prepare_kernel<T><<<static_cast<unsigned>(plan.groups), kPrepareThreads, 0, stream>>>(prepare);
  return check_launch("vq_prepare_kernel");
}

template <class T>
Status launch_decide(const VqEncodeParams& p, const VqPlan& plan, cudaStream_t stream) {
  VqDecideParams<T> decide{};
  decide.z = static_cast<const T*>(p.z);
  decide.codebook = static_cast<const T*>(p.codebook);
  decide.ids = p.ids;
  decide.tops = reinterpret_cast<const float4*>(p.tops);
  decide.candidates = reinterpret_cast<const int4*>(p.candidates);
  decide.num_rows = p.num_rows;
  decide.z_stride = p.z_stride;
  decide.codebook_stride = p.codebook_stride;
  decide.dim = p.dim;
  decide.num_codes = static_cast<int>(p.num_codes);
  decide.splits = static_cast<int>(plan.splits);
  vq_decide_kernel<T><<<static_cast<unsigned>(ceil_div(p.num_rows, kTile)), kDecideThreads, 0, stream>>>(decide);
  return check_launch("vq_decide_kernel");
}

using ScoresLauncher = Status (*)(const VqScoreParams&, const VqPlan&, int64_t, cudaStream_t);

template <class T>
Status launch_encode(const VqEncodeParams& p, ScoresLauncher scores_launcher, cudaStream_t stream) {
  constexpr int64_t kCount = Chunk<T>::kCount;
  SHOWO_CHECK_ARGUMENT(p.dim % kCount == 0 && p.z_stride % kCount == 0 && p.codebook_stride % kCount == 0 &&
                           is_aligned(p.z, 16) && is_aligned(p.codebook, 16),
                       "vq_encode: rows must be whole, aligned units of 16 bytes");
  const VqPlan plan = vq_encode_plan(p.num_rows, p.num_codes, p.dim, p.dtype);
  SHOWO_CHECK_ARGUMENT(ceil_div(p.num_rows, kTile) <= kMaxGridX, "vq_encode: %lld rows are too many for one launch",
                       static_cast<long long>(p.num_rows));
  // The bound of vq_scores.cuh counts roundings to first order.
  SHOWO_CHECK_ARGUMENT(p.dim <= 1 << 18, "codebook has entries of %lld numbers, expected at most 2^18",
                       static_cast<long long>(p.dim));
  const int64_t padded_dim = vq_encode_padded_dim(p.dim, p.dtype);
  const float margin = vq_encode_margin(p.dim, padded_dim, p.dtype);
  SHOWO_RETURN_IF_ERROR(launch_prepare<T>(p, plan, margin, stream));

  VqScoreParams scores{};
  scores.z = static_cast<const char*>(p.z);
  scores.codes = static_cast<const char*>(sizeof(T) == 4 ? static_cast<const void*>(p.halves) : p.codebook);
  scores.offsets = reinterpret_cast<const char*>(p.offsets);
  scores.tops = reinterpret_cast<float4*>(p.tops);
  scores.candidates = reinterpret_cast<int4*>(p.candidates);
  scores.num_rows = p.num_rows;
  scores.z_stride = p.z_stride * static_cast<int64_t>(sizeof(T));
  scores.codes_stride = (sizeof(T) == 4 ? p.dim : p.codebook_stride) * static_cast<int64_t>(sizeof(T));
  scores.num_codes = static_cast<int>(p.num_codes);
  scores.codes_per_split = static_cast<int>(plan.codes_per_split);
  scores.chunks = static_cast<int>(p.dim / kCount);
  scores.slices = static_cast<int>(ceil_div(scores.chunks, 8));
  scores.margin = margin;
  scores.least = static_cast<float>(padded_dim) * 0x1p-121f;
  SHOWO_RETURN_IF_ERROR(scores_launcher(scores, plan, padded_dim, stream));
  return launch_decide<T>(p, plan, stream);
}

}  // namespace

Status vq_encode_cuda(const VqEncodeParams& p, void* stream) {
  SHOWO_CHECK_ARGUMENT(p.num_codes >= 1 && p.num_codes < 0x7fffff00,
                       "codebook has %lld entries, expected 1 to 2^31 - 257", static_cast<long long>(p.num_codes));
  SHOWO_CHECK_ARGUMENT(p.dim >= 1, "codebook has entries of %lld numbers, expected at least 1",
                       static_cast<long long>(p.dim));
  if (p.num_rows <= 0) return ok_status();
  const cudaStream_t s = static_cast<cudaStream_t>(stream);
  switch (p.dtype) {
    case DType::kF32:
      return launch_encode<float>(p, vq_scores_f32, s);
    case DType::kF16:
      return launch_encode<__half>(p, vq_scores_f16, s);
    case DType::kBF16:
      return launch_encode<__nv_bfloat16>(p, vq_scores_bf16, s);
    default:
      return invalid_argument("vq_encode: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

}  // namespace showo
