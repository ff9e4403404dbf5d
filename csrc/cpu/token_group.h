// Tokens as the backward pass of a dense read takes them: a group of tiles at a time, as rows and as columns of the
// product of the similarity, to meet all queries.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "key_bank.h"

namespace xmemk::cpu {

class TokenGroup {
 public:
  static constexpr int64_t kRows = 64;  // tokens of a tile, all of one segment
  static constexpr int64_t kQuad = 4;   // tiles whose columns lie side by side

  struct Tile {
    size_t segment;
    int64_t first, token, count;  // first token within the segment and of all, and how many
  };

  TokenGroup(const Operands& operands, at::TensorList mk, int64_t threads);

  int64_t tiles() const { return static_cast<int64_t>(tiles_.size()); }  // of the memory
  int64_t room() const { return room_; }                                 // of a group
  int64_t count() const { return std::min(room_, tiles() - first_); }    // of the loaded one

  // Tiles [first, first + room) of batch element b, and tiles of 0 up to a full four.
  void load(int64_t b, int64_t first);

  // Of tile `at` of the group. A token that cannot be read, or whose terms overflow, is 0 throughout: 0 times what is
  // not finite would be NaN for all queries.
  const Tile& tile(int64_t at) const { return tiles_[first_ + at]; }
  const float* keys(int64_t at) const { return keys_.get() + at * kRows * operands_.channels(); }  // [kRows, CK]
  const float* shrinkage(int64_t at) const { return shrinkage_.get() + at * kRows; }               // [kRows]
  const float* rows(int64_t at) const { return rows_.get() + at * kRows * operands_.width(); }     // [kRows, width]
  const float* columns(int64_t quad) const {
    return columns_.get() + quad * kRows * operands_.width();
  }  // [width, 256]
  const Terms* terms(int64_t at) const { return terms_.data() + at * kRows; }
  const Terms& largest_terms(int64_t at) const { return largest_[at]; }
  bool cannot_be_read(int64_t at, int64_t row) const { return dead_[at * kRows + row]; }

 private:
  void load_tile(int64_t b, int64_t at);

  const Operands& operands_;
  std::vector<Tile> tiles_;
  int64_t room_ = 0, first_ = 0;
  Buffer<float> keys_, shrinkage_, rows_, columns_;
  std::vector<char> dead_;
  std::vector<Terms> terms_, largest_;
};

}  // namespace xmemk::cpu
