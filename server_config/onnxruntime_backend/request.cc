#include "request.h"

#include <chrono>
#include <cstring>

#include "instance.h"

namespace onnx_backend {

uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

Request::Request(TRITONBACKEND_Request* handle, Instance& instance)
    : handle_(handle), instance_(instance), model_(instance.model()), execution_(instance.model().averages()) {}

void Request::begin() {
  TRITONBACKEND_Response* response = nullptr;
  check(TRITONBACKEND_ResponseNew(&response, handle_));
  response_.reset(response);
  if (execution_.refused()) fail(TRITONSERVER_ERROR_UNAVAILABLE, model_.name() + ": the server is stopping");
  inputs_.reserve(model_.inputs().size());
  for (const auto& input : model_.inputs()) read_input(input);
  read_wanted_outputs();
}

void Request::read_input(const TensorInfo& input) {
  Input read{};
  TRITONSERVER_DataType type = TRITONSERVER_TYPE_INVALID;
  const int64_t* dims = nullptr;
  uint32_t rank = 0;
  check(TRITONBACKEND_RequestInput(handle_, input.name.c_str(), &read.handle));
  check(TRITONBACKEND_InputProperties(read.handle, nullptr, &type, &dims, &rank, &read.bytes, &read.buffers));
  if (rank > 0) read.shape.assign(dims, dims + rank);
  if (type != input.type->triton) throw_invalid_argument(text_from_input(input) + " is not of type " + input.type->config_name);
  const uint64_t expected = byte_count(read.shape, *input.type);
  if (read.bytes != expected) {
    throw_invalid_argument(text_from_input(input) + " of shape " + text_from_shape(read.shape) + " must be " + std::to_string(expected) +
                           " bytes, got " + std::to_string(read.bytes));
  }
  if (model_.batches()) {
    if (rank == 0) throw_invalid_argument(text_from_input(input) + " has no batch dimension");
    if (!inputs_.empty() && read.shape[0] != rows_) {
      throw_invalid_argument(text_from_input(input) + " has a batch of " + std::to_string(read.shape[0]) +
                             ", but the inputs before it have a batch of " + std::to_string(rows_));
    }
    rows_ = read.shape[0];
  }
  inputs_.push_back(std::move(read));
}

// For errors: nothing of it is built for a good request.
std::string Request::text_from_input(const TensorInfo& input) const { return model_.name() + ": input '" + input.name + "'"; }

void Request::read_wanted_outputs() {
  const auto& outputs = model_.outputs();
  uint32_t count = 0;
  check(TRITONBACKEND_RequestOutputCount(handle_, &count));
  for (uint32_t i = 0; i < count; ++i) {
    const char* name = nullptr;
    check(TRITONBACKEND_RequestOutputName(handle_, i, &name));
    size_t index = 0;
    while (index < outputs.size() && outputs[index].name != name) ++index;
    if (index == outputs.size()) throw_invalid_argument(model_.name() + ": there is no output '" + name + "'");
    wanted_outputs_ |= uint64_t{1} << index;
  }
}

void Request::throw_if_cancelled() const {
  bool cancelled = false;
  check(TRITONBACKEND_RequestIsCancelled(handle_, &cancelled));
  if (!cancelled) return;
  log(TRITONSERVER_LOG_VERBOSE, model_.name() + ": a cancelled request is not run");
  fail(TRITONSERVER_ERROR_CANCELLED, model_.name() + ": the request was cancelled before it was run");
}

bool Request::can_join(const Request& other) const {
  if (&model_ != &other.model_ || !model_.batches()) return false;
  for (size_t i = 0; i < inputs_.size(); ++i) {
    const Shape& mine = inputs_[i].shape;
    const Shape& theirs = other.inputs_[i].shape;
    if (mine.size() != theirs.size()) return false;
    for (size_t d = 1; d < mine.size(); ++d) {
      if (mine[d] != theirs[d]) return false;
    }
  }
  return true;
}

const void* Request::buffer(const Input& input, uint32_t index, uint64_t& bytes) {
  const void* data = nullptr;
  TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = 0;
  check(TRITONBACKEND_InputBuffer(input.handle, index, &data, &bytes, &memory, &memory_id));
  if (memory == TRITONSERVER_MEMORY_GPU) fail(TRITONSERVER_ERROR_UNSUPPORTED, "an input is in GPU memory; this backend runs on CPUs");
  return data;
}

const void* Request::input_in_place(size_t input) const {
  const Input& source = inputs_[input];
  if (source.buffers != 1) return nullptr;
  uint64_t bytes = 0;
  const void* data = buffer(source, 0, bytes);
  const bool aligned = reinterpret_cast<uintptr_t>(data) % model_.inputs()[input].type->size == 0;
  return bytes == source.bytes && aligned ? data : nullptr;
}

uint64_t Request::copy_input(size_t input, char* to) const {
  const Input& source = inputs_[input];
  uint64_t copied = 0;
  for (uint32_t i = 0; i < source.buffers; ++i) {
    uint64_t bytes = 0;
    const void* data = buffer(source, i, bytes);
    if (bytes > source.bytes - copied) throw_invalid_argument(model_.name() + ": an input's pieces are longer than the input");
    if (bytes > 0) std::memcpy(to + copied, data, bytes);
    copied += bytes;
  }
  if (copied != source.bytes) throw_invalid_argument(model_.name() + ": an input's pieces are shorter than the input");
  return copied;
}

void* Request::add_output(const TensorInfo& output, const Shape& shape) {
  TRITONBACKEND_Output* added = nullptr;
  void* buffer = nullptr;
  TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
  int64_t memory_id = 0;
  check(TRITONBACKEND_ResponseOutput(response_.get(), &added, output.name.c_str(), output.type->triton, shape.data(),
                                     static_cast<uint32_t>(shape.size())));
  check(TRITONBACKEND_OutputBuffer(added, &buffer, byte_count(shape, *output.type), &memory, &memory_id));
  if (memory == TRITONSERVER_MEMORY_GPU) fail(TRITONSERVER_ERROR_UNSUPPORTED, "an output is in GPU memory; this backend runs on CPUs");
  return buffer;
}

void Request::finish(uint64_t start_ns, uint64_t end_ns) noexcept {
  // Before the response is sent, so that a caller with a response finds it counted in the statistics.
  log_error(TRITONBACKEND_ModelInstanceReportStatistics(instance_.handle(), handle_, !failed(), start_ns, compute_start_ns_,
                                                        compute_end_ns_, end_ns));
  instance_.release_request();
  if (response_ != nullptr) {
    log_error(TRITONBACKEND_ResponseSend(response_.release(), TRITONSERVER_RESPONSE_COMPLETE_FINAL, error_.get()));
  }
  log_error(TRITONBACKEND_RequestRelease(handle_, TRITONSERVER_REQUEST_RELEASE_ALL));
}

}  // namespace onnx_backend
