// The loops over numbers. They are compiled once per instruction set.
//
// A tensor is an array of rows of `lanes` floats. With 8 or 16 lanes, a lane is an image; with 1 lane, the loops run over the channels.
#pragma once

#include <cstddef>
#include <cstdint>

namespace defensemble_ops {

enum class Activation { none, relu, sigmoid };

// Consecutive input rows and the rows of the weight table that they are multiplied with: the next ones of `index` from `weights` on or,
// without an index, the rows from `weights` on.
struct Run {
  int32_t row, length, weights;
};

// One position of a convolution's output that has rows.
struct OutputPosition {
  int32_t first_run, runs;
  int32_t row, count;  // of the convolution's own rows
};

// For one lane: consecutive input rows, whose products with the weight rows of their channels, from `weights` on, are added to the sums of
// a position of the block.
struct Visit {
  int32_t row, weights;
  uint16_t length, position;
};
constexpr int kBlockFloats = 1 << 12;  // the sums of a block stay in the first cache, with the weights of a kernel offset

struct Convolution {
  int channels_in = 0, channels_out = 0;
  int stride = 0;                  // floats between rows of `weights`: the channels, rounded up to whole vectors of 16
  const float* weights = nullptr;  // a row per (ky, kx, channel in), a column per channel out
  const float* tiles = nullptr;    // the same as [tile][row][kDenseTile], for `dense`
  const float* bias = nullptr;     // per channel out; 0 for the rest of `stride`
  int weight_rows = 0;
  const OutputPosition* positions = nullptr;
  const Run* runs = nullptr;
  const uint16_t* index = nullptr;     // null: the input is full
  const uint16_t* channels = nullptr;  // of each own row
  const int32_t* target = nullptr;     // output row of each own row; null: the same
  const int32_t* residual = nullptr;   // residual row of each own row, or -1; null: there is no residual
  Activation activation = Activation::none;
  // For `rows`. The visits of a kernel offset in a block begin at visit_starts[block * offsets + offset].
  const Visit* visits = nullptr;
  const int32_t* visit_starts = nullptr;
  const uint16_t* input_channels = nullptr;
  int block_positions = 0, position_count = 0, offsets = 0;
  // For `packed`: the weights of each position's outputs, for one of its input rows after the other, from packed_starts on.
  const float* packed = nullptr;
  const int64_t* packed_starts = nullptr;
};

// Computes output positions `begin` to `end`, as numbers of `positions`; `rows` computes blocks of them.
using Convolve = void (*)(const Convolution& convolution, const float* input, float* output, const float* residual, int begin, int end,
                          int lanes);

struct Kernels {
  const char* name;
  int dense_tile;   // channels of a tile of Convolution::tiles
  Convolve table;   // few outputs per position
  Convolve dense;   // all outputs of every position
  Convolve rows;    // one lane
  Convolve packed;  // one lane, few outputs per position
  // output = activation(input * scale[channel] + shift[channel]) for rows `begin` to `end`. `from`: the input's row, or -1 for 0; null: the
  // same row.
  void (*map)(const float* input, float* output, const int32_t* from, const uint16_t* channels, const float* scale, const float* shift,
              Activation activation, int begin, int end, int lanes);
  // output = activation(a + b) or activation(a * b); rows as in `map`.
  void (*combine)(const float* a, const float* b, float* output, const int32_t* from_a, const int32_t* from_b, bool multiply,
                  Activation activation, int begin, int end, int lanes);
  // Reduces, for each row, the input rows first[row] to first[row + 1] of `cells`: to their maximum, with 0 if `has_zero`, or to their sum
  // times `scale`.
  void (*maximum)(const float* input, float* output, const int32_t* first, const int32_t* cells, const uint8_t* has_zero, int begin,
                  int end, int lanes);
  void (*mean)(const float* input, float* output, const int32_t* first, const int32_t* cells, const float* scale, int begin, int end,
               int lanes);
  // NCHW to rows of all neurons, for positions `begin` to `end`; lanes from `images` on are 0.
  void (*load)(const float* input, float* output, int channels, int positions, int images, int begin, int end, int lanes);
  // Rows to NCHW. `inverse`: the row of each neuron in C order, or -1; null: the tensor is full.
  void (*store)(const float* input, float* output, const int32_t* inverse, int channels, int positions, int images, int begin, int end,
                int lanes);
};

extern const Kernels kKernelsBaseline;
#if defined(__x86_64__)
extern const Kernels kKernelsAvx2;
extern const Kernels kKernelsAvx512;
#endif

}  // namespace defensemble_ops
