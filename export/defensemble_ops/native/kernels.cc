// Compiled once per instruction set: DEFENSEMBLE_ISA is baseline, avx2 or avx512. Everything here has internal linkage, so that no
// function that was compiled for one instruction set is called in place of that of another.
#include "kernels.h"

#include <cstring>

#include "one_lane.h"
#include "simd.h"

namespace defensemble_ops {

namespace {

#define DEFENSEMBLE_NAME_baseline kKernelsBaseline
#define DEFENSEMBLE_NAME_avx2 kKernelsAvx2
#define DEFENSEMBLE_NAME_avx512 kKernelsAvx512
#define DEFENSEMBLE_JOIN(a, b) a##b
#define DEFENSEMBLE_NAME(isa) DEFENSEMBLE_JOIN(DEFENSEMBLE_NAME_, isa)
#define DEFENSEMBLE_QUOTE(a) #a
#define DEFENSEMBLE_TEXT(a) DEFENSEMBLE_QUOTE(a)

// The shape of a tile for L lanes: V vectors of N lanes for each of at most kMost outputs.
template <int L>
struct Lanes {
  static constexpr int N = L < kWidth ? L : kWidth;
  static constexpr int V = L / N;
  static constexpr int kMost = kAccumulators / V > 12 ? 12 : kAccumulators / V;
};

template <int L, int O>
DEFENSEMBLE_INLINE void finish(Vector<Lanes<L>::N> (&sums)[O][Lanes<L>::V], const Convolution& c, float* output, const float* residual,
                               int row) {
  constexpr int N = Lanes<L>::N, V = Lanes<L>::V;
  for (int o = 0; o < O; ++o) {
    const int own = row + o;
    float* to = output + static_cast<size_t>(c.target ? c.target[own] : own) * L;
    const float* added = c.residual && c.residual[own] >= 0 ? residual + static_cast<size_t>(c.residual[own]) * L : nullptr;
    for (int v = 0; v < V; ++v) {
      Vector<N> sum = sums[o][v];
      if (added) sum += load<N>(added + v * N);
      store<N>(to + v * N, c.activation == Activation::relu ? relu<N>(sum) : sum);
    }
  }
}

// O outputs of one position, from row `row` on. `weights` has `stride` floats a row; column(o) is that of output o, and its channel after
// `first_channel`.
template <int L, int O, bool kIndexed, class Column>
DEFENSEMBLE_INLINE void tile(const Convolution& c, const float* input, float* output, const float* residual, const OutputPosition& position,
                             int row, const float* weights, int stride, int first_channel, Column column) {
  constexpr int N = Lanes<L>::N, V = Lanes<L>::V;
  Vector<N> sums[O][V];
#pragma GCC unroll 16
  for (int o = 0; o < O; ++o) {
    for (int v = 0; v < V; ++v) sums[o][v] = splat<N>(c.bias[first_channel + column(o)]);
  }
  for (int r = 0; r < position.runs; ++r) {
    const Run& run = c.runs[position.first_run + r];
    const float* x = input + static_cast<size_t>(run.row) * L;
    const uint16_t* index = kIndexed ? c.index + run.weights : nullptr;
    const float* w = kIndexed ? nullptr : weights + static_cast<size_t>(run.weights) * stride;
    for (int i = run.length; i > 0; --i, x += L) {
      if (kIndexed) w = weights + static_cast<size_t>(*index++) * stride;
      Vector<N> value[V];
      for (int v = 0; v < V; ++v) value[v] = load<N>(x + v * N);
#pragma GCC unroll 16
      for (int o = 0; o < O; ++o) {
        const Vector<N> weight = splat<N>(w[column(o)]);
        for (int v = 0; v < V; ++v) sums[o][v] += value[v] * weight;
      }
      if (!kIndexed) w += stride;
    }
  }
  finish<L, O>(sums, c, output, residual, row);
}

// O outputs of one position, whose weights are any columns of the table.
template <int L, int O, bool kIndexed>
void table_tile(const Convolution& c, const float* input, float* output, const float* residual, const OutputPosition& position, int row) {
  size_t columns[O];
#pragma GCC unroll 16
  for (int o = 0; o < O; ++o) columns[o] = c.channels[row + o];
  tile<L, O, kIndexed>(c, input, output, residual, position, row, c.weights, c.stride, 0, [&](int o) { return columns[o]; });
}

using TableTile = void (*)(const Convolution&, const float*, float*, const float*, const OutputPosition&, int);

template <int L, bool kIndexed, int O>
void fill_table(TableTile* tiles) {
  tiles[O] = table_tile<L, O, kIndexed>;
  if constexpr (O > 1) fill_table<L, kIndexed, O - 1>(tiles);
}

template <int L, bool kIndexed>
void table_positions(const Convolution& c, const float* input, float* output, const float* residual, int begin, int end) {
  constexpr int kMost = Lanes<L>::kMost;
  TableTile tile[kMost + 1];
  fill_table<L, kIndexed, kMost>(tile);
  for (int p = begin; p < end; ++p) {
    const OutputPosition& position = c.positions[p];
    // Tiles of about the same size: 7 outputs are 4 and 3, not 6 and 1.
    const int tiles = (position.count + kMost - 1) / kMost;
    for (int t = 0, done = 0; t < tiles; ++t) {
      const int outputs = (position.count - done + tiles - t - 1) / (tiles - t);
      tile[outputs](c, input, output, residual, position, position.row + done);
      done += outputs;
    }
  }
}

void table(const Convolution& c, const float* input, float* output, const float* residual, int begin, int end, int lanes) {
  if (lanes == 16) {
    (c.index ? table_positions<16, true> : table_positions<16, false>)(c, input, output, residual, begin, end);
  } else {
    (c.index ? table_positions<8, true> : table_positions<8, false>)(c, input, output, residual, begin, end);
  }
}

constexpr int kDenseTile = Lanes<16>::kMost;

// O consecutive channels of every position, whose weights are those of one of the tiles.
template <int L, int O, bool kIndexed>
void dense_positions(const Convolution& c, const float* weights, const float* input, float* output, const float* residual, int begin,
                     int end, int channel) {
  for (int p = begin; p < end; ++p) {
    const OutputPosition& position = c.positions[p];
    tile<L, O, kIndexed>(c, input, output, residual, position, position.row + channel, weights, kDenseTile, channel,
                         [](int o) { return o; });
  }
}

using DensePositions = void (*)(const Convolution&, const float*, const float*, float*, const float*, int, int, int);

template <int L, bool kIndexed, int O>
void fill_dense(DensePositions* tiles) {
  tiles[O] = dense_positions<L, O, kIndexed>;
  if constexpr (O > 1) fill_dense<L, kIndexed, O - 1>(tiles);
}

// Tiles outside, positions inside: the weights of a tile stay in the first cache.
template <int L, bool kIndexed>
void dense_tiles(const Convolution& c, const float* input, float* output, const float* residual, int begin, int end) {
  DensePositions tile[kDenseTile + 1];
  fill_dense<L, kIndexed, kDenseTile>(tile);
  for (int channel = 0; channel < c.channels_out; channel += kDenseTile) {
    const int outputs = c.channels_out - channel < kDenseTile ? c.channels_out - channel : kDenseTile;
    tile[outputs](c, c.tiles + static_cast<size_t>(channel / kDenseTile) * c.weight_rows * kDenseTile, input, output, residual, begin, end,
                  channel);
  }
}

void dense(const Convolution& c, const float* input, float* output, const float* residual, int begin, int end, int lanes) {
  if (lanes == 16) {
    (c.index ? dense_tiles<16, true> : dense_tiles<16, false>)(c, input, output, residual, begin, end);
  } else {
    (c.index ? dense_tiles<8, true> : dense_tiles<8, false>)(c, input, output, residual, begin, end);
  }
}

constexpr int kPart = kWidth < 8 ? kWidth : 8;  // lanes; divides 8 and 16

// Calls vectorised(first lane) for each part of the lanes of a row, or single() for one lane.
template <class Vectorised, class Single>
DEFENSEMBLE_INLINE void for_lanes(int lanes, Vectorised vectorised, Single single) {
  if (lanes == 1) {
    single();
  } else {
    for (int l = 0; l < lanes; l += kPart) vectorised(l);
  }
}
void map(const float* input, float* output, const int32_t* from, const uint16_t* channels, const float* scale, const float* shift,
         Activation activation, int begin, int end, int lanes) {
  for (int row = begin; row < end; ++row) {
    const int source = from ? from[row] : row;
    const float a = scale[channels[row]], b = shift[channels[row]];
    const float* x = input + static_cast<size_t>(source < 0 ? 0 : source) * lanes;
    float* y = output + static_cast<size_t>(row) * lanes;
    if (source < 0) {
      const float value = activated(b, activation);
      for (int l = 0; l < lanes; ++l) y[l] = value;
    } else if (activation == Activation::sigmoid) {
      for (int l = 0; l < lanes; ++l) y[l] = activated(x[l] * a + b, activation);
    } else {
      for_lanes(
          lanes,
          [&](int l) {
            const Vector<kPart> value = load<kPart>(x + l) * a + b;
            store<kPart>(y + l, activation == Activation::relu ? relu<kPart>(value) : value);
          },
          [&] { y[0] = activated(x[0] * a + b, activation); });
    }
  }
}

void combine(const float* a, const float* b, float* output, const int32_t* from_a, const int32_t* from_b, bool multiply,
             Activation activation, int begin, int end, int lanes) {
  for (int row = begin; row < end; ++row) {
    const int row_a = from_a ? from_a[row] : row, row_b = from_b ? from_b[row] : row;
    const float* x = row_a < 0 ? nullptr : a + static_cast<size_t>(row_a) * lanes;
    const float* z = row_b < 0 ? nullptr : b + static_cast<size_t>(row_b) * lanes;
    float* y = output + static_cast<size_t>(row) * lanes;
    const auto value = [&](int l) {
      const Vector<kPart> left = x ? load<kPart>(x + l) : Vector<kPart>{}, right = z ? load<kPart>(z + l) : Vector<kPart>{};
      const Vector<kPart> result = multiply ? left * right : left + right;
      store<kPart>(y + l, activation == Activation::relu ? relu<kPart>(result) : result);
    };
    for_lanes(lanes, value, [&] {
      const float left = x ? x[0] : 0, right = z ? z[0] : 0;
      y[0] = activated(multiply ? left * right : left + right, activation);
    });
  }
}

void maximum(const float* input, float* output, const int32_t* first, const int32_t* cells, const uint8_t* has_zero, int begin, int end,
             int lanes) {
  for (int row = begin; row < end; ++row) {
    float* y = output + static_cast<size_t>(row) * lanes;
    const int32_t* cell = cells + first[row];
    const int count = first[row + 1] - first[row];
    for_lanes(
        lanes,
        [&](int l) {
          Vector<kPart> most = load<kPart>(input + static_cast<size_t>(cell[0]) * lanes + l);
          for (int i = 1; i < count; ++i) {
            const Vector<kPart> value = load<kPart>(input + static_cast<size_t>(cell[i]) * lanes + l);
            most = most > value ? most : value;
          }
          store<kPart>(y + l, has_zero[row] ? relu<kPart>(most) : most);
        },
        [&] {
          float most = input[cell[0]];
          for (int i = 1; i < count; ++i) most = most > input[cell[i]] ? most : input[cell[i]];
          y[0] = has_zero[row] && 0 > most ? 0 : most;
        });
  }
}

void mean(const float* input, float* output, const int32_t* first, const int32_t* cells, const float* scale, int begin, int end,
          int lanes) {
  for (int row = begin; row < end; ++row) {
    float* y = output + static_cast<size_t>(row) * lanes;
    for_lanes(
        lanes,
        [&](int l) {
          Vector<kPart> sum{};
          for (int i = first[row]; i < first[row + 1]; ++i) sum += load<kPart>(input + static_cast<size_t>(cells[i]) * lanes + l);
          store<kPart>(y + l, sum * scale[row]);
        },
        [&] {
          float sum = 0;
          for (int i = first[row]; i < first[row + 1]; ++i) sum += input[cells[i]];
          y[0] = sum * scale[row];
        });
  }
}

void load_images(const float* input, float* output, int channels, int positions, int images, int begin, int end, int lanes) {
  for (int p = begin; p < end; ++p) {
    for (int c = 0; c < channels; ++c) {
      float* y = output + (static_cast<size_t>(p) * channels + c) * lanes;
      const float* x = input + static_cast<size_t>(c) * positions + p;
      for (int l = 0; l < images; ++l) y[l] = x[static_cast<size_t>(l) * channels * positions];
      for (int l = images; l < lanes; ++l) y[l] = 0;
    }
  }
}

// 16 positions at a time through a small square, so that reading and writing are both in order.
void store_rows(const float* input, float* output, const int32_t* inverse, int channels, int positions, int images, int begin, int end,
                int lanes) {
  const size_t size = static_cast<size_t>(channels) * positions;
  alignas(64) float square[16][16];
  for (int first = begin; first < end; first += 16) {
    const int count = end - first < 16 ? end - first : 16;
    for (int c = 0; c < channels; ++c) {
      if (lanes == 1) {
        float* to = output + static_cast<size_t>(c) * positions + first;
        const int32_t* row = inverse ? inverse + static_cast<size_t>(c) * positions + first : nullptr;
        for (int i = 0; i < count; ++i) {
          to[i] = !row ? input[static_cast<size_t>(first + i) * channels + c] : row[i] < 0 ? 0 : input[row[i]];
        }
        continue;
      }
      for (int i = 0; i < count; ++i) {
        const int p = first + i;
        const int64_t row = inverse ? inverse[static_cast<size_t>(c) * positions + p] : static_cast<int64_t>(p) * channels + c;
        if (row < 0) {
          std::memset(square[i], 0, sizeof square[i]);
        } else {
          std::memcpy(square[i], input + static_cast<size_t>(row) * lanes, sizeof(float) * lanes);
        }
      }
      for (int l = 0; l < images; ++l) {
        float* to = output + l * size + static_cast<size_t>(c) * positions + first;
        for (int i = 0; i < count; ++i) to[i] = square[i][l];
      }
    }
  }
}

}  // namespace

extern const Kernels DEFENSEMBLE_NAME(DEFENSEMBLE_ISA);
const Kernels DEFENSEMBLE_NAME(DEFENSEMBLE_ISA) = {
    DEFENSEMBLE_TEXT(DEFENSEMBLE_ISA), kDenseTile, table, dense, rows, packed, map, combine, maximum, mean, load_images, store_rows};

}  // namespace defensemble_ops
