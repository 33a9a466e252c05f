// How a failure travels: as an exception inside the backend, as a TRITONSERVER_Error at its border, and never past it.
#pragma once

#include <memory>
#include <stdexcept>
#include <string>

#include "include/triton_api.h"
#include "log.h"

namespace onnx_backend {

class Failure : public std::runtime_error {
 public:
  Failure(TRITONSERVER_Error_Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  TRITONSERVER_Error_Code code() const { return code_; }

 private:
  TRITONSERVER_Error_Code code_;
};

[[noreturn]] inline void fail(TRITONSERVER_Error_Code code, const std::string& message) { throw Failure(code, message); }
[[noreturn]] inline void throw_invalid_argument(const std::string& message) { fail(TRITONSERVER_ERROR_INVALID_ARG, message); }

struct ErrorDeleter {
  void operator()(TRITONSERVER_Error* error) const noexcept { TRITONSERVER_ErrorDelete(error); }
};
using ErrorPtr = std::unique_ptr<TRITONSERVER_Error, ErrorDeleter>;

// Throws the error that a call to Triton returned, if any. Takes ownership of it.
inline void check(TRITONSERVER_Error* error) {
  if (error == nullptr) return;
  const ErrorPtr owned(error);
  throw Failure(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
}

// For calls whose failure cannot be handled any more: logs the error, if any. Takes ownership of it.
inline void log_error(TRITONSERVER_Error* error) noexcept {
  if (error == nullptr) return;
  static RateLimit limit;  // for all models: such errors concern the server
  const ErrorPtr owned(error);
  log_limited(limit, TRITONSERVER_LOG_ERROR, [&] { return TRITONSERVER_ErrorMessage(error); });
}

// Runs work(); returns null, or its exception as a Triton error. Every entry point and every request goes through this.
template <class Work>
ErrorPtr to_triton_error(Work&& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return ErrorPtr(TRITONSERVER_ErrorNew(failure.code(), failure.what()));
  } catch (const std::exception& exception) {
    return ErrorPtr(TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, exception.what()));
  } catch (...) {
    return ErrorPtr(TRITONSERVER_ErrorNew(TRITONSERVER_ERROR_INTERNAL, "unknown failure in the onnxruntime backend"));
  }
}

}  // namespace onnx_backend
