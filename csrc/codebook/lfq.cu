// Lookup-free quantization on the GPU, straight from and to [batch, bits, height, width].
//
// One thread owns kVector neighbouring positions and walks over the bits: each step is one 16-byte access per thread,
// contiguous across the warp. Ids are moved in pieces of 16 bytes, by two lanes together, so that every access meets
// whole sectors: each element of z and ids crosses the bus once. Where strides, sizes or addresses do not allow
// 16 bytes, the same kernel runs with kVector = 1. Signs are tested on the bits of the numbers: positive means
// 0 < bits <= infinity as a signed integer, which is false for NaN, both zeros and everything negative.
#include <cuda_runtime.h>

#include "codebook/params.h"
#include "common/cuda_check.h"
#include "common/launch.h"
#include "common/ptx.cuh"

namespace showo {
namespace {

constexpr int kThreads = 128;

struct F32Bits {
  using Word = int32_t;
  static constexpr Word kInfinity = 0x7f800000;
  static constexpr Word kPlusOne = 0x3f800000;
  static constexpr Word kMinusOne = static_cast<Word>(0xbf800000u);
  static constexpr Word kNan = 0x7fc00000;
};
struct F16Bits {
  using Word = int16_t;
  static constexpr Word kInfinity = 0x7c00;
  static constexpr Word kPlusOne = 0x3c00;
  static constexpr Word kMinusOne = static_cast<Word>(0xbc00u);
  static constexpr Word kNan = 0x7e00;
};
struct BF16Bits {
  using Word = int16_t;
  static constexpr Word kInfinity = 0x7f80;
  static constexpr Word kPlusOne = 0x3f80;
  static constexpr Word kMinusOne = static_cast<Word>(0xbf80u);
  static constexpr Word kNan = 0x7fc0;
};

template <class Word, int kVector>
struct alignas(sizeof(Word) * kVector) Pack {
  Word value[kVector];
};

// z seen as [batch * rows] runs of `length` positions with one stride; height and width are one run where possible.
struct Geometry {
  int64_t rows;
  int64_t length;
  int64_t stride_row;
  int64_t num_packs;  // over the whole tensor
};

// Offset in z of the first of a pack's `vector` positions. In ids that position has the index pack * vector.
__device__ inline int64_t locate(const LfqParams& p, const Geometry& g, int64_t pack, int vector) {
  const int64_t first = pack * vector;  // a run holds whole packs: no pack crosses the end of a run
  const int64_t run = first / g.length;
  const int64_t column = first - run * g.length;
  return run / g.rows * p.stride_batch + run % g.rows * g.stride_row + column * p.stride_column;
}

// A piece is two neighbouring ids, 16 bytes. An even lane and the odd lane after it hold the kVector / 2 pieces of one
// pack each. The exchange gives the even lane the even-numbered pieces of both packs, and the odd lane the odd-numbered
// pieces of both: for every even i, piece i + 1 of the even lane changes places with piece i of the odd lane. The two
// lanes then access 32 contiguous bytes of ids at a time. A second exchange restores the packs.
template <class Id, int kVector>
__device__ inline void exchange_pieces(Id (&code)[kVector]) {
  const bool odd = threadIdx.x % 2 != 0;
#pragma unroll
  for (int i = 0; i < kVector; i += 4) {
#pragma unroll
    for (int k = i; k < i + 2; ++k) {
      const Id other = __shfl_xor_sync(kAllLanes, odd ? code[k] : code[k + 2], 1);
      code[k] = odd ? other : code[k];
      code[k + 2] = odd ? code[k + 2] : other;
    }
  }
}

// Calls move(index, i) for each piece that the lane has after `exchange_pieces`: the ids code[i] and code[i + 1] belong
// at ids[index] and ids[index + 1].
template <int kVector, class Move>
__device__ inline void each_piece(int64_t pack, int64_t num_packs, Move&& move) {
  const int odd = static_cast<int>(pack % 2);
#pragma unroll
  for (int i = 0; i < kVector; i += 2) {
    const int64_t owner = pack - odd + i / 2 % 2;  // the pack that the piece belongs to
    if (owner < num_packs) move(owner * kVector + i / 4 * 4 + 2 * odd, i);
  }
}

template <class Bits, class Id, int kVector>
__global__ void __launch_bounds__(kThreads) lfq_encode_kernel(LfqParams p, Geometry g) {
  using Word = typename Bits::Word;
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool exists = pack < g.num_packs;
  if (!__any_sync(kAllLanes, exists)) return;
  const Word* z = static_cast<const Word*>(p.z) + locate(p, g, exists ? pack : g.num_packs - 1, kVector);
  Id code[kVector] = {};
#pragma unroll 4
  for (int64_t bit = 0; bit < p.bits; ++bit, z += p.stride_bit) {
    const auto values = *reinterpret_cast<const Pack<Word, kVector>*>(z);
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      code[i] = code[i] * 2 + static_cast<Id>(values.value[i] > 0 && values.value[i] <= Bits::kInfinity);
    }
  }
  const auto id = [&](int i) { return static_cast<int64_t>(code[i]) + p.offset; };
  if constexpr (kVector == 1) {
    if (exists) p.ids[pack] = id(0);
  } else {
    exchange_pieces(code);
    each_piece<kVector>(pack, g.num_packs, [&](int64_t index, int i) {
      // In assembly, because nvcc splits this 16-byte store in two.
      asm volatile("st.global.v2.b64 [%0], {%1, %2};" ::"l"(p.ids + index), "l"(id(i)), "l"(id(i + 1)) : "memory");
    });
  }
}

template <class Bits, int kVector>
__global__ void __launch_bounds__(kThreads) lfq_decode_kernel(LfqParams p, Geometry g) {
  using Word = typename Bits::Word;
  const int64_t pack = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool exists = pack < g.num_packs;
  if (!__any_sync(kAllLanes, exists)) return;
  uint64_t code[kVector] = {};
  if constexpr (kVector == 1) {
    if (exists) code[0] = static_cast<uint64_t>(p.ids[pack]);
  } else {
    each_piece<kVector>(pack, g.num_packs, [&](int64_t index, int i) {
      const auto two = *reinterpret_cast<const Pack<uint64_t, 2>*>(p.ids + index);
      code[i] = two.value[0];
      code[i + 1] = two.value[1];
    });
    exchange_pieces(code);
  }
  if (!exists) return;
  Word* z = static_cast<Word*>(p.z) + locate(p, g, pack, kVector);
  bool valid[kVector];
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    code[i] -= static_cast<uint64_t>(p.offset);
    valid[i] = code[i] < (uint64_t{1} << p.bits);
  }
  for (int64_t bit = p.bits - 1; bit >= 0; --bit, z += p.stride_bit) {
    Pack<Word, kVector> values;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      const Word sign = (code[i] >> bit) & 1 ? Bits::kPlusOne : Bits::kMinusOne;
      values.value[i] = valid[i] ? sign : Bits::kNan;
    }
    *reinterpret_cast<Pack<Word, kVector>*>(z) = values;
  }
}

