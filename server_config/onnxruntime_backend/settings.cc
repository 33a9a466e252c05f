#include "settings.h"

#include <algorithm>
#include <thread>

#include "failure.h"

namespace onnx_backend {

namespace {

constexpr int64_t kMostThreads = 1024;
constexpr int64_t kMostJoinedRows = 65536;
constexpr int64_t kMostDrainSeconds = 1000000;

// `meaning`: what `least` stands for, or empty.
int64_t count_from_text(const std::string& text, const std::string& what, int64_t least, const std::string& meaning, int64_t most) {
  const auto count = integer_from_text(text);
  if (!count || *count < least || *count > most) {
    throw_invalid_argument(what + " must be an integer from " + std::to_string(least) + (meaning.empty() ? "" : " (" + meaning + ")") +
                           " to " + std::to_string(most) + ", got '" + text + "'");
  }
  return *count;
}

int thread_count_from_text(const std::string& text, const std::string& what) {
  return static_cast<int>(count_from_text(text, what, 0, "one thread per core", kMostThreads));
}

bool switch_from_text(const std::string& text, const std::string& what, const std::string& meaning) {
  if (text != "0" && text != "1") throw_invalid_argument(what + " must be '0' or '1' (" + meaning + "), got '" + text + "'");
  return text == "1";
}

// Calls read(text, description) if config.pbtxt has the parameter.
template <class Read>
void read_parameter(const Json& config, const std::string& name, Read read) {
  const Json& parameter = config["parameters"][name];
  if (parameter.exists()) read(parameter["string_value"].text(), "parameter " + name);
}

GraphOptimizationLevel level_from_config(const Json& config) {
  const Json& level = config["optimization"]["graph"]["level"];
  if (!level.exists()) return ORT_ENABLE_ALL;
  // NVIDIA's numbering, which is not ONNX Runtime's.
  switch (level.integer().value_or(INT64_MIN)) {
    case -1:
      return ORT_ENABLE_BASIC;
    case 0:
      return ORT_ENABLE_ALL;
    case 1:
      return ORT_ENABLE_EXTENDED;
    case 2:
      return ORT_DISABLE_ALL;
    default:
      throw_invalid_argument("optimization.graph.level must be -1 (basic), 0 (all), 1 (extended) or 2 (none), got '" + level.text() + "'");
  }
}

void check_features(const Json& config) {
  const auto refuse_feature = [](const std::string& feature) {
    fail(TRITONSERVER_ERROR_UNSUPPORTED, "config.pbtxt asks for " + feature + ", which this backend does not offer: remove it");
  };
  if (config["sequence_batching"].exists()) refuse_feature("sequence_batching");
  if (config["model_transaction_policy"]["decoupled"].text() == "true") refuse_feature("a decoupled transaction policy");
  if (!config["batch_input"].items().empty()) refuse_feature("batch_input");
  if (!config["batch_output"].items().empty()) refuse_feature("batch_output");
  if (!config["model_operations"]["op_library_filename"].items().empty()) {
    refuse_feature("libraries of operators (model_operations; its own mask-aware operator needs none)");
  }
  const Json& accelerators = config["optimization"]["execution_accelerators"];
  for (const auto& [kind, list] : accelerators.fields()) {
    for (const auto& accelerator : list.items()) refuse_feature(kind + " '" + accelerator["name"].text() + "' (it runs only on CPUs)");
  }
  for (const auto& input : config["input"].items()) {
    const std::string& name = input["name"].text();
    if (input["optional"].text() == "true") refuse_feature("an optional input ('" + name + "')");
    if (input["is_shape_tensor"].text() == "true") refuse_feature("a shape tensor ('" + name + "')");
    if (input["allow_ragged_batch"].text() == "true") refuse_feature("ragged batching ('" + name + "')");
  }
}

void warn_of_ignored_parameters(const Json& config) {
  for (const char* name : {"enable_mem_arena", "enable_mem_pattern", "memory.enable_memory_arena_shrinkage",
                           "session.use_device_allocator_for_initializers"}) {
    if (!config["parameters"][name].exists()) continue;
    log(TRITONSERVER_LOG_WARN, config["name"].text() + ": parameter " + name + " is known only to NVIDIA's backend; it is ignored here");
  }
}

}  // namespace

ThreadCounts threads_from_command_line(const Json& command_line) {
  ThreadCounts threads;
  const auto read = [&](const char* name, int& count) {
    const Json& value = command_line[name];
    if (value.exists()) count = thread_count_from_text(value.text(), std::string("--backend-config=onnxruntime,") + name);
  };
  read("intra_op_thread_count", threads.intra);
  read("inter_op_thread_count", threads.inter);
  return threads;
}

std::optional<std::chrono::seconds> drain_limit_from_command_line(const Json& command_line) {
  const Json& value = command_line["drain_seconds"];
  if (!value.exists()) return std::nullopt;
  return std::chrono::seconds(count_from_text(value.text(), "--backend-config=onnxruntime,drain_seconds", 0, "", kMostDrainSeconds));
}

ModelSettings settings_from_config(const Json& config, const ThreadCounts& defaults) {
  check_features(config);
  warn_of_ignored_parameters(config);
  ModelSettings settings;
  settings.threads = defaults;
  settings.level = level_from_config(config);
  read_parameter(config, "intra_op_thread_count",
                 [&](const auto& text, const auto& what) { settings.threads.intra = thread_count_from_text(text, what); });
  read_parameter(config, "inter_op_thread_count",
                 [&](const auto& text, const auto& what) { settings.threads.inter = thread_count_from_text(text, what); });
  read_parameter(config, "execution_mode", [&](const auto& text, const auto& what) {
    settings.mode = switch_from_text(text, what, "sequential or parallel") ? ORT_PARALLEL : ORT_SEQUENTIAL;
  });
  // ONNX Runtime's own names; NVIDIA's backend has no such parameters, and its threads spin.
  read_parameter(config, "session.intra_op.allow_spinning",
                 [&](const auto& text, const auto& what) { settings.intra_spinning = switch_from_text(text, what, "no or yes"); });
  read_parameter(config, "session.inter_op.allow_spinning",
                 [&](const auto& text, const auto& what) { settings.inter_spinning = switch_from_text(text, what, "no or yes"); });
  read_parameter(config, "max_joined_rows", [&](const auto& text, const auto& what) {
    settings.max_joined_rows = count_from_text(text, what, 1, "requests are not joined", kMostJoinedRows);
  });
  return settings;
}

size_t ModelSettings::threads_of_a_run() const {
  const auto number = [](int count) { return count > 0 ? static_cast<size_t>(count) : std::max(1U, std::thread::hardware_concurrency()); };
  return mode == ORT_PARALLEL ? std::max(number(threads.intra), number(threads.inter)) : number(threads.intra);
}

std::string text_from_settings(const ModelSettings& settings) {
  const auto threads = [](int count) { return count == 0 ? std::string("all cores") : std::to_string(count); };
  return "intra_op_thread_count " + threads(settings.threads.intra) + ", inter_op_thread_count " + threads(settings.threads.inter) +
         ", spinning " + (settings.intra_spinning ? "1" : "0") + "/" + (settings.inter_spinning ? "1" : "0") + ", execution_mode " +
         (settings.mode == ORT_PARALLEL ? "parallel" : "sequential") + ", graph optimisation " +
         (settings.level == ORT_ENABLE_ALL        ? "all"
          : settings.level == ORT_ENABLE_EXTENDED ? "extended"
          : settings.level == ORT_ENABLE_BASIC    ? "basic"
                                                  : "none") +
         ", max_joined_rows " + std::to_string(settings.max_joined_rows);
}

}  // namespace onnx_backend
