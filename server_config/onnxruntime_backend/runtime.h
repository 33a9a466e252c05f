// ONNX Runtime: its library, opened when the backend starts, and how its errors become ours.
#pragma once

#include <memory>
#include <string>

#include "failure.h"
#include "include/onnxruntime_api.h"

namespace onnx_backend {

// An object of ONNX Runtime that is released at the end of its scope.
template <class T>
using Handle = std::unique_ptr<T, void (*)(T*)>;

class Runtime {
 public:
  // Throws Failure where the library cannot be opened, is not ONNX Runtime, or is older than 1.20.
  explicit Runtime(const std::string& library);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  const OrtApi& api() const { return *api_; }
  const OrtEnv* environment() const { return environment_; }
  const OrtMemoryInfo* cpu_memory() const { return cpu_memory_; }
  OrtAllocator* allocator() const { return allocator_; }
  // As the library states it, "1.32.0".
  const std::string& version() const { return version_; }

  // Throws what ONNX Runtime answered, behind `context`, where it answered an error.
  void check(OrtStatus* status, const std::string& context = "", TRITONSERVER_Error_Code code = TRITONSERVER_ERROR_INTERNAL) const;

 private:
  void release();

  const OrtApi* api_ = nullptr;
  OrtEnv* environment_ = nullptr;
  OrtMemoryInfo* cpu_memory_ = nullptr;
  OrtAllocator* allocator_ = nullptr;
  std::string version_;
};

}  // namespace onnx_backend
