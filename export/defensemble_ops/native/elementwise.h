// The steps that multiply no weights: images, outputs, maps, sums and products of tensors, pools and concatenations.
#pragma once

#include <utility>
#include <vector>

#include "convolution.h"
#include "plan.h"

namespace defensemble_ops {

class ImagesStep : public Step {
 public:
  ImagesStep(const Shape& shape, const Kernels& kernels);
  void run(const Chunk& chunk, int begin, int end) const override;

 private:
  Shape shape_;
  const Kernels& kernels_;
};

class OutputStep : public Step {
 public:
  OutputStep(const Support& support, int tensor, int number, const Kernels& kernels);
  void run(const Chunk& chunk, int begin, int end) const override;

 private:
  Shape shape_;
  int tensor_, number_;
  std::vector<int32_t> inverse_;  // empty: the tensor is full
  const Kernels& kernels_;
};

class MapStep : public Step {
 public:
  MapStep(const Support& input, const Support& output, int input_tensor, int output_tensor, Activation activation, const Kernels& kernels);
  void run(const Chunk& chunk, int begin, int end) const override;

  std::vector<float> scale, shift;  // per channel

 private:
  int input_, output_;
  Activation activation_;
  std::vector<int32_t> from_;  // empty: the same rows
  std::vector<uint16_t> channels_;
  const Kernels& kernels_;
};

class CombineStep : public Step {
 public:
  CombineStep(const Support& a, const Support& b, const Support& output, int tensor_a, int tensor_b, int output_tensor, bool multiply,
              Activation activation, const Kernels& kernels);
  void run(const Chunk& chunk, int begin, int end) const override;

 private:
  int a_, b_, output_;
  bool multiply_;
  Activation activation_;
  std::vector<int32_t> from_a_, from_b_;
  const Kernels& kernels_;
};

class ReduceStep : public Step {
 public:
  // The rows of the input in the window of each row of the output.
  struct Windows {
    Support support;
    std::vector<int32_t> first, cells;
    std::vector<uint8_t> has_zero;  // whether a neuron in the window is always 0
    std::vector<float> scale;       // one over the number of neurons in the window
  };

  ReduceStep(Windows windows, int input_tensor, int output_tensor, bool is_maximum, const Kernels& kernels);
  void run(const Chunk& chunk, int begin, int end) const override;

 private:
  int input_, output_;
  bool is_maximum_;
  Windows windows_;
  const Kernels& kernels_;
};

ReduceStep::Windows windows_from(const Support& input, const Geometry& geometry, bool counts_padding);

class ConcatStep : public Step {
 public:
  ConcatStep(std::vector<SupportPointer> inputs, const Support& output, std::vector<int> input_tensors, int output_tensor);
  void run(const Chunk& chunk, int begin, int end) const override;

 private:
  std::vector<SupportPointer> inputs_;
  std::vector<int32_t> starts_;  // of the output's positions
  std::vector<int> tensors_;
  int output_;
};

}  // namespace defensemble_ops
