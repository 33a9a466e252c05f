// One request of a batch: its inputs, the outputs that it asks for, and its response.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "drain.h"
#include "model.h"

namespace onnx_backend {

class Instance;

// The clock of Triton's statistics.
uint64_t now_ns();

class Request {
 public:
  // `handle` stays Triton's until finish(). A response or an error that was not sent is deleted with the request.
  Request(TRITONBACKEND_Request* handle, Instance& instance);

  Model& model() const { return model_; }
  // Statistics are reported for it. It exists until finish().
  Instance& instance() const { return instance_; }

  uint64_t received_ns() const { return received_ns_; }

  // Creates the response and reads the request. Throws Failure if the request does not match the model, or the server is stopping.
  void begin();

  // Runs work(); a failure becomes the answer of this request and of no other.
  template <class Work>
  void run_guarded(Work&& work) {
    if (error_ == nullptr) error_ = to_triton_error(work);
  }
  void fail_with(const ErrorPtr& error) {
    run_guarded([&] { fail(TRITONSERVER_ErrorCode(error.get()), TRITONSERVER_ErrorMessage(error.get())); });
  }
  bool failed() const { return error_ != nullptr; }
  void throw_if_cancelled() const;

  // Rows of the batch; 1 if the model does not batch.
  int64_t rows() const { return rows_; }
  const Shape& input_shape(size_t input) const { return inputs_[input].shape; }
  // One bit for each output of the model.
  uint64_t wanted_outputs() const { return wanted_outputs_; }
  bool wants(size_t output) const { return (wanted_outputs_ >> output & 1) != 0; }
  // Whether both can be one run: their model is the same, and their shapes differ in the rows at most.
  bool can_join(const Request& other) const;

  // The data of an input where Triton holds it, if it is in one piece and aligned for its type; else null.
  const void* input_in_place(size_t input) const;
  // Copies an input, from all its pieces, to `to`; returns the number of bytes, which is that of its shape.
  uint64_t copy_input(size_t input, char* to) const;
  // Adds an output to the response; returns its buffer.
  void* add_output(const TensorInfo& output, const Shape& shape);

  // When the run of this request began and ended to compute.
  void set_computed(uint64_t start_ns, uint64_t end_ns) { compute_start_ns_ = start_ns, compute_end_ns_ = end_ns; }
  // Reports the request to Triton's statistics, sends the response or the error, and releases the request.
  void finish(uint64_t start_ns, uint64_t end_ns) noexcept;

 private:
  struct ResponseDeleter {
    void operator()(TRITONBACKEND_Response* response) const noexcept { log_error(TRITONBACKEND_ResponseDelete(response)); }
  };
  struct Input {
    TRITONBACKEND_Input* handle;
    Shape shape;
    uint64_t bytes;
    uint32_t buffers;
  };

  void read_input(const TensorInfo& input);
  void read_wanted_outputs();
  std::string text_from_input(const TensorInfo& input) const;
  static const void* buffer(const Input& input, uint32_t index, uint64_t& bytes);

  const uint64_t received_ns_ = now_ns();
  TRITONBACKEND_Request* handle_;
  Instance& instance_;
  Model& model_;
  Execution execution_;
  std::unique_ptr<TRITONBACKEND_Response, ResponseDeleter> response_;
  ErrorPtr error_;
  std::vector<Input> inputs_;
  uint64_t wanted_outputs_ = 0;
  int64_t rows_ = 1;
  uint64_t compute_start_ns_ = 0;
  uint64_t compute_end_ns_ = 0;
};

}  // namespace onnx_backend
