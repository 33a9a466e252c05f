// How a failure travels: as an exception inside the backend, as a TRITONSERVER_Error at its border, and never past it.
#pragma once

#include <stdexcept>
#include <string>

#include "include/triton_api.h"

namespace onnx_backend {

class Failure : public std::runtime_error {
 public:
  Failure(TRITONSERVER_Error_Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  TRITONSERVER_Error_Code code() const { return code_; }

 private:
  TRITONSERVER_Error_Code code_;
};

[[noreturn]] inline void fail(TRITONSERVER_Error_Code code, const std::string& message) { throw Failure(code, message); }
[[noreturn]] inline void refuse(const std::string& message) { fail(TRITONSERVER_ERROR_INVALID_ARG, message); }

inline void log(TRITONSERVER_LogLevel level, const char* message) noexcept {
  if (!TRITONSERVER_LogIsEnabled(level)) return;
  if (auto* error = TRITONSERVER_LogMessage(level, "onnxruntime_backend", 0, message)) TRITONSERVER_ErrorDelete(error);
}
inline void log(TRITONSERVER_LogLevel level, const std::string& message) noexcept { log(level, message.c_str()); }

// Throws what Triton answered, where it answered an error.
inline void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  const Failure failure(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
  throw failure;
}

// For calls after which nothing can be mended any more: the error goes to the log.
inline void log_error(TRITONSERVER_Error* error) noexcept {
  if (error == nullptr) return;
  log(TRITONSERVER_LOG_ERROR, TRITONSERVER_ErrorMessage(error));
  TRITONSERVER_ErrorDelete(error);
}

// Runs work(); answers null, or the Triton error that its exception becomes. Every entry point and every request goes through this.
template <class Work>
TRITONSERVER_Error* guarded(Work&& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return TRITONSERVER_ErrorNew(failure.code(), failure.what());
  } catch (const std::exception& exception) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, exception.what());
  } catch (...) {
    return TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "unknown failure in the onnxruntime backend");
  }
}

}  // namespace onnx_backend
