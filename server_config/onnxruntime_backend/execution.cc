#include "execution.h"

#include <cstring>
#include <new>

#include "instance.h"

namespace onnx_backend {

namespace {

constexpr std::align_val_t kScratchAlignment{64};  // what ONNX Runtime's own allocator gives

OrtPtr<OrtValue> value_over(const Runtime& runtime, const void* data, const Shape& shape, const ElementType& type) {
  return runtime.make<OrtValue>([&](OrtValue** made) {
    // ONNX Runtime takes inputs by a pointer to mutable data, but does not write to them.
    return runtime.api().CreateTensorWithDataAsOrtValue(runtime.cpu_memory(), const_cast<void*>(data), byte_count(shape, type),
                                                        shape.data(), shape.size(), type.onnx, made);
  });
}

}  // namespace

void Scratch::Deleter::operator()(char* memory) const noexcept { ::operator delete(memory, kScratchAlignment); }

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

namespace {

// An output of one run of the graph.
struct Output {
  size_t index;            // among the model's outputs
  const TensorInfo* info;  // of that output
  void* buffer;            // Triton's, if it was requested before the run; else null
  bool bound;              // whether the run writes to `buffer` directly
  Shape shape;             // known before the run if there is a buffer, else after it
  OrtPtr<OrtValue> value;
  const char* data;  // after the run, if the output is not bound
};

// The runs of one group.
class GroupRunner {
 public:
  GroupRunner(Model& model, std::vector<Scratch>& scratch) : model_(model), scratch_(scratch) {}

  // Runs all requests together; if that fails, each separately, so that an error in one request never fails the others.
  void run(Group& group);
  // Reports the runs that succeeded.
  void report(TRITONBACKEND_ModelInstance* instance, uint64_t start_ns, uint64_t end_ns) const noexcept;

 private:
  struct Run {
    int64_t rows;
    uint64_t compute_start_ns;
    uint64_t compute_end_ns;
  };

  void run(const std::vector<Request*>& requests);
  std::vector<Output> plan_outputs(const std::vector<Request*>& requests, uint64_t wanted, int64_t rows);
  const void* input_data(const std::vector<Request*>& requests, size_t input, uint64_t bytes);
  void compute(const std::vector<const OrtValue*>& inputs, std::vector<Output>& outputs);
  void read_result(Output& output, int64_t rows) const;
  void learn_shapes(const std::vector<Output>& outputs, int64_t rows);
  void deliver(const Output& output, Request& request, uint64_t row) const;

