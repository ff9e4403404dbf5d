// The loops of the first look (first_look.h), for processors that multiply bytes: AVX-512 with VNNI.
#include "vec_look.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>
#include <cmath>
#include <immintrin.h>
#include <limits>

#define XMEMK_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")))

namespace xmemk::cpu {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kVectors = kLookTokens / kLanes;

// 16 tokens of x[rows, kLookTokens] -> their numbers, and their codes in groups of four rows.
XMEMK_TARGET void quantise_lanes(const float* x, int64_t rows, const float* shrinkage, float slack, uint8_t* code,
                                 float* number) {
  const __m512 sign = _mm512_set1_ps(-0.0f), one = _mm512_set1_ps(1);
  __m512 largest = _mm512_setzero_ps();
  __mmask16 finite = 0xffff;
  for (int64_t i = 0; i < rows; ++i) {
    const __m512 v = _mm512_andnot_ps(sign, _mm512_loadu_ps(x + i * kLookTokens));
    finite = _mm512_mask_cmp_ps_mask(finite, v, _mm512_set1_ps(std::numeric_limits<float>::infinity()), _CMP_LT_OQ);
    largest = _mm512_max_ps(largest, v);
  }
  const __mmask16 scaled = _mm512_mask_cmp_ps_mask(finite, largest, _mm512_set1_ps(kLeastScaled), _CMP_GE_OQ);
  const __m512 scale = _mm512_maskz_div_ps(scaled, largest, _mm512_set1_ps(kLargestCode));
  const __m512 inverse = _mm512_maskz_div_ps(scaled, _mm512_set1_ps(kLargestCode), largest);
  __m512 error = _mm512_setzero_ps(), norm = _mm512_setzero_ps();
  for (int64_t i = 0; i < rows; i += 4) {
    __m512i codes = _mm512_setzero_si512();
    for (int64_t j = 0; j < 4; ++j) {
      __m512 t = _mm512_setzero_ps();
      if (i + j < rows) t = _mm512_maskz_mul_ps(scaled, _mm512_loadu_ps(x + (i + j) * kLookTokens), inverse);
      const __m512i v = _mm512_cvtps_epi32(t);
      const __m512 rounded = _mm512_cvtepi32_ps(v), d = _mm512_sub_ps(t, rounded);
      error = _mm512_fmadd_ps(d, d, error);
      norm = _mm512_fmadd_ps(rounded, rounded, norm);
      const __m512i byte = _mm512_and_si512(v, _mm512_set1_epi32(255));
      codes = _mm512_or_si512(codes, _mm512_sllv_epi32(byte, _mm512_set1_epi32(static_cast<int>(8 * j))));
    }
    codes = _mm512_xor_si512(codes, _mm512_set1_epi32(static_cast<int>(0x80808080u)));
    _mm512_storeu_si512(code + i * kLookTokens, codes);
  }
  // Upper bounds of |a - a^| and |a^| in units of the scale.
  const __m512 roots = _mm512_set1_ps(std::sqrt(static_cast<float>(rows)) * 0x1.02p-15f);
  norm = _mm512_mul_ps(_mm512_sqrt_ps(norm), _mm512_set1_ps(1 + 0x1p-20f));
  error = _mm512_fmadd_ps(_mm512_sqrt_ps(error), _mm512_set1_ps(1 + 0x1p-14f), roots);
  error = _mm512_fmadd_ps(_mm512_set1_ps(slack), _mm512_add_ps(norm, error), error);
  // A token that is not finite never passes; one too large for the bound's arithmetic is marked.
  const __m512 s = _mm512_loadu_ps(shrinkage);
  finite = _mm512_mask_cmp_ps_mask(finite, _mm512_abs_ps(s), _mm512_set1_ps(std::numeric_limits<float>::infinity()),
                                   _CMP_LT_OQ);
  const __m512 size = _mm512_max_ps(_mm512_mul_ps(scale, _mm512_add_ps(norm, one)), s);
  const __mmask16 tame = _mm512_mask_cmp_ps_mask(_mm512_cmp_ps_mask(size, _mm512_set1_ps(kLargestLooked), _CMP_LE_OQ),
                                                 s, _mm512_setzero_ps(), _CMP_GE_OQ);
  __m512 kept = _mm512_mask_blend_ps(tame, _mm512_set1_ps(std::numeric_limits<float>::infinity()), scale);
  kept = _mm512_mask_blend_ps(finite, _mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()), kept);
  _mm512_storeu_ps(number, kept);
  _mm512_storeu_ps(number + kLookTokens, error);
  _mm512_storeu_ps(number + 2 * kLookTokens, norm);
  _mm512_storeu_ps(number + 3 * kLookTokens, s);
}

