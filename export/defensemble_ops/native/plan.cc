#include "plan.h"

#include <algorithm>
#include <cmath>

#include "convolution.h"
#include "elementwise.h"

namespace defensemble_ops {

namespace {

constexpr int64_t kMostExtent = 65535;            // channels have 16 bits
constexpr int64_t kMostNeurons = INT32_MAX / 64;  // rows have 32 bits
constexpr int64_t kMostCells = 1 << 27;           // of all windows of a convolution or a pool; the plan visits each

// The sum of two tensors, and a convolution, are 0 outside of their support, which sigmoid would change.
Activation activation_from(const Instruction& line, bool allows_sigmoid = false) {
  const std::string& name = line.text("act");
  if (name == "none") return Activation::none;
  if (name == "relu") return Activation::relu;
  if (name == "sigmoid" && allows_sigmoid) return Activation::sigmoid;
  line.fail(allows_sigmoid ? "act must be none, relu or sigmoid" : "act must be none or relu");
}

Form form_from(const Instruction& line) {
  const std::string& name = line.text("form");
  if (name == "table") return Form::table;
  if (name == "packed") return Form::packed;
  if (name == "dense") return Form::dense;
  line.fail("form must be table, packed or dense");
}

}  // namespace

int64_t Constant::size() const {
  int64_t size = 1;
  for (const int64_t dim : dims) size *= dim;
  return size;
}

class Builder {
 public:
  Builder(Plan& plan, const std::vector<Constant>& inputs, const Kernels& kernels) : plan_(plan), inputs_(inputs), kernels_(kernels) {}

  void build(const std::vector<Instruction>& lines) {
    if (lines.empty() || lines[0].name() != "lanes") throw ProgramError("the program must begin with its lanes");
    read_lanes(lines[0].text("lanes"), lines[0]);
    for (size_t i = 1; i < lines.size(); ++i) add(lines[i]);
    if (plan_.output_shapes_.empty()) throw ProgramError("the program has no output");
    place_tensors();
  }

 private:
  void read_lanes(const std::string& text, const Instruction& line) {
    const auto parts = split(text, ',');
    if (parts.size() != plan_.lanes_.size()) line.fail("expected lanes for four classes of batches");
    for (size_t i = 0; i < parts.size(); ++i) {
      const int64_t lanes = line.integer_from(parts[i]);
      if (lanes != 1 && lanes != 8 && lanes != 16) line.fail("lanes must be 1, 8 or 16");
      plan_.lanes_[i] = static_cast<int>(lanes);
    }
  }

  bool uses_one_lane() const { return std::find(plan_.lanes_.begin(), plan_.lanes_.end(), 1) != plan_.lanes_.end(); }
  bool uses_many_lanes() const {
    return std::any_of(plan_.lanes_.begin(), plan_.lanes_.end(), [](int lanes) { return lanes > 1; });
  }

  void add(const Instruction& line) {
    const std::string& name = line.name();
    if (name == "images") return add_images(line);
    if (name == "output") return add_output(line);
    if (name == "map") return add_map(line);
    if (name == "conv") return add_convolution(line);
    if (name == "add" || name == "mul") return add_combination(line, name == "mul");
    if (name == "maxpool" || name == "avgpool") return add_pool(line, name == "maxpool");
    if (name == "mean") return add_mean(line);
    if (name == "concat") return add_concat(line);
    line.fail("unknown; the library is older than the file");
  }

  void add_images(const Instruction& line) {
    if (!supports_.empty()) line.fail("it must come first, once");
    plan_.image_shape_ = shape_from(line, line.integers("shape", 3));
    define(line, support_from(plan_.image_shape_, [](int, int, int) { return true; }), {},
           std::make_unique<ImagesStep>(plan_.image_shape_, kernels_));
  }

  void add_output(const Instruction& line) {
    const int tensor = tensor_from(line, line.integer("in"));
    const Support& support = *supports_[tensor];
    use(tensor);
    plan_.output_shapes_.push_back(support.shape());
    plan_.steps_.push_back(std::make_unique<OutputStep>(support, tensor, static_cast<int>(plan_.output_shapes_.size()) - 1, kernels_));
  }

