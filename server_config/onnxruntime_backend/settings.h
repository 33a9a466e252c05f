// How a model is to be run: the values of config.pbtxt, else of the backend's command line, else defaults.
#pragma once

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>

#include "include/onnxruntime_api.h"
#include "json.h"

namespace onnx_backend {

// Threads within an operator and between operators; 0: one per core.
struct ThreadCounts {
  int intra = 1;
  int inter = 1;
};

struct ModelSettings {
  ThreadCounts threads;
  bool intra_spinning = false;
  bool inter_spinning = false;
  ExecutionMode mode = ORT_SEQUENTIAL;
  GraphOptimizationLevel level = ORT_ENABLE_ALL;
  // Requests are joined into one run while it has no more rows than this; a larger request is not joined.
  // Larger joins need more memory and are hardly faster. ResNet-18 of width 16 at 3x32x32, five members, 8 callers with batch 16, two
  // cores: 49 MB with 16 rows; with 32, 62 MB and 1.03 times the images per second, which is within the noise.
  int64_t max_joined_rows = 16;

  // The number of threads that a run keeps busy at most.
  size_t threads_of_a_run() const;
};

// `command_line` holds the values of --backend-config=onnxruntime,key=value. Throws Failure on a bad value.
ThreadCounts threads_from_command_line(const Json& command_line);

// How long requests may still run after SIGUSR1 asked the server to end; none: the signal is not handled. Throws Failure on a bad value.
std::optional<std::chrono::seconds> drain_limit_from_command_line(const Json& command_line);

// `config` is the model's. Throws Failure on a bad value, and if the config asks for a feature that this backend lacks.
ModelSettings settings_from_config(const Json& config, const ThreadCounts& defaults);

std::string text_from_settings(const ModelSettings& settings);

}  // namespace onnx_backend
