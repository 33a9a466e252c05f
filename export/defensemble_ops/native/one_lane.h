// Convolutions with one lane, that is for one image: the loops run over the output channels. All is of internal linkage.
#pragma once

#include "simd.h"

namespace defensemble_ops {

namespace {

// The sums of a block's positions: `columns` channels of each, from `from` on.
struct Sums {
  int from, columns;
  alignas(64) float values[kBlockFloats];

  float* at(int position, int column) { return values + static_cast<size_t>(position) * columns + column; }
};

// Adds the products of some visits to V vectors of sums from `column` on. Visits of one length follow each other, so that the processor
// predicts the end of the loop.
template <int V>
void add_visits(const Convolution& c, const float* input, const Visit* visit, const Visit* end, Sums& sums, int column) {
  for (; visit < end; ++visit) {
    const float* x = input + visit->row;
    const uint16_t* channel = c.input_channels + visit->row;
    const float* table = c.weights + static_cast<size_t>(visit->weights) * c.stride + sums.from + column;
    float* to = sums.at(visit->position, column);
    Vector<kWidth> sum[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[v] = load<kWidth>(to + v * kWidth);
    for (int i = 0; i < visit->length; ++i) {
      const float* w = table + static_cast<size_t>(channel[i]) * c.stride;
      const Vector<kWidth> value = splat<kWidth>(x[i]);
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[v] += load<kWidth>(w + v * kWidth) * value;
    }
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store<kWidth>(to + v * kWidth, sum[v]);
  }
}

DEFENSEMBLE_INLINE void store_sum(const Convolution& c, float sum, float* output, const float* residual, int own) {
  if (c.residual && c.residual[own] >= 0) sum += residual[c.residual[own]];
  output[c.target ? c.target[own] : own] = activated(sum, c.activation);
}

// Picks the outputs of a position that are needed.
DEFENSEMBLE_INLINE void pick(const Convolution& c, const float* sums, int from, int columns, float* output, const float* residual,
                             const OutputPosition& position) {
  for (int own = position.row; own < position.row + position.count; ++own) {
    const int column = c.channels[own] - from;
    if (column >= 0 && column < columns) store_sum(c, sums[column], output, residual, own);
  }
}

// All outputs of a position are computed, and those that are needed are picked at the end. Kernel offsets outside, positions inside: the
// weights of an offset stay in the first cache.
void rows(const Convolution& c, const float* input, float* output, const float* residual, int begin, int end, int) {
  static constexpr decltype(&add_visits<1>) add[] = {nullptr,       add_visits<1>, add_visits<2>, add_visits<3>, add_visits<4>,
                                                     add_visits<5>, add_visits<6>, add_visits<7>, add_visits<8>};
  constexpr int kTile = 8 * kWidth;
  Sums sums;
  for (int block = begin; block < end; ++block) {
    const int first = block * c.block_positions;
    const int count = c.position_count - first < c.block_positions ? c.position_count - first : c.block_positions;
    const int32_t* starts = c.visit_starts + static_cast<size_t>(block) * c.offsets;
    for (sums.from = 0; sums.from < c.stride; sums.from += kBlockFloats) {
      sums.columns = c.stride - sums.from < kBlockFloats ? c.stride - sums.from : kBlockFloats;
      for (int p = 0; p < count; ++p) {
        for (int column = 0; column < sums.columns; column += kWidth) {
          store<kWidth>(sums.at(p, column), load<kWidth>(c.bias + sums.from + column));
        }
      }
      for (int offset = 0; offset < c.offsets; ++offset) {
        for (int column = 0; column < sums.columns; column += kTile) {
          const int width = sums.columns - column < kTile ? sums.columns - column : kTile;
          add[width / kWidth](c, input, c.visits + starts[offset], c.visits + starts[offset + 1], sums, column);
        }
      }
      for (int p = 0; p < count; ++p) pick(c, sums.at(p, 0), sums.from, sums.columns, output, residual, c.positions[first + p]);
    }
  }
}

// One lane. Only the outputs of a position that are needed are computed, each with weights of its own, which are read once and in order.
void packed(const Convolution& c, const float* input, float* output, const float* residual, int begin, int end, int) {
  for (int p = begin; p < end; ++p) {
    const OutputPosition& position = c.positions[p];
    const int stride = position.count;
    for (int first = 0; first < position.count; first += kWidth) {
      const float* w = c.packed + c.packed_starts[p] + first;
      Vector<kWidth> sums[4]{};  // of every fourth row, to hide the latency of an addition
      for (int r = 0; r < position.runs; ++r) {
        const Run& run = c.runs[position.first_run + r];
        const float* x = input + run.row;
        int i = 0;
        for (; i + 4 <= run.length; i += 4) {
#pragma GCC unroll 4
          for (int j = 0; j < 4; ++j, w += stride) sums[j] += load<kWidth>(w) * splat<kWidth>(x[i + j]);
        }
        for (; i < run.length; ++i, w += stride) sums[0] += load<kWidth>(w) * splat<kWidth>(x[i]);
      }
      alignas(64) float values[kWidth];
      store<kWidth>(values, (sums[0] + sums[1]) + (sums[2] + sums[3]));
      const int own = position.row + first, count = position.count - first < kWidth ? position.count - first : kWidth;
      for (int o = 0; o < count; ++o) store_sum(c, values[o] + c.bias[c.channels[own + o]], output, residual, own + o);
    }
  }
}

}  // namespace

}  // namespace defensemble_ops
