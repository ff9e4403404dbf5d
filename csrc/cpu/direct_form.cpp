#include "direct_form.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "vec.h"

namespace xmemk::cpu {
namespace {

float magnitude(float x) {
  return std::isnan(x) ? std::numeric_limits<float>::infinity() : std::abs(x);
}

// Rows as Eq. 2 has them.
struct QueryRows {
  std::vector<float> q, e;
  QueryRows(const Operands& operands, int64_t b, int64_t first, int64_t count)
      : q(count * operands.channels()), e(q.size()) {
    operands.read_queries(b, first, count, false, q.data(), e.data());
  }
};

}  // namespace

Terms terms_of_query(const float* query, int64_t width) {
  Terms terms;
  for (int64_t i = 0; i + 1 < width; i += 2) {
    terms.square = std::max(terms.square, magnitude(query[i]));
    terms.linear = std::max(terms.linear, magnitude(query[i + 1]));
  }
  terms.constant = magnitude(query[width - 1]);
  return terms;
}

void DirectForm::set_queries(int64_t b, int64_t first, int64_t count, const float* query) {
  b_ = b;
  first_ = first;
  largest_ = {};
  terms_.resize(count);
  for (int64_t j = 0; j < count; ++j) {
    terms_[j] = terms_of_query(query + j * operands_->width(), operands_->width());
    // What is not finite itself is not put right.
    if (!terms_[j].are_finite() && !operands_->is_finite_query(b, first + j)) terms_[j] = {};
    largest_.raise(terms_[j]);
  }
}

void DirectForm::correct_pairs(const Terms* terms, int64_t first, int64_t count, float* score, int64_t token_stride,
                               int64_t query_stride) const {
  const VecKernels& kernels = vec();
  const int64_t channels = operands_->channels(), queries = static_cast<int64_t>(terms_.size());
  const QueryRows rows(*operands_, b_, first_, queries);
  std::vector<float> key(channels);
  for (int64_t i = 0; i < count; ++i) {
    if (!are_too_large(terms[i], largest_, largest_term_)) continue;
    float s;
    operands_->read_keys(b_, first + i, 1, false, key.data(), &s);
    for (int64_t j = 0; j < queries; ++j) {
      if (!are_too_large(terms[i], terms_[j], largest_term_)) continue;
      const int64_t row = j * channels;
      score[i * token_stride + j * query_stride] =
          -s * kernels.distance(key.data(), rows.q.data() + row, rows.e.data() + row, channels);
    }
  }
}

void add_key_gradients(const ScoredPairs& pairs, float* dk, double* ds) {
  const VecKernels& kernels = vec();
  const int64_t channels = pairs.operands.channels();
  const QueryRows rows(pairs.operands, pairs.b, pairs.query, pairs.queries);
  std::vector<float> k(channels);
  for (int64_t i = 0; i < pairs.tokens; ++i) {
    float s;
    pairs.operands.read_keys(pairs.b, pairs.token + i, 1, false, k.data(), &s);
    for (int64_t j = 0; j < pairs.queries; ++j) {
      const float d = pairs.d_score[i * pairs.stride + j];
      if (d == 0) continue;
      const float *q = rows.q.data() + j * channels, *e = rows.e.data() + j * channels;
      for (int64_t c = 0; c < channels; ++c) dk[i * channels + c] += 2 * (s * d) * e[c] * (q[c] - k[c]);
      ds[i] -= double(d) * kernels.distance(k.data(), q, e, channels);
    }
  }
}

void add_query_gradients(const ScoredPairs& pairs, float* d_query) {
  const int64_t channels = pairs.operands.channels();
  const QueryRows rows(pairs.operands, pairs.b, pairs.query, pairs.queries);
  std::vector<float> k(channels);
  for (int64_t i = 0; i < pairs.tokens; ++i) {
    float s;
    pairs.operands.read_keys(pairs.b, pairs.token + i, 1, false, k.data(), &s);
    for (int64_t j = 0; j < pairs.queries; ++j) {
      const float h = s * pairs.d_score[i * pairs.stride + j];
      if (h == 0) continue;
      const float *q = rows.q.data() + j * channels, *e = rows.e.data() + j * channels;
      float *dq = d_query + 2 * j * channels, *de = dq + channels;
      for (int64_t c = 0; c < channels; ++c) {
        const float difference = k[c] - q[c];
        dq[c] += 2 * h * e[c] * difference;
        de[c] -= h * difference * difference;
      }
    }
  }
}

}  // namespace xmemk::cpu
