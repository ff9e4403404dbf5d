// The k best scores of one query as they stream by: those above a bar are collected, and the bar rises each time the
// collection is full.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
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

  // Takes in scores[0, n) of tokens first, first + 1, ...; `spare` has capacity(k) integers to work in.
  void add(const VecKernels& vec, const float* score, int64_t n, uint32_t first, int64_t k, int32_t* spare) {
    for (int64_t i = 0;;) {
      const Scanned done = vec.scan(score + i, n - i, first + static_cast<uint32_t>(i), bar, value + count,
                                    index + count, room(k) - count);
      count += done.found;
      i += done.seen;
      if (i >= n) return;
      keep_best(vec, k, k + (room(k) - k) / 8, spare);
    }
  }

  // Takes in one score, of a token behind all those before it.
  void add(const VecKernels& vec, float score, uint32_t token, int64_t k, int32_t* spare) {
    if (count == room(k)) keep_best(vec, k, k + (room(k) - k) / 8, spare);
    value[count] = score;
    index[count] = token;
    count += score > bar && score < std::numeric_limits<float>::infinity();
  }

  // Keeps the k best, and perhaps some of the next, `most` at the most. What comes later and equals the bar loses by
  // its index, so it must be above it.
  void keep_best(const VecKernels& vec, int64_t k, int64_t most, int32_t* spare) {
    if (count < k || (count == k && most == k)) return;
    vec.order_keys(value, count, spare);
    const Bar found = find_bar(vec, spare, count, k, most);
    int64_t ties = found.ties, kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool tie = spare[i] == found.key && ties > 0;
      value[kept] = value[i];
      index[kept] = index[i];
      kept += tie || spare[i] > found.key;
      ties -= tie;
    }
    count = kept;
    bar = number(found.key);
  }

  struct Bar {
    int32_t key;
    int64_t ties;  // how many of those equal to the key belong to the best, besides all above it
  };

  // Bisection: branches that are hard to foresee cost more than looking at all keys some times.
  static Bar find_bar(const VecKernels& vec, const int32_t* key, int64_t n, int64_t k, int64_t most) {
    const auto [least, largest] = std::minmax_element(key, key + n);
    int64_t low = int64_t{*least} - 1, high = *largest, above_high = 0;  // above low k or more, above high fewer
    while (high - low > 1) {
      const int64_t middle = low + (high - low) / 2, above = vec.count_above(key, n, static_cast<int32_t>(middle));
      if (above >= k && above <= most) return {static_cast<int32_t>(middle), 0};
      if (above >= k) {
        low = middle;
      } else {
        high = middle;
        above_high = above;
      }
    }
    return {static_cast<int32_t>(high), k - above_high};
  }

  static float number(int32_t key) {
    const int32_t bits = key ^ ((key >> 31) & 0x7fffffff);
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }
};

// The k-th best of a sample that is part of the memory: at least k tokens reach it. `slack` is how far two evaluations
// of one score may lie apart. -> a bar that these tokens are above.
inline float bar_of_sample(const VecKernels& vec, const float* sample, int64_t n, int64_t k, float slack, float* spare,
                           uint32_t* spare_index) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const Scanned found = vec.scan(sample, n, 0, -infinity, spare, spare_index, n + kScanSlack);
  if (found.found < k) return -infinity;
  int32_t* keys = reinterpret_cast<int32_t*>(spare_index);
  vec.order_keys(spare, found.found, keys);
  const float kth = Candidates::number(Candidates::find_bar(vec, keys, found.found, k, k + k / 4).key);
  const float bar = std::nextafter(kth - slack, -infinity);
  return bar > -infinity ? bar : -infinity;  // NaN too
}

}  // namespace xmemk::cpu
