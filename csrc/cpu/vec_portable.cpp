// Plain C++: what the compiler makes of it for the baseline of the architecture (SSE2, NEON).
#include <cstdint>
#include <cstring>
#include <limits>

#include <c10/util/Half.h>

#include "vec.h"

#if defined(_MSC_VER)
#define __restrict __restrict
#endif
#define XMEMK_TARGET

namespace xmemk::cpu {
namespace {

#include "vec_loops.h"

#define XMEMK_UNROLL

struct Lanes {
  static constexpr int64_t kCount = 4;
  static constexpr int kRows = 4;
  struct Vector {
    float x[kCount];
  };

  static Vector broadcast(float x) { return {{x, x, x, x}}; }
  static Vector load(const float* p) { return {{p[0], p[1], p[2], p[3]}}; }
  static Vector load_some(const float* p, int64_t n) {
    Vector out = broadcast(0.0f);
    for (int64_t i = 0; i < n; ++i) out.x[i] = p[i];
    return out;
  }
  static void store(float* p, const Vector& v) { store_some(p, v, kCount); }
  static void store_some(float* p, const Vector& v, int64_t n) {
    for (int64_t i = 0; i < n; ++i) p[i] = v.x[i];
  }
  static Vector multiply_add(const Vector& x, const Vector& y, const Vector& z) {
    Vector out;
    for (int64_t i = 0; i < kCount; ++i) out.x[i] = x.x[i] * y.x[i] + z.x[i];
    return out;
  }
  static Vector plus(const Vector& x, const Vector& y) {
    Vector out;
    for (int64_t i = 0; i < kCount; ++i) out.x[i] = x.x[i] + y.x[i];
    return out;
  }
  static void prefetch(const float*) {}
};

#include "vec_product.h"

Scanned scan(const float* score, int64_t count, uint32_t first, float bar, float* value, uint32_t* index,
             int64_t room) {
  constexpr int64_t kGroup = 16;
  int64_t found = 0;
  for (int64_t i = 0; i < count; i += kGroup) {
    if (found + kGroup > room) return {i, found};
    const int64_t group = count - i < kGroup ? count - i : kGroup;
    int32_t any = 0;
    for (int64_t j = 0; j < group; ++j) any |= score[i + j] > bar;
    if (any == 0) continue;
    for (int64_t j = 0; j < group; ++j) {
      value[found] = score[i + j];
      index[found] = first + static_cast<uint32_t>(i + j);
      found += (score[i + j] > bar) & (score[i + j] < std::numeric_limits<float>::infinity());
    }
  }
  return {count, found};
}

void widen_half(const uint16_t* half, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = c10::detail::fp16_ieee_to_fp32_value(half[i]);
}

}  // namespace

const VecKernels kVecPortable = {"portable",        scan,           largest,    exponentials,       add_scaled,
                                 order_keys,        count_above,    distance,   affinities,         score_gradients,
                                 dot_of_difference, dot_add_scaled, widen_half, largest_magnitudes, product};

}  // namespace xmemk::cpu
