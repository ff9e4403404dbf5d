#include "vec.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>
#include <cstring>
#include <immintrin.h>
#include <limits>

#define XMEMK_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))

namespace xmemk::cpu {
namespace {

#include "vec_loops.h"

#define XMEMK_UNROLL _Pragma("GCC unroll 8")

struct Lanes {
  using Vector = __m512;
  static constexpr int64_t kCount = 16;
  static constexpr int kRows = 8;  // 24 sums, 3 numbers of B and 1 of A in 32 registers

  XMEMK_TARGET static __mmask16 first(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
  XMEMK_TARGET static Vector broadcast(float x) { return _mm512_set1_ps(x); }
  XMEMK_TARGET static Vector load(const float* p) { return _mm512_loadu_ps(p); }
  XMEMK_TARGET static Vector load_some(const float* p, int64_t n) { return _mm512_maskz_loadu_ps(first(n), p); }
  XMEMK_TARGET static void store(float* p, Vector x) { _mm512_storeu_ps(p, x); }
  XMEMK_TARGET static void store_some(float* p, Vector x, int64_t n) { _mm512_mask_storeu_ps(p, first(n), x); }
  XMEMK_TARGET static Vector multiply_add(Vector x, Vector y, Vector z) { return _mm512_fmadd_ps(x, y, z); }
  XMEMK_TARGET static Vector plus(Vector x, Vector y) { return _mm512_add_ps(x, y); }
  XMEMK_TARGET static void prefetch(const float* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
};

#include "vec_product.h"

XMEMK_TARGET Scanned scan(const float* score, int64_t count, uint32_t first, float bar, float* value, uint32_t* index,
                          int64_t room) {
  constexpr int64_t kGroup = 16;
  const __m512 bars = _mm512_set1_ps(bar);
  const __m512 infinity = _mm512_set1_ps(std::numeric_limits<float>::infinity());
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  int64_t found = 0;
  int64_t i = 0;
  while (i < count) {
    for (; i + 4 * kGroup <= count; i += 4 * kGroup) {  // as a rule none of them passes
      const __mmask16 a = _mm512_cmp_ps_mask(_mm512_loadu_ps(score + i), bars, _CMP_GT_OQ);
      const __mmask16 b = _mm512_cmp_ps_mask(_mm512_loadu_ps(score + i + 16), bars, _CMP_GT_OQ);
      const __mmask16 c = _mm512_cmp_ps_mask(_mm512_loadu_ps(score + i + 32), bars, _CMP_GT_OQ);
      const __mmask16 d = _mm512_cmp_ps_mask(_mm512_loadu_ps(score + i + 48), bars, _CMP_GT_OQ);
      if ((a | b | c | d) != 0) break;
    }
    const int64_t end = std::min(i + 4 * kGroup, count);
    for (; i < end; i += kGroup) {
      const int64_t left = count - i;
      const __mmask16 valid = left >= kGroup ? __mmask16(0xffff) : static_cast<__mmask16>((1u << left) - 1);
      const __m512 s = _mm512_maskz_loadu_ps(valid, score + i);
      __mmask16 passed = _mm512_mask_cmp_ps_mask(valid, s, bars, _CMP_GT_OQ);
      if (passed == 0) continue;
      if (found + kGroup > room) return {i, found};
      passed = _mm512_mask_cmp_ps_mask(passed, s, infinity, _CMP_LT_OQ);
      // Compressing in a register and storing all of it is quick everywhere; compressing into memory is not on AMD's.
      const __m512i at = _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first + static_cast<uint32_t>(i))));
      _mm512_storeu_ps(value + found, _mm512_maskz_compress_ps(passed, s));
      _mm512_storeu_si512(index + found, _mm512_maskz_compress_epi32(passed, at));
      found += __builtin_popcount(passed);
    }
  }
  return {count, found};
}

XMEMK_TARGET void widen_half(const uint16_t* half, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + i))));
  }
  for (; i < count; ++i) out[i] = _cvtsh_ss(half[i]);
}

}  // namespace

const VecKernels kVecAvx512 = {"avx512",          scan,           largest,    exponentials,       add_scaled,
                               order_keys,        count_above,    distance,   affinities,         score_gradients,
                               dot_of_difference, dot_add_scaled, widen_half, largest_magnitudes, product};

}  // namespace xmemk::cpu

#endif