  void add_map(const Instruction& line) {
    const int tensor = tensor_from(line, line.integer("in"));
    const Support& input = *supports_[tensor];
    Support support = support_from_text(line, input.shape());
    auto step = std::make_unique<MapStep>(input, support, tensor, next(), activation_from(line, true), kernels_);
    read_affine(line, input.shape().channels, step->scale, step->shift);
    define(line, std::move(support), {tensor}, std::move(step));
  }

  // Composes the steps to y = x * scale + shift.
  void read_affine(const Instruction& line, int channels, std::vector<float>& scale, std::vector<float>& shift) {
    std::vector<double> a(channels, 1), b(channels, 0);
    for (const auto& text : split(line.text("steps"), ',')) {
      const auto parts = split(text, ':');
      if (parts.size() == 6 && parts[0] == "bn") {
        const float *gain = per_channel(line, parts[1], channels), *offset = per_channel(line, parts[2], channels);
        const float *mean = per_channel(line, parts[3], channels), *variance = per_channel(line, parts[4], channels);
        const double epsilon = line.number_from(parts[5]);
        for (int c = 0; c < channels; ++c) {
          const double factor = gain[c] / std::sqrt(variance[c] + epsilon);
          a[c] *= factor;
          b[c] = (b[c] - mean[c]) * factor + offset[c];
        }
        continue;
      }
      if (parts.size() != 2) line.fail("'" + text + "' is not a step");
      const Constant& constant = float_constant(line, parts[1]);
      if (constant.size() != 1 && constant.size() != channels) line.fail("the constant of '" + text + "' has another number of channels");
      for (int c = 0; c < channels; ++c) {
        const double value = constant.floats()[constant.size() == 1 ? 0 : c];
        if (parts[0] == "sub") {
          b[c] -= value;
        } else if (parts[0] == "add") {
          b[c] += value;
        } else if (parts[0] == "mul") {
          a[c] *= value;
          b[c] *= value;
        } else if (parts[0] == "div") {
          a[c] /= value;
          b[c] /= value;
        } else {
          line.fail("'" + text + "' is not a step");
        }
      }
    }
    scale.assign(a.begin(), a.end());
    shift.assign(b.begin(), b.end());
  }

  void add_convolution(const Instruction& line) {
    const int tensor = tensor_from(line, line.integer("in"));
    const int residual = line.text("residual") == "-" ? -1 : tensor_from(line, line.integer("residual"));
    const Support& input = *supports_[tensor];
    const Constant& weight = float_constant(line, line.text("weight"));
    Geometry geometry = geometry_from(line, input.shape());
    if (weight.dims.size() != 4 || weight.dims[1] != input.shape().channels || weight.dims[2] != geometry.kernel_height ||
        weight.dims[3] != geometry.kernel_width || weight.dims[0] < 1 || weight.dims[0] > kMostExtent) {
      line.fail("its weight has another shape");
    }
    if (weight.dims[1] * weight.dims[2] * weight.dims[3] > kMostExtent) line.fail("it has more than 65,535 weight rows");
    geometry.output = shape_from(line, {weight.dims[0], geometry.output.height, geometry.output.width});
    check_windows(line, geometry.output.positions(), geometry.kernel_height, geometry.kernel_width);
    const float* bias = line.text("bias") == "-" ? nullptr : per_channel(line, line.text("bias"), geometry.output.channels);
    auto own = std::make_shared<const Support>(support_from_text(line, geometry.output));
    const Form form = form_from(line);
    if (form == Form::dense && !own->is_full()) line.fail("a dense form needs a full support");
    Support support(geometry.output);
    std::vector<int> reads{tensor};
    if (residual >= 0) {
      if (!(supports_[residual]->shape() == geometry.output)) line.fail("its residual has another shape");
      support = united(*own, *supports_[residual]);
      reads.push_back(residual);
    } else {
      support = *own;
    }
    auto step = std::make_unique<ConvolutionStep>(
        ConvolutionStep::Operands{tensor, next(), residual, supports_[tensor], own, residual < 0 ? nullptr : supports_[residual]}, geometry,
        weight.floats(), bias, support, activation_from(line), form, uses_one_lane(), uses_many_lanes(), kernels_);
    define(line, std::move(support), reads, std::move(step));
  }

