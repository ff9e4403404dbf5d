#include "token_group.h"

#include <algorithm>

#include "direct_form.h"

namespace xmemk::cpu {
namespace {

std::vector<TokenGroup::Tile> tiles_of(at::TensorList mk) {
  std::vector<TokenGroup::Tile> tiles;
  int64_t token = 0;
  for (size_t i = 0; i < mk.size(); ++i) {
    const int64_t n = mk[i].size(2);
    for (int64_t first = 0; first < n; first += TokenGroup::kRows) {
      tiles.push_back({i, first, token + first, std::min(TokenGroup::kRows, n - first)});
    }
    token += n;
  }
  return tiles;
}

int64_t room_for(int64_t tiles, int64_t threads) {
  constexpr int64_t kQuad = TokenGroup::kQuad;
  return std::min(ceil_div(tiles, kQuad) * kQuad, std::max<int64_t>(2 * kQuad, ceil_div(2 * threads, kQuad) * kQuad));
}

}  // namespace

TokenGroup::TokenGroup(const Operands& operands, at::TensorList mk, int64_t threads)
    : operands_(operands),
      tiles_(tiles_of(mk)),
      room_(room_for(tiles(), threads)),
      keys_(room_ * kRows * operands.channels()),
      shrinkage_(room_ * kRows),
      rows_(room_ * kRows * operands.width()),
      columns_(room_ * kRows * operands.width()) {}

void TokenGroup::load(int64_t b, int64_t first) {
  first_ = first;
  dead_.assign(room_ * kRows, 1);  // also rows behind the last token, whose score of 0 could be any query's best
  terms_.assign(room_ * kRows, {});
  largest_.assign(room_, {});
  for_each_task(ceil_div(count(), kQuad) * kQuad, [&](int64_t at) { load_tile(b, at); });
}

void TokenGroup::load_tile(int64_t b, int64_t at) {
  const int64_t channels = operands_.channels(), width = operands_.width();
  float* s = shrinkage_.get() + at * kRows;
  float* rows = rows_.get() + at * kRows * width;
  float* columns = columns_.get() + at / kQuad * kTileKeys * width + at % kQuad * kRows;
  std::fill_n(rows, kRows * width, 0.0f);
  if (at < count()) {
    float* keys = keys_.get() + at * kRows * channels;
    operands_.read_keys(b, tile(at).token, tile(at).count, true, keys, s);
    for (int64_t r = 0; r < tile(at).count; ++r) {
      float *k = keys + r * channels, *row = rows + r * width;
      for (int64_t c = 0; c < channels; ++c) {
        row[2 * c] = -(s[r] * k[c]) * k[c];
        row[2 * c + 1] = 2 * (s[r] * k[c]);
      }
      row[2 * channels] = -s[r];
      const bool finite = are_finite(row, width);
      dead_[at * kRows + r] = !finite && !operands_.is_finite_key(b, tile(at).token + r);
      if (!cannot_be_read(at, r)) terms_[at * kRows + r] = terms_of_query(row, width);
      largest_[at].raise(terms_[at * kRows + r]);
      if (finite) continue;
      std::fill_n(k, channels, 0.0f);
      std::fill_n(row, width, 0.0f);
      s[r] = 0;
    }
  }
  for (int64_t c = 0; c < width; ++c) {
    for (int64_t r = 0; r < kRows; ++r) columns[c * kTileKeys + r] = rows[r * width + c];
  }
}

}  // namespace xmemk::cpu