  Model& model_;
  std::vector<Scratch>& scratch_;
  std::vector<Run> runs_;
};

void GroupRunner::run(Group& group) {
  std::vector<Request*> live;
  runs_.reserve(group.size());  // so that nothing is thrown once outputs were added to responses
  for (Request& request : group) {
    request.run_guarded([&] { request.throw_if_cancelled(); });
    if (!request.failed()) live.push_back(&request);
  }
  if (live.empty()) return;
  if (live.size() > 1) {
    const ErrorPtr error = to_triton_error([&] { run(live); });
    if (error == nullptr) return;
    log_limited(model_.failure_log(), TRITONSERVER_LOG_WARN, [&] {
      return model_.name() + ": a joint run failed, running each request separately: " + TRITONSERVER_ErrorMessage(error.get());
    });
  }
  for (Request* request : live) {
    request->run_guarded([&] {
      if (live.size() > 1) request->throw_if_cancelled();
      run({request});
    });
  }
}

void GroupRunner::report(TRITONBACKEND_ModelInstance* instance, uint64_t start_ns, uint64_t end_ns) const noexcept {
  for (const auto& run : runs_) {
    log_error(TRITONBACKEND_ModelInstanceReportBatchStatistics(instance, static_cast<uint64_t>(run.rows), start_ns, run.compute_start_ns,
                                                               run.compute_end_ns, end_ns));
  }
}

// May throw before any output was added to a response; for a single request, at any time.
void GroupRunner::run(const std::vector<Request*>& requests) {
  int64_t rows = 0;
  for (const Request* request : requests) rows += request->rows();

  std::vector<OrtPtr<OrtValue>> inputs;
  std::vector<const OrtValue*> input_values;
  for (size_t i = 0; i < model_.inputs().size(); ++i) {
    const ElementType& type = *model_.inputs()[i].type;
    Shape shape = requests.front()->input_shape(i);
    if (model_.batches()) shape[0] = rows;
    inputs.push_back(value_over(model_.runtime(), input_data(requests, i, byte_count(shape, type)), shape, type));
    input_values.push_back(inputs.back().get());
  }

  uint64_t wanted = 0;
  for (const Request* request : requests) wanted |= request->wanted_outputs();
  std::vector<Output> outputs = plan_outputs(requests, wanted, rows);
  const uint64_t start_ns = now_ns();
  compute(input_values, outputs);
  const uint64_t end_ns = now_ns();

  for (auto& output : outputs) read_result(output, rows);
  learn_shapes(outputs, rows);
  uint64_t row = 0;
  for (Request* request : requests) {
    // A failure from here on concerns one request: outputs may have been added to the responses of the others.
    request->run_guarded([&] {
      for (const auto& output : outputs) deliver(output, *request, row);
    });
    request->set_computed(start_ns, end_ns);
    row += static_cast<uint64_t>(request->rows());
  }
  runs_.push_back({rows, start_ns, end_ns});
}

// A single request's input is used in place if it is one aligned piece; else each byte is copied once.
const void* GroupRunner::input_data(const std::vector<Request*>& requests, size_t input, uint64_t bytes) {
  if (requests.size() == 1) {
    if (const void* data = requests.front()->input_in_place(input)) return data;
  }
  if (scratch_.size() <= input) scratch_.resize(input + 1);
  char* joined = scratch_[input].at_least(bytes);
  uint64_t copied = 0;
  for (const Request* request : requests) copied += request->copy_input(input, joined + copied);
  return joined;
}

std::vector<Output> GroupRunner::plan_outputs(const std::vector<Request*>& requests, uint64_t wanted, int64_t rows) {
  const bool can_bind = requests.size() == 1 && model_.can_bind_outputs();
  std::vector<Output> outputs;
  outputs.reserve(model_.outputs().size());
  for (size_t i = 0; i < model_.outputs().size(); ++i) {
    if ((wanted >> i & 1) == 0) continue;
    const TensorInfo& info = model_.outputs()[i];
    Output output{i, &info, nullptr, false, {}, model_.runtime().own<OrtValue>(nullptr), nullptr};
    if (can_bind && model_.states_shape(info)) {
      output.shape = model_.stated_shape(info, rows);
      output.buffer = requests.front()->add_output(info, output.shape);
      output.bound = reinterpret_cast<uintptr_t>(output.buffer) % info.type->size == 0;
      if (output.bound) output.value = value_over(model_.runtime(), output.buffer, output.shape, *info.type);
    }
    outputs.push_back(std::move(output));
  }
  return outputs;
}

void GroupRunner::compute(const std::vector<const OrtValue*>& inputs, std::vector<Output>& outputs) {
  const Runtime& runtime = model_.runtime();
  std::vector<const char*> names;
  std::vector<OrtValue*> values;
  bool buffers_given = false;
  for (const auto& output : outputs) {
    names.push_back(output.info->name.c_str());
    values.push_back(output.value.get());
    buffers_given |= output.buffer != nullptr;
  }
  OrtStatus* status = runtime.api().Run(model_.session(), nullptr, model_.input_names().data(), inputs.data(), inputs.size(), names.data(),
                                        names.size(), values.data());
  for (size_t i = 0; i < outputs.size(); ++i) {
    if (!outputs[i].bound) outputs[i].value.reset(values[i]);
  }
  // The reason may be an output whose shape is not the stated one: the next run compares.
  if (status != nullptr && buffers_given) model_.invalidate_shapes();
  runtime.check(status, model_.name());
}

void GroupRunner::read_result(Output& output, int64_t rows) const {
  if (output.bound) return;
  const Runtime& runtime = model_.runtime();
  const auto info = runtime.make<OrtTensorTypeAndShapeInfo>(
      [&](OrtTensorTypeAndShapeInfo** made) { return runtime.api().GetTensorTypeAndShape(output.value.get(), made); });
  size_t rank = 0;
  runtime.check(runtime.api().GetDimensionsCount(info.get(), &rank));
  Shape shape(rank);
  runtime.check(runtime.api().GetDimensions(info.get(), shape.data(), rank));
  const auto fail_on_shape = [&](const std::string& expected) {
    fail(TRITONSERVER_ERROR_INTERNAL,
         model_.name() + ": output '" + output.info->name + "' has shape " + text_from_shape(shape) + expected);
  };
  if (model_.batches() && (rank == 0 || shape[0] != rows)) {
    fail_on_shape(" for a batch of " + std::to_string(rows));
  }
  if (output.buffer != nullptr && shape != output.shape) {
    model_.invalidate_shapes();
    fail_on_shape(", expected " + text_from_shape(output.shape) + ", as the graph states");
  }
  output.shape = std::move(shape);
  void* data = nullptr;
  runtime.check(runtime.api().GetTensorMutableData(output.value.get(), &data));
  output.data = static_cast<const char*>(data);
}

void GroupRunner::learn_shapes(const std::vector<Output>& outputs, int64_t rows) {
  bool as_stated = true;
  for (const auto& output : outputs) {
    if (model_.states_shape(*output.info)) as_stated &= output.shape == model_.stated_shape(*output.info, rows);
  }
  model_.confirm_shapes(as_stated);
}

// `row`: the first row of the request in the joint output.
void GroupRunner::deliver(const Output& output, Request& request, uint64_t row) const {
  if (output.bound || !request.wants(output.index)) return;
  Shape shape = output.shape;
  if (model_.batches()) shape[0] = request.rows();
  void* to = output.buffer != nullptr ? output.buffer : request.add_output(*output.info, shape);
  const uint64_t bytes = byte_count(shape, *output.info->type);
  const uint64_t row_bytes = request.rows() > 0 ? bytes / static_cast<uint64_t>(request.rows()) : 0;
  if (bytes > 0) std::memcpy(to, output.data + row * row_bytes, bytes);
}

}  // namespace

Group answer(Group group, std::vector<Scratch>& scratch) noexcept {
  const uint64_t start_ns = now_ns();
  GroupRunner runner(group.front().model(), scratch);
  if (const ErrorPtr error = to_triton_error([&] { runner.run(group); })) {
    for (Request& request : group) request.fail_with(error);
  }
  const uint64_t end_ns = now_ns();
  runner.report(group.front().instance().handle(), start_ns, end_ns);
  Group failed;
  for (auto request = group.begin(); request != group.end();) {
    const auto next = std::next(request);
    if (request->failed()) {
      failed.splice(failed.end(), group, request);
    } else {
      request->finish(start_ns, end_ns);
    }
    request = next;
  }
  return failed;
}

}  // namespace onnx_backend
