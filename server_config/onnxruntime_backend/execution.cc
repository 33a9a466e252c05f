#include "execution.h"

#include <chrono>
#include <cstring>
#include <new>

#include "drain.h"

namespace onnx_backend {

namespace {

constexpr std::align_val_t kScratchAlignment{64};  // what ONNX Runtime's own allocator gives

// Larger joins cost more time an image and much more memory. ResNet-18 of width 16 at 3x32x32, five members, 8 callers with batch 16, two
// cores: 4.55 ms of processor time an image and 121 MB with this cap, 4.84 ms and 240 MB with joins of up to 64 rows.
constexpr int64_t kMostJoinedRows = 16;

uint64_t now_ns() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(now).count());
}

using Value = Handle<OrtValue>;

Value value_over(const Runtime& runtime, const void* data, const Shape& shape, const ElementType& type) {
  OrtValue* created = nullptr;
  // ONNX Runtime takes inputs by a pointer to mutable data, and does not write to them.
  runtime.check(runtime.api().CreateTensorWithDataAsOrtValue(runtime.cpu_memory(), const_cast<void*>(data), byte_count(shape, type),
                                                             shape.data(), shape.size(), type.onnx, &created));
  return Value(created, runtime.api().ReleaseValue);
}

}  // namespace

void Scratch::Free::operator()(char* memory) const { ::operator delete(memory, kScratchAlignment); }

char* Scratch::at_least(uint64_t bytes) {
  constexpr uint64_t kSlack = 1 << 20;
  if (size_ < bytes || size_ > 4 * bytes + kSlack) {
    memory_.reset();
    size_ = 0;
    memory_.reset(static_cast<char*>(::operator new(bytes, kScratchAlignment)));
    size_ = bytes;
  }
  return memory_.get();
}

// An output of one run of the graph.
struct Instance::Output {
  size_t index;            // among the model's outputs
  const TensorInfo* info;  // the same
  void* buffer;            // Triton's, where it was asked for before the run; else null
  bool bound;              // whether the run writes to `buffer` itself
  Shape shape;             // known before the run where there is a buffer, else after it
  Value value;
  const char* data;  // after the run, where it is not bound
};

void Instance::execute(TRITONBACKEND_Request** handles, uint32_t count) {
  const uint64_t start_ns = now_ns();
  const Execution execution(model_.averages());
  runs_.reserve(count);
  std::vector<Request> requests;
  requests.reserve(count);
  std::vector<Group> groups;
  for (uint32_t i = 0; i < count; ++i) {
    Request& request = requests.emplace_back(handles[i], model_);
    request.attempt([&] {
      request.begin();
      if (execution.refused()) fail(TRITONSERVER_ERROR_UNAVAILABLE, model_.name() + ": the server is stopping");
    });
    if (request.failed()) continue;
    size_t group = 0;
    while (group < groups.size() && !groups[group].takes(request)) ++group;
    if (group == groups.size()) groups.emplace_back();
    groups[group].requests.push_back(&request);
    groups[group].rows += request.rows();
  }
  // Nothing is thrown from here on: some of the requests are answered.
  for (auto& request : requests) {
    if (request.failed()) request.finish(handle_, start_ns, now_ns());
  }
  uint64_t group_start_ns = start_ns;
  for (const auto& group : groups) {
    answer_group(group, group_start_ns);
    group_start_ns = now_ns();
  }
}

bool Instance::Group::takes(const Request& request) const {
  return rows + request.rows() <= kMostJoinedRows && requests.front()->joins(request);
}

// Each group is answered as soon as it has run: it need not wait for the next.
void Instance::answer_group(const Group& group, uint64_t start_ns) noexcept {
  runs_.clear();
  TRITONSERVER_Error* error = guarded([&] { run_group(group); });
  if (error != nullptr) {
    for (Request* request : group.requests) {
      request->attempt([&] { fail(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error)); });
    }
    TRITONSERVER_ErrorDelete(error);
  }
  const uint64_t end_ns = now_ns();
  for (const auto& run : runs_) {
    log_error(TRITONBACKEND_ModelInstanceReportBatchStatistics(handle_, static_cast<uint64_t>(run.rows), start_ns, run.compute_start_ns,
                                                               run.compute_end_ns, end_ns));
  }
  for (Request* request : group.requests) request->finish(handle_, start_ns, end_ns);
}

// One run for all of them; where that fails, one for each, so that an error in one never fails its neighbours.
void Instance::run_group(const Group& group) {
  std::vector<Request*> live;
  for (Request* request : group.requests) {
    request->attempt([&] { request->refuse_if_cancelled(); });
    if (!request->failed()) live.push_back(request);
  }
  if (live.empty()) return;
  if (live.size() > 1) {
    TRITONSERVER_Error* error = guarded([&] { run(live); });
    if (error == nullptr) return;
    log(TRITONSERVER_LOG_WARN, (model_.name() + ": a joint run failed, each request runs alone: ") + TRITONSERVER_ErrorMessage(error));
    TRITONSERVER_ErrorDelete(error);
  }
  for (Request* request : live) {
    request->attempt([&] {
      if (live.size() > 1) request->refuse_if_cancelled();
      run({request});
    });
  }
}

