// A proxy for ONNX Runtime's library: forwards every call to the real one (RECORD_LIBRARY) and writes it to RECORD_FILE, one line of JSON
// per call. Tests read from it how a session was set up, which requests were one run, and in whose memory a tensor is.
#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <mutex>
#include <string>

#include "include/onnxruntime_api.h"

namespace {

const OrtApi* real = nullptr;
OrtApi recording;
std::mutex lock;
std::map<const OrtSession*, std::string> paths;

void write(const std::string& line) {
  static std::FILE* file = std::fopen(std::getenv("RECORD_FILE"), "a");
  std::fprintf(file, "{%s}\n", line.c_str());
  std::fflush(file);
}

std::string in_quotes(const std::string& text) { return "\"" + text + "\""; }

// The file whose mapping holds the address; empty for anonymous memory.
std::string mapping(const void* address) {
  const auto wanted = reinterpret_cast<unsigned long>(address);
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long first = 0;
    unsigned long last = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &first, &last) == 2 && first <= wanted && wanted < last) {
      const auto slash = line.find('/');
      return slash == std::string::npos ? "" : line.substr(slash);
    }
  }
  return "";
}

std::string describe(const char* name, const OrtValue* value) {
  std::string text = "{\"name\": " + in_quotes(name);
  if (value != nullptr) {
    OrtTensorTypeAndShapeInfo* info = nullptr;
    size_t rank = 0;
    int64_t dims[16] = {};
    void* data = nullptr;
    real->GetTensorTypeAndShape(value, &info);
    real->GetDimensionsCount(info, &rank);
    real->GetDimensions(info, dims, rank);
    real->ReleaseTensorTypeAndShapeInfo(info);
    real->GetTensorMutableData(const_cast<OrtValue*>(value), &data);
    text += ", \"dims\": [";
    for (size_t i = 0; i < rank; ++i) text += (i > 0 ? ", " : "") + std::to_string(dims[i]);
    text += "], \"mapping\": " + in_quotes(mapping(data));
  }
  return text + ", \"given\": " + (value != nullptr ? "true" : "false") + "}";
}

OrtStatus* set_mode(OrtSessionOptions* options, ExecutionMode mode) {
  write("\"option\": \"mode\", \"value\": " + std::to_string(mode));
  return real->SetSessionExecutionMode(options, mode);
}
OrtStatus* set_level(OrtSessionOptions* options, GraphOptimizationLevel level) {
  write("\"option\": \"level\", \"value\": " + std::to_string(level));
  return real->SetSessionGraphOptimizationLevel(options, level);
}
OrtStatus* set_intra(OrtSessionOptions* options, int count) {
  write("\"option\": \"intra\", \"value\": " + std::to_string(count));
  return real->SetIntraOpNumThreads(options, count);
}
OrtStatus* set_inter(OrtSessionOptions* options, int count) {
  write("\"option\": \"inter\", \"value\": " + std::to_string(count));
  return real->SetInterOpNumThreads(options, count);
}
OrtStatus* add_entry(OrtSessionOptions* options, const char* key, const char* value) {
  write("\"option\": " + in_quotes(key) + ", \"value\": " + in_quotes(value));
  return real->AddSessionConfigEntry(options, key, value);
}
OrtStatus* create_session(const OrtEnv* env, const char* path, const OrtSessionOptions* options, OrtSession** session) {
  write("\"session\": " + in_quotes(path));
  OrtStatus* status = real->CreateSession(env, path, options, session);
  const std::lock_guard<std::mutex> hold(lock);
  if (status == nullptr) paths[*session] = path;
  return status;
}
OrtStatus* run(OrtSession* session, const OrtRunOptions* options, const char* const* input_names, const OrtValue* const* inputs,
               size_t input_count, const char* const* output_names, size_t output_count, OrtValue** outputs) {
  std::string line;
  {
    const std::lock_guard<std::mutex> hold(lock);
    line = "\"run\": " + in_quotes(paths[session]) + ", \"inputs\": [";
  }
  for (size_t i = 0; i < input_count; ++i) line += (i > 0 ? ", " : "") + describe(input_names[i], inputs[i]);
  line += "], \"outputs\": [";
  for (size_t i = 0; i < output_count; ++i) line += (i > 0 ? ", " : "") + describe(output_names[i], outputs[i]);
  write(line + "]");
  return real->Run(session, options, input_names, inputs, input_count, output_names, output_count, outputs);
}

const OrtApiBase* real_base() {
  static const OrtApiBase* base = [] {
    void* library = dlopen(std::getenv("RECORD_LIBRARY"), RTLD_NOW | RTLD_LOCAL);
    return reinterpret_cast<const OrtApiBase* (*)()>(dlsym(library, "OrtGetApiBase"))();
  }();
  return base;
}

const OrtApi* get_api(uint32_t version) {
  real = real_base()->GetApi(version);
  if (real == nullptr) return nullptr;
  std::memcpy(&recording, real, sizeof(recording));
  recording.SetSessionExecutionMode = set_mode;
  recording.SetSessionGraphOptimizationLevel = set_level;
  recording.SetIntraOpNumThreads = set_intra;
  recording.SetInterOpNumThreads = set_inter;
  recording.AddSessionConfigEntry = add_entry;
  recording.CreateSession = create_session;
  recording.Run = run;
  return &recording;
}
const char* get_version() { return real_base()->GetVersionString(); }

const OrtApiBase base = {get_api, get_version};

}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* OrtGetApiBase() { return &base; }
