// The operators of the memory read: checks, and which way to go.
#include "../memory_read.h"

#include <vector>

#include <ATen/ops/empty.h>
#include <ATen/ops/ones.h>
#include <torch/library.h>

#include "memory_read_cpu.h"
#include "quantised_bank.h"

namespace xmemk::cpu {
namespace {

LookInputs look_inputs(const char* op, at::TensorList mk, const at::Tensor& qk, const std::optional<at::Tensor>& hint,
                       const std::optional<std::vector<at::Tensor>>& packed, const std::optional<at::Tensor>& centre) {
  check_hint(op, hint, qk, tokens_of(mk));
  check_centre(op, centre, qk);
  if (!packed) return {hint, {}, centre};
  TORCH_CHECK_VALUE(packed->size() == mk.size() && centre, op,
                    ": packed: wanted one for each mk, and a centre, got ", packed->size(), " for ", mk.size());
  for (size_t i = 0; i < mk.size(); ++i) check_packed_keys(op, (*packed)[i], mk[i], mk[i].size(2));
  return {hint, *packed, centre};
}

std::tuple<at::Tensor, at::Tensor> memory_read(at::TensorList mk, at::TensorList ms, at::TensorList mv,
                                               const at::Tensor& qk, const std::optional<at::Tensor>& qe,
                                               std::optional<int64_t> top_k, bool return_usage,
                                               const std::optional<at::Tensor>& hint,
                                               std::optional<std::vector<at::Tensor>> packed,
                                               const std::optional<at::Tensor>& centre) {
  check_keys("memory_read", mk, ms, qk, qe);
  check_values_of_keys("memory_read", mv, mk);
  if (top_k) check_top_k("memory_read", *top_k);
  const LookInputs look = look_inputs("memory_read", mk, qk, hint, packed, centre);
  const int64_t tokens = tokens_of(mk);
  if (!top_k || *top_k >= tokens) return read_dense(mk, ms, mv, qk, qe, return_usage);
  const auto [weight, index] = select_topk(mk, ms, qk, qe, *top_k, look);
  at::Tensor usage = return_usage ? usage_of(weight, index, tokens) : at::empty({0}, weight.options());
  return {read_topk(mv, weight, index), usage};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> affinity_topk(at::TensorList mk, at::TensorList ms, const at::Tensor& qk,
                                                             const std::optional<at::Tensor>& qe, int64_t top_k,
                                                             bool return_usage, const std::optional<at::Tensor>& hint,
                                                             std::optional<std::vector<at::Tensor>> packed,
                                                             const std::optional<at::Tensor>& centre) {
  check_keys("affinity_topk", mk, ms, qk, qe);
  check_top_k("affinity_topk", top_k);
  const LookInputs look = look_inputs("affinity_topk", mk, qk, hint, packed, centre);
  auto [weight, index] = select_topk(mk, ms, qk, qe, top_k, look);
  at::Tensor usage = return_usage ? usage_of(weight, index, tokens_of(mk)) : at::empty({0}, weight.options());
  return {weight, index, usage};
}

at::Tensor readout_topk(at::TensorList mv, const at::Tensor& weight, const at::Tensor& index) {
  check_affinity("readout_topk", weight, index);
  check_values("readout_topk", mv, weight.size(0), weight.device());
  const at::Tensor chosen = index.contiguous();
  const int64_t tokens = tokens_of(mv);
  const int64_t* i = chosen.const_data_ptr<int64_t>();
  for (int64_t j = 0; j < chosen.numel(); ++j) {
    TORCH_CHECK_INDEX(0 <= i[j] && i[j] < tokens, "index: wanted 0 to ", tokens - 1, " (N = ", tokens, " tokens), got ",
                      i[j]);
  }
  return read_topk(mv, weight.to(at::kFloat).contiguous(), chosen);
}

std::tuple<at::Tensor, at::Tensor> potentiate(at::TensorList mk, at::TensorList ms, at::TensorList mv,
                                              const at::Tensor& pk, const std::optional<at::Tensor>& pe) {
  check_keys("potentiate", mk, ms, pk, pe);
  check_values_of_keys("potentiate", mv, mk);
  std::vector<at::Tensor> shrinkage;
  for (size_t i = 0; i < mk.size(); ++i) {
    shrinkage.push_back(ms.empty() ? at::ones({mk[i].size(0), 1, mk[i].size(2)}, mk[i].options().dtype(at::kFloat))
                                   : ms[i].to(at::kFloat));
  }
  return read_potentiated(mk, shrinkage, mv, pk, pe);
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("memory_read", &memory_read);
  m.impl("affinity_topk", &affinity_topk);
  m.impl("readout_topk", &readout_topk);
  m.impl("potentiate", &potentiate);
}

}  // namespace xmemk::cpu
