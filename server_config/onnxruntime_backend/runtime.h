// ONNX Runtime: its library, opened when the backend starts, its objects, and how its errors become ours.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "failure.h"
#include "include/onnxruntime_api.h"

namespace onnx_backend {

struct OrtDeleter {
  const OrtApi* api;

  void operator()(OrtEnv* object) const noexcept { api->ReleaseEnv(object); }
  void operator()(OrtMemoryInfo* object) const noexcept { api->ReleaseMemoryInfo(object); }
  void operator()(OrtSession* object) const noexcept { api->ReleaseSession(object); }
  void operator()(OrtSessionOptions* object) const noexcept { api->ReleaseSessionOptions(object); }
  void operator()(OrtStatus* object) const noexcept { api->ReleaseStatus(object); }
  void operator()(OrtTensorTypeAndShapeInfo* object) const noexcept { api->ReleaseTensorTypeAndShapeInfo(object); }
  void operator()(OrtTypeInfo* object) const noexcept { api->ReleaseTypeInfo(object); }
  void operator()(OrtValue* object) const noexcept { api->ReleaseValue(object); }
};

// An owned object of ONNX Runtime.
template <class T>
using OrtPtr = std::unique_ptr<T, OrtDeleter>;

// Memory that ONNX Runtime allocated for a caller, such as a name.
struct AllocatedDeleter {
  const OrtApi* api;
  OrtAllocator* allocator;

  void operator()(char* memory) const noexcept { OrtPtr<OrtStatus>(api->AllocatorFree(allocator, memory), OrtDeleter{api}); }
};
using AllocatedText = std::unique_ptr<char, AllocatedDeleter>;

class Runtime {
 public:
  // Throws Failure if the library cannot be opened, is not ONNX Runtime, or is older than 1.20.
  explicit Runtime(const std::string& library);

  const OrtApiBase& base() const { return *base_; }
  const OrtApi& api() const { return *api_; }
  const OrtEnv* environment() const { return environment_.get(); }
  const OrtMemoryInfo* cpu_memory() const { return cpu_memory_.get(); }
  OrtAllocator* allocator() const { return allocator_; }
  // As the library states it, "1.32.0".
  const std::string& version() const { return version_; }

  // Throws Failure with ONNX Runtime's message, after `context`, if `status` is an error. Takes ownership of it.
  void check(OrtStatus* status, std::string_view context = {}, TRITONSERVER_Error_Code code = TRITONSERVER_ERROR_INTERNAL) const;

  template <class T>
  OrtPtr<T> own(T* object) const {
    return OrtPtr<T>(object, OrtDeleter{api_});
  }

  // Returns the object that create(&object) makes. Throws Failure, as check() does.
  template <class T, class Create>
  OrtPtr<T> make(Create&& create, std::string_view context = {}, TRITONSERVER_Error_Code code = TRITONSERVER_ERROR_INTERNAL) const {
    T* object = nullptr;
    check(create(&object), context, code);
    return own(object);
  }

 private:
  const OrtApiBase* base_;
  const OrtApi* api_;
  OrtPtr<OrtEnv> environment_;
  OrtPtr<OrtMemoryInfo> cpu_memory_;
  OrtAllocator* allocator_ = nullptr;  // ONNX Runtime's own, never released
  std::string version_;
};

}  // namespace onnx_backend
