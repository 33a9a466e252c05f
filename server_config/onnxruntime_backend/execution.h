// How the requests that Triton hands over together become runs of the graph, and the runs' outputs responses.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "request.h"

namespace onnx_backend {

// Memory for joined inputs: kept between runs, given back when runs become much smaller.
class Scratch {
 public:
  char* at_least(uint64_t bytes);

 private:
  struct Free {
    void operator()(char* memory) const;
  };
  std::unique_ptr<char, Free> memory_;
  uint64_t size_ = 0;
};

// One instance of a model. Triton calls execute() from one thread at a time.
class Instance {
 public:
  Instance(Model& model, TRITONBACKEND_ModelInstance* handle) : model_(model), handle_(handle), scratch_(model.inputs().size()) {}

  // Answers every request, and reports the statistics. Throws (for want of memory) only before anything was answered: the requests
  // are then still Triton's.
  void execute(TRITONBACKEND_Request** requests, uint32_t count);

 private:
  using Group = std::vector<Request*>;
  struct Run {
    int64_t rows;
    uint64_t compute_start_ns;
    uint64_t compute_end_ns;
  };
  struct Output;

  void run_group(const Group& group);
  void run(const Group& group);
  std::vector<Output> plan_outputs(const Group& group, int64_t rows);
  const void* input_data(const Group& group, size_t input, uint64_t bytes);
  void compute(const std::vector<const OrtValue*>& inputs, std::vector<Output>& outputs);
  void read_result(Output& output, int64_t rows) const;
  void learn_shapes(const std::vector<Output>& outputs, int64_t rows);
  void deliver(const Output& output, Request& request, uint64_t row) const;

  Model& model_;
  TRITONBACKEND_ModelInstance* handle_;
  std::vector<Scratch> scratch_;  // one for each input
  std::vector<Run> runs_;         // those of the call to execute() that is under way, which succeeded
};

}  // namespace onnx_backend