// -------------------------------------------------------------------------------------------------------- launchers

Geometry fold(const LfqParams& p) {
  Geometry g;
  const bool one_run = p.height == 1 || p.stride_row == p.width * p.stride_column;
  g.rows = one_run ? 1 : p.height;
  g.length = one_run ? p.height * p.width : p.width;
  g.stride_row = one_run ? 0 : p.stride_row;
  return g;
}

template <class Word, int kVector>
bool can_vectorise(const LfqParams& p, const Geometry& g) {
  return p.stride_column == 1 && g.length % kVector == 0 && g.stride_row % kVector == 0 &&
         p.stride_batch % kVector == 0 && p.stride_bit % kVector == 0 && is_aligned(p.z, kVector * sizeof(Word)) &&
         is_aligned(p.ids, 16);
}

template <class Bits, int kVector, bool kEncode>
Status launch(const LfqParams& p, Geometry g, cudaStream_t stream) {
  g.num_packs = p.batch * p.height * p.width / kVector;
  const int64_t blocks = ceil_div(g.num_packs, kThreads);
  SHOWO_CHECK_ARGUMENT(blocks <= kMaxGridX, "lfq: %lld positions are too many for one launch",
                       static_cast<long long>(p.batch * p.height * p.width));
  const unsigned grid = static_cast<unsigned>(blocks);
  if constexpr (!kEncode) {
    lfq_decode_kernel<Bits, kVector><<<grid, kThreads, 0, stream>>>(p, g);
    return check_launch("lfq_decode_kernel");
  } else {
    if (p.bits <= 32) {
      lfq_encode_kernel<Bits, uint32_t, kVector><<<grid, kThreads, 0, stream>>>(p, g);
    } else {
      lfq_encode_kernel<Bits, uint64_t, kVector><<<grid, kThreads, 0, stream>>>(p, g);
    }
    return check_launch("lfq_encode_kernel");
  }
}

template <class Bits, bool kEncode>
Status choose_vector(const LfqParams& p, cudaStream_t stream) {
  using Word = typename Bits::Word;
  constexpr int kVector = 16 / sizeof(Word);
  const Geometry g = fold(p);
  if (can_vectorise<Word, kVector>(p, g)) return launch<Bits, kVector, kEncode>(p, g, stream);
  return launch<Bits, 1, kEncode>(p, g, stream);
}

template <bool kEncode>
Status lfq_cuda(const LfqParams& p, void* stream) {
  SHOWO_CHECK_ARGUMENT(p.batch >= 0 && p.height >= 0 && p.width >= 0, "a size is negative, expected none below 0");
  SHOWO_CHECK_ARGUMENT(p.bits >= 1 && p.bits <= kMaxLfqBits, "bits is %lld, expected 1 to %lld",
                       static_cast<long long>(p.bits), static_cast<long long>(kMaxLfqBits));
  if (p.batch * p.height * p.width == 0) return ok_status();
  switch (p.dtype) {
    case DType::kF32:
      return choose_vector<F32Bits, kEncode>(p, static_cast<cudaStream_t>(stream));
    case DType::kF16:
      return choose_vector<F16Bits, kEncode>(p, static_cast<cudaStream_t>(stream));
    case DType::kBF16:
      return choose_vector<BF16Bits, kEncode>(p, static_cast<cudaStream_t>(stream));
    default:
      return invalid_argument("lfq: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

}  // namespace

Status lfq_encode_cuda(const LfqParams& params, void* stream) { return lfq_cuda<true>(params, stream); }
Status lfq_decode_cuda(const LfqParams& params, void* stream) { return lfq_cuda<false>(params, stream); }

}  // namespace showo
