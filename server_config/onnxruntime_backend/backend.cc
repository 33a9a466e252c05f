// The functions that Triton looks up in a backend: each calls the Runtime, RunQueue, Model or Instance behind it, and catches every
// exception.
#include <cstdlib>
#include <memory>
#include <optional>

#include "drain.h"
#include "instance.h"
#include "operators.h"

// Triton finds them by name; everything else stays hidden.
#define TRITON_ENTRY_POINT extern "C" __attribute__((visibility("default"))) TRITONSERVER_Error*

namespace onnx_backend {
namespace {

// The TRITONBACKEND API that was tested (Triton 2.51). A server with the same major and a later minor version offers all of it.
constexpr uint32_t kApiMajor = 1;
constexpr uint32_t kApiMinor = 19;

struct Backend {
  Backend(const std::string& library, const ThreadCounts& counts) : runtime(library), threads(counts) { refuse_at_exit(); }

  Runtime runtime;
  Operators operators{runtime};
  ThreadCounts threads;
  DelayedErrors errors;
  RunQueue queue{errors};
  std::optional<DrainOnSignal> drain;
};

void check_server() {
  uint32_t major = 0;
  uint32_t minor = 0;
  check(TRITONBACKEND_ApiVersion(&major, &minor));
  if (major == kApiMajor && minor >= kApiMinor) return;
  const auto text = [](uint32_t a, uint32_t b) { return std::to_string(a) + "." + std::to_string(b); };
  fail(TRITONSERVER_ERROR_UNSUPPORTED, "this backend needs a Triton with TRITONBACKEND API " + text(kApiMajor, kApiMinor) +
                                           " or a later minor (Triton 2.51 or later); the server has " + text(major, minor));
}

Json command_line(TRITONBACKEND_Backend* backend) {
  TRITONSERVER_Message* message = nullptr;  // owned by the backend
  check(TRITONBACKEND_BackendConfig(backend, &message));
  const char* text = nullptr;
  size_t size = 0;
  check(TRITONSERVER_MessageSerializeToJson(message, &text, &size));
  return Json::parse(text, size)["cmdline"];
}

std::string library_path(const Json& options) {
  const std::string& stated = options["library"].text();
  if (!stated.empty()) return stated;
  const char* variable = std::getenv("ONNXRUNTIME_LIBRARY");
  if (variable != nullptr && *variable != '\0') return variable;
  fail(TRITONSERVER_ERROR_INVALID_ARG,
       "the path of ONNX Runtime is not set: pass --backend-config=onnxruntime,library=PATH, or set ONNXRUNTIME_LIBRARY, "
       "to the libonnxruntime.so of the wheel onnxruntime 1.20 or later");
}

template <class State, class Owner>
State* state_of(Owner* handle, TRITONSERVER_Error* (*get)(Owner*, void**)) {
  void* state = nullptr;
  check(get(handle, &state));
  return static_cast<State*>(state);
}

Backend* backend_of(TRITONBACKEND_Model* model) {
  TRITONBACKEND_Backend* handle = nullptr;
  check(TRITONBACKEND_ModelBackend(model, &handle));
  return state_of<Backend>(handle, TRITONBACKEND_BackendState);
}

// Passes an object to Triton, which keeps it until a Finalize function takes it back.
template <class State, class Owner>
void give_state(Owner* handle, TRITONSERVER_Error* (*set)(Owner*, void*), std::unique_ptr<State> state) {
  check(set(handle, state.get()));
  static_cast<void>(state.release());
}

template <class State, class Owner>
std::unique_ptr<State> take_state(Owner* handle, TRITONSERVER_Error* (*get)(Owner*, void**)) {
  return std::unique_ptr<State>(state_of<State>(handle, get));
}

// The end of every entry point: from here on Triton owns the error.
template <class Work>
TRITONSERVER_Error* entry_point(Work&& work) noexcept {
  return to_triton_error(work).release();
}

}  // namespace
}  // namespace onnx_backend

using namespace onnx_backend;

TRITON_ENTRY_POINT TRITONBACKEND_Initialize(TRITONBACKEND_Backend* handle) {
  return entry_point([&] {
    check_server();
    const Json options = command_line(handle);
    const ThreadCounts threads = threads_from_command_line(options);
    const auto drain_limit = drain_limit_from_command_line(options);
    const std::string library = library_path(options);
    auto backend = std::make_unique<Backend>(library, threads);
    if (drain_limit) backend->drain.emplace(*drain_limit);
    log(TRITONSERVER_LOG_INFO, "onnxruntime " + backend->runtime.version() + " from " + library);
    give_state(handle, TRITONBACKEND_BackendSetState, std::move(backend));
  });
}

TRITON_ENTRY_POINT TRITONBACKEND_Finalize(TRITONBACKEND_Backend* handle) {
  return entry_point([&] { take_state<Backend>(handle, TRITONBACKEND_BackendState); });
}

TRITON_ENTRY_POINT TRITONBACKEND_GetBackendAttribute(TRITONBACKEND_Backend*, TRITONBACKEND_BackendAttribute* attribute) {
  return TRITONBACKEND_BackendAttributeAddPreferredInstanceGroup(attribute, TRITONSERVER_INSTANCEGROUPKIND_CPU, 1, nullptr, 0);
}

TRITON_ENTRY_POINT TRITONBACKEND_ModelInitialize(TRITONBACKEND_Model* handle) {
  return entry_point([&] {
    const Backend* backend = backend_of(handle);
    give_state(handle, TRITONBACKEND_ModelSetState,
               std::make_unique<Model>(handle, backend->runtime, backend->operators, backend->threads));
  });
}

TRITON_ENTRY_POINT TRITONBACKEND_ModelFinalize(TRITONBACKEND_Model* handle) {
  return entry_point([&] { take_state<Model>(handle, TRITONBACKEND_ModelState); });
}

TRITON_ENTRY_POINT TRITONBACKEND_ModelInstanceInitialize(TRITONBACKEND_ModelInstance* handle) {
  return entry_point([&] {
    TRITONBACKEND_Model* model_handle = nullptr;
    check(TRITONBACKEND_ModelInstanceModel(handle, &model_handle));
    auto* model = state_of<Model>(model_handle, TRITONBACKEND_ModelState);
    TRITONSERVER_InstanceGroupKind kind = TRITONSERVER_INSTANCEGROUPKIND_AUTO;
    check(TRITONBACKEND_ModelInstanceKind(handle, &kind));
    if (kind == TRITONSERVER_INSTANCEGROUPKIND_GPU) {
      fail(TRITONSERVER_ERROR_UNSUPPORTED,
           "model '" + model->name() + "': instance_group asks for a GPU, but this backend runs only on CPUs: write kind: KIND_CPU");
    }
    Backend* backend = backend_of(model_handle);
    give_state(handle, TRITONBACKEND_ModelInstanceSetState, std::make_unique<Instance>(*model, handle, backend->queue, backend->errors));
  });
}

TRITON_ENTRY_POINT TRITONBACKEND_ModelInstanceFinalize(TRITONBACKEND_ModelInstance* handle) {
  return entry_point([&] { take_state<Instance>(handle, TRITONBACKEND_ModelInstanceState); });
}

// The backend owns the requests only after success: execute() gives every error to its request, and throws only while Triton can still
// answer all of them.
TRITON_ENTRY_POINT TRITONBACKEND_ModelInstanceExecute(TRITONBACKEND_ModelInstance* handle, TRITONBACKEND_Request** requests,
                                                      const uint32_t count) {
  return entry_point([&] { state_of<Instance>(handle, TRITONBACKEND_ModelInstanceState)->execute(requests, count); });
}
