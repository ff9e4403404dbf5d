// The k best scores of one query as they stream by: those above a bar are collected, and the bar rises each time the
// collection is full.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "vec.h"

namespace xmemk::cpu {

// Entries in ascending order of index, so of equal scores the earlier ones are those to keep. The memory is lent.
struct Candidates {
  float* value;
  uint32_t* index;
  int64_t count = 0;
  float bar = -std::numeric_limits<float>::infinity();  // what can still count is above it

  static int64_t room(int64_t k) { return std::max<int64_t>(2 * k, k + 224); }
  static int64_t capacity(int64_t k) { return room(k) + kScanSlack; }

  // Takes in scores[0, n) of tokens first, first + 1, ...; `spare` has room(k) floats to work in.
  void add(const VecKernels& vec, const float* score, int64_t n, uint32_t first, int64_t k, float* spare) {
    for (int64_t i = 0;;) {
      const Scanned done = vec.scan(score + i, n - i, first + static_cast<uint32_t>(i), bar, value + count,
                                    index + count, room(k) - count);
      count += done.found;
      i += done.seen;
      if (i >= n) return;
      keep_best(k, spare);
    }
  }

  // Drops all but the k best. A score equal to the k-th, further on, loses by its index: so the bar is the k-th.
  void keep_best(int64_t k, float* spare) {
    if (count < k) return;
    std::copy_n(value, count, spare);
    std::nth_element(spare, spare + (k - 1), spare + count, std::greater<>());
    const float kth = spare[k - 1];
    int64_t equal = k;
    for (int64_t i = 0; i < count; ++i) equal -= value[i] > kth;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool tie = value[i] == kth && equal > 0;
      equal -= tie;
      value[kept] = value[i];
      index[kept] = index[i];
      kept += tie || value[i] > kth;
    }
    count = kept;
    bar = kth;
  }
};

// The k-th best of a sample that is part of the memory: at least k tokens reach it. `slack` is how far two evaluations
// of one score may lie apart. -> a bar that these tokens are above.
inline float bar_of_sample(const VecKernels& vec, const float* sample, int64_t n, int64_t k, float slack, float* spare,
                           uint32_t* spare_index) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const Scanned found = vec.scan(sample, n, 0, -infinity, spare, spare_index, n + kScanSlack);
  if (found.found < k) return -infinity;
  std::nth_element(spare, spare + (k - 1), spare + found.found, std::greater<>());
  const float bar = std::nextafter(spare[k - 1] - slack, -infinity);
  return bar > -infinity ? bar : -infinity;  // NaN too
}

}  // namespace xmemk::cpu
