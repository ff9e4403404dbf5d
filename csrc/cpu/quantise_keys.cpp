// The operators of a bank that is packed once: what a memory keeps beside its keys, so that a read packs nothing.
#include <limits>

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../memory_read.h"
#include "quantised_bank.h"
#include "vec.h"

namespace xmemk::cpu {

void check_packed_keys(const char* op, const at::Tensor& packed, const at::Tensor& mk, int64_t tokens) {
  TORCH_CHECK_TYPE(packed.scalar_type() == at::kByte, op, ": packed: wanted uint8, got ", packed.scalar_type());
  TORCH_CHECK_VALUE(packed.dim() == 3 && packed.size(0) == mk.size(0) && packed.size(1) * kLookTokens >= tokens &&
                        packed.size(2) == look_block_bytes(mk.size(1)) && packed.is_cpu(),
                    op, ": packed: wanted [B = ", mk.size(0), ", blocks >= ", ceil_div(tokens, kLookTokens), ", ",
                    look_block_bytes(mk.size(1)), "] as empty_packed_keys gives it, got ", packed.sizes());
}

namespace {

at::Tensor key_centre(at::TensorList mk) {
  check_keys("key_centre", mk, {}, mk[0], std::nullopt);
  const Operands operands(mk, {}, mk[0], std::nullopt);
  at::Tensor centre = at::empty({operands.batch(), operands.channels()}, mk[0].options().dtype(at::kFloat));
  std::copy_n(operands.centre(0), centre.numel(), centre.mutable_data_ptr<float>());
  return centre;
}

// Without any token: no lane passes.
at::Tensor empty_packed_keys(const at::Tensor& mk, int64_t tokens) {
  TORCH_CHECK_VALUE(mk.dim() == 3 && tokens >= 0, "empty_packed_keys: wanted mk [B, CK, N] and tokens >= 0, got ",
                    mk.sizes(), " and ", tokens);
  at::Tensor packed = at::empty({mk.size(0), ceil_div(tokens, kLookTokens), look_block_bytes(mk.size(1))},
                                mk.options().dtype(at::kByte));
  uint8_t* data = packed.mutable_data_ptr<uint8_t>();
  const int64_t blocks = packed.size(0) * packed.size(1), bytes = packed.size(2);
  for (int64_t i = 0; i < blocks; ++i, data += bytes) {
    std::fill_n(data, bytes, uint8_t{0});
    std::fill_n(reinterpret_cast<float*>(data), kLookTokens, std::numeric_limits<float>::quiet_NaN());
  }
  return packed;
}

// Lane j of a block from lane i of another.
void copy_lane(const uint8_t* from, int64_t i, int64_t steps, uint8_t* to, int64_t j) {
  constexpr int64_t kNumber = static_cast<int64_t>(sizeof(float));
  for (int64_t n = 0; n < kLookNumbers; ++n) {
    std::copy_n(from + (n * kLookTokens + i) * kNumber, kNumber, to + (n * kLookTokens + j) * kNumber);
  }
  for (int64_t s = 0; s < steps; ++s) {
    const int64_t at = kLookNumberBytes + s * kLookStepBytes;
    std::copy_n(from + at + i * kLookChannels, kLookChannels, to + at + j * kLookChannels);
  }
}

void quantise_keys(const at::Tensor& mk, const std::optional<at::Tensor>& ms, const at::Tensor& centre,
                   at::Tensor packed, int64_t first) {
  const auto shrinkage = ms ? std::vector<at::Tensor>{*ms} : std::vector<at::Tensor>{};
  if (mk.dim() == 3 && mk.size(2) == 0) return;
  check_keys("quantise_keys", {mk}, shrinkage, mk, std::nullopt);
  check_centre("quantise_keys", centre, mk);
  TORCH_CHECK_VALUE(first >= 0, "quantise_keys: first: wanted at least 0, got ", first);
  check_packed_keys("quantise_keys", packed, mk, first + mk.size(2));
  TORCH_CHECK_VALUE(packed.is_contiguous(), "quantise_keys: packed: wanted contiguous memory");
  const LookKernels* kernels = vec().look;
  if (kernels == nullptr) return;  // and no read looks at it
  const Operands operands({mk}, shrinkage, mk, std::nullopt, centre);
  const int64_t tokens = operands.tokens(), last = first + tokens, bytes = packed.size(2);
  const int64_t steps = look_steps(operands.channels()), from = first / kLookTokens;
  const int64_t blocks = ceil_div(last, kLookTokens) - from;
  const auto make = [&] { return std::pair{Buffer<float>(operands.width() * kLookTokens), Buffer<uint8_t>(bytes)}; };
  for_each_task(operands.batch() * blocks, make, [&](int64_t task, auto& scratch) {
    const int64_t b = task / blocks, block = from + task % blocks;
    const int64_t begin = std::max(first, block * kLookTokens), end = std::min(last, (block + 1) * kLookTokens);
    uint8_t* out = packed.mutable_data_ptr<uint8_t>() + (b * packed.size(1) + block) * bytes;
    const bool whole = end - begin == kLookTokens;
    quantise_block(*kernels, operands, b, begin - first, end - begin, scratch.first.get(),
                   whole ? out : scratch.second.get());
    for (int64_t i = begin; !whole && i < end; ++i) {
      copy_lane(scratch.second.get(), i - begin, steps, out, i - block * kLookTokens);
    }
  });
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("key_centre", &key_centre);
  m.impl("empty_packed_keys", &empty_packed_keys);
  m.impl("quantise_keys", &quantise_keys);
}

}  // namespace xmemk::cpu
