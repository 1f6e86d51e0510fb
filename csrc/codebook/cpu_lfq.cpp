// Lookup-free quantization on the CPU. Plain loops over contiguous positions that the compiler vectorises; signs are
// tested on the bits of the numbers, so 16-bit floats need no conversion and flush-to-zero modes change nothing.
#include "codebook/params.h"
#include "common/dispatch.h"
#include "common/parallel.h"

namespace showo {
namespace SHOWO_ISA {
namespace {

constexpr int64_t kTile = 256;          // positions whose ids are built together
constexpr int64_t kTaskSize = 1 << 15;  // elements of z per task

struct F32Bits {
  using Word = int32_t;
  static constexpr Word kInfinity = 0x7f800000;
  static constexpr Word kPlusOne = 0x3f800000;
  static constexpr Word kMinusOne = static_cast<Word>(0xbf800000u);
};
struct F16Bits {
  using Word = int16_t;
  static constexpr Word kInfinity = 0x7c00;
  static constexpr Word kPlusOne = 0x3c00;
  static constexpr Word kMinusOne = static_cast<Word>(0xbc00u);
};
struct BF16Bits {
  using Word = int16_t;
  static constexpr Word kInfinity = 0x7f80;
  static constexpr Word kPlusOne = 0x3f80;
  static constexpr Word kMinusOne = static_cast<Word>(0xbf80u);
};

// One run of positions with a constant stride; height and width are folded into it where the strides allow.
struct Layout {
  int64_t rows;    // runs per image
  int64_t length;  // positions per run
  int64_t stride_row;
};

Layout fold(const LfqParams& p) {
  if (p.stride_row == p.width * p.stride_column || p.height == 1) return {1, p.height * p.width, 0};
  return {p.height, p.width, p.stride_row};
}

template <class Bits, class Id>
void encode_tile(const LfqParams& p, const typename Bits::Word* z, int64_t count, int64_t* ids) {
  using Word = typename Bits::Word;
  Id code[kTile];
  for (int64_t i = 0; i < count; ++i) code[i] = 0;
  for (int64_t bit = 0; bit < p.bits; ++bit, z += p.stride_bit) {
    if (p.stride_column == 1) {
      for (int64_t i = 0; i < count; ++i) {
        code[i] = static_cast<Id>(code[i] * 2 + static_cast<Id>(z[i] > 0 && z[i] <= Bits::kInfinity));
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const Word value = z[i * p.stride_column];
        code[i] = static_cast<Id>(code[i] * 2 + static_cast<Id>(value > 0 && value <= Bits::kInfinity));
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) ids[i] = static_cast<int64_t>(code[i]) + p.offset;
}

// Returns the index of the first id out of range, or -1.
template <class Bits, class Id>
int64_t decode_tile(const LfqParams& p, typename Bits::Word* z, int64_t count, const int64_t* ids) {
  using Word = typename Bits::Word;
  const uint64_t limit = uint64_t{1} << p.bits;
  Id code[kTile];
  bool valid = true;
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t id = static_cast<uint64_t>(ids[i]) - static_cast<uint64_t>(p.offset);
    valid &= id < limit;
    code[i] = static_cast<Id>(id);
  }
  if (!valid) {
    int64_t first = 0;
    while (static_cast<uint64_t>(ids[first]) - static_cast<uint64_t>(p.offset) < limit) ++first;
    return first;
  }
  for (int64_t bit = 0; bit < p.bits; ++bit, z += p.stride_bit) {
    const Id mask = static_cast<Id>(Id{1} << (p.bits - 1 - bit));
    for (int64_t i = 0; i < count; ++i) {
      z[i * p.stride_column] = static_cast<Word>((code[i] & mask) != 0 ? Bits::kPlusOne : Bits::kMinusOne);
    }
  }
  return -1;
}

// Calls tile(z, count, ids) for every tile of positions.
template <class Word, class Tile>
void for_each_tile(const LfqParams& p, int num_threads, const Tile& tile) {
  const Layout layout = fold(p);
  const int64_t tiles_per_run = (layout.length + kTile - 1) / kTile;
  const int64_t num_tiles = p.batch * layout.rows * tiles_per_run;
  const int64_t elements_per_tile = (layout.length < kTile ? layout.length : kTile) * p.bits;
  const int64_t tiles_per_task = kTaskSize / elements_per_tile + 1;
  const int64_t num_tasks = (num_tiles + tiles_per_task - 1) / tiles_per_task;
  parallel_for(num_tasks, num_threads, [&](int64_t task) {
    const int64_t end = (task + 1) * tiles_per_task < num_tiles ? (task + 1) * tiles_per_task : num_tiles;
    for (int64_t index = task * tiles_per_task; index < end; ++index) {
      const int64_t start = index % tiles_per_run * kTile;
      const int64_t run = index / tiles_per_run;
      const int64_t b = run / layout.rows;
      const int64_t row = run % layout.rows;
      const int64_t count = layout.length - start < kTile ? layout.length - start : kTile;
      Word* z = static_cast<Word*>(p.z) + b * p.stride_batch + row * layout.stride_row + start * p.stride_column;
      tile(z, count, p.ids + run * layout.length + start);
    }
  });
}

template <class Bits>
Status encode(const LfqParams& p, int num_threads) {
  using Word = typename Bits::Word;
  for_each_tile<Word>(p, num_threads, [&](const Word* z, int64_t count, int64_t* ids) {
    if (p.bits <= 16) return encode_tile<Bits, uint16_t>(p, z, count, ids);
    if (p.bits <= 32) return encode_tile<Bits, uint32_t>(p, z, count, ids);
    return encode_tile<Bits, uint64_t>(p, z, count, ids);
  });
  return ok_status();
}

template <class Bits>
Status decode(const LfqParams& p, int num_threads) {
  using Word = typename Bits::Word;
  int64_t bad_position = -1;  // any one of them; tasks write it atomically
  for_each_tile<Word>(p, num_threads, [&](Word* z, int64_t count, const int64_t* ids) {
    int64_t bad;
    if (p.bits <= 16) {
      bad = decode_tile<Bits, uint16_t>(p, z, count, ids);
    } else if (p.bits <= 32) {
      bad = decode_tile<Bits, uint32_t>(p, z, count, ids);
    } else {
      bad = decode_tile<Bits, uint64_t>(p, z, count, ids);
    }
    if (bad >= 0) __atomic_store_n(&bad_position, ids - p.ids + bad, __ATOMIC_RELAXED);
  });
  if (bad_position < 0) return ok_status();
  const int64_t positions = p.height * p.width;
  return invalid_argument("ids[%lld, %lld] is %lld, expected values in [%lld, %lld) (offset %lld, %lld bits)",
                          static_cast<long long>(bad_position / positions),
                          static_cast<long long>(bad_position % positions), static_cast<long long>(p.ids[bad_position]),
                          static_cast<long long>(p.offset), static_cast<long long>(p.offset + (int64_t{1} << p.bits)),
                          static_cast<long long>(p.offset), static_cast<long long>(p.bits));
}

Status check(const LfqParams& p) {
  SHOWO_CHECK_ARGUMENT(p.batch >= 0 && p.height >= 0 && p.width >= 0, "a size is negative, expected none below 0");
  SHOWO_CHECK_ARGUMENT(p.bits >= 1 && p.bits <= kMaxLfqBits, "bits is %lld, expected 1 to %lld",
                       static_cast<long long>(p.bits), static_cast<long long>(kMaxLfqBits));
  return ok_status();
}

}  // namespace

Status lfq_encode_cpu(const LfqParams& p, int num_threads) {
  SHOWO_RETURN_IF_ERROR(check(p));
  if (p.batch * p.height * p.width == 0) return ok_status();
  switch (p.dtype) {
    case DType::kF32:
      return encode<F32Bits>(p, num_threads);
    case DType::kF16:
      return encode<F16Bits>(p, num_threads);
    case DType::kBF16:
      return encode<BF16Bits>(p, num_threads);
    default:
      return invalid_argument("lfq_encode: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

Status lfq_decode_cpu(const LfqParams& p, int num_threads) {
  SHOWO_RETURN_IF_ERROR(check(p));
  if (p.batch * p.height * p.width == 0) return ok_status();
  switch (p.dtype) {
    case DType::kF32:
      return decode<F32Bits>(p, num_threads);
    case DType::kF16:
      return decode<F16Bits>(p, num_threads);
    case DType::kBF16:
      return decode<BF16Bits>(p, num_threads);
    default:
      return invalid_argument("lfq_decode: no kernel for dtype %s", dtype_name(p.dtype));
  }
}

}  // namespace SHOWO_ISA

SHOWO_CPU_LAUNCHER(lfq_encode_cpu, LfqParams)
SHOWO_CPU_LAUNCHER(lfq_decode_cpu, LfqParams)

}  // namespace showo
