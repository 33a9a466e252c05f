// One loaded model: its ONNX Runtime session, and its inputs and outputs, compared with config.pbtxt.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "json.h"
#include "operators.h"
#include "runtime.h"
#include "settings.h"
#include "tensor.h"

namespace onnx_backend {

class Model {
 public:
  // Loads the graph. Throws Failure, with the model's name in front, if it does not load or does not match its config.
  Model(TRITONBACKEND_Model* handle, const Runtime& runtime, const Operators& operators, const ThreadCounts& defaults);

  const Runtime& runtime() const { return runtime_; }
  const std::string& name() const { return name_; }
  // Shared by the model's instances: Run is called from several threads concurrently, and the weights are in memory once.
  OrtSession* session() const { return session_.get(); }
  // Whether it is an averaging model, the last step of an ensemble.
  bool averages() const { return averages_; }
  // Whether requests have a batch dimension, the first of every tensor.
  bool batches() const { return max_batch_size_ > 0; }
  int64_t max_joined_rows() const { return max_joined_rows_; }
  // The number of cores that a run uses.
  size_t threads() const { return threads_; }
  const std::vector<TensorInfo>& inputs() const { return inputs_; }
  const std::vector<TensorInfo>& outputs() const { return outputs_; }
  // The names of the inputs, as Run takes them.
  const std::vector<const char*>& input_names() const { return input_names_; }
  // Its requests in the run queue, guarded by the queue's mutex.
  struct Backlog {
    int64_t rows = 0;
    std::condition_variable has_room;
  };
  Backlog& backlog() { return backlog_; }
  // Failed runs are logged within this limit.
  RateLimit& failure_log() { return failure_log_; }

  // The shape that the graph states for an output of `rows`.
  Shape stated_shape(const TensorInfo& output, int64_t rows) const;
  // Whether the graph states every dimension of an output, except the batch.
  bool states_shape(const TensorInfo& output) const;

  // Whether ONNX Runtime may write its outputs directly to Triton's buffers. A buffer is requested by its shape before the run, and cannot
  // be returned: so only after a run has shown that the graph's outputs have the shapes that it states.
  bool can_bind_outputs() const {
    // Relaxed is enough: the flag guards no other memory. The shapes are constant once the model is loaded, and a thread that reads an old
    // value only copies once more, or fails one request, as it would have a moment earlier.
    return shapes_.load(std::memory_order_relaxed) == Shapes::confirmed;
  }
  void confirm_shapes(bool as_stated);
  // After an output had another shape than the stated one: the next run compares again.
  void invalidate_shapes();

 private:
  enum class Shapes { unseen, confirmed, refuted };

  void read_identity(TRITONBACKEND_Model* handle);
  void check_digest(const std::string& path, const Json& config) const;
  // Returns the number of nodes that the operator library computes.
  uint64_t open_session(const std::string& path, const ModelSettings& settings, const Operators& operators);
  void log_operators(const Json& config, uint64_t nodes, const Operators& operators) const;
  void describe_graph();
  TensorInfo describe(bool is_input, size_t index) const;
  void check_config(const Json& config) const;
  void check_tensor(const Json& stated, const std::vector<TensorInfo>& tensors, const std::string& what) const;

  const Runtime& runtime_;
  std::string name_;
  uint64_t version_ = 0;
  std::string folder_;
  int64_t max_batch_size_ = 0;
  int64_t max_joined_rows_ = 0;
  size_t threads_ = 1;
  bool averages_ = false;
  OrtPtr<OrtSession> session_;
  std::vector<TensorInfo> inputs_;
  std::vector<TensorInfo> outputs_;
  std::vector<const char*> input_names_;  // point into `inputs_`, which does not change once it is read
  std::atomic<Shapes> shapes_{Shapes::unseen};
  Backlog backlog_;
  RateLimit failure_log_;
};

}  // namespace onnx_backend
