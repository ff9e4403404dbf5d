// The operators memory_read and memory_read_saving: checks, and which way to go.
#include "../memory_read.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "interrupt.h"
#include "read_steps.h"

namespace xmemk::cpu {
namespace {

std::tuple<at::Tensor, at::Tensor> memory_read(at::TensorList mk, at::TensorList ms, at::TensorList mv,
                                               const at::Tensor& qk, const std::optional<at::Tensor>& qe,
                                               std::optional<int64_t> top_k, bool return_usage,
                                               const std::optional<at::Tensor>& hint,
                                               std::optional<std::vector<at::Tensor>> packed,
                                               const std::optional<at::Tensor>& centre) {
  check_memory_read("memory_read", mk, ms, mv, qk, qe, top_k);
  const Interruptible interruptible;
  const LookInputs look = look_inputs("memory_read", mk, qk, hint, packed, centre);
  const int64_t tokens = tokens_of(mk);
  if (!top_k || *top_k >= tokens) return read_dense(mk, ms, mv, qk, qe, return_usage);
  const auto [weight, index] = select_topk(mk, ms, qk, qe, *top_k, look);
  at::Tensor usage = return_usage ? usage_of(weight, index, tokens) : at::empty({0}, weight.options());
  return {read_topk(mv, weight, index), usage};
}

// A read that is to be differentiated: also what memory_read_backward needs.
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> memory_read_saving(
    at::TensorList mk, at::TensorList ms, at::TensorList mv, const at::Tensor& qk, const std::optional<at::Tensor>& qe,
    std::optional<int64_t> top_k, bool return_usage, const std::optional<at::Tensor>& hint) {
  check_memory_read("memory_read_saving", mk, ms, mv, qk, qe, top_k);
  check_hint("memory_read_saving", hint, qk, tokens_of(mk));
  const Interruptible interruptible;
  if (!top_k) {
    at::Tensor softmax;
    auto [readout, usage] = read_dense(mk, ms, mv, qk, qe, return_usage, &softmax);
    return {readout, usage, softmax, at::empty({qk.size(0), qk.size(2), 0}, qk.options().dtype(at::kLong))};
  }
  const auto [weight, index] = select_topk(mk, ms, qk, qe, *top_k, {hint, {}, std::nullopt});
  at::Tensor usage = return_usage ? usage_of(weight, index, tokens_of(mk)) : at::empty({0}, weight.options());
  return {read_topk(mv, weight, index), usage, weight, index};
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("memory_read", &memory_read);
  m.impl("memory_read_saving", &memory_read_saving);
}

}  // namespace xmemk::cpu
