// Which requests of all models run next.
//
// Triton gives each model a thread of its own: five members run as five threads, which compete for two cores and their caches, while one
// busy model runs on one core only. Here, a thread on each core takes the next run, whichever model it is of.
#pragma once

#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>
#include <vector>

#include "delayed_errors.h"
#include "execution.h"

namespace onnx_backend {

class RunQueue {
 public:
  // Starts a thread on each core on which this process may run.
  explicit RunQueue(DelayedErrors& errors);
  ~RunQueue();
  RunQueue(const RunQueue&) = delete;
  RunQueue& operator=(const RunQueue&) = delete;

  // Moves requests of one model to the end of the queue. Waits while the model's next run is full, so that Triton's own queue, with its
  // limits and priorities, holds the rest.
  void add(std::list<Request>& requests) noexcept;

 private:
  void stop() noexcept;
  void work() noexcept;
  bool can_start() const;
  Group take();

  DelayedErrors& errors_;
  const std::vector<int> cores_;
  std::mutex mutex_;  // guards everything below, and the backlogs of the models
  std::condition_variable can_start_;
  std::list<Request> waiting_;  // the oldest first
  int64_t waiting_rows_ = 0;
  size_t busy_cores_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace onnx_backend
