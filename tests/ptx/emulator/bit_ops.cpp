// Logic, shifts, bit fields, byte permutation, moves and selection.
#include "ops.h"

namespace showo::ptx {
namespace {

constexpr InstrClass kClass = InstrClass::kInteger;

template <class T>
void add_logic(OpTable& t, const std::string& type) {
  add2<T, T, T>(t, "and." + type, kClass, [](T a, T b) { return static_cast<T>(a & b); });
  add2<T, T, T>(t, "or." + type, kClass, [](T a, T b) { return static_cast<T>(a | b); });
  add2<T, T, T>(t, "xor." + type, kClass, [](T a, T b) { return static_cast<T>(a ^ b); });
  add1<T, T>(t, "not." + type, kClass, [](T a) { return static_cast<T>(~a); });
  add1<T, T>(t, "cnot." + type, kClass, [](T a) { return static_cast<T>(a == 0); });
  // Shift counts are clamped to the width.
  add2<T, T, uint32_t>(t, "shl." + type, kClass,
                       [](T a, uint32_t n) { return static_cast<T>(n < 8 * sizeof(T) ? a << (n & 63) : 0); });
}

template <class T>
void add_shift_right(OpTable& t, const std::string& type) {
  add2<T, T, uint32_t>(t, "shr." + type, kClass, [](T a, uint32_t n) {
    const uint32_t most = 8 * sizeof(T) - 1;
    if (std::is_signed_v<T>) return static_cast<T>(a >> (n < most ? n : most));
    return static_cast<T>(n <= most ? a >> (n & most) : 0);
  });
}

// Predicates are one bit per lane in a word.
template <class F>
Handler predicate_op(F f) {
  static F op = f;
  return [](Warp& w, const Instr& in) {
    uint32_t& d = w.predicate(in.ops[0]);
    d = (d & ~w.active) | (op(w, in) & w.active);
  };
}

template <class T>
void add_fields(OpTable& t, const std::string& type) {
  add3<T, T, uint32_t, uint32_t>(t, "bfe." + type, kClass, [](T a, uint32_t position, uint32_t length) {
    constexpr uint32_t kBits = 8 * sizeof(T);
    position &= 255, length &= 255;
    T result = 0;
    const bool negative =
        std::is_signed_v<T> && length != 0 &&
        (static_cast<std::make_unsigned_t<T>>(a) >> std::min(position + length - 1, kBits - 1) & 1) != 0;
    for (uint32_t k = 0; k < kBits; ++k) {
      const bool bit =
          k < length && position + k < kBits ? static_cast<std::make_unsigned_t<T>>(a) >> (position + k) & 1 : negative;
      result = static_cast<T>(result | static_cast<T>(static_cast<std::make_unsigned_t<T>>(bit) << k));
    }
    return result;
  });
}

template <class T>
void add_bits(OpTable& t, const std::string& bits) {
  const auto wide = [](T a) { return static_cast<uint64_t>(a); };
  static_cast<void>(wide);
  add1<uint32_t, T>(t, "popc." + bits, kClass, [](T a) { return static_cast<uint32_t>(__builtin_popcountll(a)); });
  add1<uint32_t, T>(t, "clz." + bits, kClass, [](T a) {
    return a == 0 ? static_cast<uint32_t>(8 * sizeof(T))
                  : static_cast<uint32_t>(__builtin_clzll(a)) - (64 - 8 * static_cast<uint32_t>(sizeof(T)));
  });
  add1<T, T>(t, "brev." + bits, kClass, [](T a) {
    T r = 0;
    for (uint32_t k = 0; k < 8 * sizeof(T); ++k) r = static_cast<T>(r << 1 | (a >> k & 1));
    return r;
  });
  t.add("bfi." + bits, kClass, dest_code<T>() + source_code<T>() + source_code<T>() + "ss",
        [](Warp& w, const Instr& in) {
          auto* d = w.lanes<T>(in.ops[0]);
          const auto* a = w.lanes<T>(in.ops[1]);
          const auto* b = w.lanes<T>(in.ops[2]);
          const auto* position = w.lanes<uint32_t>(in.ops[3]);
          const auto* length = w.lanes<uint32_t>(in.ops[4]);
          for_lanes(w, d, [&](int i) {
            constexpr uint32_t kBits = 8 * sizeof(T);
            const uint32_t p = position[i] & 255, n = length[i] & 255;
            if (p >= kBits || n == 0) return b[i];
            const T ones = n >= kBits ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << n) - 1);
            return static_cast<T>((b[i] & ~(ones << p)) | ((a[i] & ones) << p));
          });
        });
}

