#include "runtime.h"

#include <dlfcn.h>

namespace onnx_backend {

namespace {

// The oldest API version (the minor of ONNX Runtime's own version) that was tested. Every slot that is used here is of version 5 or before.
constexpr uint32_t kOldestApi = 20;

void log_from_onnxruntime(void*, OrtLoggingLevel severity, const char*, const char* log_id, const char*, const char* message) {
  // One for all models: ONNX Runtime also returns each of these errors, and the caller of the request gets it.
  static RateLimit limit;
  const auto level = severity >= ORT_LOGGING_LEVEL_ERROR     ? TRITONSERVER_LOG_ERROR
                     : severity == ORT_LOGGING_LEVEL_WARNING ? TRITONSERVER_LOG_WARN
                                                             : TRITONSERVER_LOG_INFO;
  log_limited(limit, level, [&] { return std::string("onnxruntime, ") + log_id + ": " + message; });
}

const OrtApiBase* base_from_library(const std::string& path) {
  // Never closed: the library's threads and exit handlers may outlive the backend.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    fail(TRITONSERVER_ERROR_UNAVAILABLE, "cannot open the ONNX Runtime library '" + path + "': " + (reason ? reason : "no reason given") +
                                             "; expected the libonnxruntime.so of the wheel onnxruntime 1.20 or later");
  }
  using GetBase = const OrtApiBase* (*)();
  const auto get_base = reinterpret_cast<GetBase>(dlsym(library, "OrtGetApiBase"));
  if (get_base == nullptr) {
    fail(TRITONSERVER_ERROR_UNSUPPORTED, "'" + path + "' is not ONNX Runtime: it has no OrtGetApiBase");
  }
  return get_base();
}

}  // namespace

Runtime::Runtime(const std::string& library) : base_(base_from_library(library)) {
  const char* version = base_->GetVersionString();
  version_ = version != nullptr ? version : "of unknown version";
  api_ = base_->GetApi(kOldestApi);
  if (api_ == nullptr) {
    fail(TRITONSERVER_ERROR_UNSUPPORTED, "ONNX Runtime " + version_ + " ('" + library + "') is too old for this backend: expected 1." +
                                             std::to_string(kOldestApi) + " or later; run: pip install --upgrade onnxruntime");
  }
  environment_ = make<OrtEnv>([&](OrtEnv** made) {
    return api_->CreateEnvWithCustomLogger(log_from_onnxruntime, nullptr, ORT_LOGGING_LEVEL_ERROR, "onnxruntime", made);
  });
  cpu_memory_ =
      make<OrtMemoryInfo>([&](OrtMemoryInfo** made) { return api_->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, made); });
  check(api_->CreateAndRegisterAllocator(environment_.get(), cpu_memory_.get(), nullptr));
  check(api_->GetAllocatorWithDefaultOptions(&allocator_));
}

void Runtime::check(OrtStatus* status, std::string_view context, TRITONSERVER_Error_Code code) const {
  if (status == nullptr) return;
  const OrtPtr<OrtStatus> owned = own(status);
  std::string message(context);
  if (!message.empty()) message += ": ";
  fail(code, message + api_->GetErrorMessage(status));
}

}  // namespace onnx_backend