  void add_combination(const Instruction& line, bool multiply) {
    const auto inputs = line.integers("in", 2);
    const int a = tensor_from(line, inputs[0]), b = tensor_from(line, inputs[1]);
    const Shape shape_a = supports_[a]->shape(), shape_b = supports_[b]->shape();
    const Shape& shape = shape_a.positions() == 1 ? shape_b : shape_a;
    for (const Shape& other : {shape_a, shape_b}) {
      if (!(other == shape) && !(other == Shape{shape.channels, 1, 1})) line.fail("its inputs have shapes that do not fit each other");
    }
    const auto row_in = [&](int tensor, int channel, int y, int x) {
      const Shape& own = supports_[tensor]->shape();
      return supports_[tensor]->row(own.positions() == 1 ? 0 : y * own.width + x, channel);
    };
    Support support = support_from(shape, [&](int c, int y, int x) {
      const bool in_a = row_in(a, c, y, x) >= 0, in_b = row_in(b, c, y, x) >= 0;
      return multiply ? in_a && in_b : in_a || in_b;
    });
    auto step =
        std::make_unique<CombineStep>(*supports_[a], *supports_[b], support, a, b, next(), multiply, activation_from(line), kernels_);
    define(line, std::move(support), {a, b}, std::move(step));
  }

  void add_pool(const Instruction& line, bool is_maximum) {
    const int tensor = tensor_from(line, line.integer("in"));
    const Support& input = *supports_[tensor];
    Geometry geometry = geometry_from(line, input.shape());
    geometry.output = shape_from(line, {input.shape().channels, geometry.output.height, geometry.output.width});
    check_windows(line, geometry.output.size(), std::min(geometry.kernel_height, input.shape().height),
                  std::min(geometry.kernel_width, input.shape().width));
    const bool counts_padding = !is_maximum && line.flag("include_pad");
    ReduceStep::Windows windows = windows_from(input, geometry, counts_padding);
    Support support = windows.support;
    define(line, std::move(support), {tensor}, std::make_unique<ReduceStep>(std::move(windows), tensor, next(), is_maximum, kernels_));
  }

  void add_mean(const Instruction& line) {
    const int tensor = tensor_from(line, line.integer("in"));
    const Support& input = *supports_[tensor];
    Geometry geometry;
    geometry.kernel_height = input.shape().height;
    geometry.kernel_width = input.shape().width;
    geometry.output = {input.shape().channels, 1, 1};
    ReduceStep::Windows windows = windows_from(input, geometry, false);
    Support support = windows.support;
    define(line, std::move(support), {tensor}, std::make_unique<ReduceStep>(std::move(windows), tensor, next(), false, kernels_));
  }

  void add_concat(const Instruction& line) {
    std::vector<int> tensors;
    std::vector<SupportPointer> inputs;
    for (const int64_t number : line.integers("in")) {
      tensors.push_back(tensor_from(line, number));
      inputs.push_back(supports_[tensors.back()]);
    }
    if (inputs.empty()) line.fail("it has no inputs");
    Shape shape = inputs[0]->shape();
    std::vector<std::pair<int, int>> origin;  // of each channel: input and channel there
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Shape& other = inputs[i]->shape();
      if (other.height != shape.height || other.width != shape.width) line.fail("its inputs have different sizes");
      for (int c = 0; c < other.channels; ++c) origin.emplace_back(static_cast<int>(i), c);
    }
    shape = shape_from(line, {static_cast<int64_t>(origin.size()), shape.height, shape.width});
    Support support =
        support_from(shape, [&](int c, int y, int x) { return inputs[origin[c].first]->row(y * shape.width + x, origin[c].second) >= 0; });
    auto step = std::make_unique<ConcatStep>(inputs, support, tensors, next());
    define(line, std::move(support), tensors, std::move(step));
  }

