// Tensor-core instructions: ldmatrix, movmatrix and mma.sync. Layouts follow the PTX ISA, "Warp-level matrix
// instructions": with g = lane / 4 and t = lane % 4, a fragment register of 32 lanes is an 8x8 block of halves in row
// order (row g, columns 2t and 2t + 1), which is how the loops below read it.
#pragma GCC optimize("fp-contract=fast")  // products of halves and tf32 are exact in fp32: fused or not is the same

#include <cfenv>

#include "halves.h"
#include "memory.h"
#include "module.h"

namespace showo::ptx {
namespace {

using Floats8 = float __attribute__((vector_size(32)));

void need_full_warp(Warp& w) {
  if (w.active == kFull) return;
  const int missing = __builtin_ctz(~w.active);
  throw Finding("absent-lane", "a matrix instruction needs all 32 lanes; lane " + std::to_string(missing) +
                                   (w.alive >> missing & 1 ? " is on another path" : " has exited"));
}

template <int kCount, bool kTranspose>
void ldmatrix(Warp& w, const Instr& in) {
  need_full_warp(w);
  const Addresses rows = lane_addresses(w, in, kCount, 0);
  constexpr uint32_t kRowLanes = kCount == 4 ? kFull : (1u << (8 * kCount)) - 1;
  touch_shared(w, in, rows, kRowLanes, 16, 16, Access::kRead);
  const uint8_t* shared = w.block->shared.data();
  for (int m = 0; m < kCount; ++m) {
    uint16_t block[8][8];
    for (int r = 0; r < 8; ++r) std::memcpy(block[r], shared + rows.at[8 * m + r], 16);
    auto* d = w.lanes<uint32_t>(in.ops[m]);
    if (!kTranspose) {
      std::memcpy(d, block, sizeof block);
    } else {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int g = lane / 4, t = lane % 4;
        d[lane] = block[2 * t][g] | static_cast<uint32_t>(block[2 * t + 1][g]) << 16;
      }
    }
  }
}

void movmatrix(Warp& w, const Instr& in) {
  need_full_warp(w);
  uint16_t block[8][8];
  std::memcpy(block, w.lanes<uint32_t>(in.ops[1]), sizeof block);
  auto* d = w.lanes<uint32_t>(in.ops[0]);
  for (int lane = 0; lane < kLanes; ++lane) {
    const int g = lane / 4, t = lane % 4;
    d[lane] = block[2 * t][g] | static_cast<uint32_t>(block[2 * t + 1][g]) << 16;
  }
}

// d[16][8] = a[16][K] b[K][8] + d, accumulating over k in order. Not inlined, lest the compiler move sums past a change
// of the rounding mode.
template <int kDepth>
__attribute__((noinline)) void multiply_rounded(const float (*a)[kDepth], const Floats8* b, Floats8* d) {
  for (int half = 0; half < 16; half += 8) {
    Floats8 sum[8];
    for (int r = 0; r < 8; ++r) sum[r] = d[half + r];
    for (int k = 0; k < kDepth; ++k) {
      for (int r = 0; r < 8; ++r) sum[r] += a[half + r][k] * b[k];
    }
    for (int r = 0; r < 8; ++r) d[half + r] = sum[r];
  }
}

template <int kDepth>
void multiply(const float (*a)[kDepth], const Floats8* b, Floats8* d) {
  constexpr int kRoundings[] = {FE_TONEAREST, FE_TOWARDZERO, FE_UPWARD, FE_DOWNWARD};
  const int rounding = options().mma_rounding;
  if (rounding == 0) return multiply_rounded<kDepth>(a, b, d);
  std::fesetround(kRoundings[rounding]);
  multiply_rounded<kDepth>(a, b, d);
  std::fesetround(FE_TONEAREST);
}

// c0, c1: row g, columns 2t, 2t + 1; c2, c3: row g + 8.
void read_accumulator(Warp& w, const uint32_t* ops, Floats8* d) {
  for (int half = 0; half < 2; ++half) {
    const auto* even = w.lanes<float>(ops[2 * half]);
    const auto* odd = w.lanes<float>(ops[2 * half + 1]);
    float* rows = reinterpret_cast<float*>(d + 8 * half);
    for (int lane = 0; lane < kLanes; ++lane) rows[2 * lane] = even[lane], rows[2 * lane + 1] = odd[lane];
  }
}

void write_accumulator(Warp& w, const uint32_t* ops, const Floats8* d) {
  for (int half = 0; half < 2; ++half) {
    auto* even = w.lanes<float>(ops[2 * half]);
    auto* odd = w.lanes<float>(ops[2 * half + 1]);
    const float* rows = reinterpret_cast<const float*>(d + 8 * half);
    for (int lane = 0; lane < kLanes; ++lane) even[lane] = rows[2 * lane], odd[lane] = rows[2 * lane + 1];
  }
}

void count_flops(Warp& w, int depth) { w.block->counters.mma_flops += 2ull * 16 * 8 * static_cast<uint64_t>(depth); }

// The 64 halves of one fragment register, as floats in row order.
template <class H>
void widen(const uint32_t* fragment, float* out) {
  uint16_t halves[64];
  std::memcpy(halves, fragment, sizeof halves);
  for (int i = 0; i < 64; ++i) out[i] = H::load(halves[i]);
}

// A: registers cover (rows 0-7, k 0-7), (rows 8-15, k 0-7), then the same for k 8-15. B: k 0-7, then k 8-15, stored by
// column n = g.
template <class H, int kDepth>
void mma_half(Warp& w, const Instr& in) {
  need_full_warp(w);
  constexpr int kSteps = kDepth / 8;
  alignas(64) float a[16][kDepth], part[64];
  alignas(64) Floats8 b[kDepth], d[16];
  for (int s = 0; s < kSteps; ++s) {
    for (int half = 0; half < 2; ++half) {
      widen<H>(w.lanes<uint32_t>(in.ops[4 + 2 * s + half]), part);
      for (int r = 0; r < 8; ++r) std::memcpy(&a[8 * half + r][8 * s], part + 8 * r, 32);
    }
    widen<H>(w.lanes<uint32_t>(in.ops[4 + 2 * kSteps + s]), part);
    for (int k = 0; k < 8; ++k) {
      for (int n = 0; n < 8; ++n) b[8 * s + k][n] = part[8 * n + k];
    }
  }
  read_accumulator(w, in.ops + 4 + 3 * kSteps, d);
  multiply<kDepth>(a, b, d);
  write_accumulator(w, in.ops, d);
  count_flops(w, kDepth);
}

// tf32 keeps 10 mantissa bits; the hardware ignores the rest.
inline float tf32(uint32_t bits) { return bits_as<float>(bits & 0xffffe000u); }

// A: a0 (g, t), a1 (g + 8, t), a2 (g, t + 4), a3 (g + 8, t + 4); B: b0 (t, n = g), b1 (t + 4, g).
template <int kDepth>
void mma_tf32(Warp& w, const Instr& in) {
  need_full_warp(w);
  constexpr int kSteps = kDepth / 4;
  alignas(64) float a[16][kDepth];
  alignas(64) Floats8 b[kDepth], d[16];
  for (int s = 0; s < kSteps; ++s) {
    for (int half = 0; half < 2; ++half) {
      const auto* fragment = w.lanes<uint32_t>(in.ops[4 + 2 * s + half]);
      for (int lane = 0; lane < kLanes; ++lane) a[8 * half + lane / 4][4 * s + lane % 4] = tf32(fragment[lane]);
    }
    const auto* fragment = w.lanes<uint32_t>(in.ops[4 + 2 * kSteps + s]);
    for (int lane = 0; lane < kLanes; ++lane) b[4 * s + lane % 4][lane / 4] = tf32(fragment[lane]);
  }
  read_accumulator(w, in.ops + 4 + 3 * kSteps, d);
  multiply<kDepth>(a, b, d);
  write_accumulator(w, in.ops, d);
  count_flops(w, kDepth);
}

// fp16 accumulators: c0 holds row g, columns 2t and 2t + 1; c1 row g + 8. Summed in fp32, rounded once.
template <int kDepth>
void mma_half_accumulator(Warp& w, const Instr& in) {
  need_full_warp(w);
  constexpr int kSteps = kDepth / 8;
  alignas(64) float a[16][kDepth], part[64];
  alignas(64) Floats8 b[kDepth], d[16];
  for (int s = 0; s < kSteps; ++s) {
    for (int half = 0; half < 2; ++half) {
      widen<Half>(w.lanes<uint32_t>(in.ops[2 + 2 * s + half]), part);
      for (int r = 0; r < 8; ++r) std::memcpy(&a[8 * half + r][8 * s], part + 8 * r, 32);
    }
    widen<Half>(w.lanes<uint32_t>(in.ops[2 + 2 * kSteps + s]), part);
    for (int k = 0; k < 8; ++k) {
      for (int n = 0; n < 8; ++n) b[8 * s + k][n] = part[8 * n + k];
    }
  }
  for (int half = 0; half < 2; ++half)
    widen<Half>(w.lanes<uint32_t>(in.ops[2 + 3 * kSteps + half]), reinterpret_cast<float*>(d + 8 * half));
  multiply<kDepth>(a, b, d);
  for (int half = 0; half < 2; ++half) {
    const float* rows = reinterpret_cast<const float*>(d + 8 * half);
    auto* out = w.lanes<uint32_t>(in.ops[half]);
    for (int lane = 0; lane < kLanes; ++lane) {
      out[lane] = float_to_half(rows[2 * lane]) | static_cast<uint32_t>(float_to_half(rows[2 * lane + 1])) << 16;
    }
  }
  count_flops(w, kDepth);
}

}  // namespace

