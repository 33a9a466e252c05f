#include "operators.h"

#include <dlfcn.h>
#include <unistd.h>

namespace onnx_backend {

namespace {

constexpr const char* kLibrary = "libdefensemble_ops.so";

// The path of a file in the folder of this backend.
std::string next_to_backend(const std::string& file) {
  Dl_info found{};
  if (dladdr(reinterpret_cast<const void*>(&next_to_backend), &found) == 0 || found.dli_fname == nullptr) return file;
  const std::string backend = found.dli_fname;
  return backend.substr(0, backend.rfind('/') + 1) + file;
}

template <class Function>
Function* function_from_library(void* library, const char* name) {
  auto* function = reinterpret_cast<Function*>(dlsym(library, name));
  if (function == nullptr) fail(TRITONSERVER_ERROR_UNSUPPORTED, std::string("it has no ") + name);
  return function;
}

}  // namespace

Operators::Operators(const Runtime& runtime) noexcept : runtime_(runtime) {
  try {
    const std::string path = next_to_backend(kLibrary);
    try {
      open();
      log(TRITONSERVER_LOG_INFO, "mask-aware operators (" + instruction_set_ + ") from " + path);
    } catch (const Failure& failure) {
      register_ = nullptr;
      created_ = nullptr;
      instruction_set_.clear();
      problem_ = "the operator library '" + path + "' cannot be used: " + failure.what();
      log(TRITONSERVER_LOG_ERROR, problem_ + "; mask-aware models run densely; `defensemble serve` builds the library next to the backend");
    }
  } catch (...) {
    problem_ = "out of memory";
  }
}

void Operators::open() {
  const std::string path = next_to_backend(kLibrary);
  // Not left to dlopen: with AddressSanitizer, a process in which it failed hangs at its end, in freelocale.
  if (access(path.c_str(), F_OK) != 0) fail(TRITONSERVER_ERROR_UNAVAILABLE, "there is no such file");
  // Never closed: sessions of ONNX Runtime, which outlives the backend, keep its operator.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* reason = dlerror();
    fail(TRITONSERVER_ERROR_UNAVAILABLE, reason != nullptr ? reason : "no reason given");
  }
  register_ = function_from_library<OrtStatus*(OrtSessionOptions*, const OrtApiBase*)>(library, "RegisterCustomOps");
  created_ = function_from_library<uint64_t()>(library, "defensemble_ops_kernels_created");
  // Now, and not when a model is loaded: a variable DEFENSEMBLE_OPS_ISA that is wrong is an error here.
  const OrtApi& api = runtime_.api();
  add_to(runtime_.make<OrtSessionOptions>([&](OrtSessionOptions** made) { return api.CreateSessionOptions(made); }).get());
  const char* name = function_from_library<const char*()>(library, "defensemble_ops_instruction_set")();
  instruction_set_ = name != nullptr ? name : "";
}

void Operators::add_to(OrtSessionOptions* options) const {
  if (register_ != nullptr) runtime_.check(register_(options, &runtime_.base()));
}

}  // namespace onnx_backend