// Throws before any output was added to a response, or, for a single request, at any time.
void Instance::run(const std::vector<Request*>& group) {
  int64_t rows = 0;
  for (const Request* request : group) rows += request->rows();

  std::vector<Value> inputs;
  std::vector<const OrtValue*> input_values;
  for (size_t i = 0; i < model_.inputs().size(); ++i) {
    const ElementType& type = *model_.inputs()[i].type;
    Shape shape = group.front()->input_shape(i);
    if (model_.batches()) shape[0] = rows;
    inputs.push_back(value_over(model_.runtime(), input_data(group, i, byte_count(shape, type)), shape, type));
    input_values.push_back(inputs.back().get());
  }

  std::vector<Output> outputs = plan_outputs(group, rows);
  const uint64_t start_ns = now_ns();
  compute(input_values, outputs);
  const uint64_t end_ns = now_ns();

  for (auto& output : outputs) read_result(output, rows);
  learn_shapes(outputs, rows);
  uint64_t row = 0;
  for (Request* request : group) {
    // What fails from here on fails for one request: its neighbours' outputs may have been added.
    request->attempt([&] {
      for (const auto& output : outputs) deliver(output, *request, row);
    });
    request->set_computed(start_ns, end_ns);
    row += static_cast<uint64_t>(request->rows());
  }
  runs_.push_back({rows, start_ns, end_ns});
}

// In place for one request, if it lies in one aligned piece; else each byte is copied once.
const void* Instance::input_data(const std::vector<Request*>& group, size_t input, uint64_t bytes) {
  if (group.size() == 1) {
    if (const void* data = group.front()->input_in_place(input)) return data;
  }
  char* joined = scratch_[input].at_least(bytes);
  uint64_t copied = 0;
  for (const Request* request : group) copied += request->copy_input(input, joined + copied);
  return joined;
}

std::vector<Instance::Output> Instance::plan_outputs(const std::vector<Request*>& group, int64_t rows) {
  uint64_t wanted = 0;
  for (const Request* request : group) wanted |= request->wanted_outputs();
  const bool may_bind = group.size() == 1 && model_.may_bind();
  std::vector<Output> outputs;
  for (size_t i = 0; i < model_.outputs().size(); ++i) {
    if ((wanted >> i & 1) == 0) continue;
    const TensorInfo& info = model_.outputs()[i];
    Output output{i, &info, nullptr, false, {}, Value(nullptr, model_.runtime().api().ReleaseValue), nullptr};
    if (may_bind && model_.known(info)) {
      output.shape = model_.stated_shape(info, rows);
      output.buffer = group.front()->add_output(info, output.shape);
      output.bound = reinterpret_cast<uintptr_t>(output.buffer) % info.type->size == 0;
      if (output.bound) output.value = value_over(model_.runtime(), output.buffer, output.shape, *info.type);
    }
    outputs.push_back(std::move(output));
  }
  return outputs;
}

void Instance::compute(const std::vector<const OrtValue*>& inputs, std::vector<Output>& outputs) {
  const Runtime& runtime = model_.runtime();
  std::vector<const char*> input_names;
  std::vector<const char*> output_names;
  std::vector<OrtValue*> values;
  bool buffers_given = false;
  for (const auto& input : model_.inputs()) input_names.push_back(input.name.c_str());
  for (auto& output : outputs) {
    output_names.push_back(output.info->name.c_str());
    values.push_back(output.value.get());
    buffers_given |= output.buffer != nullptr;
  }
  OrtStatus* status = runtime.api().Run(model_.session(), nullptr, input_names.data(), inputs.data(), inputs.size(), output_names.data(),
                                        output_names.size(), values.data());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].bound) outputs[i].value.reset(values[i]);
  }
  // It may have failed because an output's shape is not the stated one: the next run shows.
  if (status != nullptr && buffers_given) model_.doubt_shapes();
  runtime.check(status, model_.name());
}

void Instance::read_result(Output& output, int64_t rows) const {
  if (output.bound) return;
  const Runtime& runtime = model_.runtime();
  OrtTensorTypeAndShapeInfo* created = nullptr;
  runtime.check(runtime.api().GetTensorTypeAndShape(output.value.get(), &created));
  const Handle<OrtTensorTypeAndShapeInfo> info(created, runtime.api().ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  runtime.check(runtime.api().GetDimensionsCount(info.get(), &rank));
  Shape shape(rank);
  runtime.check(runtime.api().GetDimensions(info.get(), shape.data(), rank));
  const std::string subject = model_.name() + ": output '" + output.info->name + "'";
  if (model_.batches() && (rank == 0 || shape[0] != rows)) {
    fail(TRITONSERVER_ERROR_INTERNAL, subject + " has shape " + text_from_shape(shape) + " for a batch of " + std::to_string(rows));
  }
  if (output.buffer != nullptr && shape != output.shape) {
    model_.doubt_shapes();
    fail(TRITONSERVER_ERROR_INTERNAL,
         subject + " has shape " + text_from_shape(shape) + ", expected, as the graph states, " + text_from_shape(output.shape));
  }
  output.shape = std::move(shape);
  void* data = nullptr;
  runtime.check(runtime.api().GetTensorMutableData(output.value.get(), &data));
  output.data = static_cast<const char*>(data);
}

void Instance::learn_shapes(const std::vector<Output>& outputs, int64_t rows) {
  bool as_stated = true;
  for (const auto& output : outputs) {
    if (model_.known(*output.info)) as_stated &= output.shape == model_.stated_shape(*output.info, rows);
  }
  model_.confirm_shapes(as_stated);
}

// `row`: where in the joint output the request's rows begin.
void Instance::deliver(const Output& output, Request& request, uint64_t row) const {
  if (output.bound || !request.wants(output.index)) return;
  Shape shape = output.shape;
  if (model_.batches()) shape[0] = request.rows();
  void* to = output.buffer != nullptr ? output.buffer : request.add_output(*output.info, shape);
  const uint64_t bytes = byte_count(shape, *output.info->type);
  const uint64_t row_bytes = request.rows() > 0 ? bytes / static_cast<uint64_t>(request.rows()) : 0;
  if (bytes > 0) std::memcpy(to, output.data + row * row_bytes, bytes);
}

}  // namespace onnx_backend
