// The matrix product of a tile, on the calling thread alone, by the library that torch carries.
#pragma once

#include <cstdint>

namespace xmemk::cpu {

// C[m, n] = A[m, k] B[k, n] (+ C), row-major with the given leading dimensions.
void gemm_tile(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc, bool add);

}  // namespace xmemk::cpu
