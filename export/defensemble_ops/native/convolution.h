// A convolution over rows, with its bias, its residual and its activation.
#pragma once

#include <memory>
#include <new>
#include <vector>

#include "plan.h"

namespace defensemble_ops {

using SupportPointer = std::shared_ptr<const Support>;

// Values that begin with a cache line, so that no vector of theirs crosses two.
template <class T>
struct CacheLineAllocator {
  using value_type = T;
  CacheLineAllocator() = default;
  template <class U>
  CacheLineAllocator(const CacheLineAllocator<U>&) {}
  T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})); }
  void deallocate(T* values, size_t) { ::operator delete(values, std::align_val_t{64}); }
  bool operator==(const CacheLineAllocator&) const { return true; }
  bool operator!=(const CacheLineAllocator&) const { return false; }
};
using Floats = std::vector<float, CacheLineAllocator<float>>;

struct Geometry {
  int kernel_height = 1, kernel_width = 1, stride_y = 1, stride_x = 1, pad_y = 0, pad_x = 0, pad_bottom = 0, pad_right = 0;
  int dilation_y = 1, dilation_x = 1;
  Shape output;
};

// How many lanes are computed; one lane by `rows`, except that of packed.
enum class Form { table, packed, dense };

class ConvolutionStep : public Step {
 public:
  struct Operands {
    int input, output, residual;  // tensors; no residual: -1
    SupportPointer input_support, own_support, residual_support;
  };

  // `weights` is (out, in, ky, kx). `output`: the rows of the result, those of the convolution itself and of the residual.
  ConvolutionStep(Operands operands, const Geometry& geometry, const float* weights, const float* bias, const Support& output,
                  Activation activation, Form form, bool uses_one_lane, bool uses_many_lanes, const Kernels& kernels);

  void run(const Chunk& chunk, int begin, int end) const override;
  void prefetch() const override;
  int parts_for(int lanes) const override { return lanes == 1 && form_ != Form::packed ? blocks_ : parts; }

 private:
  void read_weights(const float* weights, const float* bias, bool uses_many_lanes);
  void find_runs(const Geometry& geometry, bool uses_runs);
  void find_visits(const Geometry& geometry);
  void pack_weights();
  void find_targets(const Support& output);
  void copy_residual_rows(const Chunk& chunk) const;

  Operands operands_;
  const Kernels& kernels_;
  Form form_;
  int blocks_ = 0;  // of positions, for one lane
  Convolution convolution_;
  Floats weights_, tiles_, packed_, bias_;
  std::vector<int64_t> packed_starts_;
  std::vector<OutputPosition> positions_;
  std::vector<int32_t> places_;  // y * width + x of each position
  std::vector<Run> runs_;
  std::vector<Visit> visits_;
  std::vector<uint16_t> index_;
  std::vector<int32_t> visit_starts_, targets_, residuals_;
  // Rows that only the residual has.
  std::vector<int32_t> copied_to_, copied_from_;
};

}  // namespace defensemble_ops
