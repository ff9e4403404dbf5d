#include "gemm_tile.h"

#include <ATen/native/CPUBlas.h>
#if !defined(CPUBLAS_BRGEMM_F32F32F32)
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#endif

namespace xmemk::cpu {

void gemm_tile(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc, bool add) {
#if defined(CPUBLAS_BRGEMM_F32F32F32)
  // oneDNN's micro kernel: on AMD processors three times MKL's sgemm, on Intel's as quick. Where there is none, torch
  // itself falls back to its BLAS.
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, add, a, b, c);
#else
  const auto view = [](const float* p, int64_t rows, int64_t columns, int64_t ld) {
    return at::from_blob(const_cast<float*>(p), {rows, columns}, {ld, 1}, at::kFloat);
  };
  at::Tensor out = view(c, m, n, ldc);
  if (add) {
    at::addmm_out(out, out, view(a, m, k, lda), view(b, k, n, ldb));
  } else {
    at::mm_out(out, view(a, m, k, lda), view(b, k, n, ldb));
  }
#endif
}

}  // namespace xmemk::cpu
