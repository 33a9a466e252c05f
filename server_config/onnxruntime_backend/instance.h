// An instance of a model, as Triton calls it.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#include "delayed_errors.h"
#include "run_queue.h"

namespace onnx_backend {

// All instances of a model share its session and the queue of the backend. Triton calls execute() from one thread at a time.
class Instance {
 public:
  Instance(Model& model, TRITONBACKEND_ModelInstance* handle, RunQueue& queue, DelayedErrors& errors)
      : model_(model), handle_(handle), queue_(queue), errors_(errors) {}
  // Waits until no request needs it: Triton removes instances while their model serves.
  ~Instance();
  Instance(const Instance&) = delete;
  Instance& operator=(const Instance&) = delete;

  Model& model() const { return model_; }
  TRITONBACKEND_ModelInstance* handle() const { return handle_; }

  // Takes over the requests, which (except those of averages) are answered by the threads of the queue, possibly after it has returned.
  // Throws (out of memory) only before the first answer: the requests are then still Triton's.
  void execute(TRITONBACKEND_Request** requests, uint32_t count);
  // Called once for each request that execute() took over, when its statistics are reported.
  void release_request() noexcept;

 private:
  Model& model_;
  TRITONBACKEND_ModelInstance* handle_;
  RunQueue& queue_;
  DelayedErrors& errors_;
  std::vector<Scratch> scratch_;  // of averages
  std::mutex mutex_;
  std::condition_variable unused_;
  uint64_t requests_ = 0;  // taken over and not yet released
};

}  // namespace onnx_backend