void add_matrix_ops(OpTable& t) {
  constexpr InstrClass l = InstrClass::kLdmatrix, m = InstrClass::kMma;
  const std::string head = "ldmatrix.sync.m8n8";
  t.add(head + ".x1.shared.b16", l, "dA", ldmatrix<1, false>, 0, kRead);
  t.add(head + ".x2.shared.b16", l, "ddA", ldmatrix<2, false>, 0, kRead);
  t.add(head + ".x4.shared.b16", l, "ddddA", ldmatrix<4, false>, 0, kRead);
  t.add(head + ".x1.trans.shared.b16", l, "dA", ldmatrix<1, true>, 0, kRead);
  t.add(head + ".x2.trans.shared.b16", l, "ddA", ldmatrix<2, true>, 0, kRead);
  t.add(head + ".x4.trans.shared.b16", l, "ddddA", ldmatrix<4, true>, 0, kRead);
  t.add("movmatrix.sync.m8n8.trans.b16", InstrClass::kShuffle, "ds", movmatrix);
  t.add("mma.sync.m16n8k16.row.col.f32.f16.f16.f32", m, "ddddssssssssss", mma_half<Half, 16>);
  t.add("mma.sync.m16n8k16.row.col.f32.bf16.bf16.f32", m, "ddddssssssssss", mma_half<Bfloat, 16>);
  t.add("mma.sync.m16n8k8.row.col.f32.f16.f16.f32", m, "ddddsssssss", mma_half<Half, 8>);
  t.add("mma.sync.m16n8k8.row.col.f32.bf16.bf16.f32", m, "ddddsssssss", mma_half<Bfloat, 8>);
  t.add("mma.sync.m16n8k8.row.col.f32.tf32.tf32.f32", m, "ddddssssssssss", mma_tf32<8>);
  t.add("mma.sync.m16n8k4.row.col.f32.tf32.tf32.f32", m, "ddddsssssss", mma_tf32<4>);
  t.add("mma.sync.m16n8k16.row.col.f16.f16.f16.f16", m, "ddssssssss", mma_half_accumulator<16>);
  t.add("mma.sync.m16n8k8.row.col.f16.f16.f16.f16", m, "ddsssss", mma_half_accumulator<8>);
}

}  // namespace showo::ptx
