// Nearest codebook entry, and lookup with its gradient, on the CPU.
//
// vq_encode sums (z - c)^2 directly instead of expanding it to |z|^2 - 2 z.c + |c|^2: no cancellation, so the answer is
// the nearest entry to float rounding even when the entries lie close together and far from the origin. The codebook is
// transposed once into blocks of kBlock codes, [block][dim][kBlock], so that one vector holds the same channel of
// neighbouring codes; kRows rows of z share each loaded vector, and the best distance and index stay in registers.
#include <cstdlib>
#include <cstring>

#include "codebook/params.h"
#include "common/dispatch.h"
#include "common/parallel.h"
#include "common/simd.h"

namespace showo {
namespace SHOWO_ISA {
namespace {

constexpr int kVectors = 2;                 // vectors of codes in a block
constexpr int kBlock = kVectors * kLanes;   // codes in a block; divides 32
constexpr int kRows = 4;                    // rows of z worked on together
constexpr int64_t kMaxTileRows = 64;        // rows of z per task
constexpr int64_t kCopyTaskSize = 1 << 16;  // bytes per task of a lookup
constexpr int32_t kNoIndex = 0x7fffffff;
static_assert(32 % kBlock == 0, "the workspace is sized for blocks that divide 32 codes");

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T>
void pack_block(const VqEncodeParams& p, int64_t block) {
  const T* codebook = static_cast<const T*>(p.codebook);
  float* packed = p.workspace + block * kBlock * p.dim;
  for (int64_t i = 0; i < kBlock; ++i) {
    const int64_t code = block * kBlock + i;
    for (int64_t d = 0; d < p.dim; ++d) {
      // Places after the last code hold NaN: such a distance never wins.
      packed[d * kBlock + i] =
          code < p.num_codes ? to_float(codebook[code * p.codebook_stride + d]) : float_of(0x7fc00000u);
    }
  }
}

struct Best {
  VecF distance[kRows][kVectors];
  VecI index[kRows][kVectors];
};

// Distances of kRows rows (contiguous floats, `dim` apart) to the kBlock codes of one packed block.
SHOWO_INLINE void visit_block(const float* rows, const float* packed, int64_t dim, int32_t first_code, Best& best) {
  VecF sum[kRows][kVectors] = {};
  for (int64_t d = 0; d < dim; ++d) {
    for (int v = 0; v < kVectors; ++v) {
      const VecF code = load(packed + d * kBlock + v * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const VecF difference = code - rows[r * dim + d];
        sum[r][v] += difference * difference;
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVectors; ++v) {
      const VecI closer = sum[r][v] < best.distance[r][v];
      best.distance[r][v] = select(closer, sum[r][v], best.distance[r][v]);
      best.index[r][v] = select(closer, set1(first_code + v * kLanes), best.index[r][v]);
    }
  }
}

// The nearest code of all lanes: a lane's nearest code is its index plus the lane's number. Ties: lowest code.
inline int64_t winner(const VecF* distance, const VecI* index) {
  float best = 0.0f;
  int32_t best_code = kNoIndex;
  for (int v = 0; v < kVectors; ++v) {
    for (int lane = 0; lane < kLanes; ++lane) {
      if (index[v][lane] == kNoIndex) continue;
      const int32_t code = index[v][lane] + lane;
      const float d = distance[v][lane];
      if (best_code == kNoIndex || d < best || (d == best && code < best_code)) {
        best = d;
        best_code = code;
      }
    }
  }
  return best_code == kNoIndex ? 0 : best_code;
}

// Nearest codes of rows [begin, end); `rows` has room for kMaxTileRows x dim floats and `best` for their state.
template <class T>
void encode_rows(const VqEncodeParams& p, int64_t begin, int64_t end, float* rows, Best* best) {
  const int64_t groups = ceil_div(end - begin, kRows);
  for (int64_t i = 0; i < groups * kRows; ++i) {
    const int64_t row = begin + i < end ? begin + i : end - 1;  // the last group repeats the last row
    const T* z = static_cast<const T*>(p.z) + row * p.z_stride;
    for (int64_t d = 0; d < p.dim; ++d) rows[i * p.dim + d] = to_float(z[d]);
  }
  for (int64_t group = 0; group < groups; ++group) {
    for (int r = 0; r < kRows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        best[group].distance[r][v] = set1(__builtin_inff());
        best[group].index[r][v] = set1(kNoIndex);
      }
    }
  }
  const int64_t num_blocks = ceil_div(p.num_codes, kBlock);
  for (int64_t block = 0; block < num_blocks; ++block) {
    const float* packed = p.workspace + block * kBlock * p.dim;
    for (int64_t group = 0; group < groups; ++group) {
      visit_block(rows + group * kRows * p.dim, packed, p.dim, static_cast<int32_t>(block * kBlock), best[group]);
    }
  }
  for (int64_t row = begin; row < end; ++row) {
    const Best& state = best[(row - begin) / kRows];
    const int64_t r = (row - begin) % kRows;
    p.ids[row] = winner(state.distance[r], state.index[r]);
  }
}

template <class T>
Status encode(const VqEncodeParams& p, int num_threads) {
  const int64_t num_blocks = ceil_div(p.num_codes, kBlock);
  const int64_t blocks_per_task = (1 << 14) / (kBlock * p.dim) + 1;
  parallel_for(ceil_div(num_blocks, blocks_per_task), num_threads, [&](int64_t task) {
    for (int64_t i = 0; i < blocks_per_task && task * blocks_per_task + i < num_blocks; ++i) {
      pack_block<T>(p, task * blocks_per_task + i);
    }
  });

  // Enough tasks for every thread to get several, in whole groups of rows.
  int64_t tile = ceil_div(ceil_div(p.num_rows, 4 * (num_threads > 0 ? num_threads : 1)), kRows) * kRows;
  if (tile > kMaxTileRows) tile = kMaxTileRows;
  bool out_of_memory = false;
  parallel_for(ceil_div(p.num_rows, tile), num_threads, [&](int64_t task) {
    const int64_t begin = task * tile;
    const int64_t end = begin + tile < p.num_rows ? begin + tile : p.num_rows;
    const size_t best_bytes = static_cast<size_t>(tile / kRows) * sizeof(Best);
    void* memory = nullptr;
    if (posix_memalign(&memory, 64, best_bytes + static_cast<size_t>(tile * p.dim) * sizeof(float)) != 0) {
      __atomic_store_n(&out_of_memory, true, __ATOMIC_RELAXED);
      return;
    }
    encode_rows<T>(p, begin, end, reinterpret_cast<float*>(static_cast<char*>(memory) + best_bytes),
                   static_cast<Best*>(memory));
    std::free(memory);
  });
  return out_of_memory ? unsupported("vq_encode: out of memory") : ok_status();
}

Status id_out_of_range(const CodebookLookupParams& p, int64_t row) {
  return invalid_argument("ids has %lld at flat position %lld, expected values in [0, %lld)",
                          static_cast<long long>(p.ids[row]), static_cast<long long>(row),
                          static_cast<long long>(p.num_codes));
}

template <class T>
Status lookup(const CodebookLookupParams& p, int num_threads) {
  const T* codebook = static_cast<const T*>(p.codebook);
  T* out = static_cast<T*>(p.out);
  const size_t row_bytes = static_cast<size_t>(p.dim) * sizeof(T);
  const int64_t rows_per_task = kCopyTaskSize / static_cast<int64_t>(row_bytes) + 1;
  int64_t bad_row = -1;
  parallel_for(ceil_div(p.num_rows, rows_per_task), num_threads, [&](int64_t task) {
    const int64_t end = (task + 1) * rows_per_task < p.num_rows ? (task + 1) * rows_per_task : p.num_rows;
    for (int64_t row = task * rows_per_task; row < end; ++row) {
      const int64_t id = p.ids[row];
      if (id < 0 || id >= p.num_codes) {
        __atomic_store_n(&bad_row, row, __ATOMIC_RELAXED);
        return;
      }
      std::memcpy(out + row * p.dim, codebook + id * p.codebook_stride, row_bytes);
    }
  });
  return bad_row < 0 ? ok_status() : id_out_of_range(p, bad_row);
}

template <class T>
Status lookup_backward(const CodebookLookupParams& p, int num_threads) {
  for (int64_t row = 0; row < p.num_rows; ++row) {
    if (p.ids[row] < 0 || p.ids[row] >= p.num_codes) return id_out_of_range(p, row);
  }
  const T* grad = static_cast<const T*>(p.grad);
  float* sums = p.dtype == DType::kF32 ? static_cast<float*>(p.grad_codebook) : p.workspace;
  // A task owns every num_tasks-th entry, so that no two tasks add to the same place.
  const int64_t num_tasks = num_threads < 1 ? 1 : num_threads;
  parallel_for(num_tasks, num_threads, [&](int64_t task) {
    for (int64_t code = task; code < p.num_codes; code += num_tasks) {
      std::memset(sums + code * p.dim, 0, static_cast<size_t>(p.dim) * sizeof(float));
    }
    for (int64_t row = 0; row < p.num_rows; ++row) {
      const int64_t code = p.ids[row];
      if (code % num_tasks != task) continue;
      const T* from = grad + row * p.grad_stride;
      float* to = sums + code * p.dim;
      for (int64_t d = 0; d < p.dim; ++d) to[d] += to_float(from[d]);
    }
    if (p.dtype == DType::kF32) return;
    T* out = static_cast<T*>(p.grad_codebook);
    for (int64_t code = task; code < p.num_codes; code += num_tasks) {
      for (int64_t d = 0; d < p.dim; ++d) store_float(out + code * p.dim + d, sums[code * p.dim + d]);
    }
  });
  return ok_status();
}

}  // namespace

Status vq_encode_cpu(const VqEncodeParams& p, int num_threads) {
  SHOWO_CHECK_ARGUMENT(p.num_codes >= 1 && p.num_codes < kNoIndex, "codebook has %lld entries, expected 1 to 2^31 - 2",
                       static_cast<long long>(p.num_codes));
  SHOWO_CHECK_ARGUMENT(p.dim >= 1, "codebook has entries of %lld numbers, expected at least 1",
                       static_cast<long long>(p.dim));
  if (p.num_rows <= 0) return ok_status();
  switch (p.dtype) {
    case DType::kF32:
      return encode<float>(p, num_threads);
    case DType::kF16:
      return encode<Half>(p, num_threads);
    case DType::kBF16:
      return encode<BFloat16>(p, num_threads);
    default:
      return invalid_argument("vq_encode: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

Status codebook_lookup_forward_cpu(const CodebookLookupParams& p, int num_threads) {
  if (p.num_rows <= 0 || p.dim <= 0) return ok_status();
  switch (p.dtype) {
    case DType::kF32:
      return lookup<float>(p, num_threads);
    case DType::kF16:
      return lookup<Half>(p, num_threads);
    case DType::kBF16:
      return lookup<BFloat16>(p, num_threads);
    default:
      return invalid_argument("codebook_lookup: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

Status codebook_lookup_backward_cpu(const CodebookLookupParams& p, int num_threads) {
  if (p.num_codes <= 0 || p.dim <= 0) return ok_status();
  switch (p.dtype) {
    case DType::kF32:
      return lookup_backward<float>(p, num_threads);
    case DType::kF16:
      return lookup_backward<Half>(p, num_threads);
    case DType::kBF16:
      return lookup_backward<BFloat16>(p, num_threads);
    default:
      return invalid_argument("codebook_lookup: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

}  // namespace SHOWO_ISA

SHOWO_CPU_LAUNCHER(vq_encode_cpu, VqEncodeParams)
SHOWO_CPU_LAUNCHER(codebook_lookup_forward_cpu, CodebookLookupParams)
SHOWO_CPU_LAUNCHER(codebook_lookup_backward_cpu, CodebookLookupParams)

}  // namespace showo
