// Creates the first sessions of a process all at the same time, as a server does; prints the errors, and exits with their number.
// Arguments: ONNX Runtime's library, the operator library, an ONNX file.
#include <dlfcn.h>

#include <atomic>
#include <cstdio>
#include <thread>
#include <vector>

#include "include/onnxruntime_api.h"

int main(int, char** arguments) {
  constexpr int kSessions = 8;
  void* runtime = dlopen(arguments[1], RTLD_NOW);
  void* operators = dlopen(arguments[2], RTLD_NOW);
  if (runtime == nullptr || operators == nullptr) return std::puts(dlerror()), 100;
  const auto* base = reinterpret_cast<const OrtApiBase* (*)()>(dlsym(runtime, "OrtGetApiBase"))();
  const auto add = reinterpret_cast<OrtStatus* (*)(OrtSessionOptions*, const OrtApiBase*)>(dlsym(operators, "RegisterCustomOps"));
  const OrtApi* api = base->GetApi(20);
  OrtEnv* env = nullptr;
  if (api->CreateEnv(ORT_LOGGING_LEVEL_FATAL, "test", &env) != nullptr) return 101;
  std::vector<OrtSessionOptions*> options(kSessions);
  for (auto& each : options) {
    if (api->CreateSessionOptions(&each) != nullptr || add(each, base) != nullptr) return 102;
  }
  std::atomic<int> waiting{kSessions}, errors{0};
  std::vector<std::thread> threads;
  for (const auto* each : options) {
    threads.emplace_back([&, each] {
      for (--waiting; waiting > 0;) {}
      OrtSession* session = nullptr;
      if (const auto* status = api->CreateSession(env, arguments[3], each, &session); status != nullptr) {
        std::puts(api->GetErrorMessage(status));
        ++errors;
      }
    });
  }
  for (auto& thread : threads) thread.join();
  return errors;
}
