#include "first_look.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "direct_form.h"

namespace xmemk::cpu {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

constexpr int64_t kLargestK = 256;
constexpr int64_t kLeastChannels = 16, kMostChannels = 512;
constexpr int64_t kLeastTokens = 2048;  // and 32 k

constexpr int64_t kProbe = 16;        // one of so many blocks is seen first, for a bar
constexpr int64_t kRaiseAfter = 128;  // tokens that passed
constexpr int64_t kPassing = 1024;    // a query, and 8 k: more would cost more than the float32 path saves
constexpr int64_t kTilesToJudge = 4;  // when half of the query tiles gave up, the others need not try

std::atomic<int64_t> all_served{0}, all_given_up{0};

int64_t room_of(int64_t k) {
  return ceil_div(std::max<int64_t>(512, 4 * k), kLookTokens) * kLookTokens;
}

// To the nearest integer; of numbers below 2^22.
float rounded_to_integer(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23
  return (x + kRound) - kRound;
}

// A bar that lies lower by more than underflow can take from a score.
float lowered(float bar) {
  return bar - std::max(0x1p-50f, 0x1p-22f * std::abs(bar));
}

int64_t groups_of(int64_t rows) {
  return ceil_div(rows, kLookQueries);
}

}  // namespace

std::pair<int64_t, int64_t> first_look_counts() {
  return {all_served.load(), all_given_up.load()};
}

bool FirstLook::pays(const Operands& operands, int64_t k) {
  return vec().look != nullptr && k <= kLargestK && operands.channels() >= kLeastChannels &&
         operands.channels() <= kMostChannels && operands.tokens() >= std::max(kLeastTokens, 32 * k);
}

FirstLook::FirstLook(const Operands& operands, const std::vector<at::Tensor>& packed, int64_t k,
                     const std::optional<at::Tensor>& hint)
    : vec_(vec()),
      kernels_(*vec_.look),
      operands_(operands),
      k_(k),
      steps_(look_steps(operands.channels())),
      room_(room_of(k)),
      hint_(hint && hint->size(2) >= k ? std::optional(hint->contiguous()) : std::nullopt),
      bank_(kernels_, operands, packed) {}

FirstLook::Scratch::Scratch(const Operands& operands, int64_t k)
    : code(kTileQueries * look_steps(operands.channels())),
      upper(kTileQueries * (room_of(k) + kLookTokens)),
      lower(kTileQueries * (room_of(k) + kLookTokens)),
      index(kTileQueries * (room_of(k) + kLookTokens)),
      spare(room_of(k) + kLookTokens),
      score(room_of(k) + kLookTokens),
      keys(16 * operands.channels()),
      groups(groups_of(kTileQueries)),
      found(kTileQueries),
      limit(kTileQueries) {
  for (int64_t r = 0; r < kTileQueries; ++r) {
    const int64_t at = r * (room_of(k) + kLookTokens);
    found[r] = {upper.get() + at, lower.get() + at, index.get() + at, 0, -kInfinity};
  }
}

bool FirstLook::collect(int64_t b, int64_t first, int64_t rows, const float* query, int64_t from, int64_t to,
                        Candidates* of_row, Scratch& scratch) {
  const int64_t given_up = given_up_.load(std::memory_order_relaxed);
  const bool hopeless = given_up >= kTilesToJudge && 2 * given_up > looked_.load(std::memory_order_relaxed);
  looked_.fetch_add(1, std::memory_order_relaxed);
  const bool served = !hopeless && try_collect(b, first, rows, query, from, to, of_row, scratch);
  if (!served) given_up_.fetch_add(1, std::memory_order_relaxed);
  (served ? all_served : all_given_up).fetch_add(1, std::memory_order_relaxed);
  return served;
}

bool FirstLook::try_collect(int64_t b, int64_t first, int64_t rows, const float* query, int64_t from, int64_t to,
                            Candidates* of_row, Scratch& scratch) const {
  const int64_t groups = groups_of(rows);
  for (int64_t r = 0; r < groups * kLookQueries; ++r) {
    scratch.found[r].count = 0;
    scratch.found[r].bar = r < rows ? lowered(of_row[r].bar) : kInfinity;
    scratch.limit[r] = std::max(kRaiseAfter, 2 * k_);
  }
  if (!quantise_queries(b, first, rows, query, scratch)) return false;
  if (hint_) raise_by_hint(b, first, rows, query, scratch);
  const int64_t probed = std::max(ceil_div(to - from, kProbe), ceil_div(2 * k_, kLookTokens));
  const int64_t step = (to - from) / probed;
  if (step > 1) {
    if (!scan(groups, from, to, step, scratch)) return false;
    for (int64_t r = 0; r < rows; ++r) {
      if (!raise(scratch.found[r], scratch.limit[r], scratch.spare.get())) return false;
      scratch.found[r].count = 0;
      scratch.limit[r] = std::max(kRaiseAfter, 2 * k_);
    }
  }
  if (!scan(groups, from, to, 1, scratch)) return false;
  for (int64_t r = 0; r < rows; ++r) {
    LookFound& found = scratch.found[r];
    raise(found, scratch.limit[r], scratch.spare.get());
    finish(b, query + r * operands_.width(), found, of_row[r], scratch);
  }
  return true;
}