template <class T>
void add_find(OpTable& t, const std::string& type) {
  const auto find = [](T a) -> uint32_t {
    using U = std::make_unsigned_t<T>;
    const U v = static_cast<U>(std::is_signed_v<T> && a < 0 ? ~a : a);
    return v == 0 ? kFull : 63 - static_cast<uint32_t>(__builtin_clzll(v));
  };
  add1<uint32_t, T>(t, "bfind." + type, kClass, find);
  add1<uint32_t, T>(t, "bfind.shiftamt." + type, kClass, [](T a) -> uint32_t {
    using U = std::make_unsigned_t<T>;
    const U v = static_cast<U>(std::is_signed_v<T> && a < 0 ? ~a : a);
    return v == 0 ? kFull : static_cast<uint32_t>(8 * sizeof(T)) - 64 + static_cast<uint32_t>(__builtin_clzll(v));
  });
}

void add_funnel(OpTable& t) {
  const auto op = [&](const std::string& name, auto f) {
    add3<uint32_t, uint32_t, uint32_t, uint32_t>(t, name, kClass, f);
  };
  op("shf.l.wrap.b32", [](uint32_t a, uint32_t b, uint32_t c) {
    return static_cast<uint32_t>(((uint64_t{b} << 32 | a) << (c & 31)) >> 32);
  });
  op("shf.r.wrap.b32",
     [](uint32_t a, uint32_t b, uint32_t c) { return static_cast<uint32_t>((uint64_t{b} << 32 | a) >> (c & 31)); });
  op("shf.l.clamp.b32", [](uint32_t a, uint32_t b, uint32_t c) {
    return c >= 32 ? a : static_cast<uint32_t>(((uint64_t{b} << 32 | a) << c) >> 32);
  });
  op("shf.r.clamp.b32", [](uint32_t a, uint32_t b, uint32_t c) {
    return c >= 32 ? b : static_cast<uint32_t>((uint64_t{b} << 32 | a) >> c);
  });
}

void lop3(Warp& w, const Instr& in) {
  auto* d = w.lanes<uint32_t>(in.ops[0]);
  const auto* a = w.lanes<uint32_t>(in.ops[1]);
  const auto* b = w.lanes<uint32_t>(in.ops[2]);
  const auto* c = w.lanes<uint32_t>(in.ops[3]);
  uint32_t term[8];
  for (int k = 0; k < 8; ++k) term[k] = 0 - (w.lanes<uint32_t>(in.ops[4])[0] >> k & 1);
  for_lanes(w, d, [&](int i) {
    const uint32_t x = a[i], y = b[i], z = c[i];
    return (~x & ~y & ~z & term[0]) | (~x & ~y & z & term[1]) | (~x & y & ~z & term[2]) | (~x & y & z & term[3]) |
           (x & ~y & ~z & term[4]) | (x & ~y & z & term[5]) | (x & y & ~z & term[6]) | (x & y & z & term[7]);
  });
}

uint32_t permute(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t r = 0;
  for (int k = 0; k < 4; ++k) {
    const uint32_t s = selector >> (4 * k) & 15;
    uint32_t byte = static_cast<uint32_t>(bytes >> (8 * (s & 7))) & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << (8 * k);
  }
  return r;
}

