// Messages in Triton's log, and a limit for those that any request can cause.
#pragma once

#include <chrono>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <utility>

#include "include/triton_api.h"

namespace onnx_backend {

inline void log(TRITONSERVER_LogLevel level, const char* message) noexcept {
  if (!TRITONSERVER_LogIsEnabled(level)) return;
  if (auto* error = TRITONSERVER_LogMessage(level, "onnxruntime_backend", 0, message)) TRITONSERVER_ErrorDelete(error);
}
inline void log(TRITONSERVER_LogLevel level, const std::string& message) noexcept { log(level, message.c_str()); }

// Admits a few messages per interval, so that a caller whose requests fail cannot fill the disk with log lines.
class RateLimit {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr int kMessages = 5;
  static constexpr std::chrono::seconds kInterval{10};

  // Null if a message at `now` must be dropped; else the number of messages dropped since the interval before. Thread-safe.
  std::optional<uint64_t> admit(Clock::time_point now) {
    const std::lock_guard<std::mutex> hold(mutex_);
    if (now - begin_ >= kInterval) {
      begin_ = now;
      admitted_ = 0;
    }
    if (admitted_ == kMessages) {
      ++dropped_;
      return std::nullopt;
    }
    ++admitted_;
    return std::exchange(dropped_, 0);
  }

 private:
  std::mutex mutex_;
  Clock::time_point begin_{};
  int admitted_ = 0;
  uint64_t dropped_ = 0;
};

// Logs what message() returns, within the limit. A dropped message is not even built.
template <class Message>
void log_limited(RateLimit& limit, TRITONSERVER_LogLevel level, Message&& message) noexcept {
  try {
    const auto dropped = limit.admit(RateLimit::Clock::now());
    if (!dropped) return;
    log(level, message());
    if (*dropped > 0) log(level, "(" + std::to_string(*dropped) + " similar messages were dropped before this one)");
  } catch (...) {
    log(level, "a log message could not be written: out of memory");
  }
}

}  // namespace onnx_backend