// -> whether the bound holds for all of them
bool FirstLook::quantise_queries(int64_t b, int64_t first, int64_t rows, const float* query, Scratch& scratch) const {
  const int64_t width = operands_.width(), padded = groups_of(rows) * kLookQueries;
  std::memset(scratch.code.get(), 0, padded * steps_ * sizeof(int32_t));
  const float slack = look_slack(operands_.channels());
  for (int64_t r = 0; r < padded; ++r) {
    LookQueries& group = scratch.groups[r / kLookQueries];
    const int64_t lane = r % kLookQueries;
    int8_t* code = reinterpret_cast<int8_t*>(scratch.code.get() + r / kLookQueries * steps_ * kLookQueries + lane);
    group.code = scratch.code.get() + r / kLookQueries * steps_ * kLookQueries;
    group.offset[lane] = 0;
    group.scale[lane] = group.norm[lane] = group.error[lane] = group.constant[lane] = group.slack[lane] = 0;
    if (r >= rows) continue;
    const float* row = query + r * width;
    float largest = 0;
    bool finite = std::isfinite(row[width - 1]);
    for (int64_t i = 0; i < width - 1; ++i) {
      finite = finite && std::isfinite(row[i]);
      largest = std::max(largest, std::abs(row[i]));
    }
    if (!finite) {
      if (operands_.is_finite_query(b, first + r)) return false;  // it is the terms that overflow
      scratch.found[r].bar = kInfinity;
      continue;
    }
    if (are_too_large(bank_.largest(), terms_of_query(row, width))) return false;
    const bool scaled = largest >= kLeastScaled;
    const float scale = scaled ? largest / kLargestCode : 0, inverse = scaled ? kLargestCode / largest : 0;
    double norm = 0, error = 0;
    int32_t sum = 0;
    for (int64_t i = 0; i < width - 1; ++i) {
      const float rounded = rounded_to_integer(row[i] * inverse);
      const double off = static_cast<double>(row[i]) - static_cast<double>(scale) * rounded;
      norm += static_cast<double>(row[i]) * row[i];
      error += off * off;
      sum += static_cast<int32_t>(rounded);
      code[i / kLookChannels * kLookQueries * kLookChannels + i % kLookChannels] = static_cast<int8_t>(rounded);
    }
    constexpr double kRaised = 1 + 0x1p-20;
    group.offset[lane] = -kCodeOfZero * sum;
    group.scale[lane] = scale;
    group.norm[lane] = static_cast<float>(std::sqrt(norm) * kRaised);
    group.error[lane] = static_cast<float>(std::sqrt(error) * kRaised);
    const float constant = row[width - 1];
    group.slack[lane] = slack * std::abs(constant);
    group.constant[lane] = constant - group.slack[lane];
    if (!(group.norm[lane] <= kLargestLooked && std::abs(constant) <= kLargestLooked)) return false;
  }
  return true;
}

void FirstLook::raise_by_hint(int64_t b, int64_t first, int64_t rows, const float* query, Scratch& scratch) const {
  const int64_t given = hint_->size(2);
  std::vector<uint32_t>& tokens = scratch.hinted;
  std::vector<float> score(given + 16);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t* hint = hint_->const_data_ptr<int64_t>() + (b * operands_.queries() + first + r) * given;
    tokens.assign(hint, hint + given);
    std::sort(tokens.begin(), tokens.end());  // a token counts once
    tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
    const int64_t count = static_cast<int64_t>(tokens.size());
    if (count < k_) continue;
    operands_.score_as_product(kernels_, b, query + r * operands_.width(), tokens.data(), count, score.data(),
                               scratch.keys.get());
    for (int64_t i = 0; i < count; ++i) score[i] = score[i] < kInfinity ? score[i] : -kInfinity;
    std::nth_element(score.begin(), score.begin() + k_ - 1, score.begin() + count, std::greater<float>());
    scratch.found[r].bar = std::max(scratch.found[r].bar, lowered(score[k_ - 1]));
  }
}

// Every step-th block. -> false where too many tokens pass
bool FirstLook::scan(int64_t groups, int64_t from, int64_t to, int64_t step, Scratch& scratch) const {
  int64_t passing = groups * kLookQueries * (kPassing + 8 * k_);
  for (int64_t i = from; i < to; i += step) {
    check_interrupt();
    const uint8_t* block = bank_.block(i);
    const uint32_t token = bank_.block_token(i);
    for (int64_t g = 0; g < groups; ++g) {
      LookFound* found = scratch.found.data() + g * kLookQueries;
      kernels_.look(block, steps_, token, scratch.groups[g], found);
      for (int64_t q = 0; q < kLookQueries; ++q) {
        int64_t& limit = scratch.limit[g * kLookQueries + q];
        if (found[q].count < limit) continue;
        const int64_t before = found[q].count;
        if (!raise(found[q], limit, scratch.spare.get())) return false;
        passing -= before - found[q].count;
      }
    }
    if (passing < 0) return false;
  }
  return true;
}

// Raises the bar to the k-th largest lower bound and drops what does not reach it. -> false where too many are left
bool FirstLook::raise(LookFound& found, int64_t& limit, int32_t* spare) const {
  if (found.count >= k_) {
    vec_.order_keys(found.lower, found.count, spare);
    const auto kth = Candidates::find_bar(vec_, spare, found.count, k_, k_ + k_ / 4);
    found.bar = std::max(found.bar, lowered(Candidates::number(kth.key)));
    kernels_.keep_reaching(found);
  }
  limit = std::max(found.count + kRaiseAfter, 2 * k_);
  return limit <= room_;
}

void FirstLook::finish(int64_t b, const float* query, const LookFound& found, Candidates& of_row,
                       Scratch& scratch) const {
  operands_.score_as_product(kernels_, b, query, found.index, found.count, scratch.score.get(), scratch.keys.get());
  for (int64_t i = 0; i < found.count; ++i) {
    of_row.add(vec_, scratch.score[i], found.index[i], k_, scratch.spare.get());
  }
}

}  // namespace xmemk::cpu
