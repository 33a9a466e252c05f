// How a graph is to be run: what config.pbtxt says, else the backend's command line, else one thread that never spins.
#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "include/onnxruntime_api.h"
#include "json.h"

namespace onnx_backend {

// Threads within an operator and between operators; 0: as many as there are cores.
struct ThreadCounts {
  int intra = 1;
  int inter = 1;
};

struct SessionSettings {
  ThreadCounts threads;
  bool intra_spinning = false;
  bool inter_spinning = false;
  ExecutionMode mode = ORT_SEQUENTIAL;
  GraphOptimizationLevel level = ORT_ENABLE_ALL;
};

// `command_line` is what --backend-config=onnxruntime,key=value gave. Throws Failure on a bad value.
ThreadCounts threads_from_command_line(const Json& command_line);

// How long requests may run on once SIGUSR1 has asked the server to end; none: the signal is left alone. Throws Failure on a bad value.
std::optional<std::chrono::seconds> drain_limit_from_command_line(const Json& command_line);

// `config` is the model's. Throws Failure on a bad value, and where the config asks for what this backend does not do.
SessionSettings settings_from_config(const Json& config, const ThreadCounts& defaults);

std::string text_from_settings(const SessionSettings& settings);

}  // namespace onnx_backend