void add_permute(OpTable& t) {
  const auto op = [&](const std::string& name, auto f) {
    add3<uint32_t, uint32_t, uint32_t, uint32_t>(t, name, kClass, f);
  };
  op("prmt.b32", [](uint32_t a, uint32_t b, uint32_t c) { return permute(a, b, c); });
  op("prmt.b32.f4e", [](uint32_t a, uint32_t b, uint32_t c) {
    return static_cast<uint32_t>((uint64_t{b} << 32 | a) >> (8 * (c & 3)));
  });
  op("prmt.b32.b4e", [](uint32_t a, uint32_t b, uint32_t c) {
    c &= 3;
    return permute(a, b, c | ((c - 1) & 7) << 4 | ((c - 2) & 7) << 8 | ((c - 3) & 7) << 12);
  });
  op("prmt.b32.rc8", [](uint32_t a, uint32_t b, uint32_t c) { return permute(a, b, (c & 3) * 0x1111); });
  op("prmt.b32.ecl", [](uint32_t a, uint32_t b, uint32_t c) {
    static const uint32_t kSelect[] = {0x3210, 0x3211, 0x3222, 0x3333};
    return permute(a, b, kSelect[c & 3]);
  });
  op("prmt.b32.ecr", [](uint32_t a, uint32_t b, uint32_t c) {
    static const uint32_t kSelect[] = {0x0000, 0x1110, 0x2210, 0x3210};
    return permute(a, b, kSelect[c & 3]);
  });
  op("prmt.b32.rc16", [](uint32_t a, uint32_t b, uint32_t c) { return permute(a, b, c & 1 ? 0x3232 : 0x1010); });
}

template <class T>
void add_moves(OpTable& t, const std::string& type) {
  add1<T, T>(t, "mov." + type, InstrClass::kMove, [](T a) { return a; });
  t.add("selp." + type, InstrClass::kInteger, dest_code<T>() + source_code<T>() + source_code<T>() + "p",
        [](Warp& w, const Instr& in) {
          auto* d = w.lanes<Lane<T>>(in.ops[0]);
          const auto* a = w.lanes<Lane<T>>(in.ops[1]);
          const auto* b = w.lanes<Lane<T>>(in.ops[2]);
          const uint32_t p = w.predicate(in.ops[3]);
          for_lanes(w, d, [&](int i) { return p >> i & 1 ? a[i] : b[i]; });
        });
}

template <class Whole, class Part, int kCount>
void pack(Warp& w, const Instr& in) {
  auto* d = w.lanes<Whole>(in.ops[0]);
  for_lanes(w, d, [&](int i) {
    Whole v = 0;
    for (int k = 0; k < kCount; ++k)
      v |= static_cast<Whole>(static_cast<Part>(w.lanes<uint32_t>(in.ops[1 + k])[i])) << (8 * sizeof(Part) * k);
    return v;
  });
}

template <class Whole, class Part, int kCount>
void unpack(Warp& w, const Instr& in) {
  const auto* a = w.lanes<Whole>(in.ops[kCount]);
  alignas(64) Whole copy[kLanes];  // a destination may be the source
  for (int i = 0; i < kLanes; ++i) copy[i] = a[i];
  for (int k = 0; k < kCount; ++k) {
    auto* d = w.lanes<uint32_t>(in.ops[k]);
    for_lanes(w, d, [&](int i) { return static_cast<uint32_t>(static_cast<Part>(copy[i] >> (8 * sizeof(Part) * k))); });
  }
}

void add_vector_moves(OpTable& t) {
  constexpr InstrClass c = InstrClass::kMove;
  t.add("pack2.b32", c, "dss", pack<uint32_t, uint16_t, 2>);
  t.add("pack4.b32", c, "dssss", pack<uint32_t, uint8_t, 4>);
  t.add("pack2.b64", c, "Dss", pack<uint64_t, uint32_t, 2>);
  t.add("pack4.b64", c, "Dssss", pack<uint64_t, uint16_t, 4>);
  t.add("unpack2.b32", c, "dds", unpack<uint32_t, uint16_t, 2>);
  t.add("unpack4.b32", c, "dddds", unpack<uint32_t, uint8_t, 4>);
  t.add("unpack2.b64", c, "ddS", unpack<uint64_t, uint32_t, 2>);
  t.add("unpack4.b64", c, "ddddS", unpack<uint64_t, uint16_t, 4>);
}

}  // namespace

