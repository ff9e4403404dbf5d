#include "gemm_tile.h"

#include <algorithm>
#include <array>
#include <new>
#include <vector>

#include <ATen/native/CPUBlas.h>
#if !defined(CPUBLAS_BRGEMM_F32F32F32)
#include <ATen/ops/addmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#elif defined(__unix__)
#include <sys/mman.h>
#endif

namespace xmemk::cpu {

#if defined(CPUBLAS_BRGEMM_F32F32F32)
namespace {

// oneDNN generates a kernel when a thread first asks for a shape, and crashes where it gets no memory for it. So some
// is asked for before, more than it takes, where the failure is still an exception.
void assure_room_for_kernel(const std::array<int64_t, 7>& shape) {
#if defined(__unix__)
  constexpr size_t kKernelBytes = 4 << 20, kShapes = 64;
  thread_local std::vector<std::array<int64_t, 7>> known;
  if (std::find(known.begin(), known.end(), shape) != known.end()) return;
  void* trial = ::mmap(nullptr, kKernelBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (trial == MAP_FAILED) throw std::bad_alloc();
  ::munmap(trial, kKernelBytes);
  if (known.size() == kShapes) known.clear();
  known.push_back(shape);
#endif
}

}  // namespace
#endif

void gemm_tile(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
               int64_t ldc, bool add) {
#if defined(CPUBLAS_BRGEMM_F32F32F32)
  // oneDNN's micro kernel: on AMD processors three times MKL's sgemm, on Intel's as quick. Where there is none, torch
  // itself falls back to its BLAS.
  assure_room_for_kernel({m, n, k, lda, ldb, ldc, add});
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
