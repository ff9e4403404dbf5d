// The inner loops of the first look (first_look.h), for processors that multiply bytes.
#pragma once

#include <cstdint>

namespace xmemk::cpu {

constexpr int64_t kLookTokens = 64;   // seen at a time: a block
constexpr int64_t kLookQueries = 4;   // likewise: a group
constexpr int64_t kLookChannels = 4;  // multiplied and added at a time: a step

// A block is float number[kLookNumbers][kLookTokens], then uint8_t code[steps][kLookTokens][kLookChannels].
constexpr int64_t kLookNumbers = 4;  // scale, error, norm (in units of the scale), shrinkage
constexpr int64_t kLookNumberBytes = kLookNumbers * kLookTokens * static_cast<int64_t>(sizeof(float));
constexpr int64_t kLookStepBytes = kLookTokens * kLookChannels;

constexpr float kLargestCode = 127;
constexpr int kCodeOfZero = 128;           // of a token; a query's codes are signed
constexpr float kLeastScaled = 0x1p-100f;  // a row without a larger number is taken for 0
constexpr float kLargestLooked = 0x1p40f;  // the largest norm and shrinkage that the bound is proved for

// A group of queries, with the numbers of first_look.h: scale r, norm |B|, error f, constant C - t |C|, slack t |C|.
struct LookQueries {
  const int32_t* code;  // [steps][kLookQueries], kLookChannels signed bytes each
  int32_t offset[kLookQueries];
  float scale[kLookQueries], norm[kLookQueries], error[kLookQueries], constant[kLookQueries], slack[kLookQueries];
};

// Tokens of one query whose upper bound reaches the bar, with both bounds of their scores. kLookTokens entries behind
// `count` may be overwritten.
struct LookFound {
  float *upper, *lower;
  uint32_t* index;
  int64_t count;
  float bar;
};

struct LookKernels {
  // Packs x[rows, kLookTokens], `shrinkage` beside it. A token with a number that is not finite gets the scale NaN;
  // one larger than kLargestLooked, or with negative shrinkage, the scale infinity.
  void (*quantise)(const float* x, int64_t rows, const float* shrinkage, float slack, uint8_t* block);

  // Appends the tokens of a block, of which `first` is the first, to found[kLookQueries].
  void (*look)(const uint8_t* block, int64_t steps, uint32_t first, const LookQueries& queries, LookFound* found);

  // Drops the tokens that do not reach the bar, and keeps the order of the others.
  void (*keep_reaching)(LookFound& found);

  // What VecKernels::product makes of a query and 16 tokens, to the last bit; keys of `channels` contiguous floats,
  // with shrinkage / sqrt(CK).
  void (*score_tokens)(const float* const* key, const float* shrinkage, const float* centre, const float* query,
                       int64_t channels, float* score);
};

extern const LookKernels kLookAvx512Vnni;  // x86-64 with gcc or clang

}  // namespace xmemk::cpu
