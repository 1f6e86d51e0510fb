// cvt: every pair of types, rounding modes, saturation, packed halves, tf32.
#include <algorithm>

#include "halves.h"

namespace showo::ptx {
namespace {

constexpr InstrClass kClass = InstrClass::kConvert;

template <class To, class From>
To clamp_to(From a) {
  using Big = __int128;
  const Big low = std::numeric_limits<To>::min(), high = std::numeric_limits<To>::max();
  return static_cast<To>(std::min(std::max(static_cast<Big>(a), low), high));
}

template <class F>
F round_whole(F a, char mode) {
  switch (mode) {
    case 'n':
      return std::nearbyint(a);
    case 'z':
      return std::trunc(a);
    case 'm':
      return std::floor(a);
    default:
      return std::ceil(a);
  }
}

// Float to integer saturates; nan gives 0, or the most negative pattern for 64-bit integers.
template <class To, class F>
To to_integer(F a, char mode) {
  if (a != a) return sizeof(To) == 8 ? static_cast<To>(1ull << 63) : To{0};
  const F whole = round_whole(a, mode);
  if (whole <= static_cast<F>(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  if (whole >= static_cast<F>(std::numeric_limits<To>::max())) return std::numeric_limits<To>::max();
  return static_cast<To>(whole);
}

inline float flush(float x) {
  const uint32_t bits = bits_as<uint32_t>(x);
  return bits_as<float>((bits & 0x7f800000u) == 0 ? bits & 0x80000000u : bits);
}

// Integer or double to float, rounding toward zero, down or up: correct the nearest one.
template <class From>
float to_float(From a, char mode) {
  const float f = static_cast<float>(a);
  if (mode == 'n' || f != f || f - f != 0) return f;
  const long double exact = static_cast<long double>(a), got = static_cast<long double>(f);
  const float inf = std::numeric_limits<float>::infinity();
  const bool down = mode == 'm' || (mode == 'z' && exact > 0);
  if (down) return got > exact ? std::nextafter(f, -inf) : f;
  return got < exact ? std::nextafter(f, inf) : f;
}

// A conversion whose rounding mode (n, z, m or p) is the entry's imm: one handler for all four.
template <class R, class A, class F>
void add_rounded(OpTable& t, const std::string& head, const std::string& tail, F f) {
  static F op = f;
  const Handler handler = [](Warp& w, const Instr& in) {
    const auto* a = w.lanes<Lane<A>>(in.ops[1]);
    const auto mode = static_cast<char>(in.imm);
    for_lanes(w, w.lanes<Lane<R>>(in.ops[0]), [&](int i) { return to_lane<R>(op(static_cast<A>(a[i]), mode)); });
  };
  for (const char mode : {'n', 'z', 'm', 'p'})
    t.add(head + mode + tail, kClass, dest_code<R>() + source_code<A>(), handler, mode);
}

template <class To, class From>
void add_integer_pair(OpTable& t, const std::string& to, const std::string& from) {
  add1<To, From>(t, "cvt." + to + "." + from, kClass, [](From a) { return static_cast<To>(a); });
  if (sizeof(To) < sizeof(From) || std::is_signed_v<To> != std::is_signed_v<From>) {
    add1<To, From>(t, "cvt.sat." + to + "." + from, kClass, [](From a) { return clamp_to<To>(a); });
  }
}

template <class I>
void add_integer(OpTable& t, const std::string& type) {
  add_integer_pair<I, uint8_t>(t, type, "u8");
  add_integer_pair<I, int8_t>(t, type, "s8");
  add_integer_pair<I, uint16_t>(t, type, "u16");
  add_integer_pair<I, int16_t>(t, type, "s16");
  add_integer_pair<I, uint32_t>(t, type, "u32");
  add_integer_pair<I, int32_t>(t, type, "s32");
  add_integer_pair<I, uint64_t>(t, type, "u64");
  add_integer_pair<I, int64_t>(t, type, "s64");
  const std::string from_float = "i." + type + ".f32", flushed = "i.ftz." + type + ".f32";
  add_rounded<I, float>(t, "cvt.r", from_float, [](float a, char m) { return to_integer<I>(a, m); });
  add_rounded<I, float>(t, "cvt.r", flushed, [](float a, char m) { return to_integer<I>(flush(a), m); });
  add_rounded<I, double>(t, "cvt.r", "i." + type + ".f64", [](double a, char m) { return to_integer<I>(a, m); });
  add_rounded<I, uint16_t>(t, "cvt.r", "i." + type + ".f16",
                           [](uint16_t a, char m) { return to_integer<I>(half_to_float(a), m); });
  add_rounded<I, uint16_t>(t, "cvt.r", "i." + type + ".bf16",
                           [](uint16_t a, char m) { return to_integer<I>(bfloat_to_float(a), m); });
  add_rounded<float, I>(t, "cvt.r", ".f32." + type, [](I a, char m) { return to_float(a, m); });
  add_rounded<double, I>(t, "cvt.r", ".f64." + type, [](I a, char) { return static_cast<double>(a); });
  add1<uint16_t, I>(t, "cvt.rn.f16." + type, kClass,
                    [](I a) { return float_to_half(double_to_float_odd(static_cast<double>(a))); });
}

void add_float_rounding(OpTable& t) {
  add_rounded<float, float>(t, "cvt.r", "i.f32.f32", [](float a, char m) { return round_whole(a, m); });
  add_rounded<float, float>(t, "cvt.r", "i.ftz.f32.f32", [](float a, char m) { return round_whole(flush(a), m); });
  add_rounded<double, double>(t, "cvt.r", "i.f64.f64", [](double a, char m) { return round_whole(a, m); });
  add_rounded<uint16_t, uint16_t>(t, "cvt.r", "i.f16.f16",
                                  [](uint16_t a, char m) { return float_to_half(round_whole(half_to_float(a), m)); });
  add_rounded<float, double>(t, "cvt.r", ".f32.f64", [](double a, char m) { return to_float(a, m); });
  add_rounded<float, double>(t, "cvt.r", ".ftz.f32.f64", [](double a, char m) { return flush(to_float(a, m)); });
}

// Toward zero: take the nearest half and step back if it is too large.
template <class H>
uint16_t to_half_zero(float a) {
  if (a != a) return 0x7fff;
  const uint16_t h = H::store(a);
  return std::fabs(H::load(h)) > std::fabs(a) ? static_cast<uint16_t>(h - 1) : h;
}
template <class H>
uint16_t to_half_relu(float a) {
  return a != a ? 0x7fff : a > 0 ? H::store(a) : 0;
}

template <class H>
void add_half(OpTable& t, const std::string& type) {
  const auto packed = [&](const std::string& mode, auto f) {
    static auto op = f;
    add1<uint16_t, float>(t, "cvt." + mode + "." + type + ".f32", kClass, f);
    add2<uint32_t, float, float>(t, "cvt." + mode + "." + type + "x2.f32", kClass, [](float high, float low) {
      return static_cast<uint32_t>(op(low)) | static_cast<uint32_t>(op(high)) << 16;
    });
  };
  packed("rn", [](float a) { return H::store(a); });
  packed("rz", [](float a) { return to_half_zero<H>(a); });
  packed("rn.relu", [](float a) { return to_half_relu<H>(a); });
  packed("rz.relu", [](float a) { return a > 0 || a != a ? to_half_zero<H>(a) : uint16_t{0}; });
  packed("rn.ftz", [](float a) { return H::store(flush(a)); });
  add1<float, uint16_t>(t, "cvt.f32." + type, kClass, [](uint16_t a) { return H::load(a); });
  add1<float, uint16_t>(t, "cvt.ftz.f32." + type, kClass, [](uint16_t a) { return H::load(a); });
  add1<double, uint16_t>(t, "cvt.f64." + type, kClass, [](uint16_t a) { return static_cast<double>(H::load(a)); });
  add1<uint16_t, double>(t, "cvt.rn." + type + ".f64", kClass,
                         [](double a) { return H::store(double_to_float_odd(a)); });
}

}  // namespace

void add_conversions(OpTable& t) {
  add_integer<uint8_t>(t, "u8");
  add_integer<int8_t>(t, "s8");
  add_integer<uint16_t>(t, "u16");
  add_integer<int16_t>(t, "s16");
  add_integer<uint32_t>(t, "u32");
  add_integer<int32_t>(t, "s32");
  add_integer<uint64_t>(t, "u64");
  add_integer<int64_t>(t, "s64");
  add_float_rounding(t);
  add_half<Half>(t, "f16");
  add_half<Bfloat>(t, "bf16");
  add1<double, float>(t, "cvt.f64.f32", kClass, [](float a) { return static_cast<double>(a); });
  add1<double, float>(t, "cvt.ftz.f64.f32", kClass, [](float a) { return static_cast<double>(flush(a)); });
  add1<float, float>(t, "cvt.sat.f32.f32", kClass, [](float a) { return a > 0 ? (a < 1 ? a : 1.0f) : 0.0f; });
  add1<float, float>(t, "cvt.ftz.sat.f32.f32", kClass,
                     [](float a) { return a > 0 ? (a < 1 ? flush(a) : 1.0f) : 0.0f; });
  add1<float, float>(t, "cvt.ftz.f32.f32", kClass, [](float a) { return flush(a); });
  // tf32: 10 mantissa bits, ties away from zero; rn and rz exist from sm_90 on.
  add1<uint32_t, float>(t, "cvt.rna.tf32.f32", kClass, [](float a) {
    const uint32_t bits = bits_as<uint32_t>(a);
    return (bits & 0x7f800000u) == 0x7f800000u ? bits & 0xffffe000u : (bits + 0x1000u) & 0xffffe000u;
  });
}

}  // namespace showo::ptx
