// The operators on CUDA: torch's checks, allocations and current stream around the launches of
// launch.h. Nothing here reads the device, so every operator can be captured in a CUDA graph.
#include <optional>

#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "../evict_lfu.h"
#include "../gather_tokens.h"
#include "../select_prototypes.h"
#include "launch.h"

namespace xmemk::cuda {
namespace {

UsageType usage_type(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return UsageType::kFloat32;
    case at::kDouble:
      return UsageType::kFloat64;
    case at::kHalf:
      return UsageType::kFloat16;
    default:
      return UsageType::kBFloat16;  // check_usage has let no other through
  }
}

UsageRows usage_rows(const char* op, const at::Tensor& usage, const std::optional<at::Tensor>& size) {
  UsageRows rows{usage.const_data_ptr(), usage.stride(0), usage.stride(1), usage.size(0), usage.size(1)};
  if (!size.has_value()) return rows;
  TORCH_CHECK_TYPE(size->scalar_type() == at::kLong || size->scalar_type() == at::kInt, op,
                   ": size: wanted int64 or int32, got ", size->scalar_type());
  TORCH_CHECK_VALUE(size->dim() <= 1 && (size->numel() == 1 || size->numel() == rows.rows), op,
                    ": size: wanted one number, or [B = ", rows.rows, "], got ", size->sizes());
  TORCH_CHECK_VALUE(size->device() == usage.device(), op, ": size: wanted device ", usage.device(), " as usage, got ",
                    size->device());
  rows.size = size->const_data_ptr();
  rows.size_stride = size->numel() > 1 ? size->stride(0) : 0;
  rows.size_is_64 = size->scalar_type() == at::kLong;
  return rows;
}

using Launch = cudaError_t (*)(UsageType, const UsageRows&, int, int64_t, const Workspace&, int64_t*, cudaStream_t);

at::Tensor choose(const char* op, Launch launch, const at::Tensor& usage, int64_t count, bool ordered,
                  const std::optional<at::Tensor>& size) {
  const c10::cuda::CUDAGuard guard(usage.device());
  const UsageRows rows = usage_rows(op, usage, size);
  const auto integers = usage.options().dtype(at::kLong);
  at::Tensor index = at::empty({rows.rows, count}, integers);
  if (index.numel() == 0) return index;

  int multiprocessors = 1;
  if (rows.capacity > kTokensPerBlock) {
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, usage.get_device()));
  }
  const int blocks = parts(rows.rows, rows.capacity, multiprocessors);
  constexpr int64_t most = int64_t(1) << 31;
  TORCH_CHECK_VALUE(rows.rows < most / blocks && rows.capacity / blocks < most && count < most, op, ": ", rows.rows,
                    " rows of ", rows.capacity, " tokens, ", count, " wanted: more than one launch can do");
  Workspace workspace;
  workspace.counters_per_row = counters_per_row(blocks, 8 * static_cast<int>(usage.element_size()));
  workspace.candidates_per_row = ordered ? candidates_per_row(blocks, count) : 0;
  at::Tensor counters, keys, tokens;
  if (workspace.counters_per_row > 0) {
    counters = at::zeros({rows.rows, workspace.counters_per_row}, integers);
    workspace.counters = reinterpret_cast<unsigned long long*>(counters.mutable_data_ptr<int64_t>());
  }
  if (workspace.candidates_per_row > 0) {
    keys = at::empty({rows.rows, workspace.candidates_per_row}, usage.options());
    tokens = at::empty({rows.rows, workspace.candidates_per_row}, integers);
    workspace.keys = keys.mutable_data_ptr();
    workspace.tokens = tokens.mutable_data_ptr<int64_t>();
  }
  C10_CUDA_CHECK(launch(usage_type(usage.scalar_type()), rows, blocks, count, workspace,
                        index.mutable_data_ptr<int64_t>(), c10::cuda::getCurrentCUDAStream()));
  return index;
}

at::Tensor select_prototypes(const at::Tensor& usage, int64_t num_prototypes) {
  check_select_prototypes(usage, num_prototypes);
  return choose("select_prototypes", &launch_select_prototypes, usage, num_prototypes, true, std::nullopt);
}

at::Tensor select_prototypes_sized(const at::Tensor& usage, int64_t num_prototypes, const at::Tensor& size) {
  check_select_prototypes(usage, num_prototypes);
  return choose("select_prototypes_sized", &launch_select_prototypes, usage, num_prototypes, true, size);
}

at::Tensor evict_lfu(const at::Tensor& usage, int64_t keep) {
  check_evict_lfu(usage, keep);
  return choose("evict_lfu", &launch_evict_lfu, usage, keep, false, std::nullopt);
}

at::Tensor evict_lfu_sized(const at::Tensor& usage, int64_t keep, const at::Tensor& size) {
  check_evict_lfu(usage, keep);
  return choose("evict_lfu_sized", &launch_evict_lfu, usage, keep, false, size);
}

at::Tensor gather_tokens(const at::Tensor& x, const at::Tensor& index) {
  check_gather_tokens(x, index);
  const c10::cuda::CUDAGuard guard(x.device());
  auto shape = x.sizes().vec();
  shape.back() = index.size(1);
  at::Tensor result = at::empty(shape, x.options());
  if (result.numel() == 0) return result;
  const bool has_objects = x.dim() == 4;
  GatherTokens a{};
  a.x = x.const_data_ptr();
  a.batch_stride = x.stride(0);
  a.object_stride = has_objects ? x.stride(1) : 0;
  a.channel_stride = x.stride(-2);
  a.token_stride = x.stride(-1);
  a.batch = x.size(0);
  a.objects = has_objects ? x.size(1) : 1;
  a.channels = x.size(-2);
  a.tokens = x.size(-1);
  a.index = index.const_data_ptr<int64_t>();
  a.index_batch_stride = index.stride(0);
  a.index_stride = index.stride(1);
  a.chosen = index.size(1);
  a.out = result.mutable_data_ptr();
  C10_CUDA_CHECK(launch_gather_tokens(static_cast<int>(x.element_size()), a, c10::cuda::getCurrentCUDAStream()));
  return result;
}

}  // namespace

TORCH_LIBRARY_IMPL(xmemk, CUDA, m) {
  m.impl("select_prototypes", &select_prototypes);
  m.impl("evict_lfu", &evict_lfu);
  m.impl("gather_tokens", &gather_tokens);
  m.impl("select_prototypes_sized", &select_prototypes_sized);
  m.impl("evict_lfu_sized", &evict_lfu_sized);
}

}  // namespace xmemk::cuda
