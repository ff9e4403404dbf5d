#include "interrupt.h"

#include <chrono>

namespace xmemk::cpu {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kInterval = std::chrono::milliseconds(50);

InterruptHooks hooks{};
thread_local bool interruptible = false;
thread_local Clock::time_point next_question;
thread_local const std::atomic<bool>* stops_with = nullptr;

}  // namespace

void set_interrupt_hooks(const InterruptHooks& wanted) {
  hooks = wanted;
}

Interruptible::Interruptible() {
  if (interruptible || hooks.raise_if_wanted == nullptr || !hooks.concerns_this_thread()) return;
  interruptible = outermost_ = true;
  next_question = Clock::now() + kInterval;
}

Interruptible::~Interruptible() {
  if (outermost_) interruptible = false;
}

StopsWith::StopsWith(const std::atomic<bool>& stopped) : before_(stops_with) {
  stops_with = &stopped;
}

StopsWith::~StopsWith() {
  stops_with = before_;
}

void check_interrupt() {
  if (stops_with != nullptr && stops_with->load(std::memory_order_relaxed)) throw Stopped();
  if (!interruptible || Clock::now() < next_question) return;
  hooks.raise_if_wanted();
  next_question = Clock::now() + kInterval;
}

}  // namespace xmemk::cpu
