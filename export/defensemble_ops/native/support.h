// The rows of a tensor: its neurons that can be non-zero, in the order (y, x, channel). All others are 0 and are not stored.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace defensemble_ops {

// A BOOL tensor of shape (C, H, W), in C order; an extent of 1 is broadcast.
struct Mask {
  int channels = 0, height = 0, width = 0;
  const uint8_t* values = nullptr;  // a file may contain other bytes than 0 and 1, which bool may not

  bool at(int channel, int y, int x) const {
    const int c = channels == 1 ? 0 : channel, row = height == 1 ? 0 : y, column = width == 1 ? 0 : x;
    return values[(static_cast<size_t>(c) * height + row) * width + column] != 0;
  }
};

struct Shape {
  int channels = 0, height = 0, width = 0;

  int positions() const { return height * width; }
  int64_t size() const { return static_cast<int64_t>(channels) * positions(); }
  bool operator==(const Shape& other) const { return channels == other.channels && height == other.height && width == other.width; }
};

class Support {
 public:
  explicit Support(Shape shape) : shape_(shape) {}

  // Adds the rows of the next position, in the order of their channels.
  template <class Contains>
  void add_position(Contains contains) {
    for (int channel = 0; channel < shape_.channels; ++channel) {
      if (contains(channel)) channels_.push_back(static_cast<uint16_t>(channel));
    }
    starts_.push_back(static_cast<int32_t>(channels_.size()));
  }

  const Shape& shape() const { return shape_; }
  int32_t rows() const { return starts_.back(); }
  bool is_full() const { return rows() == shape_.size(); }
  // The first row of a position, and of the one after the last.
  int32_t start(int position) const { return starts_[position]; }
  int32_t count(int position) const { return starts_[position + 1] - starts_[position]; }
  const int32_t* starts() const { return starts_.data(); }
  const uint16_t* channels() const { return channels_.data(); }
  uint16_t channel(int32_t row) const { return channels_[row]; }
  // The row of a neuron, or -1.
  int32_t row(int position, int channel) const;

 private:
  Shape shape_;
  std::vector<int32_t> starts_{0};
  std::vector<uint16_t> channels_;
};

// Calls contains(channel, y, x) for every neuron of the shape.
template <class Contains>
Support support_from(Shape shape, Contains contains) {
  Support support(shape);
  for (int y = 0; y < shape.height; ++y) {
    for (int x = 0; x < shape.width; ++x) support.add_position([&](int channel) { return contains(channel, y, x); });
  }
  return support;
}

}  // namespace defensemble_ops
