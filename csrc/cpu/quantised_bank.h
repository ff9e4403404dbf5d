// The keys of the memory in 8 bits, as the first look wants them (first_look.h): a block of 64 tokens after another,
// each segment from a block of its own. Packed for one read, or kept by a memory that updates the tokens it writes.
#pragma once

#include <vector>

#include <ATen/core/Tensor.h>

#include "key_bank.h"
#include "vec_look.h"

namespace xmemk::cpu {

inline int64_t look_steps(int64_t channels) {
  return ceil_div(2 * channels, kLookChannels);
}
inline int64_t look_block_bytes(int64_t channels) {
  return kLookNumberBytes + look_steps(channels) * kLookStepBytes;
}

// Of what a float32 evaluation of a score adds up, the part by which it and its bounds may be off: twice the unit
// roundoff for each of the 2 CK + 1 products, and for the operations of a bound.
inline float look_slack(int64_t channels) {
  return static_cast<float>(2 * channels + 1 + 16) * 0x1p-23f;
}

// Tokens [first, first + count <= kLookTokens) into a block; the lanes behind them never pass. `scratch` has
// width * kLookTokens floats.
void quantise_block(const LookKernels& kernels, const Operands& operands, int64_t b, int64_t first, int64_t count,
                    float* scratch, uint8_t* block);

class QuantisedBank {
 public:
  // `packed`: as many uint8 tensors [B, blocks, block bytes] as segments, or none.
  QuantisedBank(const LookKernels& kernels, const Operands& operands, const std::vector<at::Tensor>& packed);

  int64_t blocks() const { return static_cast<int64_t>(blocks_.size()); }
  int64_t chunk_blocks() const { return chunk_blocks_; }

  // Makes blocks [first, first + chunk_blocks) of batch element b available. -> whether the bound holds for all tokens.
  bool load(int64_t b, int64_t first);

  const Terms& largest() const { return largest_; }  // of the loaded blocks, or more

  const uint8_t* block(int64_t i) const;
  uint32_t block_token(int64_t i) const { return static_cast<uint32_t>(blocks_[i].first); }

 private:
  static constexpr int64_t kBytes = 64 << 20;

  struct Block {
    int64_t first, count;    // tokens
    int64_t segment, place;  // in its packed tensor
  };

  const uint8_t* packed_block(const Block& block) const;

  const LookKernels& kernels_;
  const Operands& operands_;
  const std::vector<at::Tensor> packed_;
  std::vector<Block> blocks_;
  int64_t block_bytes_, chunk_blocks_;
  int64_t b_ = -1, first_ = -1;
  Terms largest_;
  Buffer<uint8_t> data_;
};

// Raises an error unless `packed` has room for `tokens` keys such as mk's [B, CK, N].
void check_packed_keys(const char* op, const at::Tensor& packed, const at::Tensor& mk, int64_t tokens);

}  // namespace xmemk::cpu
