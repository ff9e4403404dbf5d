#include "vec.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <cstring>
#include <immintrin.h>
#include <limits>

#define XMEMK_TARGET __attribute__((target("avx2,fma,f16c")))

namespace xmemk::cpu {
namespace {

#include "vec_loops.h"

#define XMEMK_UNROLL _Pragma("GCC unroll 4")

struct Lanes {
  using Vector = __m256;
  static constexpr int64_t kCount = 8;
  static constexpr int kRows = 4;  // 12 sums, 3 numbers of B and 1 of A in 16 registers

  XMEMK_TARGET static __m256i first(int64_t n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes);
  }
  XMEMK_TARGET static Vector broadcast(float x) { return _mm256_set1_ps(x); }
  XMEMK_TARGET static Vector load(const float* p) { return _mm256_loadu_ps(p); }
  XMEMK_TARGET static Vector load_some(const float* p, int64_t n) { return _mm256_maskload_ps(p, first(n)); }
  XMEMK_TARGET static void store(float* p, Vector x) { _mm256_storeu_ps(p, x); }
  XMEMK_TARGET static void store_some(float* p, Vector x, int64_t n) { _mm256_maskstore_ps(p, first(n), x); }
  XMEMK_TARGET static Vector multiply_add(Vector x, Vector y, Vector z) { return _mm256_fmadd_ps(x, y, z); }
  XMEMK_TARGET static Vector plus(Vector x, Vector y) { return _mm256_add_ps(x, y); }
  XMEMK_TARGET static void prefetch(const float* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }
};

#include "vec_product.h"

XMEMK_TARGET Scanned scan(const float* score, int64_t count, uint32_t first, float bar, float* value, uint32_t* index,
                          int64_t room) {
  constexpr int64_t kGroup = 16;
  const __m256 bars = _mm256_set1_ps(bar);
  int64_t found = 0;
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup) {
    if (found + kGroup > room) return {i, found};
    const __m256 low = _mm256_cmp_ps(_mm256_loadu_ps(score + i), bars, _CMP_GT_OQ);
    const __m256 high = _mm256_cmp_ps(_mm256_loadu_ps(score + i + 8), bars, _CMP_GT_OQ);
    uint32_t passed = static_cast<uint32_t>(_mm256_movemask_ps(low)) | static_cast<uint32_t>(_mm256_movemask_ps(high))
                                                                           << 8;
    for (; passed != 0; passed &= passed - 1) {
      const int64_t at = i + __builtin_ctz(passed);
      value[found] = score[at];
      index[found] = first + static_cast<uint32_t>(at);
      found += score[at] < std::numeric_limits<float>::infinity();
    }
  }
  const Scanned rest = kVecPortable.scan(score + i, count - i, first + static_cast<uint32_t>(i), bar, value + found,
                                         index + found, room - found);
  return {i + rest.seen, found + rest.found};
}

XMEMK_TARGET void widen_half(const uint16_t* half, int64_t count, float* out) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
  }
  for (; i < count; ++i) out[i] = _cvtsh_ss(half[i]);
}

}  // namespace

const VecKernels kVecAvx2 = {
    "avx2",   scan,       largest,         exponentials,      add_scaled,     order_keys, count_above,
    distance, affinities, score_gradients, dot_of_difference, dot_add_scaled, widen_half, largest_magnitudes,
    product};

}  // namespace xmemk::cpu

#endif
