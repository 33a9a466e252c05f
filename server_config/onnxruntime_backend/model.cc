#include "model.h"

#include "sha256.h"

namespace onnx_backend {

namespace {

constexpr size_t kMostOutputs = 64;  // a request's outputs are the bits of one word

struct MessageDeleter {
  void operator()(TRITONSERVER_Message* message) const noexcept { log_error(TRITONSERVER_MessageDelete(message)); }
};

Json config_from_model(TRITONBACKEND_Model* handle) {
  TRITONSERVER_Message* message = nullptr;
  check(TRITONBACKEND_ModelConfig(handle, 1, &message));
  const std::unique_ptr<TRITONSERVER_Message, MessageDeleter> owned(message);
  const char* text = nullptr;
  size_t size = 0;
  check(TRITONSERVER_MessageSerializeToJson(message, &text, &size));
  return Json::parse(text, size);
}

Shape shape_from_config(const Json& tensor, bool batches) {
  Shape shape;
  if (batches) shape.push_back(-1);
  const Json& reshape = tensor["reshape"];
  for (const auto& dim : (reshape.exists() ? reshape["shape"] : tensor["dims"]).items()) shape.push_back(dim.integer().value_or(-1));
  return shape;
}

// A graph without any stated shape looks like one that states a scalar: ONNX Runtime then checks each request.
bool agree(const Shape& a, const Shape& b) {
  if (a.empty() || b.empty()) return true;
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (a[i] >= 0 && b[i] >= 0 && a[i] != b[i]) return false;
  }
  return true;
}

std::string text_from_names(const std::vector<TensorInfo>& tensors) {
  std::string text;
  for (const auto& tensor : tensors) text += (text.empty() ? "'" : ", '") + tensor.name + "'";
  return text.empty() ? "none" : text;
}

}  // namespace

Model::Model(TRITONBACKEND_Model* handle, const Runtime& runtime, const Operators& operators, const ThreadCounts& defaults)
    : runtime_(runtime), session_(runtime.own<OrtSession>(nullptr)) {
  read_identity(handle);
  try {
    const Json config = config_from_model(handle);
    max_batch_size_ = config["max_batch_size"].integer().value_or(0);
    // A fused graph has that parameter too, but its input is `images`.
    averages_ = config["parameters"]["average"].exists() && config["input"].items().size() > 0 &&
                config["input"].items().front()["name"].text() != "images";
    const ModelSettings settings = settings_from_config(config, defaults);
    max_joined_rows_ = settings.max_joined_rows;
    threads_ = settings.threads_of_a_run();
    const std::string& file = config["default_model_filename"].text();
    const std::string path = folder_ + "/" + std::to_string(version_) + "/" + (file.empty() ? "model.onnx" : file);
    check_digest(path, config);
    const uint64_t nodes = open_session(path, settings, operators);
    describe_graph();
    check_config(config);
    log(TRITONSERVER_LOG_INFO, name_ + " version " + std::to_string(version_) + ": " + text_from_settings(settings));
    log_operators(config, nodes, operators);
  } catch (const Failure& failure) {
    fail(failure.code(), "model '" + name_ + "' version " + std::to_string(version_) + ": " + failure.what());
  }
}

void Model::read_identity(TRITONBACKEND_Model* handle) {
  const char* text = nullptr;
  check(TRITONBACKEND_ModelName(handle, &text));
  name_ = text;
  check(TRITONBACKEND_ModelVersion(handle, &version_));
  TRITONBACKEND_ArtifactType type = TRITONBACKEND_ARTIFACT_FILESYSTEM;
  check(TRITONBACKEND_ModelRepository(handle, &type, &text));
  if (type != TRITONBACKEND_ARTIFACT_FILESYSTEM) {
    fail(TRITONSERVER_ERROR_UNSUPPORTED, "model '" + name_ + "' is not in a file system, from which this backend reads models");
  }
  folder_ = text;
}

// A damaged file mostly still loads, because changed weights look like weights.
void Model::check_digest(const std::string& path, const Json& config) const {
  const std::string parameter = "sha256." + std::to_string(version_);
  const Json& stated = config["parameters"][parameter];
  if (!stated.exists()) return;
  const std::string& expected = stated["string_value"].text();
  if (expected.size() != 64 || expected.find_first_not_of("0123456789abcdef") != std::string::npos) {
    throw_invalid_argument("parameter " + parameter + " must be a SHA-256 as 64 lower-case hexadecimal digits, got '" + expected +
                           "'; `sha256sum " + path + "` prints it; or remove the parameter, and any file is loaded");
  }
  const std::string actual = sha256_of_file(path);
  if (actual != expected) {
    throw_invalid_argument(
        "'" + path + "' has SHA-256 " + actual.substr(0, 16) + "..., but parameter " + parameter + " is " + expected.substr(0, 16) +
        "..., so the file was changed or damaged; put the right one back, or, if the change is intended, write the new digest there");
  }
}

