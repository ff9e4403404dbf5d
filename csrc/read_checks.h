// Checks of a read's arguments that its operators have in common. Schemas in xmemk/operators/.
//   mk[i] [B, CK, N_i]  ms[i] [B, 1, N_i] or ms empty  mv[i] [B, O, CV, N_i]  qk [B, CK, Q]  qe as qk or none
#pragma once

#include <optional>

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include "checks.h"

namespace xmemk {

inline bool is_float32_or_16_bit(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kHalf || dtype == at::kBFloat16;
}

inline void check_keys(const char* op, at::TensorList mk, at::TensorList ms, const at::Tensor& qk,
                       const std::optional<at::Tensor>& qe) {
  TORCH_CHECK_VALUE(qk.dim() == 3, op, ": qk: wanted [B, CK, Q], got ", qk.sizes());
  TORCH_CHECK_TYPE(is_float32_or_16_bit(qk.scalar_type()), op, ": qk: wanted float32, float16 or bfloat16, got ",
                   qk.scalar_type());
  TORCH_CHECK_VALUE(!mk.empty() && (ms.empty() || ms.size() == mk.size()), op, ": wanted as many ms as mk, got ",
                    ms.size(), " and ", mk.size());
  int64_t tokens = 0;
  for (size_t i = 0; i < mk.size(); ++i) {
    TORCH_CHECK_VALUE(mk[i].dim() == 3 && mk[i].size(0) == qk.size(0) && mk[i].size(1) == qk.size(1), op, ": mk[", i,
                      "]: wanted [B, CK, N] to go with qk ", qk.sizes(), ", got ", mk[i].sizes());
    TORCH_CHECK_TYPE(mk[i].scalar_type() == qk.scalar_type(), op, ": mk[", i, "]: wanted qk's ", qk.scalar_type(),
                     ", got ", mk[i].scalar_type());
    TORCH_CHECK_VALUE(mk[i].device() == qk.device(), op, ": mk[", i, "]: wanted device ", qk.device(), ", got ",
                      mk[i].device());
    if (!ms.empty()) {
      TORCH_CHECK_VALUE(ms[i].dim() == 3 && ms[i].size(0) == qk.size(0) && ms[i].size(1) == 1 &&
                            ms[i].size(2) == mk[i].size(2) && ms[i].device() == qk.device(),
                        op, ": ms[", i, "]: wanted [B, 1, N] to go with mk ", mk[i].sizes(), ", got ", ms[i].sizes());
    }
    tokens += mk[i].size(2);
  }
  TORCH_CHECK_VALUE(0 < tokens && tokens < int64_t{1} << 32, op, ": mk: wanted 1 to 2^32 - 1 tokens, got ", tokens);
  if (qe) {
    TORCH_CHECK_VALUE(qe->sizes() == qk.sizes() && qe->scalar_type() == qk.scalar_type() && qe->device() == qk.device(),
                      op, ": qe: wanted qk's ", qk.sizes(), " ", qk.scalar_type(), ", got ", qe->sizes(), " ",
                      qe->scalar_type());
  }
}

inline void check_values(const char* op, at::TensorList mv, int64_t batch, const at::Device& device) {
  TORCH_CHECK_VALUE(!mv.empty(), op, ": mv: wanted at least one segment");
  for (size_t i = 0; i < mv.size(); ++i) {
    TORCH_CHECK_VALUE(mv[i].dim() == 4 && mv[i].size(0) == batch && mv[i].device() == device &&
                          mv[i].size(1) == mv[0].size(1) && mv[i].size(2) == mv[0].size(2),
                      op, ": mv[", i, "]: wanted [B = ", batch, ", O, CV, N], got ", mv[i].sizes());
    TORCH_CHECK_TYPE(is_float32_or_16_bit(mv[i].scalar_type()) && mv[i].scalar_type() == mv[0].scalar_type(), op,
                     ": mv[", i, "]: wanted one of float32, float16 and bfloat16, got ", mv[i].scalar_type());
  }
}

inline void check_values_of_keys(const char* op, at::TensorList mv, at::TensorList mk) {
  check_values(op, mv, mk[0].size(0), mk[0].device());
  TORCH_CHECK_VALUE(mv.size() == mk.size(), op, ": wanted as many mv as mk, got ", mv.size(), " and ", mk.size());
  for (size_t i = 0; i < mv.size(); ++i) {
    TORCH_CHECK_VALUE(mv[i].size(3) == mk[i].size(2), op, ": mv[", i, "]: wanted N = ", mk[i].size(2), ", got ",
                      mv[i].sizes());
  }
}

inline void check_top_k(const char* op, int64_t top_k) {
  TORCH_CHECK_VALUE(top_k >= 1, op, ": top_k: wanted at least 1, got ", top_k);
}

inline void check_centre(const char* op, const std::optional<at::Tensor>& centre, const at::Tensor& keys) {
  TORCH_CHECK_VALUE(!centre || (centre->sizes() == at::IntArrayRef({keys.size(0), keys.size(1)}) &&
                                centre->scalar_type() == at::kFloat && centre->device() == keys.device()),
                    op, ": centre: wanted float32 [B = ", keys.size(0), ", CK = ", keys.size(1), "]");
}

// Tokens that are likely to be among the best: any that exist.
inline void check_hint(const char* op, const std::optional<at::Tensor>& hint, const at::Tensor& qk, int64_t tokens) {
  if (!hint) return;
  TORCH_CHECK_VALUE(hint->dim() == 3 && hint->size(0) == qk.size(0) && hint->size(1) == qk.size(2), op,
                    ": hint: wanted [B = ", qk.size(0), ", Q = ", qk.size(2), ", k], got ", hint->sizes());
  TORCH_CHECK_TYPE(hint->scalar_type() == at::kLong, op, ": hint: wanted int64, got ", hint->scalar_type());
  TORCH_CHECK_VALUE(hint->device() == qk.device(), op, ": hint: wanted device ", qk.device(), ", got ", hint->device());
  if (!hint->is_cpu()) return;
  const at::Tensor index = hint->contiguous();
  const int64_t* i = index.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < index.numel(); ++j) {
    TORCH_CHECK_INDEX(0 <= i[j] && i[j] < tokens, op, ": hint: wanted 0 to ", tokens - 1, " (N = ", tokens,
                      " tokens), got ", i[j]);
  }
}

inline void check_affinity(const char* op, const at::Tensor& weight, const at::Tensor& index) {
  TORCH_CHECK_VALUE(weight.dim() == 3 && index.sizes() == weight.sizes() && index.device() == weight.device(), op,
                    ": wanted weight and index [B, Q, k], got ", weight.sizes(), " and ", index.sizes());
  TORCH_CHECK_TYPE(is_float32_or_16_bit(weight.scalar_type()) && index.scalar_type() == at::kLong, op,
                   ": wanted float weight and int64 index, got ", weight.scalar_type(), " and ", index.scalar_type());
}

}  // namespace xmemk
