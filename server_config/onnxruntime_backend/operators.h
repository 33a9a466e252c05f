// The operator library, which computes the masked bottoms of mask-aware graphs.
#pragma once

#include <cstdint>
#include <string>

#include "runtime.h"

namespace onnx_backend {

// The operator that the library computes, as the parameter `mask_aware.VERSION` of a config names it.
inline constexpr const char* kOperator = "MaskedNetwork_v1";

class Operators {
 public:
  // Opens libdefensemble_ops.so in the folder of this backend. One that is missing, or does not work, is logged as an error: mask-aware
  // graphs then run densely, as the functions that they define.
  explicit Operators(const Runtime& runtime) noexcept;

  // Why the library is not used; empty if it is.
  const std::string& problem() const { return problem_; }
  // "avx512", "avx2" or "baseline"; empty if the library is not used.
  const std::string& instruction_set() const { return instruction_set_; }
  // Makes sessions with these options use the library, if there is one. Throws Failure if ONNX Runtime refuses it.
  void add_to(OrtSessionOptions* options) const;
  // The number of nodes that sessions of this thread were created with.
  uint64_t nodes_created() const { return created_ == nullptr ? 0 : created_(); }

 private:
  void open();

  const Runtime& runtime_;
  std::string problem_;
  std::string instruction_set_;
  OrtStatus* (*register_)(OrtSessionOptions* options, const OrtApiBase* base) = nullptr;
  uint64_t (*created_)() = nullptr;
};

}  // namespace onnx_backend