uint64_t Model::open_session(const std::string& path, const ModelSettings& settings, const Operators& operators) {
  const OrtApi& api = runtime_.api();
  const auto options = runtime_.make<OrtSessionOptions>([&](OrtSessionOptions** made) { return api.CreateSessionOptions(made); });
  runtime_.check(api.SetSessionLogId(options.get(), name_.c_str()));
  runtime_.check(api.SetSessionGraphOptimizationLevel(options.get(), settings.level));
  runtime_.check(api.SetSessionExecutionMode(options.get(), settings.mode));
  runtime_.check(api.SetIntraOpNumThreads(options.get(), settings.threads.intra));
  runtime_.check(api.SetInterOpNumThreads(options.get(), settings.threads.inter));
  const auto add = [&](const char* key, bool on) { runtime_.check(api.AddSessionConfigEntry(options.get(), key, on ? "1" : "0")); };
  // Memory for activations comes from one pool of all models, which is as large as runs at the same time ever needed it. Weights are
  // allocated separately, so that they are freed when the model is unloaded.
  add("session.use_env_allocators", true);
  add("session.use_device_allocator_for_initializers", true);
  add("session.intra_op.allow_spinning", settings.intra_spinning);
  add("session.inter_op.allow_spinning", settings.inter_spinning);
  operators.add_to(options.get());
  const uint64_t before = operators.nodes_created();
  session_ = runtime_.make<OrtSession>(
      [&](OrtSession** made) { return api.CreateSession(runtime_.environment(), path.c_str(), options.get(), made); },
      "cannot load '" + path + "'", TRITONSERVER_ERROR_INVALID_ARG);
  return operators.nodes_created() - before;
}

// Which of the two runs, the operator or the function of ordinary nodes, is only seen here: both give the same answers.
void Model::log_operators(const Json& config, uint64_t nodes, const Operators& operators) const {
  const std::string subject = name_ + " version " + std::to_string(version_) + ": mask-aware: ";
  if (nodes > 0) {
    const std::string count = std::to_string(nodes) + (nodes == 1 ? " operator node (" : " operator nodes (");
    log(TRITONSERVER_LOG_INFO, subject + count + operators.instruction_set() + ")");
    return;
  }
  const Json& stated = config["parameters"]["mask_aware." + std::to_string(version_)];
  if (!stated.exists()) return;
  const std::string& name = stated["string_value"].text();
  const std::string reason = !operators.problem().empty() ? operators.problem()
                             : name != kOperator ? "it is written for the operator '" + name + "', but this backend has " + kOperator
                                                 : std::string("its graph has no node ") + kOperator;
  log(TRITONSERVER_LOG_WARN, subject + "runs densely, because " + reason);
}

void Model::describe_graph() {
  size_t count = 0;
  runtime_.check(runtime_.api().SessionGetInputCount(session_.get(), &count));
  for (size_t i = 0; i < count; ++i) inputs_.push_back(describe(true, i));
  for (const auto& input : inputs_) input_names_.push_back(input.name.c_str());
  runtime_.check(runtime_.api().SessionGetOutputCount(session_.get(), &count));
  for (size_t i = 0; i < count; ++i) outputs_.push_back(describe(false, i));
  if (outputs_.size() > kMostOutputs) {
    fail(TRITONSERVER_ERROR_UNSUPPORTED,
         "the graph has " + std::to_string(outputs_.size()) + " outputs, but this backend serves at most " + std::to_string(kMostOutputs));
  }
}

