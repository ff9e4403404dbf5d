#include "quantised_bank.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace xmemk::cpu {
namespace {

// Of the tokens that can be read.
Terms largest_terms(const uint8_t* block) {
  const float* number = reinterpret_cast<const float*>(block);
  const float* shrinkage = number + (kLookNumbers - 1) * kLookTokens;
  float scale = 0, constant = 0;
  for (int64_t i = 0; i < kLookTokens; ++i) {  // NaN compares false
    const bool readable = number[i] >= 0;
    scale = readable && number[i] > scale ? number[i] : scale;
    constant = readable && shrinkage[i] > constant ? shrinkage[i] : constant;
  }
  const float largest = scale * kLargestCode * (1 + 0x1p-20f);
  return {largest, largest, constant};
}

std::vector<at::Tensor> contiguous(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> out;
  for (const at::Tensor& t : tensors) out.push_back(t.contiguous());
  return out;
}

}  // namespace

void quantise_block(const LookKernels& kernels, const Operands& operands, int64_t b, int64_t first, int64_t count,
                    float* scratch, uint8_t* block) {
  const int64_t rows = 2 * operands.channels();
  operands.pack_keys(b, first, count, 1, scratch, kLookTokens);
  float* shrinkage = scratch + rows * kLookTokens;
  for (int64_t i = 0; i < kLookTokens; ++i) {
    shrinkage[i] = i < count ? -shrinkage[i] : std::numeric_limits<float>::quiet_NaN();
  }
  kernels.quantise(scratch, rows, shrinkage, look_slack(operands.channels()), block);
  // What cannot be read and what only its square makes overflow look alike.
  float* scale = reinterpret_cast<float*>(block);
  for (int64_t i = 0; i < count; ++i) {
    if (std::isnan(scale[i]) && operands.is_finite_key(b, first + i)) scale[i] = std::numeric_limits<float>::infinity();
  }
}

QuantisedBank::QuantisedBank(const LookKernels& kernels, const Operands& operands,
                             const std::vector<at::Tensor>& packed)
    : kernels_(kernels),
      operands_(operands),
      packed_(contiguous(packed)),
      blocks_([&] {
        std::vector<Block> blocks;
        for (int64_t s = 0; s < operands.segments(); ++s) {
          for (int64_t i = 0; i < operands.segment_tokens(s); i += kLookTokens) {
            blocks.push_back({operands.segment_start(s) + i, std::min(kLookTokens, operands.segment_tokens(s) - i), s,
                              i / kLookTokens});
          }
        }
        return blocks;
      }()),
      block_bytes_(look_block_bytes(operands.channels())),
      chunk_blocks_(packed.empty() ? std::clamp<int64_t>(kBytes / block_bytes_, 1, blocks()) : blocks()),
      data_((packed.empty() ? chunk_blocks_ : operands.segments()) * block_bytes_) {}

bool QuantisedBank::load(int64_t b, int64_t first) {
  if (b == b_ && first == first_) return std::isfinite(largest_.square);
  b_ = b;
  first_ = first;
  constexpr int64_t kTogether = 16;  // blocks that are worth a task
  const int64_t count = std::min(chunk_blocks_, blocks() - first);
  std::vector<Terms> largest(ceil_div(count, kTogether));
  for_each_task(
      ceil_div(count, kTogether), [&] { return Buffer<float>(operands_.width() * kLookTokens); },
      [&](int64_t task, Buffer<float>& scratch) {
        for (int64_t i = first + task * kTogether; i < first + std::min((task + 1) * kTogether, count); ++i) {
          const Block& of = blocks_[i];
          if (packed_.empty()) {
            quantise_block(kernels_, operands_, b, of.first, of.count, scratch.get(),
                           data_.get() + (i - first) * block_bytes_);
          } else if (of.count < kLookTokens) {  // a copy without the tokens that the memory has no longer, or not yet
            uint8_t* copy = data_.get() + of.segment * block_bytes_;
            std::copy_n(packed_block(of), block_bytes_, copy);
            float* scale = reinterpret_cast<float*>(copy);
            std::fill(scale + of.count, scale + kLookTokens, std::numeric_limits<float>::quiet_NaN());
          }
          largest[task].raise(largest_terms(block(i)));
        }
      });
  largest_ = {};
  for (const Terms& part : largest) largest_.raise(part);
  return std::isfinite(largest_.square);
}

const uint8_t* QuantisedBank::packed_block(const Block& block) const {
  const at::Tensor& segment = packed_[block.segment];
  return segment.const_data_ptr<uint8_t>() + (b_ * segment.size(1) + block.place) * block_bytes_;
}

const uint8_t* QuantisedBank::block(int64_t i) const {
  if (packed_.empty()) return data_.get() + (i - first_) * block_bytes_;
  const Block& of = blocks_[i];
  return of.count < kLookTokens ? data_.get() + of.segment * block_bytes_ : packed_block(of);
}

}  // namespace xmemk::cpu
