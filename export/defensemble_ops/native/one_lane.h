// Convolutions with one lane, that is for one image: the loops run over the output channels. All is of internal linkage.
#pragma once

#include "simd.h"

namespace defensemble_ops {

namespace {

// Positions of a convolution with one lane that are computed together: where their input begins, and their sums.
struct Block {
  static constexpr int kMost = 128;
  static constexpr int kFloats = 1 << 14;  // of the sums, which stay in the second cache
  int count = 0, columns = 0;
  int y[kMost], x[kMost];
  alignas(64) float sums[kFloats];
};

// Adds to V vectors of sums, from `column` on, the products of the input at kernel offset (dy, dx).
template <int V>
void add_offset(const Convolution& c, const float* input, Block& block, const float* weights, int dy, int dx, int column) {
  for (int p = 0; p < block.count; ++p) {
    const int y = block.y[p] + dy, x = block.x[p] + dx;
    if (y < 0 || y >= c.input_height || x < 0 || x >= c.input_width) continue;
    const int32_t* start = c.input_starts + y * c.input_width + x;
    float* sums = block.sums + static_cast<size_t>(p) * block.columns + column;
    Vector<kWidth> a[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) a[v] = load<kWidth>(sums + v * kWidth);
    int row = start[0];
    if constexpr (V <= 4) {  // too few sums to hide the latency of an addition
      Vector<kWidth> b[V]{};
      for (; row + 2 <= start[1]; row += 2) {
        const float* w = weights + static_cast<size_t>(c.input_channels[row]) * c.stride;
        const float* next = weights + static_cast<size_t>(c.input_channels[row + 1]) * c.stride;
        const Vector<kWidth> value = splat<kWidth>(input[row]), following = splat<kWidth>(input[row + 1]);
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) {
          a[v] += load<kWidth>(w + v * kWidth) * value;
          b[v] += load<kWidth>(next + v * kWidth) * following;
        }
      }
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) a[v] += b[v];
    }
    for (; row < start[1]; ++row) {
      const float* w = weights + static_cast<size_t>(c.input_channels[row]) * c.stride;
      const Vector<kWidth> value = splat<kWidth>(input[row]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) a[v] += load<kWidth>(w + v * kWidth) * value;
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<kWidth>(sums + v * kWidth, a[v]);
  }
}

using AddOffset = void (*)(const Convolution&, const float*, Block&, const float*, int, int, int);

// Sets the sums of positions `begin` to `end` to the bias of the columns from `from` on.
void begin_block(const Convolution& c, Block& block, int begin, int end, int from) {
  block.count = end - begin;
  const int real = c.channels_out - from < block.columns ? c.channels_out - from : block.columns;
  for (int p = 0; p < block.count; ++p) {
    const int position = c.positions[begin + p].position;
    block.y[p] = position / c.output_width * c.stride_y - c.pad_y;
    block.x[p] = position % c.output_width * c.stride_x - c.pad_x;
    float* sums = block.sums + static_cast<size_t>(p) * block.columns;
    std::memset(sums, 0, sizeof(float) * block.columns);
    if (c.bias) std::memcpy(sums, c.bias + from, sizeof(float) * real);
  }
}

// Picks the outputs that are needed.
void finish_block(const Convolution& c, const Block& block, float* output, const float* residual, int begin, int from) {
  for (int p = 0; p < block.count; ++p) {
    const OutputPosition& position = c.positions[begin + p];
    for (int own = position.row; own < position.row + position.count; ++own) {
      const int column = c.channels[own] - from;
      if (column < 0 || column >= block.columns) continue;
      float sum = block.sums[static_cast<size_t>(p) * block.columns + column];
      if (c.residual && c.residual[own] >= 0) sum += residual[c.residual[own]];
      output[c.target ? c.target[own] : own] = activated(sum, c.activation);
    }
  }
}

// One lane. All outputs of a position are computed, and those that are needed are picked at the end. Kernel offsets outside, positions
// inside: the weights of an offset stay in the first cache.
void rows(const Convolution& c, const float* input, float* output, const float* residual, int begin, int end, int) {
  static constexpr AddOffset add[] = {nullptr,       add_offset<1>, add_offset<2>, add_offset<3>, add_offset<4>,
                                      add_offset<5>, add_offset<6>, add_offset<7>, add_offset<8>};
  constexpr int kTile = 8 * kWidth;
  Block block;
  for (int from = 0; from < c.stride; from += Block::kFloats) {
    block.columns = c.stride - from < Block::kFloats ? c.stride - from : Block::kFloats;
    const int fitting = Block::kFloats / block.columns, most = fitting < Block::kMost ? fitting : Block::kMost;
    for (int first = begin; first < end; first += most) {
      begin_block(c, block, first, end - first < most ? end : first + most, from);
      for (int ky = 0, offset = 0; ky < c.kernel_height; ++ky) {
        for (int kx = 0; kx < c.kernel_width; ++kx, ++offset) {
          const float* weights = c.weights + static_cast<size_t>(offset) * c.channels_in * c.stride + from;
          for (int column = 0; column < block.columns; column += kTile) {
            const int width = block.columns - column < kTile ? block.columns - column : kTile;
            add[width / kWidth](c, input, block, weights + column, ky * c.dilation_y, kx * c.dilation_x, column);
          }
        }
      }
      finish_block(c, block, output, residual, first, from);
    }
  }
}

}  // namespace

}  // namespace defensemble_ops
