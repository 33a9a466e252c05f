// How a group of requests becomes a run of the graph, and the outputs of the run become responses.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <vector>

#include "request.h"

namespace onnx_backend {

// Memory for joined inputs: kept between runs, released when runs become much smaller.
class Scratch {
 public:
  char* at_least(uint64_t bytes);

 private:
  struct Deleter {
    void operator()(char* memory) const noexcept;
  };
  std::unique_ptr<char, Deleter> memory_;
  uint64_t size_ = 0;
};

// Requests of one model that can be one run.
using Group = std::list<Request>;

// Runs a group on this thread, reports the runs, and answers every request but those that failed, which it returns: see DelayedErrors.
// If it returns none, the model may be unloaded before it returns.
//
// `scratch`: memory of this thread, one entry for each input; it grows.
[[nodiscard]] Group answer(Group group, std::vector<Scratch>& scratch) noexcept;

}  // namespace onnx_backend
