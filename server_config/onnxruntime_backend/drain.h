// How the server ends under load: requests in flight are answered, later ones fail as UNAVAILABLE, and then the process exits.
//
// Triton's own way (core 2.51) fails callers. It accepts calls while it stops: calls that its schedulers refuse inside an ensemble can
// crash it (SIGSEGV), calls that arrive while it unloads get NOT_FOUND, for up to a second, and calls that still run at its timeout meet
// libraries whose static objects are destroyed, and get INTERNAL.
#pragma once

#include <chrono>
#include <thread>

namespace onnx_backend {

// A request from its arrival to its answer, as the drain counts it.
class Execution {
 public:
  // `last_step`: whether its model is the last step of an ensemble, whose other steps have already run.
  explicit Execution(bool last_step);
  ~Execution();
  Execution(const Execution&) = delete;
  Execution& operator=(const Execution&) = delete;

  bool refused() const { return refused_; }

 private:
  bool refused_;
};

// Ends the process after SIGUSR1, once no request has run for a moment, or after `limit`.
class DrainOnSignal {
 public:
  explicit DrainOnSignal(std::chrono::seconds limit);
  ~DrainOnSignal();
  DrainOnSignal(const DrainOnSignal&) = delete;
  DrainOnSignal& operator=(const DrainOnSignal&) = delete;

 private:
  std::thread thread_;
};

// Refuses all requests from exit() on, before the static objects of the libraries loaded so far are destroyed.
void refuse_at_exit();

}  // namespace onnx_backend
