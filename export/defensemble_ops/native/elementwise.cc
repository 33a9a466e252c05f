#include "elementwise.h"

#include <algorithm>
#include <cstring>

namespace defensemble_ops {

namespace {

// The row of each neuron of `output` in `input`, or -1; empty if both have the same rows. An input of one position is broadcast.
std::vector<int32_t> rows_in(const Support& input, const Support& output) {
  std::vector<int32_t> rows;
  rows.reserve(output.rows());
  const bool is_broadcast = input.shape().positions() == 1;
  bool is_same = input.rows() == output.rows();
  for (int position = 0; position < output.shape().positions(); ++position) {
    for (int32_t row = output.start(position); row < output.start(position + 1); ++row) {
      rows.push_back(input.row(is_broadcast ? 0 : position, output.channel(row)));
      is_same = is_same && rows.back() == row;
    }
  }
  if (is_same) rows.clear();
  return rows;
}

const int32_t* pointer(const std::vector<int32_t>& rows) { return rows.empty() ? nullptr : rows.data(); }

}  // namespace

ImagesStep::ImagesStep(const Shape& shape, const Kernels& kernels) : shape_(shape), kernels_(kernels) {
  parts = shape.positions();
  work = static_cast<double>(shape.size());
}

void ImagesStep::run(const Chunk& chunk, int begin, int end) const {
  kernels_.load(chunk.images, chunk.at(0), shape_.channels, shape_.positions(), chunk.count, begin, end, chunk.lanes);
}

OutputStep::OutputStep(const Support& support, int tensor, int number, const Kernels& kernels)
    : shape_(support.shape()), tensor_(tensor), number_(number), kernels_(kernels) {
  if (!support.is_full()) {
    inverse_.assign(shape_.size(), -1);
    for (int position = 0; position < shape_.positions(); ++position) {
      for (int32_t row = support.start(position); row < support.start(position + 1); ++row) {
        inverse_[static_cast<size_t>(support.channel(row)) * shape_.positions() + position] = row;
      }
    }
  }
  parts = shape_.positions();
  work = static_cast<double>(shape_.size());
}

void OutputStep::run(const Chunk& chunk, int begin, int end) const {
  kernels_.store(chunk.at(tensor_), chunk.outputs[number_], pointer(inverse_), shape_.channels, shape_.positions(), chunk.count, begin, end,
                 chunk.lanes);
}

MapStep::MapStep(const Support& input, const Support& output, int input_tensor, int output_tensor, Activation activation,
                 const Kernels& kernels)
    : input_(input_tensor), output_(output_tensor), activation_(activation), from_(rows_in(input, output)), kernels_(kernels) {
  channels_.assign(output.channels(), output.channels() + output.rows());
  parts = output.rows();
  work = parts;
}

void MapStep::run(const Chunk& chunk, int begin, int end) const {
  kernels_.map(chunk.at(input_), chunk.at(output_), pointer(from_), channels_.data(), scale.data(), shift.data(), activation_, begin, end,
               chunk.lanes);
}

CombineStep::CombineStep(const Support& a, const Support& b, const Support& output, int tensor_a, int tensor_b, int output_tensor,
                         bool multiply, Activation activation, const Kernels& kernels)
    : a_(tensor_a),
      b_(tensor_b),
      output_(output_tensor),
      multiply_(multiply),
      activation_(activation),
      from_a_(rows_in(a, output)),
      from_b_(rows_in(b, output)),
      kernels_(kernels) {
  parts = output.rows();
  work = parts;
}

void CombineStep::run(const Chunk& chunk, int begin, int end) const {
  kernels_.combine(chunk.at(a_), chunk.at(b_), chunk.at(output_), pointer(from_a_), pointer(from_b_), multiply_, activation_, begin, end,
                   chunk.lanes);
}

ReduceStep::ReduceStep(Windows windows, int input_tensor, int output_tensor, bool is_maximum, const Kernels& kernels)
    : input_(input_tensor), output_(output_tensor), is_maximum_(is_maximum), windows_(std::move(windows)), kernels_(kernels) {
  parts = windows_.support.rows();
  work = static_cast<double>(windows_.cells.size());
}

void ReduceStep::run(const Chunk& chunk, int begin, int end) const {
  const int32_t* first = windows_.first.data();
  const int32_t* cells = windows_.cells.data();
  if (is_maximum_) {
    kernels_.maximum(chunk.at(input_), chunk.at(output_), first, cells, windows_.has_zero.data(), begin, end, chunk.lanes);
  } else {
    kernels_.mean(chunk.at(input_), chunk.at(output_), first, cells, windows_.scale.data(), begin, end, chunk.lanes);
  }
}

ReduceStep::Windows windows_from(const Support& input, const Geometry& geometry, bool counts_padding) {
  ReduceStep::Windows windows{Support(geometry.output), {0}, {}, {}, {}};
  const Shape& shape = input.shape();
  for (int oy = 0; oy < geometry.output.height; ++oy) {
    for (int ox = 0; ox < geometry.output.width; ++ox) {
      const int y0 = oy * geometry.stride_y - geometry.pad_y, x0 = ox * geometry.stride_x - geometry.pad_x;
      const int y1 = std::min(y0 + geometry.kernel_height, shape.height), x1 = std::min(x0 + geometry.kernel_width, shape.width);
      const int inside = (y1 - std::max(y0, 0)) * (x1 - std::max(x0, 0));
      // What a window reaches beyond the padding, as one that was added by `ceil` does, is never counted.
      const int64_t padded = static_cast<int64_t>(std::min(y0 + geometry.kernel_height, shape.height + geometry.pad_bottom) - y0) *
                             (std::min(x0 + geometry.kernel_width, shape.width + geometry.pad_right) - x0);
      windows.support.add_position([&](int channel) {
        const size_t before = windows.cells.size();
        for (int y = std::max(y0, 0); y < y1; ++y) {
          for (int x = std::max(x0, 0); x < x1; ++x) {
            const int32_t row = input.row(y * shape.width + x, channel);
            if (row >= 0) windows.cells.push_back(row);
          }
        }
        const int found = static_cast<int>(windows.cells.size() - before);
        if (found == 0) return false;
        windows.first.push_back(static_cast<int32_t>(windows.cells.size()));
        windows.has_zero.push_back(found < inside);
        windows.scale.push_back(static_cast<float>(1.0 / static_cast<double>(counts_padding ? padded : inside)));
        return true;
      });
    }
  }
  return windows;
}

ConcatStep::ConcatStep(std::vector<SupportPointer> inputs, const Support& output, std::vector<int> input_tensors, int output_tensor)
    : inputs_(std::move(inputs)), tensors_(std::move(input_tensors)), output_(output_tensor) {
  starts_.assign(output.starts(), output.starts() + output.shape().positions() + 1);
  parts = output.shape().positions();
  work = output.rows();
}

void ConcatStep::run(const Chunk& chunk, int begin, int end) const {
  const size_t row = sizeof(float) * chunk.lanes;
  for (int position = begin; position < end; ++position) {
    float* to = chunk.at(output_) + static_cast<size_t>(starts_[position]) * chunk.lanes;
    for (size_t i = 0; i < inputs_.size(); ++i) {
      const Support& input = *inputs_[i];
      const size_t count = input.count(position);
      std::memcpy(to, chunk.at(tensors_[i]) + static_cast<size_t>(input.start(position)) * chunk.lanes, count * row);
      to += count * chunk.lanes;
    }
  }
}

}  // namespace defensemble_ops