TensorInfo Model::describe(bool is_input, size_t index) const {
  const OrtApi& api = runtime_.api();
  TensorInfo tensor;
  char* name = nullptr;
  runtime_.check((is_input ? api.SessionGetInputName : api.SessionGetOutputName)(session_.get(), index, runtime_.allocator(), &name));
  const AllocatedText owned(name, AllocatedDeleter{&api, runtime_.allocator()});
  tensor.name = name;

  const auto type = runtime_.make<OrtTypeInfo>([&](OrtTypeInfo** made) {
    return (is_input ? api.SessionGetInputTypeInfo : api.SessionGetOutputTypeInfo)(session_.get(), index, made);
  });
  const OrtTensorTypeAndShapeInfo* info = nullptr;  // owned by `type`
  runtime_.check(api.CastTypeInfoToTensorInfo(type.get(), &info));
  const std::string what = std::string("the graph's ") + (is_input ? "input" : "output") + " '" + tensor.name + "'";
  if (info == nullptr) fail(TRITONSERVER_ERROR_UNSUPPORTED, what + " is not a tensor; this backend serves only tensors");

  ONNXTensorElementDataType element = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  runtime_.check(api.GetTensorElementType(info, &element));
  tensor.type = element_type_from_onnx(element);
  if (tensor.type == nullptr) {
    fail(TRITONSERVER_ERROR_UNSUPPORTED, what + " is of ONNX element type " + std::to_string(element) +
                                             "; this backend serves booleans, integers and floating-point numbers of 16 bits and more");
  }
  size_t rank = 0;
  runtime_.check(api.GetDimensionsCount(info, &rank));
  tensor.dims.resize(rank);
  runtime_.check(api.GetDimensions(info, tensor.dims.data(), rank));
  return tensor;
}

void Model::check_config(const Json& config) const {
  const auto& inputs = config["input"].items();
  const auto& outputs = config["output"].items();
  for (const auto& input : inputs) check_tensor(input, inputs_, "input");
  for (const auto& output : outputs) check_tensor(output, outputs_, "output");
  if (inputs.size() != inputs_.size()) {
    throw_invalid_argument("config.pbtxt names " + std::to_string(inputs.size()) + " inputs, but the graph has " +
                           std::to_string(inputs_.size()) + ": " + text_from_names(inputs_) + "; name each of them once");
  }
  if (outputs.empty()) throw_invalid_argument("config.pbtxt names no outputs; the graph has " + text_from_names(outputs_));
}

void Model::check_tensor(const Json& stated, const std::vector<TensorInfo>& tensors, const std::string& what) const {
  const std::string& name = stated["name"].text();
  const TensorInfo* tensor = nullptr;
  for (const auto& candidate : tensors) {
    if (candidate.name == name) tensor = &candidate;
  }
  if (tensor == nullptr) {
    throw_invalid_argument("config.pbtxt names an " + what + " '" + name + "', which the graph does not have; its " + what + "s are " +
                           text_from_names(tensors));
  }
  const std::string subject = what + " '" + name + "'";
  if (stated["data_type"].text() != tensor->type->config_name) {
    throw_invalid_argument(subject + " is " + tensor->type->config_name + " in the graph, but " + stated["data_type"].text() +
                           " in config.pbtxt");
  }
  const Shape shape = shape_from_config(stated, batches());
  if (batches() && !tensor->dims.empty() && tensor->dims[0] >= 0) {
    throw_invalid_argument("max_batch_size is " + std::to_string(max_batch_size_) + ", but the first dimension of " + subject +
                           " is fixed at " + std::to_string(tensor->dims[0]) +
                           " in the graph; export it with a dynamic batch, or set max_batch_size to 0");
  }
  if (!agree(shape, tensor->dims)) {
    throw_invalid_argument(subject + " has shape " + text_from_shape(tensor->dims) + " in the graph, but " + text_from_shape(shape) +
                           " in config.pbtxt" +
                           (batches() ? ", the batch in front (max_batch_size is not 0)" : " (max_batch_size is 0: no batch in front)"));
  }
}

Shape Model::stated_shape(const TensorInfo& output, int64_t rows) const {
  Shape shape = output.dims;
  if (batches()) shape[0] = rows;
  return shape;
}

bool Model::states_shape(const TensorInfo& output) const {
  if (output.dims.empty()) return false;
  for (size_t i = batches() ? 1 : 0; i < output.dims.size(); ++i) {
    if (output.dims[i] < 0) return false;
  }
  return true;
}

void Model::confirm_shapes(bool as_stated) {
  auto expected = Shapes::unseen;
  // Relaxed is enough: the exchange itself is atomic, and the flag guards no other memory.
  shapes_.compare_exchange_strong(expected, as_stated ? Shapes::confirmed : Shapes::refuted, std::memory_order_relaxed);
}

void Model::invalidate_shapes() {
  auto expected = Shapes::confirmed;
  // Relaxed is enough, as above: a run that has already begun to bind is not stopped by any order.
  shapes_.compare_exchange_strong(expected, Shapes::unseen, std::memory_order_relaxed);
}

}  // namespace onnx_backend
