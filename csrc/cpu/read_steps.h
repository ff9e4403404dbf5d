// What the parts of the CPU's memory read offer one another.
#pragma once

#include <optional>
#include <tuple>
#include <vector>

#include <ATen/core/Tensor.h>

namespace xmemk::cpu {

inline int64_t tokens_of(at::TensorList segments) {
  int64_t tokens = 0;
  for (const at::Tensor& s : segments) tokens += s.size(-1);
  return tokens;
}

// What makes a top-k read quicker, and changes no result: tokens [B, Q, k'] int64 that are likely to be among the best;
// the keys of each segment as quantise_keys packed them, about this centre [B, CK].
struct LookInputs {
  std::optional<at::Tensor> hint;
  std::vector<at::Tensor> packed;
  std::optional<at::Tensor> centre;
};

// Checked: hint [B, Q, k'] of existing tokens, packed keys for each mk, and the centre they were packed about.
LookInputs look_inputs(const char* op, at::TensorList mk, const at::Tensor& qk, const std::optional<at::Tensor>& hint,
                       const std::optional<std::vector<at::Tensor>>& packed, const std::optional<at::Tensor>& centre);

// -> weight [B, Q, k] float32, index [B, Q, k] int64, k = min(top_k, N)
std::tuple<at::Tensor, at::Tensor> select_topk(at::TensorList mk, at::TensorList ms, const at::Tensor& qk,
                                               const std::optional<at::Tensor>& qe, int64_t top_k,
                                               const LookInputs& look = {});

// -> usage [B, tokens] float32
at::Tensor usage_of(const at::Tensor& weight, const at::Tensor& index, int64_t tokens);

// -> readout [B, O, CV, Q] in mv's dtype, with channel stride 1
at::Tensor read_topk(at::TensorList mv, const at::Tensor& weight, const at::Tensor& index);

// -> readout, usage (empty unless wanted). With `softmax`, which becomes [B, 2, Q], what a score is to be less and what
// its exponential is to be multiplied by, the readout is float32.
std::tuple<at::Tensor, at::Tensor> read_dense(at::TensorList mk, at::TensorList ms, at::TensorList mv,
                                              const at::Tensor& qk, const std::optional<at::Tensor>& qe,
                                              bool return_usage, at::Tensor* softmax = nullptr);

// One number per token, x [B, N] float32, averaged by the affinity of each query -> [B, Q]
at::Tensor average_dense(at::TensorList mk, at::TensorList ms, const at::Tensor& x, const at::Tensor& qk,
                         const std::optional<at::Tensor>& qe);

// Shrinkage [B, 1, N] float32 and values averaged for prototypes pk [B, CK, P] -> ps [B, 1, P], pv [B, O, CV, P]
std::tuple<at::Tensor, at::Tensor> read_potentiated(at::TensorList mk, at::TensorList ms, at::TensorList mv,
                                                    const at::Tensor& pk, const std::optional<at::Tensor>& pe);

}  // namespace xmemk::cpu
