// csrc/cuda's kernels for the CPU, to be called by the tests: compiled as they are, launched as csrc/cuda does, with
// guards behind what they write.
// clang-format off: what the kernels need comes first
#include "cuda_emulation.h"
// clang-format on

#include "../../csrc/cuda/evict_lfu.cuh"
#include "../../csrc/cuda/gather_tokens.cuh"
#include "../../csrc/cuda/select_prototypes.cuh"

namespace {

using namespace xmemk::cuda;

constexpr unsigned char kGuard = 0xA5;
constexpr size_t kGuardBytes = 256;

// Memory that is dirty before, unless it must be zero, and guarded behind.
class Buffer {
 public:
  Buffer(size_t bytes, bool zero) : bytes_(bytes), memory_(bytes + kGuardBytes, kGuard) {
    if (zero) std::fill_n(memory_.begin(), bytes, 0);
  }
  ~Buffer() {
    for (size_t i = bytes_; i < memory_.size(); ++i) {
      if (memory_[i] != kGuard) emulation::fail("a write past the end of a buffer");
    }
  }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(memory_.data());
  }

 private:
  size_t bytes_;
  std::vector<unsigned char> memory_;
};

struct Call {
  UsageRows rows;
  int64_t count;
  int parts, schedule;
  int64_t* out;  // [rows, count]
};

template <typename F, int kThreads>
void run(const Call& call, bool select) {
  using Key = typename F::Key;
  Workspace workspace;
  workspace.counters_per_row = counters_per_row(call.parts, 8 * sizeof(Key));
  workspace.candidates_per_row = select ? candidates_per_row(call.parts, call.count) : 0;
  const size_t candidates = call.rows.rows * workspace.candidates_per_row;
  Buffer counters(call.rows.rows * workspace.counters_per_row * 8, true);
  Buffer keys(candidates * sizeof(Key), false), tokens(candidates * 8, false);
  Buffer out(call.rows.rows * call.count * 8, false);
  workspace.counters = counters.as<unsigned long long>();
  workspace.keys = keys.as<void>();
  workspace.tokens = tokens.as<int64_t>();
  emulation::launch(call.rows.rows * call.parts, kThreads, call.parts > 1, call.schedule, [=, &out] {
    auto* kernel = select ? select_prototypes_kernel<F, kThreads> : evict_lfu_kernel<F, kThreads>;
    kernel(call.rows, call.parts, call.count, workspace, out.template as<int64_t>());
  });
  std::copy_n(out.as<int64_t>(), call.rows.rows * call.count, call.out);
}

template <int kThreads>
void run(UsageType type, const Call& call, bool select) {
  switch (type) {
    case UsageType::kFloat32:
      return run<Float32, kThreads>(call, select);
    case UsageType::kFloat64:
      return run<Float64, kThreads>(call, select);
    case UsageType::kFloat16:
      return run<Float16, kThreads>(call, select);
    case UsageType::kBFloat16:
      return run<BFloat16, kThreads>(call, select);
  }
}

}  // namespace

extern "C" {

// threads: 64 or 1024 to a block.
void run_rows(int select, int type, const void* usage, int64_t row_stride, int64_t token_stride, int64_t rows,
              int64_t capacity, const void* size, int64_t size_stride, int size_is_64, int64_t count, int parts,
              int threads, int schedule, int64_t* out) {
  const UsageRows usage_rows{usage, row_stride, token_stride, rows, capacity, size, size_stride, size_is_64 != 0};
  const Call call{usage_rows, count, parts, schedule, out};
  threads == 64 ? run<64>(UsageType(type), call, select != 0) : run<1024>(UsageType(type), call, select != 0);
}

int64_t plan_parts(int64_t rows, int64_t capacity, int multiprocessors) {
  return parts(rows, capacity, multiprocessors);
}

// strides: of batch, object, channel, token. sizes: batch, objects, channels, tokens.
void run_gather(int bytes, const void* x, const int64_t* strides, const int64_t* sizes, const int64_t* index,
                const int64_t* index_strides, int64_t chosen, int blocks, int schedule, void* out) {
  const size_t out_bytes = sizes[0] * sizes[1] * sizes[2] * chosen * bytes;
  Buffer buffer(out_bytes, false);
  const GatherTokens a{x,        strides[0],       strides[1], strides[2], strides[3],       sizes[0],
                       sizes[1], sizes[2],         sizes[3],   index,      index_strides[0], index_strides[1],
                       chosen,   buffer.as<void>()};
  emulation::launch(blocks, kGatherTile * kGatherRows, false, schedule, [=] {
    if (bytes == 2) gather_tokens_kernel<uint16_t>(a, gather_tiles(a));
    if (bytes == 4) gather_tokens_kernel<uint32_t>(a, gather_tiles(a));
    if (bytes == 8) gather_tokens_kernel<uint64_t>(a, gather_tiles(a));
  });
  std::memcpy(out, buffer.as<void>(), out_bytes);
}
}
