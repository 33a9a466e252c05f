// One request of a batch: what it brings, what it asks for, and the response that it gets.
#pragma once

#include <cstdint>
#include <vector>

#include "model.h"

namespace onnx_backend {

class Request {
 public:
  Request(TRITONBACKEND_Request* handle, const Model& model) : handle_(handle), model_(&model) {}
  // Whatever was not sent is deleted; the request itself stays Triton's until finish().
  ~Request();
  Request(Request&& other) noexcept;
  Request(const Request&) = delete;
  Request& operator=(const Request&) = delete;
  Request& operator=(Request&&) = delete;

  // Begins the response and reads the request. Throws Failure where it does not fit the model.
  void begin();
  // A response without outputs. Only before any output was added: Triton does not take a buffer back.
  void begin_response();

  // Runs work(); a failure becomes this request's answer, and no one else's.
  template <class Work>
  void attempt(Work&& work) {
    if (error_ == nullptr) error_ = guarded(work);
  }
  bool failed() const { return error_ != nullptr; }
  void refuse_if_cancelled() const;

  // Rows of the batch that it brings; 1 where the model does not batch.
  int64_t rows() const { return rows_; }
  const Shape& input_shape(size_t input) const { return inputs_[input].shape; }
  // One bit for each output of the model.
  uint64_t wanted_outputs() const { return wanted_outputs_; }
  bool wants(size_t output) const { return (wanted_outputs_ >> output & 1) != 0; }
  // Whether both can be one run: equal shapes but for the rows.
  bool joins(const Request& other) const;

  // The data of an input where it lies, if it lies in one piece, aligned for its type; else null.
  const void* input_in_place(size_t input) const;
  // Copies an input, from all its pieces, to `to`; answers the bytes, which are those that its shape says.
  uint64_t copy_input(size_t input, char* to) const;
  // Adds an output to the response; answers where to write it.
  void* add_output(const TensorInfo& output, const Shape& shape);

  // Notes when the run that answered it computed.
  void set_computed(uint64_t start_ns, uint64_t end_ns) { compute_start_ns_ = start_ns, compute_end_ns_ = end_ns; }
  // Reports the request to Triton's statistics, sends the response or the error, and hands the request back.
  void finish(TRITONBACKEND_ModelInstance* instance, uint64_t start_ns, uint64_t end_ns) noexcept;

 private:
  struct Input {
    TRITONBACKEND_Input* handle;
    Shape shape;
    uint64_t bytes;
    uint32_t buffers;
  };

  void read_input(const TensorInfo& input);
  void read_wanted_outputs();
  static const void* buffer(const Input& input, uint32_t index, uint64_t& bytes);

  TRITONBACKEND_Request* handle_;
  const Model* model_;
  TRITONBACKEND_Response* response_ = nullptr;
  TRITONSERVER_Error* error_ = nullptr;
  std::vector<Input> inputs_;
  uint64_t wanted_outputs_ = 0;
  int64_t rows_ = 1;
  uint64_t compute_start_ns_ = 0;
  uint64_t compute_end_ns_ = 0;
};

}  // namespace onnx_backend