XMEMK_TARGET void quantise(const float* x, int64_t rows, const float* shrinkage, float slack, uint8_t* block) {
  float* number = reinterpret_cast<float*>(block);
  uint8_t* code = block + kLookNumberBytes;
  for (int64_t i = 0; i < kLookTokens; i += kLanes) {
    quantise_lanes(x + i, rows, shrinkage + i, slack, code + 4 * i, number + i);
  }
}

XMEMK_TARGET void look(const uint8_t* block, int64_t steps, uint32_t first, const LookQueries& query,
                       LookFound* found) {
  const float* number = reinterpret_cast<const float*>(block);
  const uint8_t* code = block + kLookNumberBytes;
  __m512i sum[kLookQueries][kVectors];
  for (int64_t q = 0; q < kLookQueries; ++q) {
    for (int64_t v = 0; v < kVectors; ++v) sum[q][v] = _mm512_set1_epi32(query.offset[q]);
  }
  const int32_t* of_query = query.code;
  for (int64_t i = 0; i < steps; ++i, code += kLookStepBytes, of_query += kLookQueries) {
    __m512i token[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) token[v] = _mm512_loadu_si512(code + 64 * v);
    for (int64_t q = 0; q < kLookQueries; ++q) {
      const __m512i b = _mm512_set1_epi32(of_query[q]);
      for (int64_t v = 0; v < kVectors; ++v) sum[q][v] = _mm512_dpbusd_epi32(sum[q][v], token[v], b);
    }
  }
  for (int64_t q = 0; q < kLookQueries; ++q) {
    const __m512 scale = _mm512_set1_ps(query.scale[q]), norm = _mm512_set1_ps(query.norm[q]);
    const __m512 error = _mm512_set1_ps(query.error[q]), constant = _mm512_set1_ps(query.constant[q]);
    const __m512 bar = _mm512_set1_ps(found[q].bar);
    __m512 upper[kVectors];
    __mmask16 passed[kVectors];
    for (int64_t v = 0; v < kVectors; ++v) {
      const float* of_token = number + v * kLanes;
      __m512 u = _mm512_mul_ps(norm, _mm512_loadu_ps(of_token + kLookTokens));
      u = _mm512_fmadd_ps(error, _mm512_loadu_ps(of_token + 2 * kLookTokens), u);
      u = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(sum[q][v]), u);
      u = _mm512_mul_ps(u, _mm512_loadu_ps(of_token));
      upper[v] = _mm512_fnmadd_ps(constant, _mm512_loadu_ps(of_token + 3 * kLookTokens), u);
      passed[v] = _mm512_cmp_ps_mask(upper[v], bar, _CMP_GE_OQ);
    }
    if ((passed[0] | passed[1] | passed[2] | passed[3]) == 0) continue;
    LookFound& to = found[q];
    for (int64_t v = 0; v < kVectors; ++v) {
      if (passed[v] == 0) continue;
      const float* of_token = number + v * kLanes;
      __m512 e = _mm512_mul_ps(norm, _mm512_loadu_ps(of_token + kLookTokens));
      e = _mm512_fmadd_ps(error, _mm512_loadu_ps(of_token + 2 * kLookTokens), e);
      e = _mm512_mul_ps(e, _mm512_loadu_ps(of_token));
      e = _mm512_fmadd_ps(_mm512_set1_ps(query.slack[q]), _mm512_loadu_ps(of_token + 3 * kLookTokens), e);
      const __m512 lower = _mm512_fnmadd_ps(e, _mm512_set1_ps(2), upper[v]);
      const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      const __m512i at =
          _mm512_add_epi32(lanes, _mm512_set1_epi32(static_cast<int>(first + static_cast<uint32_t>(v * kLanes))));
      _mm512_storeu_ps(to.upper + to.count, _mm512_maskz_compress_ps(passed[v], upper[v]));
      _mm512_storeu_ps(to.lower + to.count, _mm512_maskz_compress_ps(passed[v], lower));
      _mm512_storeu_si512(to.index + to.count, _mm512_maskz_compress_epi32(passed[v], at));
      to.count += __builtin_popcount(passed[v]);
    }
  }
}