void add_bit_ops(OpTable& t) {
  add_logic<uint16_t>(t, "b16");
  add_logic<uint32_t>(t, "b32");
  add_logic<uint64_t>(t, "b64");
  add_shift_right<uint16_t>(t, "u16");
  add_shift_right<uint16_t>(t, "b16");
  add_shift_right<int16_t>(t, "s16");
  add_shift_right<uint32_t>(t, "u32");
  add_shift_right<uint32_t>(t, "b32");
  add_shift_right<int32_t>(t, "s32");
  add_shift_right<uint64_t>(t, "u64");
  add_shift_right<uint64_t>(t, "b64");
  add_shift_right<int64_t>(t, "s64");
  add_bits<uint32_t>(t, "b32");
  add_bits<uint64_t>(t, "b64");
  add_fields<uint32_t>(t, "u32");
  add_fields<int32_t>(t, "s32");
  add_fields<uint64_t>(t, "u64");
  add_fields<int64_t>(t, "s64");
  add_find<uint32_t>(t, "u32");
  add_find<int32_t>(t, "s32");
  add_find<uint64_t>(t, "u64");
  add_find<int64_t>(t, "s64");
  add_funnel(t);
  add_permute(t);
  t.add("lop3.b32", kClass, "dssss", lop3);
  t.add("and.pred", kClass, "qpp",
        predicate_op([](Warp& w, const Instr& in) { return w.predicate(in.ops[1]) & w.predicate(in.ops[2]); }));
  t.add("or.pred", kClass, "qpp",
        predicate_op([](Warp& w, const Instr& in) { return w.predicate(in.ops[1]) | w.predicate(in.ops[2]); }));
  t.add("xor.pred", kClass, "qpp",
        predicate_op([](Warp& w, const Instr& in) { return w.predicate(in.ops[1]) ^ w.predicate(in.ops[2]); }));
  t.add("not.pred", kClass, "qp", predicate_op([](Warp& w, const Instr& in) { return ~w.predicate(in.ops[1]); }));
  t.add("mov.pred", InstrClass::kMove, "qp",
        predicate_op([](Warp& w, const Instr& in) { return w.predicate(in.ops[1]); }));
  for (const char* type : {"b16", "u16", "s16", "f16", "bf16"}) add_moves<uint16_t>(t, type);
  for (const char* type : {"b32", "u32", "s32", "f32", "f16x2", "bf16x2"}) add_moves<uint32_t>(t, type);
  for (const char* type : {"b64", "u64", "s64", "f64"}) add_moves<uint64_t>(t, type);
  add_vector_moves(t);
  // Global addresses are host pointers; shared and local memory have windows of their own.
  for (const char* space : {"global", "const", "param"}) {
    add1<uint64_t, uint64_t>(t, std::string("cvta.") + space + ".u64", InstrClass::kMove, [](uint64_t a) { return a; });
    add1<uint64_t, uint64_t>(t, std::string("cvta.to.") + space + ".u64", InstrClass::kMove,
                             [](uint64_t a) { return a; });
  }
  add1<uint64_t, uint64_t>(t, "cvta.shared.u64", InstrClass::kMove, [](uint64_t a) { return a + kSharedWindow; });
  add1<uint64_t, uint64_t>(t, "cvta.to.shared.u64", InstrClass::kMove, [](uint64_t a) { return a - kSharedWindow; });
  add1<uint64_t, uint64_t>(t, "cvta.local.u64", InstrClass::kMove, [](uint64_t a) { return a + kLocalWindow; });
  add1<uint64_t, uint64_t>(t, "cvta.to.local.u64", InstrClass::kMove, [](uint64_t a) { return a - kLocalWindow; });
}

}  // namespace showo::ptx
