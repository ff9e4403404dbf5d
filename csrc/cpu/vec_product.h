// The product of two small matrices, by whatever vectors the struct Lanes of the including file offers. Included by
// each vec_*.cpp inside its own namespace. Every number is one chain of (fused) multiply-adds from the first of the k
// terms to the last, whatever the shape: nothing is generated or kept for a shape, and a number does not depend on its
// tile.

constexpr int64_t kPrefetchRows = 8;  // of B, which are as a rule farther apart than the processor foresees

// C[kRows, kVectors * lanes], of which the last vector has `tail` columns.
template <int kRows, int kVectors, bool kWhole>
XMEMK_TARGET inline void product_block(int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb, float* c,
                                       int64_t ldc, bool add, int64_t tail) {
  Lanes::Vector sum[kRows][kVectors];
  XMEMK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    XMEMK_UNROLL
    for (int v = 0; v < kVectors; ++v) sum[r][v] = Lanes::broadcast(0.0f);
  }
  const float* middle = a + 3 * lda;  // two bases are enough to address six rows
  for (int64_t i = 0; i < k; ++i, b += ldb) {
    Lanes::Vector column[kVectors];
    XMEMK_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      const float* from = b + v * Lanes::kCount;
      Lanes::prefetch(from + kPrefetchRows * ldb);
      column[v] = kWhole || v + 1 < kVectors ? Lanes::load(from) : Lanes::load_some(from, tail);
    }
    XMEMK_UNROLL
    for (int r = 0; r < kRows; ++r) {
      const Lanes::Vector x = Lanes::broadcast(r < 3 ? a[r * lda + i] : middle[(r - 3) * lda + i]);
      XMEMK_UNROLL
      for (int v = 0; v < kVectors; ++v) sum[r][v] = Lanes::multiply_add(x, column[v], sum[r][v]);
    }
  }
  XMEMK_UNROLL
  for (int r = 0; r < kRows; ++r) {
    XMEMK_UNROLL
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * ldc + v * Lanes::kCount;
      if (kWhole || v + 1 < kVectors) {
        Lanes::store(to, add ? Lanes::plus(Lanes::load(to), sum[r][v]) : sum[r][v]);
      } else {
        Lanes::store_some(to, add ? Lanes::plus(Lanes::load_some(to, tail), sum[r][v]) : sum[r][v], tail);
      }
    }
  }
}

template <int kVectors, bool kWhole>
XMEMK_TARGET inline void product_columns(int64_t m, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                                         float* c, int64_t ldc, bool add, int64_t tail) {
  constexpr int kRows = Lanes::kRows;
  int64_t r = 0;
  for (; r + kRows <= m; r += kRows) {
    product_block<kRows, kVectors, kWhole>(k, a + r * lda, lda, b, ldb, c + r * ldc, ldc, add, tail);
  }
  for (; r + 2 <= m; r += 2) {
    product_block<2, kVectors, kWhole>(k, a + r * lda, lda, b, ldb, c + r * ldc, ldc, add, tail);
  }
  if (r < m) product_block<1, kVectors, kWhole>(k, a + r * lda, lda, b, ldb, c + r * ldc, ldc, add, tail);
}

XMEMK_TARGET void product(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, int64_t ldb,
                          float* c, int64_t ldc, bool add) {
  constexpr int64_t kOne = Lanes::kCount, kThree = 3 * kOne;
  int64_t j = 0;
  for (; j + kThree <= n; j += kThree) product_columns<3, true>(m, k, a, lda, b + j, ldb, c + j, ldc, add, kOne);
  const int64_t left = n - j, tail = (left - 1) % kOne + 1;
  if (left > 2 * kOne) {
    product_columns<3, false>(m, k, a, lda, b + j, ldb, c + j, ldc, add, tail);
  } else if (left > kOne) {
    product_columns<2, false>(m, k, a, lda, b + j, ldb, c + j, ldc, add, tail);
  } else if (left > 0) {
    product_columns<1, false>(m, k, a, lda, b + j, ldb, c + j, ldc, add, tail);
  }
}
