// A first look at the memory in 8 bits, which leaves a query some hundred tokens to score in float32. It decides
// nothing: what it keeps is scored to the last bit as the float32 path scores it, and what it drops cannot be among the
// k best. So the choice of tokens depends neither on the hint nor on which path a query went.
//
// Scores. The score of a token and a query is the float32 evaluation S of a.b - s C, with a = (-s k^2, 2 s k), b = (e,
// e q) and C = sum e q^2 as Operands packs them: one chain of n = 2 CK + 1 fused multiply-adds.
//
// Quantisation. a^ = p v and b^ = r w with p = max |a| / 127, r = max |b| / 127 and integer v, w of at most 127.
//
// Bound. By Cauchy and Schwarz
//     |a.b - a^.b^| = |(a - a^).b + a^.(b - b^)| <= |a - a^| |b| + |a^| |b - b^|,
// hence with x >= |a - a^| / p, y >= |a^| / p = |v|, |b| <= |B|, f >= |b - b^| in exact arithmetic
//     a.b - s C <= p (r v.w + |B| x + f y) - s C.
//
// Rounding, u = 2^-24.
// * S is off by at most n u (1 + n u) (|a| |b| + s |C|), and |a| <= p (x + y).
// * v.w is exact: below 2^24 for CK <= 512. The six roundings of the right-hand side are of at most
//   p (1.3 |B| (x + y)) + s |C| each, since f <= sqrt(n) / 254 |B| < 0.13 |B|.
// Together they are below half of t (p |B| (x + y) + s |C|) with t = 2 (n + 16) u = look_slack. So the kernels use
// x + t (x + y) for x and C - t |C| for C, and the upper bound holds of its float32 evaluation. The lower bound is the
// upper one less twice p (|B| x + f y) + t s |C|; its four roundings take of the other half of t.
// * x: the kernel rounds a / p twice, which is off by less than 2^-15 an element; it adds 2^-15 sqrt(n), and 2^-14 of
//   itself for the rounding of the sum of squares. y: the sum of squares is exact, its root is raised by 2^-20.
//   |B|, f: summed in double and raised by 2^-20.
// * Underflow, flushed to zero or not. With norms and s of at most 2^40 each of fewer than 2^11 operations loses at
//   most 2^-126 2^40, and rows below 2^-100, which count as 0, at most 2^-100 2^5 2^40. A bar is lowered by 2^-50.
//
// Outside of it. A token with a number that is not finite has no finite score, whatever the query, and likewise a
// query: neither passes. A memory or a query with a larger norm, or with negative shrinkage, goes to the float32 path,
// and so do pairs whose scores may not be the chain above (direct_form.h).
//
// Bar. The k-th largest lower bound so far, or the k-th largest score of the hint's tokens: k tokens are known to reach
// it, so that one whose upper bound is below it is not among the k best, ties included.
#pragma once

#include <atomic>
#include <optional>
#include <utility>
#include <vector>

#include "quantised_bank.h"
#include "topk_select.h"

namespace xmemk::cpu {

class FirstLook {
 public:
  // Whether the first look can serve such a read, and is likely to pay.
  static bool pays(const Operands& operands, int64_t k);

  // `hint` [B, Q, k'] int64, tokens that are likely to be among the best.
  FirstLook(const Operands& operands, const std::vector<at::Tensor>& packed, int64_t k,
            const std::optional<at::Tensor>& hint);

  struct Scratch {
    Scratch(const Operands& operands, int64_t k);
    Buffer<int32_t> code;        // [groups][steps][kLookQueries]
    Buffer<float> upper, lower;  // [rows, room]
    Buffer<uint32_t> index;      // likewise
    Buffer<int32_t> spare;       // [room]
    Buffer<float> score, keys;
    std::vector<LookQueries> groups;
    std::vector<LookFound> found;  // of each row
    std::vector<int64_t> limit;    // entries of a row at which its bar is raised
    std::vector<uint32_t> hinted;
  };

  QuantisedBank& bank() { return bank_; }

  // Adds to of_row[r] what tokens of the loaded blocks [from, to) have for `rows` queries, packed at `query`, of which
  // `first` is the first. -> false where too many tokens pass: then of_row is as it was, and the float32 path does it.
  bool collect(int64_t b, int64_t first, int64_t rows, const float* query, int64_t from, int64_t to, Candidates* of_row,
               Scratch& scratch);

 private:
  bool try_collect(int64_t b, int64_t first, int64_t rows, const float* query, int64_t from, int64_t to,
                   Candidates* of_row, Scratch& scratch) const;
  bool quantise_queries(int64_t b, int64_t first, int64_t rows, const float* query, Scratch& scratch) const;
  void raise_by_hint(int64_t b, int64_t first, int64_t rows, const float* query, Scratch& scratch) const;
  bool scan(int64_t groups, int64_t from, int64_t to, int64_t step, Scratch& scratch) const;
  bool raise(LookFound& found, int64_t& limit, int32_t* spare) const;
  void finish(int64_t b, const float* query, const LookFound& found, Candidates& of_row, Scratch& scratch) const;

  const VecKernels& vec_;
  const LookKernels& kernels_;
  const Operands& operands_;
  const int64_t k_, steps_, room_;
  const std::optional<at::Tensor> hint_;
  QuantisedBank bank_;
  std::atomic<int64_t> looked_{0}, given_up_{0};
};

// For tests and measurements: how many parts of reads the first look has served, and how many it has given up, since
// the process began. A part is a query tile against a split of the memory.
std::pair<int64_t, int64_t> first_look_counts();

}  // namespace xmemk::cpu