// Keeps what reaches the bar, in order.
XMEMK_TARGET void keep_reaching(LookFound& found) {
  int64_t kept = 0;
  for (int64_t i = 0; i < found.count; i += kLanes) {
    const int64_t left = found.count - i;
    const __mmask16 valid = left >= kLanes ? __mmask16(0xffff) : static_cast<__mmask16>((1u << left) - 1);
    const __m512 upper = _mm512_loadu_ps(found.upper + i), lower = _mm512_loadu_ps(found.lower + i);
    const __m512i index = _mm512_loadu_si512(found.index + i);
    const __mmask16 passed = _mm512_mask_cmp_ps_mask(valid, upper, _mm512_set1_ps(found.bar), _CMP_GE_OQ);
    _mm512_storeu_ps(found.upper + kept, _mm512_maskz_compress_ps(passed, upper));
    _mm512_storeu_ps(found.lower + kept, _mm512_maskz_compress_ps(passed, lower));
    _mm512_storeu_si512(found.index + kept, _mm512_maskz_compress_epi32(passed, index));
    kept += __builtin_popcount(passed);
  }
  found.count = kept;
}

// x[16] of 16 floats each, in place.
XMEMK_TARGET inline void transpose_lanes(__m512* x) {
  __m512 t[kLanes];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(x[i], x[i + 1]);
    t[i + 1] = _mm512_unpackhi_ps(x[i], x[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    x[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i]), _mm512_castps_pd(t[i + 2])));
    x[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
    x[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(t[i + 1]), _mm512_castps_pd(t[i + 3])));
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_f32x4(x[i], x[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_f32x4(x[i + 8], x[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_f32x4(t[i], t[i + 8], 0xdd);
    x[i + 4] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_f32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

// The operations of pack_keys and VecKernels::product, one by one, so that the scores are equal to the last bit.
XMEMK_TARGET void score_tokens(const float* const* key, const float* shrinkage, const float* centre, const float* query,
                               int64_t channels, float* score) {
  const __m512 s = _mm512_loadu_ps(shrinkage), sign = _mm512_set1_ps(-0.0f);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < channels; c += kLanes) {
    const int64_t left = std::min(kLanes, channels - c);
    const __mmask16 valid = static_cast<__mmask16>((1u << left) - 1);
    __m512 k[kLanes];
    for (int i = 0; i < 16; ++i) k[i] = _mm512_maskz_loadu_ps(valid, key[i] + c);
    transpose_lanes(k);
    const auto add = [&](int64_t i) XMEMK_TARGET {
      const __m512 d = _mm512_sub_ps(k[i], _mm512_set1_ps(centre[c + i])), sd = _mm512_mul_ps(s, d);
      const __m512 square = _mm512_mul_ps(_mm512_xor_ps(sd, sign), d), linear = _mm512_add_ps(sd, sd);
      sum = _mm512_fmadd_ps(square, _mm512_set1_ps(query[2 * (c + i)]), sum);
      sum = _mm512_fmadd_ps(linear, _mm512_set1_ps(query[2 * (c + i) + 1]), sum);
    };
    if (left == kLanes) {
#pragma GCC unroll 16
      for (int64_t i = 0; i < kLanes; ++i) add(i);
    } else {
      for (int64_t i = 0; i < left; ++i) add(i);
    }
  }
  sum = _mm512_fmadd_ps(_mm512_xor_ps(s, sign), _mm512_set1_ps(query[2 * channels]), sum);
  _mm512_storeu_ps(score, sum);
}

}  // namespace

const LookKernels kLookAvx512Vnni = {quantise, look, keep_reaching, score_tokens};

}  // namespace xmemk::cpu

#endif
