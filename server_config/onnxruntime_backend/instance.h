// An instance of a model, as Triton calls it.
#pragma once

#include <cstdint>
#include <vector>

#include "run_queue.h"

namespace onnx_backend {

// All instances of a model share its session and the queue of the backend. Triton calls execute() from one thread at a time.
class Instance {
 public:
  Instance(Model& model, TRITONBACKEND_ModelInstance* handle, RunQueue& queue) : model_(model), handle_(handle), queue_(queue) {}

  // Takes over the requests, which are answered from other threads, possibly after it has returned. Throws (out of memory) only before
  // the first answer: the requests are then still Triton's.
  void execute(TRITONBACKEND_Request** requests, uint32_t count);

 private:
  Model& model_;
  TRITONBACKEND_ModelInstance* handle_;
  RunQueue& queue_;
  std::vector<Scratch> scratch_;  // of averages
};

}  // namespace onnx_backend
