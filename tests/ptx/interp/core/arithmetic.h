// Arithmetic, comparisons, conversions and moves: what each lane does by itself.
#pragma once

#include <cmath>
#include <limits>
#include <type_traits>

#include "machine.h"

template <class T, class From>
T bits_as(From x) {
  static_assert(sizeof(T) == sizeof(From), "of one size");
  T y;
  memcpy(&y, &x, sizeof y);
  return y;
}

struct Half {
  uint16_t bits;
};
struct Bfloat {
  uint16_t bits;
};

inline float to_float(Half x) {
  return float(bits_as<_Float16>(x.bits));
}
inline float to_float(Bfloat x) {
  return bits_as<float>(uint32_t(x.bits) << 16);
}
inline float to_float(float x) {
  return x;
}
inline Half half_of(float x) {
  return {x != x ? uint16_t(0x7fff) : bits_as<uint16_t>(_Float16(x))};
}
inline Bfloat bfloat_of(float x) {
  uint32_t u = bits_as<uint32_t>(x);
  return {x != x ? uint16_t(0x7fff) : uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

inline float flushed(float x) {
  uint32_t u = bits_as<uint32_t>(x);
  return (u & 0x7f800000u) == 0 ? bits_as<float>(u & 0x80000000u) : x;
}

// d = f(a), f(a, b) or f(a, b, c), lane by lane.
template <class R, class A, R (*f)(A)>
void unary(Warp& w, const Instruction& i, Mask m) {
  R r[kLanes];
  const A* a = w.operand<A>(i, 1);
  for (int l = 0; l < kLanes; l++) r[l] = f(a[l]);
  write_lanes(w.operand<R>(i, 0), r, m);
  spread_undefined(w, i, m);
}

template <class R, class A, class B, R (*f)(A, B)>
void binary(Warp& w, const Instruction& i, Mask m) {
  R r[kLanes];
  const A* a = w.operand<A>(i, 1);
  const B* b = w.operand<B>(i, 2);
  for (int l = 0; l < kLanes; l++) r[l] = f(a[l], b[l]);
  write_lanes(w.operand<R>(i, 0), r, m);
  spread_undefined(w, i, m);
}

template <class R, class A, class B, class C, R (*f)(A, B, C)>
void ternary(Warp& w, const Instruction& i, Mask m) {
  R r[kLanes];
  const A* a = w.operand<A>(i, 1);
  const B* b = w.operand<B>(i, 2);
  const C* c = w.operand<C>(i, 3);
  for (int l = 0; l < kLanes; l++) r[l] = f(a[l], b[l], c[l]);
  write_lanes(w.operand<R>(i, 0), r, m);
  spread_undefined(w, i, m);
}

// Unsigned inside, so that overflow wraps.
template <class T>
using Unsigned = std::make_unsigned_t<T>;
template <class T>
T add(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return T(Unsigned<T>(a) + Unsigned<T>(b));
  else
    return a + b;
}
template <class T>
T sub(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return T(Unsigned<T>(a) - Unsigned<T>(b));
  else
    return a - b;
}
template <class T>
T mul(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return T(uint64_t(a) * uint64_t(b));
  else
    return a * b;
}
template <class T>
T mad(T a, T b, T c) {
  return add(mul(a, b), c);
}
template <class W, class T>
W mul_wide(T a, T b) {
  return W(a) * W(b);
}
template <class W, class T>
W mad_wide(T a, T b, W c) {
  return add(W(W(a) * W(b)), c);
}
template <class T>
T mul_hi(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return T((Wide(a) * Wide(b)) >> (8 * sizeof(T)));
}
template <class T>
T divide(T a, T b) {  // by zero the result is unspecified
  if (b == 0) return T(-1);
  if constexpr (std::is_signed_v<T>)
    if (b == -1) return T(0 - Unsigned<T>(a));
  return a / b;
}
template <class T>
T remainder_of(T a, T b) {
  return b == 0 ? a : sub(a, mul(divide(a, b), b));
}
template <class T>
T least(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return a < b ? a : b;
  else
    return a != a ? b : b != b ? a : (a < b || (a == b && std::signbit(a))) ? a : b;
}
template <class T>
T greatest(T a, T b) {
  if constexpr (std::is_integral_v<T>)
    return a > b ? a : b;
  else
    return a != a ? b : b != b ? a : (a > b || (a == b && !std::signbit(a))) ? a : b;
}
template <class T>
T both(T a, T b) {
  return a & b;
}
template <class T>
T either(T a, T b) {
  return a | b;
}
template <class T>
T differing(T a, T b) {
  return a ^ b;
}
template <class T>
T inverted(T a) {
  return T(~a);
}
template <class T>
T negative(T a) {
  if constexpr (std::is_integral_v<T>)
    return T(0 - Unsigned<T>(a));
  else
    return -a;
}
template <class T>
T absolute(T a) {
  if constexpr (std::is_integral_v<T>)
    return a < 0 ? negative(a) : a;
  else
    return std::fabs(a);
}
template <class T>
T shifted_left(T a, uint32_t n) {
  return n >= 8 * sizeof(T) ? T(0) : T(a << n);
}
template <class T>
T shifted_right(T a, uint32_t n) {
  if (n >= 8 * sizeof(T)) n = 8 * sizeof(T) - (std::is_signed_v<T> ? 1 : 0);
  return n >= 8 * sizeof(T) ? T(0) : T(a >> n);
}
template <class T>
T fma_of(T a, T b, T c) {
  return std::fma(a, b, c);
}
inline float fma_flushed(float a, float b, float c) {
  return flushed(std::fma(flushed(a), flushed(b), flushed(c)));
}
inline uint32_t population(uint32_t a) {
  return uint32_t(__builtin_popcount(a));
}

template <class T>
T bit_field(T a, uint32_t position, uint32_t length) {
  using U = Unsigned<T>;
  constexpr uint32_t bits = 8 * sizeof(T);
  position &= 255, length &= 255;
  bool negative_field = false;
  if constexpr (std::is_signed_v<T>) {
    uint32_t top = length == 0 ? bits : position + length - 1;
    negative_field = length && (U(a) >> (top < bits ? top : bits - 1) & 1);
  }
  U field = position >= bits ? U(0) : U(U(a) >> position);
  if (length >= bits) return T(position && negative_field ? U(field | ~(U(-1) >> position)) : field);
  U ones = U((U(1) << length) - 1);
  field &= ones;
  return T(negative_field ? U(field | ~ones) : field);
}

inline uint32_t permuted_bytes(uint32_t a, uint32_t b, uint32_t selector) {
  uint64_t bytes = uint64_t(b) << 32 | a;
  uint32_t r = 0;
  for (int n = 0; n < 4; n++) {
    uint32_t s = selector >> (4 * n) & 15, byte = uint32_t(bytes >> (8 * (s & 7)) & 255);
    if (s & 8) byte = byte & 128 ? 255 : 0;
    r |= byte << (8 * n);
  }
  return r;
}

// Approximate instructions: the exact result, off by as much as the PTX ISA allows, in a random direction, or exact.
// Hardware gives equal operands equal results, and kernels may count on that: chance depends on the operand and on the
// GPU alone.
template <class F>
void approximate(Warp& w, const Instruction& i, Mask m, double relative, F exact) {
  float* d = w.operand<float>(i, 0);
  uint32_t seed = uint32_t(w.cta->machine->launch.gpu) * 0x9e3779b9u, r[kLanes];
  for (int l = 0; l < kLanes; l++) {
    uint32_t chance = seed;
    for (int n = 1; n < i.operands; n++) chance = (chance ^ w.operand<uint32_t>(i, n)[l]) * 0x85ebca6bu;
    r[l] = (chance ^ chance >> 15) * 0xc2b2ae35u >> 30;
  }
  for (int l = 0; l < kLanes; l++) {
    if (!(m >> l & 1)) continue;
    bool certain = false;
    double result = exact(l, certain);
    if ((r[l] & 1) && !certain) result += (r[l] & 2 ? relative : -relative) * result;
    d[l] = float(result);
  }
  spread_undefined(w, i, m);
}

template <bool ftz>
void ex2_approx(Warp& w, const Instruction& i, Mask m) {  // with its rounding 2^-22.5 off, and ex2(0) is 1
  const float* a = w.operand<float>(i, 1);
  float copy[kLanes];
  memcpy(copy, a, sizeof copy);
  approximate(w, i, m, 0x1.dp-24, [&](int l, bool&) { return std::exp2(double(ftz ? flushed(copy[l]) : copy[l])); });
  float* d = w.operand<float>(i, 0);
  for (int l = 0; l < kLanes; l++) {
    if (!(m >> l & 1)) continue;
    if (copy[l] == 0) d[l] = 1;
    if (ftz) d[l] = flushed(d[l]);
  }
}

inline void div_full(Warp& w, const Instruction& i, Mask m) {  // 2 ulp; a denominator above 2^126 may give 0
  float a[kLanes], b[kLanes];
  memcpy(a, w.operand<float>(i, 1), sizeof a);
  memcpy(b, w.operand<float>(i, 2), sizeof b);
  approximate(w, i, m, 0x1p-23, [&](int l, bool& certain) {
    int exponent;
    certain = std::fabs(std::frexp(b[l], &exponent)) == 0.5f;  // the reciprocal of a power of two is exact on every GPU
    if (std::isfinite(b[l]) && std::fabs(b[l]) > 0x1p126f && std::isfinite(a[l])) return 0.0;
    return double(a[l]) / double(b[l]);
  });
}

enum class Compare { eq, ne, lt, le, gt, ge, num, nan };

template <class T, Compare c, bool unordered>
void setp(Warp& w, const Instruction& i, Mask m) {
  const T* a = w.operand<T>(i, 1);
  const T* b = w.operand<T>(i, 2);
  Mask r = 0;
  for (int l = 0; l < kLanes; l++) {
    bool nan = false, is;
    auto x = [&] {
      if constexpr (std::is_integral_v<T>)
        return a[l];
      else
        return to_float(a[l]);
    }();
    auto y = [&] {
      if constexpr (std::is_integral_v<T>)
        return b[l];
      else
        return to_float(b[l]);
    }();
    if constexpr (!std::is_integral_v<T>) nan = x != x || y != y;
    if constexpr (c == Compare::eq)
      is = x == y;
    else if constexpr (c == Compare::ne)
      is = x != y && !nan;
    else if constexpr (c == Compare::lt)
      is = x < y;
    else if constexpr (c == Compare::le)
      is = x <= y;
    else if constexpr (c == Compare::gt)
      is = x > y;
    else if constexpr (c == Compare::ge)
      is = x >= y;
    else if constexpr (c == Compare::num)
      is = !nan;
    else
      is = nan;
    r |= Mask(is || (unordered && nan)) << l;
  }
  write_predicate(w, register_of(w, i, 0), m, r);
  spread_undefined(w, i, m);
}

template <class T>
void selp(Warp& w, const Instruction& i, Mask m) {
  const T* a = w.operand<T>(i, 1);
  const T* b = w.operand<T>(i, 2);
  Mask p = *w.operand<Mask>(i, 3);
  T r[kLanes];
  for (int l = 0; l < kLanes; l++) r[l] = p >> l & 1 ? a[l] : b[l];
  write_lanes(w.operand<T>(i, 0), r, m);
  // Of the two only the one that is taken matters.
  Mask u = undefined_in(w, i, 3, 4) | (undefined_in(w, i, 1, 2) & p) | (undefined_in(w, i, 2, 3) & ~p);
  set_undefined(w, register_of(w, i, 0), m, u);
}

template <char operation>
void logic(Warp& w, const Instruction& i, Mask m) {  // of predicates
  Mask a = *w.operand<Mask>(i, 1), ua = undefined_in(w, i, 1, 2), b = 0, ub = 0, r, u;
  if constexpr (operation != '~' && operation != '=') b = *w.operand<Mask>(i, 2), ub = undefined_in(w, i, 2, 3);
  if constexpr (operation == '&')
    r = a & b, u = (ua | ub) & (a | ua) & (b | ub);
  else if constexpr (operation == '|')
    r = a | b, u = (ua | ub) & (~a | ua) & (~b | ub);
  else if constexpr (operation == '^')
    r = a ^ b, u = ua | ub;
  else if constexpr (operation == '~')
    r = ~a, u = ua;
  else
    r = a, u = ua;
  write_predicate(w, register_of(w, i, 0), m, r);
  set_undefined(w, register_of(w, i, 0), m, u);
}

template <class T>
T same(T a) {
  return a;
}

// mov with a vector on one side: numbers[0] is the bits of a part.
inline void unpack(Warp& w, const Instruction& i, Mask m) {
  int32_t from = register_of(w, i, i.operands - 1);
  for (int n = 0; n < i.results; n++) {
    int32_t to = register_of(w, i, n);
    for (int l = 0; l < kLanes; l++) {
      if (!(m >> l & 1)) continue;
      uint64_t v = width_of(w, from) == 64 ? w.at<uint64_t>(from)[l] : w.at<uint32_t>(from)[l];
      v >>= i.numbers[0] * n;
      if (i.numbers[0] == 16)
        w.at<uint16_t>(to)[l] = uint16_t(v);
      else
        w.at<uint32_t>(to)[l] = uint32_t(v);
    }
  }
  spread_undefined(w, i, m);
}

inline void pack(Warp& w, const Instruction& i, Mask m) {
  int32_t to = register_of(w, i, 0);
  uint64_t r[kLanes] = {};
  for (int n = 1; n < i.operands; n++) {
    int32_t from = register_of(w, i, n);
    for (int l = 0; l < kLanes; l++) {
      uint64_t v = i.numbers[0] == 16 ? w.at<uint16_t>(from)[l] : w.at<uint32_t>(from)[l];
      r[l] |= v << (i.numbers[0] * (n - 1));
    }
  }
  for (int l = 0; l < kLanes; l++) {
    if (!(m >> l & 1)) continue;
    if (width_of(w, to) == 64)
      w.at<uint64_t>(to)[l] = r[l];
    else
      w.at<uint32_t>(to)[l] = uint32_t(r[l]);
  }
  spread_undefined(w, i, m);
}

template <class To, class From>
To converted(From x) {
  if constexpr (std::is_same_v<To, Half>)
    return half_of(to_float(x));
  else if constexpr (std::is_same_v<To, Bfloat>)
    return bfloat_of(to_float(x));
  else if constexpr (std::is_same_v<From, Half> || std::is_same_v<From, Bfloat>)
    return To(to_float(x));
  else
    return To(x);
}

template <class To, class From>
To truncated(From x) {  // float to integer, towards zero, saturating; NaN becomes 0
  auto v = std::trunc(double(to_float(x)));
  if (v != v) return 0;
  if (v >= std::ldexp(1.0, int(8 * sizeof(To)) - (std::is_signed_v<To> ? 1 : 0))) return std::numeric_limits<To>::max();
  if (v < double(std::numeric_limits<To>::min())) return std::numeric_limits<To>::min();
  return To(v);
}

template <class T, T (*f)(float)>
uint32_t two_in_one(float high, float low) {
  return uint32_t(f(high).bits) << 16 | f(low).bits;
}

inline void add_arithmetic(Handlers& h) {
#define XMEMK_BINARY(name, suffix, T, f) h.add(name "." suffix, binary<T, T, T, f<T>>)
#define XMEMK_INTEGER(suffix, T)                        \
  XMEMK_BINARY("add", suffix, T, add);                  \
  XMEMK_BINARY("sub", suffix, T, sub);                  \
  XMEMK_BINARY("mul.lo", suffix, T, mul);               \
  XMEMK_BINARY("mul.hi", suffix, T, mul_hi);            \
  XMEMK_BINARY("div", suffix, T, divide);               \
  XMEMK_BINARY("rem", suffix, T, remainder_of);         \
  XMEMK_BINARY("min", suffix, T, least);                \
  XMEMK_BINARY("max", suffix, T, greatest);             \
  h.add("mad.lo." suffix, ternary<T, T, T, T, mad<T>>); \
  h.add("shr." suffix, binary<T, T, uint32_t, shifted_right<T>>);
  XMEMK_INTEGER("s16", int16_t)
  XMEMK_INTEGER("u16", uint16_t)
  XMEMK_INTEGER("s32", int32_t)
  XMEMK_INTEGER("u32", uint32_t)
  XMEMK_INTEGER("s64", int64_t)
  XMEMK_INTEGER("u64", uint64_t)
#define XMEMK_BITS(suffix, T)                                    \
  XMEMK_BINARY("and", suffix, T, both);                          \
  XMEMK_BINARY("or", suffix, T, either);                         \
  XMEMK_BINARY("xor", suffix, T, differing);                     \
  h.add("not." suffix, unary<T, T, inverted<T>>);                \
  h.add("mov." suffix, unary<T, T, same<T>>);                    \
  h.add("selp." suffix, selp<T>);                                \
  h.add("shl." suffix, binary<T, T, uint32_t, shifted_left<T>>); \
  h.add("shr." suffix, binary<T, T, uint32_t, shifted_right<T>>);
  XMEMK_BITS("b16", uint16_t)
  XMEMK_BITS("b32", uint32_t)
  XMEMK_BITS("b64", uint64_t)
#define XMEMK_SIGNED(suffix, T)                   \
  h.add("neg." suffix, unary<T, T, negative<T>>); \
  h.add("abs." suffix, unary<T, T, absolute<T>>); \
  h.add("mov." suffix, unary<T, T, same<T>>);     \
  h.add("selp." suffix, selp<T>);
  XMEMK_SIGNED("s32", int32_t)
  XMEMK_SIGNED("s64", int64_t)
  XMEMK_SIGNED("f32", float)
#define XMEMK_MOVE(suffix, T)                 \
  h.add("mov." suffix, unary<T, T, same<T>>); \
  h.add("selp." suffix, selp<T>);
  XMEMK_MOVE("u16", uint16_t)
  XMEMK_MOVE("u32", uint32_t)
  XMEMK_MOVE("u64", uint64_t)
#define XMEMK_WIDE(suffix, T, W)                              \
  h.add("mul.wide." suffix, binary<W, T, T, mul_wide<W, T>>); \
  h.add("mad.wide." suffix, ternary<W, T, T, W, mad_wide<W, T>>);
  XMEMK_WIDE("s32", int32_t, int64_t)
  XMEMK_WIDE("u32", uint32_t, uint64_t)
#define XMEMK_FLOAT(prefix, suffix, T)             \
  XMEMK_BINARY("add" prefix, suffix, T, add);      \
  XMEMK_BINARY("sub" prefix, suffix, T, sub);      \
  XMEMK_BINARY("mul" prefix, suffix, T, mul);      \
  XMEMK_BINARY("min" prefix, suffix, T, least);    \
  XMEMK_BINARY("max" prefix, suffix, T, greatest); \
  h.add("fma.rn" prefix "." suffix, ternary<T, T, T, T, fma_of<T>>);
  XMEMK_FLOAT("", "f32", float)
  h.add("fma.rn.ftz.f32", ternary<float, float, float, float, fma_flushed>);
  h.add("ex2.approx.f32", ex2_approx<false>);
  h.add("ex2.approx.ftz.f32", ex2_approx<true>);
  h.add("div.full.f32", div_full);
  h.add("popc.b32", unary<uint32_t, uint32_t, population>);
  h.add("bfe.s32", ternary<int32_t, int32_t, uint32_t, uint32_t, bit_field<int32_t>>);
  h.add("bfe.u32", ternary<uint32_t, uint32_t, uint32_t, uint32_t, bit_field<uint32_t>>);
  h.add("prmt.b32", ternary<uint32_t, uint32_t, uint32_t, uint32_t, permuted_bytes>);
  h.add("and.pred", logic<'&'>);
  h.add("or.pred", logic<'|'>);
  h.add("xor.pred", logic<'^'>);
  h.add("not.pred", logic<'~'>);
  h.add("mov.pred", logic<'='>);
  h.add("mov.unpack", unpack);
  h.add("mov.pack", pack);
#define XMEMK_COMPARE(suffix, T)                         \
  h.add("setp.eq." suffix, setp<T, Compare::eq, false>); \
  h.add("setp.ne." suffix, setp<T, Compare::ne, false>); \
  h.add("setp.lt." suffix, setp<T, Compare::lt, false>); \
  h.add("setp.le." suffix, setp<T, Compare::le, false>); \
  h.add("setp.gt." suffix, setp<T, Compare::gt, false>); \
  h.add("setp.ge." suffix, setp<T, Compare::ge, false>);
#define XMEMK_COMPARE_FLOAT(suffix, T)                     \
  XMEMK_COMPARE(suffix, T)                                 \
  h.add("setp.equ." suffix, setp<T, Compare::eq, true>);   \
  h.add("setp.neu." suffix, setp<T, Compare::ne, true>);   \
  h.add("setp.ltu." suffix, setp<T, Compare::lt, true>);   \
  h.add("setp.leu." suffix, setp<T, Compare::le, true>);   \
  h.add("setp.gtu." suffix, setp<T, Compare::gt, true>);   \
  h.add("setp.geu." suffix, setp<T, Compare::ge, true>);   \
  h.add("setp.num." suffix, setp<T, Compare::num, false>); \
  h.add("setp.nan." suffix, setp<T, Compare::nan, false>);
  XMEMK_COMPARE("b16", uint16_t)
  XMEMK_COMPARE("s16", int16_t)
  XMEMK_COMPARE("u16", uint16_t)
  XMEMK_COMPARE("b32", uint32_t)
  XMEMK_COMPARE("s32", int32_t)
  XMEMK_COMPARE("u32", uint32_t)
  XMEMK_COMPARE("b64", uint64_t)
  XMEMK_COMPARE("s64", int64_t)
  XMEMK_COMPARE("u64", uint64_t)
  XMEMK_COMPARE_FLOAT("f16", Half)
  XMEMK_COMPARE_FLOAT("bf16", Bfloat)
  XMEMK_COMPARE_FLOAT("f32", float)
#define XMEMK_CONVERT(name, To, From) h.add("cvt." name, unary<To, From, converted<To, From>>)
#define XMEMK_CONVERT_TO(name, To)          \
  XMEMK_CONVERT(name ".s16", To, int16_t);  \
  XMEMK_CONVERT(name ".u16", To, uint16_t); \
  XMEMK_CONVERT(name ".s32", To, int32_t);  \
  XMEMK_CONVERT(name ".u32", To, uint32_t); \
  XMEMK_CONVERT(name ".s64", To, int64_t);  \
  XMEMK_CONVERT(name ".u64", To, uint64_t);
  XMEMK_CONVERT_TO("s16", int16_t)
  XMEMK_CONVERT_TO("u16", uint16_t)
  XMEMK_CONVERT_TO("s32", int32_t)
  XMEMK_CONVERT_TO("u32", uint32_t)
  XMEMK_CONVERT_TO("s64", int64_t)
  XMEMK_CONVERT_TO("u64", uint64_t)
  XMEMK_CONVERT_TO("rn.f32", float)
  XMEMK_CONVERT("f32.f16", float, Half);
  XMEMK_CONVERT("f32.bf16", float, Bfloat);
  XMEMK_CONVERT("rn.f16.f32", Half, float);
  XMEMK_CONVERT("rn.bf16.f32", Bfloat, float);
#define XMEMK_TRUNCATE(name, To) h.add("cvt.rzi." name ".f32", unary<To, float, truncated<To, float>>)
  XMEMK_TRUNCATE("s32", int32_t);
  XMEMK_TRUNCATE("u32", uint32_t);
  XMEMK_TRUNCATE("s64", int64_t);
  XMEMK_TRUNCATE("u64", uint64_t);
  h.add("cvt.rn.f16x2.f32", binary<uint32_t, float, float, two_in_one<Half, half_of>>);
  h.add("cvt.rn.bf16x2.f32", binary<uint32_t, float, float, two_in_one<Bfloat, bfloat_of>>);
}
