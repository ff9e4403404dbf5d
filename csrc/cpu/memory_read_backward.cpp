// The operator memory_read_backward: checks, and which way to go.
#include "../memory_read_backward.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "interrupt.h"
#include "read_gradients.h"
#include "read_steps.h"

namespace xmemk::cpu {
namespace {

// Gradients of mk.., ms.., mv.., qk, qe in this order, each in the shape and dtype of its input; empty where `wanted`
// says false, and of a qe that is not there.
std::vector<at::Tensor> memory_read_backward(at::TensorList mk, at::TensorList ms, at::TensorList mv,
                                             const at::Tensor& qk, const std::optional<at::Tensor>& qe,
                                             const at::Tensor& readout, const at::Tensor& weight,
                                             const at::Tensor& index, const std::optional<at::Tensor>& d_readout,
                                             const std::optional<at::Tensor>& d_usage, c10::List<bool> wanted) {
  constexpr const char* op = "memory_read_backward";
  check_keys(op, mk, ms, qk, qe);
  check_values_of_keys(op, mv, mk);
  const Interruptible interruptible;
  const int64_t tokens = tokens_of(mk);
  check_saved(op, mv, qk, readout, weight, index, d_readout, d_usage, tokens);
  TORCH_CHECK_VALUE(wanted.size() == mk.size() + ms.size() + mv.size() + 2, op, ": wanted: wanted one per tensor, got ",
                    wanted.size());

  ReadGradients out;
  size_t next = 0;
  // As rows: [B, ..., N] becomes [B, N, ...]
  const auto rows_like = [&](const at::Tensor& x) {
    if (!wanted[next++]) return at::Tensor();
    return at::empty(x.movedim(-1, 1).sizes(), x.options());
  };
  for (const at::Tensor& x : mk) out.mk.push_back(rows_like(x));
  for (const at::Tensor& x : ms) out.ms.push_back(rows_like(x));
  for (const at::Tensor& x : mv) out.mv.push_back(rows_like(x));
  out.qk = rows_like(qk);
  if (qe) out.qe = rows_like(*qe);

  ReadBackward read{mk, ms, mv, qk, qe, d_readout, {}};
  if (d_usage) {
    const at::Tensor usage = d_usage->to(at::kFloat).contiguous();
    const float* begin = usage.const_data_ptr<float>();
    if (std::any_of(begin, begin + usage.numel(), [](float x) { return x != 0; })) read.d_usage = usage;
  }
  if (index.size(2) == 0) {
    backward_dense(read, readout, weight.contiguous(), out);
  } else {
    backward_topk(read, weight.contiguous(), index.contiguous(), out);
  }

  std::vector<at::Tensor> gradients;
  const auto give = [&](const at::Tensor& rows) {
    gradients.push_back(rows.defined() ? rows.movedim(1, -1) : at::empty({0}, qk.options()));
  };
  for (const auto* list : {&out.mk, &out.ms, &out.mv}) std::for_each(list->begin(), list->end(), give);
  give(out.qk);
  give(out.qe);
  return gradients;
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CPU, m) {
  m.impl("memory_read_backward", &memory_read_backward);
}

}  // namespace xmemk::cpu
