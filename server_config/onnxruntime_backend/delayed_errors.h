// When requests that failed are answered.
//
// Core 2.51 crashes if a step of an ensemble fails while its thread is still starting the other steps: it frees the request that the thread
// uses. That takes microseconds on an idle machine, so an error is sent at the earliest 50 ms after the backend received the request.
// Without the delay, the first to third error of a small member ended the server.
#pragma once

#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>

#include "request.h"

namespace onnx_backend {

// Answers failed requests on a thread of its own, so that no core waits for the delay.
class DelayedErrors {
 public:
  DelayedErrors();
  // Answers the requests that still wait.
  ~DelayedErrors();
  DelayedErrors(const DelayedErrors&) = delete;
  DelayedErrors& operator=(const DelayedErrors&) = delete;

  // Takes over requests that failed. Their instances exist until they are answered: see Instance.
  void add(std::list<Request> requests) noexcept;

 private:
  void work() noexcept;

  std::mutex mutex_;  // guards everything below, except the thread
  std::condition_variable changed_;
  std::list<Request> waiting_;  // the earliest received first
  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace onnx_backend
