// One loaded model: its ONNX Runtime session, and its inputs and outputs, checked against config.pbtxt.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "json.h"
#include "runtime.h"
#include "settings.h"
#include "tensor.h"

namespace onnx_backend {

class Model {
 public:
  // Loads the graph. Throws Failure, with the model's name in front, where it does not load or does not fit its config.
  Model(TRITONBACKEND_Model* handle, const Runtime& runtime, const ThreadCounts& defaults);
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  const Runtime& runtime() const { return runtime_; }
  const std::string& name() const { return name_; }
  // The model's instances share it: Run may be called from several threads at once, and the weights are in memory once.
  OrtSession* session() const { return session_.get(); }
  // Whether it is an ensemble's last step, an averaging model.
  bool averages() const { return averages_; }
  // Whether requests can be joined: every tensor's first dimension then counts them.
  bool batches() const { return max_batch_size_ > 0; }
  const std::vector<TensorInfo>& inputs() const { return inputs_; }
  const std::vector<TensorInfo>& outputs() const { return outputs_; }

  // The shape that the graph states for an output of `rows`; known() says whether all of it is stated.
  Shape stated_shape(const TensorInfo& output, int64_t rows) const;
  bool known(const TensorInfo& output) const;

  // Whether ONNX Runtime may write its outputs straight into Triton's buffers. Those are asked for by shape before a run, and cannot be
  // given back: so not until a run has shown that the graph gives the shapes that it states.
  bool may_bind() const { return shapes_.load(std::memory_order_relaxed) == Shapes::confirmed; }
  void confirm_shapes(bool as_stated);
  void doubt_shapes();

 private:
  enum class Shapes { unseen, confirmed, refuted };

  void read_identity(TRITONBACKEND_Model* handle);
  void open_session(const std::string& path, const SessionSettings& settings);
  void describe_graph();
  TensorInfo describe(bool is_input, size_t index) const;
  void check_config(const Json& config) const;
  void check_tensor(const Json& stated, const std::vector<TensorInfo>& tensors, const std::string& what) const;

  const Runtime& runtime_;
  std::string name_;
  uint64_t version_ = 0;
  std::string folder_;
  int64_t max_batch_size_ = 0;
  bool averages_ = false;
  Handle<OrtSession> session_;
  std::vector<TensorInfo> inputs_;
  std::vector<TensorInfo> outputs_;
  std::atomic<Shapes> shapes_{Shapes::unseen};
};

}  // namespace onnx_backend
