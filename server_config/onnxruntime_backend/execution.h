// How the requests that Triton passes together become runs of the graph, and the outputs of the runs become responses.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "request.h"

namespace onnx_backend {

// Memory for joined inputs: kept between runs, released when runs become much smaller.
class Scratch {
 public:
  char* at_least(uint64_t bytes);

 private:
  struct Deleter {
    void operator()(char* memory) const noexcept;
  };
  std::unique_ptr<char, Deleter> memory_;
  uint64_t size_ = 0;
};

// One instance of a model. Triton calls execute() from one thread at a time.
class Instance {
 public:
  Instance(Model& model, TRITONBACKEND_ModelInstance* handle) : model_(model), handle_(handle), scratch_(model.inputs().size()) {}

  // Answers every request, and reports the statistics. Throws (out of memory) only before the first answer: the requests are then still
  // Triton's.
  void execute(TRITONBACKEND_Request** requests, uint32_t count);

 private:
  // Requests that can be one run.
  struct Group {
    std::vector<Request*> requests;
    int64_t rows = 0;
    bool accepts(const Request& request, int64_t max_joined_rows) const;
  };
  struct Run {
    int64_t rows;
    uint64_t compute_start_ns;
    uint64_t compute_end_ns;
  };
  struct Output;

  void answer_group(const Group& group, uint64_t start_ns) noexcept;
  void run_group(const Group& group);
  void run(const std::vector<Request*>& group);
  std::vector<Output> plan_outputs(const std::vector<Request*>& group, uint64_t wanted, int64_t rows);
  const std::vector<const char*>& output_names(uint64_t wanted);
  const void* input_data(const std::vector<Request*>& group, size_t input, uint64_t bytes);
  void compute(const std::vector<const OrtValue*>& inputs, std::vector<Output>& outputs, const std::vector<const char*>& names);
  void read_result(Output& output, int64_t rows) const;
  void learn_shapes(const std::vector<Output>& outputs, int64_t rows);
  void deliver(const Output& output, Request& request, uint64_t row) const;

  Model& model_;
  TRITONBACKEND_ModelInstance* handle_;
  std::vector<Scratch> scratch_;           // one for each input
  std::vector<Run> runs_;                  // the successful runs of the current group
  uint64_t named_outputs_ = 0;             // the outputs in `output_names_`, as bits
  std::vector<const char*> output_names_;  // as Run takes them; kept, since most runs want the same outputs as the run before
};

}  // namespace onnx_backend
