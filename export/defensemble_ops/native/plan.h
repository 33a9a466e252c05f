// A program made ready to run: the rows of every tensor, the tables of every instruction, and the place of each tensor in the workspace.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "program.h"
#include "support.h"

namespace defensemble_ops {

// An initialiser that the node reads.
struct Constant {
  enum class Kind { other, mask, floats };  // BOOL and FLOAT; others, such as axes, are never read
  Kind kind = Kind::other;
  std::vector<int64_t> dims;
  const void* data = nullptr;

  int64_t size() const;
  const float* floats() const { return static_cast<const float*>(data); }
};

// What one instruction does with a chunk of images.
class Step {
 public:
  virtual ~Step() = default;
  struct Chunk {
    const float* images;
    float* const* outputs;  // of the node, at the chunk's first image
    float* workspace;
    const int64_t* offsets;  // of each tensor, in rows
    int count;               // images
    int lanes;

    // The place of a tensor.
    float* at(int tensor) const { return workspace + offsets[tensor] * lanes; }
  };
  // Computes parts `begin` to `end`.
  virtual void run(const Chunk& chunk, int begin, int end) const = 0;
  // Loads the weights in their order; at random, as one lane needs them, memory takes longer.
  virtual void prefetch() const {}
  // Parts for chunks of `lanes`.
  virtual int parts_for(int /*lanes*/) const { return parts; }

  int parts = 0;
  double work = 0;  // multiplications or copies per image, to decide whether threads pay
};

class Plan {
 public:
  // `inputs[0]` is the images; the others are constant. Throws ProgramError.
  Plan(const std::string& program, const std::vector<Constant>& inputs, const Kernels& kernels);

  const Shape& image_shape() const { return image_shape_; }
  const std::vector<Shape>& output_shapes() const { return output_shapes_; }
  const std::vector<std::unique_ptr<Step>>& steps() const { return steps_; }
  const int64_t* offsets() const { return offsets_.data(); }
  // Rows of the workspace.
  int64_t rows() const { return rows_; }
  // Lanes for a chunk of `images`, 1 to 16.
  int lanes(int64_t images) const { return lanes_[images == 1 ? 0 : images <= 4 ? 1 : images <= 8 ? 2 : 3]; }

 private:
  friend class Builder;

  std::array<int, 4> lanes_{};
  Shape image_shape_;
  std::vector<Shape> output_shapes_;
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<int64_t> offsets_;
  int64_t rows_ = 0;
};

}  // namespace defensemble_ops
