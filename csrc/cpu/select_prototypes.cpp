// The P most used tokens of each row, most used first, in one pass over usage (in two where a sample of it misleads)
// and O(P) memory per thread: at most max(2 P, P + 256) candidates of 16 bytes, and a sample of 4096 keys.
#include "../select_prototypes.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "usage_row.h"

namespace xmemk::cpu {
namespace {

template <typename Key>
struct Candidate {
  Key key;
  int64_t index;

  // A strict order, so the best P are one set, found in whatever order the tokens are looked at.
  friend bool operator<(const Candidate& a, const Candidate& b) {
    return a.key != b.key ? a.key > b.key : a.index < b.index;
  }
};

// Leaves the best `count`, the worst of them last.
template <typename Key>
void keep_best(std::vector<Candidate<Key>>& candidates, int64_t count) {
  if (static_cast<int64_t>(candidates.size()) <= count) return;
  std::nth_element(candidates.begin(), candidates.begin() + (count - 1), candidates.end());
  candidates.resize(count);
}

// A key that somewhat more than `count` tokens reach, if a sample of evenly spaced ones is like the row: what is below
// is passed over without being collected. 0 where a sample does not pay.
template <typename scalar_t>
UsageKey<scalar_t> likely_bar(const UsageRow<scalar_t>& row, int64_t count) {
  const int64_t sample = std::clamp<int64_t>(row.size / 16, 512, 4096);
  const double expected = double(count) * double(sample) / double(row.size);
  const auto rank = static_cast<int64_t>(expected + 4 * std::sqrt(expected) + 4);
  if (row.size < 4 * sample || rank > sample / 2) return 0;
  UsageKey<scalar_t> keys[4096];
  for (int64_t i = 0; i < sample; ++i) keys[i] = row.key(i * (row.size / sample));
  std::nth_element(keys, keys + rank, keys + sample, std::greater<>());
  return keys[rank];
}

// The best `count` of tokens [begin, end), and perhaps some more, among those whose key reaches the bar.
template <typename scalar_t>
std::vector<Candidate<UsageKey<scalar_t>>> collect(const UsageRow<scalar_t>& row, int64_t begin, int64_t end,
                                                   int64_t count, UsageKey<scalar_t> bar) {
  using Key = UsageKey<scalar_t>;
  const int64_t room = count + std::max<int64_t>(count, 256);
  std::vector<Candidate<Key>> best;
  best.reserve(std::min(end - begin, room));
  const auto reaches_bar = [&](Key key) { return key >= bar; };
  row.for_each_passing(begin, end, reaches_bar, [&](Key key, int64_t index) {
    best.push_back({key, index});
    if (static_cast<int64_t>(best.size()) < room) return;
    keep_best(best, count);
    bar = best.back().key + 1;  // an equal key further on loses by its index; no key is the largest integer
  });
  return best;
}

template <typename scalar_t>
void select_row(const UsageRow<scalar_t>& row, int64_t count, int64_t* out) {
  const Parts parts(row.size);
  std::vector<std::vector<Candidate<UsageKey<scalar_t>>>> found(parts.count);
  const auto collect_from = [&](UsageKey<scalar_t> bar) {
    parts.for_each(parts.count, [&](int64_t part, int64_t begin, int64_t end) {
      found[part] = collect(row, begin, end, count, bar);
    });
    for (int64_t part = 1; part < parts.count; ++part) {
      found[0].insert(found[0].end(), found[part].begin(), found[part].end());
    }
  };
  const auto bar = likely_bar(row, count);
  collect_from(bar);
  auto& best = found[0];
  if (static_cast<int64_t>(best.size()) < count) collect_from(0);  // the sample was not like the row
  keep_best(best, count);
  std::sort(best.begin(), best.end());
  for (int64_t j = 0; j < count; ++j) out[j] = best[j].index;
}

at::Tensor select_prototypes(const at::Tensor& usage, int64_t num_prototypes) {
  check_select_prototypes(usage, num_prototypes);
  at::Tensor index = at::empty({usage.size(0), num_prototypes}, usage.options().dtype(at::kLong));
  if (index.numel() == 0) return index;
  int64_t* out = index.mutable_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, usage.scalar_type(), "select_prototypes", [&] {
    for_each_row(
        usage, [&](int64_t b) { select_row(UsageRow<scalar_t>(usage, b), num_prototypes, out + b * num_prototypes); });
  });
  return index;
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("select_prototypes", &select_prototypes);
}

}  // namespace xmemk::cpu
