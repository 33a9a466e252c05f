#include "convolution.h"

#include <algorithm>

namespace defensemble_ops {

namespace {

// Loads of whole vectors may read beyond the last value.
constexpr size_t kSlack = 16;
constexpr int kRoundedTo = 16;
constexpr size_t kMostIndex = 1 << 28;    // 512 MB
constexpr size_t kMostVisits = 1 << 25;   // 384 MB
constexpr int64_t kMostPacked = 1 << 26;  // 256 MB
constexpr int kMostBlock = 128;
constexpr int kLeastBlocks = 4;  // threads share them

}  // namespace

ConvolutionStep::ConvolutionStep(Operands operands, const Geometry& geometry, const float* weights, const float* bias,
                                 const Support& output, Activation activation, Form form, bool uses_one_lane, bool uses_many_lanes,
                                 const Kernels& kernels)
    : operands_(std::move(operands)), kernels_(kernels), form_(form) {
  const Shape& input = operands_.input_support->shape();
  convolution_.channels_in = input.channels;
  convolution_.channels_out = geometry.output.channels;
  convolution_.stride = (geometry.output.channels + kRoundedTo - 1) / kRoundedTo * kRoundedTo;
  convolution_.weight_rows = geometry.kernel_height * geometry.kernel_width * input.channels;
  convolution_.activation = activation;
  convolution_.channels = operands_.own_support->channels();
  // The dense form reads tiles; one lane and the table form read the table.
  if (uses_one_lane || form != Form::dense) weights_.resize(static_cast<size_t>(convolution_.weight_rows) * convolution_.stride + kSlack);
  read_weights(weights, bias, uses_many_lanes);
  find_runs(geometry, uses_many_lanes || form == Form::packed);
  if (uses_one_lane && form == Form::packed) pack_weights();
  if (uses_one_lane && form != Form::packed) find_visits(geometry);
  find_targets(output);
  parts = static_cast<int>(positions_.size());
}

void ConvolutionStep::read_weights(const float* weights, const float* bias, bool uses_many_lanes) {
  const int out = convolution_.channels_out, in = convolution_.channels_in, offsets = convolution_.weight_rows / in;
  const int tile = kernels_.dense_tile;
  if (form_ == Form::dense && uses_many_lanes) {
    tiles_.resize(static_cast<size_t>((out + tile - 1) / tile) * convolution_.weight_rows * tile + kSlack);
  }
  for (int o = 0; o < out; ++o) {
    for (int i = 0; i < in; ++i) {
      for (int k = 0; k < offsets; ++k) {
        const float value = weights[(static_cast<size_t>(o) * in + i) * offsets + k];
        const size_t row = static_cast<size_t>(k) * in + i;
        if (!weights_.empty()) weights_[row * convolution_.stride + o] = value;
        if (!tiles_.empty()) tiles_[(static_cast<size_t>(o / tile) * convolution_.weight_rows + row) * tile + o % tile] = value;
      }
    }
  }
  bias_.resize(convolution_.stride);
  if (bias != nullptr) std::copy(bias, bias + out, bias_.begin());
  convolution_.weights = weights_.data();
  convolution_.tiles = tiles_.data();
  convolution_.bias = bias_.data();
}

void ConvolutionStep::find_runs(const Geometry& geometry, bool uses_runs) {
  const Support& input = *operands_.input_support;
  const Support& own = *operands_.own_support;
  const Shape& shape = input.shape();
  const bool is_indexed = !input.is_full() || geometry.dilation_x != 1;
  const auto add_run = [&](const Run& run) {
    if (uses_runs && run.length > 0) runs_.push_back(run);
  };
  for (int position = 0; position < geometry.output.positions(); ++position) {
    if (own.count(position) == 0) continue;
    OutputPosition output{static_cast<int32_t>(runs_.size()), 0, own.start(position), own.count(position)};
    const int y0 = position / geometry.output.width * geometry.stride_y - geometry.pad_y;
    const int x0 = position % geometry.output.width * geometry.stride_x - geometry.pad_x;
    int64_t rows = 0;
    for (int ky = 0; ky < geometry.kernel_height; ++ky) {
      const int y = y0 + ky * geometry.dilation_y;
      if (y < 0 || y >= shape.height) continue;
      Run run{-1, 0, 0};
      for (int kx = 0; kx < geometry.kernel_width; ++kx) {
        const int x = x0 + kx * geometry.dilation_x;
        if (x < 0 || x >= shape.width) continue;
        const int cell = y * shape.width + x, offset = (ky * geometry.kernel_width + kx) * shape.channels;
        if (run.row < 0 || geometry.dilation_x != 1) {
          add_run(run);
          run = {input.start(cell), 0, is_indexed ? static_cast<int32_t>(index_.size()) : offset};
        }
        run.length += input.count(cell);
        rows += input.count(cell);
        if (!uses_runs || !is_indexed) continue;
        for (int32_t row = input.start(cell); row < input.start(cell + 1); ++row) {
          index_.push_back(static_cast<uint16_t>(offset + input.channel(row)));
        }
      }
      add_run(run);
    }
    output.runs = static_cast<int32_t>(runs_.size()) - output.first_run;
    work += static_cast<double>(rows) * output.count;
    positions_.push_back(output);
    places_.push_back(position);
    if (index_.size() > kMostIndex) {
      throw ProgramError("a convolution reads more than " + std::to_string(kMostIndex) + " neurons of its input per image");
    }
  }
  runs_.shrink_to_fit();
  index_.shrink_to_fit();
  convolution_.positions = positions_.data();
  convolution_.runs = runs_.data();
  convolution_.index = uses_runs && is_indexed ? index_.data() : nullptr;
}

void ConvolutionStep::find_visits(const Geometry& geometry) {
  const Support& input = *operands_.input_support;
  const Shape& shape = input.shape();
  const int count = static_cast<int>(positions_.size()), fitting = std::max(1, kBlockFloats / convolution_.stride);
  const int block = std::max(1, std::min({kMostBlock, fitting, (count + kLeastBlocks - 1) / kLeastBlocks}));
  const auto is_shorter = [](const Visit& a, const Visit& b) { return a.length < b.length; };
  visit_starts_.push_back(0);
  for (int first = 0; first < count; first += block, ++blocks_) {
    const int positions = std::min(block, count - first);
    for (int ky = 0, weights = 0; ky < geometry.kernel_height; ++ky) {
      for (int kx = 0; kx < geometry.kernel_width; ++kx, weights += shape.channels) {
        for (int p = 0; p < positions; ++p) {
          const int place = places_[first + p];
          const int y = place / geometry.output.width * geometry.stride_y - geometry.pad_y + ky * geometry.dilation_y;
          const int x = place % geometry.output.width * geometry.stride_x - geometry.pad_x + kx * geometry.dilation_x;
          if (y < 0 || y >= shape.height || x < 0 || x >= shape.width) continue;
          const int cell = y * shape.width + x;
          if (input.count(cell) == 0) continue;
          visits_.push_back({input.start(cell), weights, static_cast<uint16_t>(input.count(cell)), static_cast<uint16_t>(p)});
        }
        std::stable_sort(visits_.begin() + visit_starts_.back(), visits_.end(), is_shorter);
        visit_starts_.push_back(static_cast<int32_t>(visits_.size()));
      }
    }
    if (visits_.size() > kMostVisits) {
      throw ProgramError("a convolution reads more than " + std::to_string(kMostVisits) + " places of its input per image");
    }
  }
  visits_.shrink_to_fit();
  convolution_.visits = visits_.data();
  convolution_.visit_starts = visit_starts_.data();
  convolution_.input_channels = input.channels();
  convolution_.block_positions = block;
  convolution_.position_count = count;
  convolution_.offsets = geometry.kernel_height * geometry.kernel_width;
}

void ConvolutionStep::pack_weights() {
  if (work > kMostPacked) throw ProgramError("the packed form of a convolution has more than " + std::to_string(kMostPacked) + " weights");
  packed_.reserve(static_cast<size_t>(work) + kSlack);
  for (const OutputPosition& position : positions_) {
    packed_starts_.push_back(static_cast<int64_t>(packed_.size()));
    for (int r = 0; r < position.runs; ++r) {
      const Run& run = runs_[position.first_run + r];
      for (int i = 0; i < run.length; ++i) {
        const int row = convolution_.index == nullptr ? run.weights + i : index_[run.weights + i];
        const float* weights = &weights_[static_cast<size_t>(row) * convolution_.stride];
        for (int own = position.row; own < position.row + position.count; ++own) packed_.push_back(weights[convolution_.channels[own]]);
      }
    }
  }
  packed_.resize(packed_.size() + kSlack);
  convolution_.packed = packed_.data();
  convolution_.packed_starts = packed_starts_.data();
}

void ConvolutionStep::find_targets(const Support& output) {
  if (operands_.residual < 0) return;
  const Support& own = *operands_.own_support;
  const Support& residual = *operands_.residual_support;
  targets_.reserve(own.rows());
  residuals_.reserve(own.rows());
  for (int position = 0; position < output.shape().positions(); ++position) {
    for (int32_t row = output.start(position); row < output.start(position + 1); ++row) {
      const int channel = output.channel(row);
      const int32_t from = residual.row(position, channel);
      if (own.row(position, channel) >= 0) {
        targets_.push_back(row);
        residuals_.push_back(from);
      } else {
        copied_to_.push_back(row);
        copied_from_.push_back(from);
      }
    }
  }
  convolution_.residual = residuals_.data();
  if (own.rows() != output.rows()) convolution_.target = targets_.data();
}

void ConvolutionStep::run(const Chunk& chunk, int begin, int end) const {
  const float* residual = operands_.residual < 0 ? nullptr : chunk.at(operands_.residual);
  const Convolve one_lane = form_ == Form::packed ? kernels_.packed : kernels_.rows;
  const Convolve many_lanes = form_ == Form::dense ? kernels_.dense : kernels_.table;
  (chunk.lanes == 1 ? one_lane : many_lanes)(convolution_, chunk.at(operands_.input), chunk.at(operands_.output), residual, begin, end,
                                             chunk.lanes);
  if (begin == 0 && !copied_to_.empty()) copy_residual_rows(chunk);
}

void ConvolutionStep::prefetch() const {
  if (form_ == Form::packed) return;  // are read in their order
  constexpr size_t kFloatsOfALine = 16;
  for (size_t i = 0; i < weights_.size(); i += kFloatsOfALine) __builtin_prefetch(&weights_[i]);
}

void ConvolutionStep::copy_residual_rows(const Chunk& chunk) const {
  const float* from = chunk.at(operands_.residual);
  float* to = chunk.at(operands_.output);
  const bool is_relu = convolution_.activation == Activation::relu;
  for (size_t i = 0; i < copied_to_.size(); ++i) {
    const float* x = from + static_cast<size_t>(copied_from_[i]) * chunk.lanes;
    float* y = to + static_cast<size_t>(copied_to_[i]) * chunk.lanes;
    for (int l = 0; l < chunk.lanes; ++l) y[l] = is_relu && 0 > x[l] ? 0 : x[l];
  }
}

}  // namespace defensemble_ops