  Shape shape_from(const Instruction& line, const std::vector<int64_t>& dims) const {
    for (const int64_t dim : dims) {
      if (dim < 1 || dim > kMostExtent) line.fail("an extent of its tensor is " + std::to_string(dim) + ", not in 1 to 65,535");
    }
    if (dims[0] * dims[1] * dims[2] > kMostNeurons) line.fail("its tensor has more than " + std::to_string(kMostNeurons) + " neurons");
    return {static_cast<int>(dims[0]), static_cast<int>(dims[1]), static_cast<int>(dims[2])};
  }

  static void check_windows(const Instruction& line, int64_t windows, int64_t height, int64_t width) {
    if (windows > kMostCells / (height * width)) {
      line.fail("its windows have more than " + std::to_string(kMostCells) + " cells");
    }
  }

  Geometry geometry_from(const Instruction& line, const Shape& input) const {
    const auto kernel = line.integers("kernel", 2), strides = line.integers("strides", 2), pads = line.integers("pads", 4);
    const bool is_pool = line.name() != "conv";
    const auto dilations = is_pool ? std::vector<int64_t>{1, 1} : line.integers("dilations", 2);
    for (const auto* values : {&kernel, &strides, &dilations}) {
      for (const int64_t value : *values) {
        if (value < 1 || value > kMostExtent) line.fail("a kernel, stride or dilation is not in 1 to 65,535");
      }
    }
    for (const int64_t value : pads) {
      if (value < 0 || value > kMostExtent) line.fail("a pad is not in 0 to 65,535");
    }
    // As in ONNX Runtime: every window of a pool has a cell of the image.
    if (is_pool && (std::max(pads[0], pads[2]) >= kernel[0] || std::max(pads[1], pads[3]) >= kernel[1])) {
      line.fail("a pad of a pool must be smaller than its kernel");
    }
    const bool ceil = is_pool && line.flag("ceil");
    const auto extent = [&](int64_t size, int axis) {
      const int64_t room = size + pads[axis] + pads[axis + 2] - dilations[axis] * (kernel[axis] - 1) - 1;
      if (room + (ceil ? strides[axis] - 1 : 0) < 0) line.fail("its kernel is larger than its input");
      int64_t count = (ceil ? (room + strides[axis] - 1) / strides[axis] : room / strides[axis]) + 1;
      // A window that would begin after the image and its leading padding is left out, as in PyTorch and ONNX Runtime.
      if (ceil && (count - 1) * strides[axis] >= size + pads[axis]) --count;
      return count;
    };
    Geometry geometry;
    geometry.kernel_height = static_cast<int>(kernel[0]);
    geometry.kernel_width = static_cast<int>(kernel[1]);
    geometry.stride_y = static_cast<int>(strides[0]);
    geometry.stride_x = static_cast<int>(strides[1]);
    geometry.pad_y = static_cast<int>(pads[0]);
    geometry.pad_x = static_cast<int>(pads[1]);
    geometry.pad_bottom = static_cast<int>(pads[2]);
    geometry.pad_right = static_cast<int>(pads[3]);
    geometry.dilation_y = static_cast<int>(dilations[0]);
    geometry.dilation_x = static_cast<int>(dilations[1]);
    geometry.output = shape_from(line, {1, extent(input.height, 0), extent(input.width, 1)});
    return geometry;
  }

  const Constant& constant(const Instruction& line, const std::string& number) const {
    const int64_t index = line.integer_from(number);
    if (index < 1 || index >= static_cast<int64_t>(inputs_.size())) line.fail("input " + number + " does not exist");
    return inputs_[index];
  }

  const Constant& float_constant(const Instruction& line, const std::string& number) const {
    const Constant& found = constant(line, number);
    if (found.kind != Constant::Kind::floats) line.fail("input " + number + " is not FLOAT");
    return found;
  }

  const float* per_channel(const Instruction& line, const std::string& number, int channels) const {
    const Constant& found = float_constant(line, number);
    if (found.size() != channels) {
      line.fail("input " + number + " has " + std::to_string(found.size()) + " values, expected " + std::to_string(channels));
    }
    return found.floats();
  }

