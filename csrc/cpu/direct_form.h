// What the expanded form of Eq. 2 gets wrong: pairs of a token and a query whose terms are so large that rounding is
// left when they cancel, or that they overflow. Their scores and gradients are computed by the direct form,
// sum e (k - q)^2.
#pragma once

#include <vector>

#include "key_bank.h"

namespace xmemk::cpu {

// A term beyond this costs a score more than some 2^-24 * 2^14 = 0.001.
constexpr float kLargestTerm = 0x1p14f;

inline bool are_too_large(const Terms& token, const Terms& query, float largest = kLargestTerm) {
  return !(token.square * query.square <= largest && token.linear * query.linear <= largest &&
           token.constant * query.constant <= largest);
}

// Of a packed query [width].
Terms terms_of_query(const float* query, int64_t width);

// Some queries, whose pairs with tokens are looked through.
class DirectForm {
 public:
  explicit DirectForm(const Operands& operands, float largest_term = kLargestTerm)
      : operands_(&operands), largest_term_(largest_term) {}

  // Queries [first, first + count), packed at `query` [count, width].
  void set_queries(int64_t b, int64_t first, int64_t count, const float* query);

  const Terms& largest() const { return largest_; }

  // Puts right those of score[token * token_stride + query * query_stride] that need it; `terms` of each of tokens
  // [first, first + count), and the largest of them.
  void correct(const Terms& largest, const Terms* terms, int64_t first, int64_t count, float* score,
               int64_t token_stride, int64_t query_stride) const {
    if (are_too_large(largest, largest_, largest_term_))
      correct_pairs(terms, first, count, score, token_stride, query_stride);
  }

 private:
  void correct_pairs(const Terms* terms, int64_t first, int64_t count, float* score, int64_t token_stride,
                     int64_t query_stride) const;

  const Operands* operands_;
  float largest_term_;
  int64_t b_ = 0, first_ = 0;
  Terms largest_;
  std::vector<Terms> terms_;
};

// Tokens and queries of batch element b, and the gradients of their scores, d_score[tokens, stride].
struct ScoredPairs {
  const Operands& operands;
  int64_t b, token, tokens, query, queries;
  const float* d_score;
  int64_t stride;
};

// Adds to dk[tokens, CK], and to ds[tokens] what is still to be divided by sqrt(CK).
void add_key_gradients(const ScoredPairs& pairs, float* dk, double* ds);

// Adds to d_query[queries, 2 CK]: of the query's key, then of its selection.
void add_query_gradients(const ScoredPairs& pairs, float* d_query);

}  // namespace xmemk::cpu
