#include "instance.h"

namespace onnx_backend {

Instance::~Instance() {
  std::unique_lock<std::mutex> lock(mutex_);
  unused_.wait(lock, [this] { return requests_ == 0; });
}

void Instance::release_request() noexcept {
  const std::lock_guard<std::mutex> hold(mutex_);  // while it notifies, too: the instance may be destroyed right after
  if (--requests_ == 0) unused_.notify_all();
}

void Instance::execute(TRITONBACKEND_Request** handles, uint32_t count) {
  const uint64_t start_ns = now_ns();
  std::list<Request> requests;
  for (uint32_t i = 0; i < count; ++i) requests.emplace_back(handles[i], *this);
  {
    const std::lock_guard<std::mutex> hold(mutex_);
    requests_ += count;
  }
  // Nothing is thrown from here on: some of the requests have their answers.
  for (auto request = requests.begin(); request != requests.end();) {
    request->run_guarded([&] { request->begin(); });
    if (request->failed()) request->finish(start_ns, now_ns());
    request = request->failed() ? requests.erase(request) : std::next(request);
  }
  if (!model_.averages()) {
    queue_.add(requests);
    return;
  }
  // At once: it takes microseconds, and its caller waits for nothing else.
  while (!requests.empty()) {
    Group group;
    group.splice(group.end(), requests, requests.begin());
    errors_.add(answer(std::move(group), scratch_));
  }
}

}  // namespace onnx_backend
