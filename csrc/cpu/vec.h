// The inner loops, one set per instruction set, chosen when they are first used: one build serves every processor of
// its architecture.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include <c10/util/Half.h>

namespace xmemk::cpu {

struct Scanned {
  int64_t seen;   // scores looked at
  int64_t found;  // of which passed
};

constexpr int64_t kScanSlack = 16;  // entries behind the room given to scan() that it may overwrite

struct LookKernels;

struct VecKernels {
  const char* name;

  // Appends (score, first + position) of the scores above the bar and below +inf, in order. NaN never passes. Stops
  // early, before `room` entries are passed.
  Scanned (*scan)(const float* score, int64_t count, uint32_t first, float bar, float* value, uint32_t* index,
                  int64_t room);

  // The largest of the scores that are neither NaN nor +inf; -inf where there is none.
  float (*largest)(const float* score, int64_t count);

  // score[i] = exp(score[i] - shift), 0 where the score is NaN or +inf, and less than 1e-37 counts as 0. -> their sum.
  float (*exponentials)(float* score, int64_t count, float shift);

  // y[i] += a x[i]
  void (*add_scaled)(float* y, const float* x, float a, int64_t count);

  // key[i]: an integer in the order of value[i]. No NaN.
  void (*order_keys)(const float* value, int64_t count, int32_t* key);
  int64_t (*count_above)(const int32_t* key, int64_t count, int32_t bar);

  // sum e (k - q)^2
  float (*distance)(const float* k, const float* q, const float* e, int64_t count);

  // score[i] = scale[i] exp(score[i] - shift[i]), where a score that is NaN or +inf counts as -inf.
  void (*affinities)(float* score, const float* shift, const float* scale, int64_t count);

  // d[i] = w[i] (d[i] + more - less[i])
  void (*score_gradients)(float* d, const float* w, float more, const float* less, int64_t count);

  // sum (a - b) c
  float (*dot_of_difference)(const float* a, const float* b, const float* c, int64_t count);

  // y[i] += a x[i] -> sum v x
  float (*dot_add_scaled)(float* y, const float* x, float a, const float* v, int64_t count);

  void (*widen_half)(const uint16_t* half, int64_t count, float* out);

  // out[i]: the largest |x[r * stride + i]| of `rows` rows, infinity where one is not finite.
  void (*largest_magnitudes)(const float* x, int64_t rows, int64_t stride, int64_t count, float* out);

  // C[m, n] = A[m, k] B[k, n] (+ C), row-major with the given leading dimensions.
  void (*product)(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                  int64_t ldc, bool add);

  const LookKernels* look = nullptr;  // vec_look.h; none where a product of bytes does not pay
};

const VecKernels& vec();

// For tests: the sets this processor can run, best first, and a way to pin one ("" lets the processor choose).
std::vector<std::string> vec_names();
void pin_vec(const std::string& name);

// n numbers of any of the storage types as float32.
template <typename scalar_t>
void widen(const VecKernels& vec, const scalar_t* in, int64_t count, float* out) {
  if constexpr (std::is_same_v<scalar_t, c10::Half>) {
    vec.widen_half(reinterpret_cast<const uint16_t*>(in), count, out);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<float>(in[i]);
  }
}

extern const VecKernels kVecPortable;
extern const VecKernels kVecAvx2;    // x86-64 with gcc or clang
extern const VecKernels kVecAvx512;  // likewise

}  // namespace xmemk::cpu
