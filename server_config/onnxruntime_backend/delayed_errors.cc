#include "delayed_errors.h"

#include <chrono>

namespace onnx_backend {

namespace {

constexpr uint64_t kErrorDelayNs = 50'000'000;

bool received_before(const Request& a, const Request& b) { return a.received_ns() < b.received_ns(); }

}  // namespace

DelayedErrors::DelayedErrors() : thread_([this] { work(); }) {}

DelayedErrors::~DelayedErrors() {
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void DelayedErrors::add(std::list<Request> requests) noexcept {
  if (requests.empty()) return;
  requests.sort(received_before);
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    waiting_.merge(requests, received_before);
  }
  changed_.notify_one();
}

void DelayedErrors::work() noexcept {
  std::unique_lock<std::mutex> lock(mutex_);
  for (;;) {
    if (waiting_.empty()) {
      if (stopping_) return;
      changed_.wait(lock);
      continue;
    }
    const uint64_t waited_ns = now_ns() - waiting_.front().received_ns();
    if (waited_ns < kErrorDelayNs) {
      changed_.wait_for(lock, std::chrono::nanoseconds(kErrorDelayNs - waited_ns));
      continue;
    }
    std::list<Request> first;
    first.splice(first.end(), waiting_, waiting_.begin());
    lock.unlock();
    first.front().finish(first.front().received_ns(), now_ns());
    first.clear();
    lock.lock();
  }
}

}  // namespace onnx_backend