  Mask mask_from(const Instruction& line, const std::string& number, const Shape& shape) const {
    const Constant& found = constant(line, number);
    std::vector<int64_t> dims = found.dims;
    while (dims.size() > 3 && dims[0] == 1) dims.erase(dims.begin());
    while (dims.size() < 3) dims.insert(dims.begin(), 1);
    const auto fits = [](int64_t dim, int extent) { return dim == 1 || dim == extent; };
    if (found.kind != Constant::Kind::mask || dims.size() != 3 || !fits(dims[0], shape.channels) || !fits(dims[1], shape.height) ||
        !fits(dims[2], shape.width)) {
      line.fail("input " + number + " is not a mask of its shape");
    }
    return {static_cast<int>(dims[0]), static_cast<int>(dims[1]), static_cast<int>(dims[2]), static_cast<const uint8_t*>(found.data)};
  }

  Support support_from_text(const Instruction& line, const Shape& shape) const {
    const std::string& text = line.text("support");
    if (text == "full") return support_from(shape, [](int, int, int) { return true; });
    if (text.empty()) line.fail("support has no masks");
    std::vector<std::vector<Mask>> terms;
    for (const auto& term : split(text, '|')) {
      if (term.empty()) line.fail("support has a term without masks");
      terms.emplace_back();
      for (const auto& number : split(term, '&')) terms.back().push_back(mask_from(line, number, shape));
    }
    return support_from(shape, [&](int c, int y, int x) {
      return std::any_of(terms.begin(), terms.end(), [&](const auto& masks) {
        return std::all_of(masks.begin(), masks.end(), [&](const Mask& mask) { return mask.at(c, y, x); });
      });
    });
  }

  static Support united(const Support& a, const Support& b) {
    const int width = a.shape().width;
    return support_from(a.shape(), [&](int c, int y, int x) { return a.row(y * width + x, c) >= 0 || b.row(y * width + x, c) >= 0; });
  }

  int tensor_from(const Instruction& line, int64_t number) const {
    if (number < 0 || number >= next()) line.fail("tensor " + std::to_string(number) + " is not defined yet");
    return static_cast<int>(number);
  }

  int next() const { return static_cast<int>(supports_.size()); }

  void use(int tensor) { last_use_[tensor] = static_cast<int>(plan_.steps_.size()); }

  void define(const Instruction& line, Support support, const std::vector<int>& reads, std::unique_ptr<Step> step) {
    if (supports_.empty() && line.name() != "images") line.fail("the images must come first");
    for (const int tensor : reads) use(tensor);
    first_step_.push_back(static_cast<int>(plan_.steps_.size()));
    last_use_.push_back(static_cast<int>(plan_.steps_.size()));
    supports_.push_back(std::make_shared<const Support>(std::move(support)));
    plan_.steps_.push_back(std::move(step));
  }

  // Each tensor gets the lowest gap among those that are needed at the same time.
  void place_tensors() {
    const int tensors = next();
    plan_.offsets_.resize(tensors);
    for (int i = 0; i < tensors; ++i) {
      std::vector<std::pair<int64_t, int64_t>> taken;
      for (int j = 0; j < i; ++j) {
        if (last_use_[j] >= first_step_[i]) taken.emplace_back(plan_.offsets_[j], plan_.offsets_[j] + supports_[j]->rows());
      }
      std::sort(taken.begin(), taken.end());
      int64_t offset = 0;
      for (const auto& [begin, end] : taken) {
        if (offset + supports_[i]->rows() <= begin) break;
        offset = std::max(offset, end);
      }
      plan_.offsets_[i] = offset;
      plan_.rows_ = std::max(plan_.rows_, offset + supports_[i]->rows());
    }
  }

  Plan& plan_;
  const std::vector<Constant>& inputs_;
  const Kernels& kernels_;
  std::vector<SupportPointer> supports_;  // of each tensor
  std::vector<int> first_step_, last_use_;
};

Plan::Plan(const std::string& program, const std::vector<Constant>& inputs, const Kernels& kernels) {
  Builder(*this, inputs, kernels).build(instructions_from_text(program));
}

}  // namespace defensemble_ops
