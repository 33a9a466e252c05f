// The operator defensemble::MaskedNetwork_v1 of ONNX Runtime, and the counts by which a caller knows that it runs.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "include/onnxruntime_api.h"
#include "plan.h"
#include "processor.h"

namespace defensemble_ops {

namespace {

constexpr uint32_t kApiVersion = 20;  // of the oldest ONNX Runtime that is supported, 1.20
constexpr int64_t kChunk = 16;        // images
constexpr double kWorkOfATask = 1e5;  // multiplications or copies; below it, waking a thread costs more than it saves
constexpr int64_t kMostTasks = 16;

thread_local uint64_t kernels_created = 0;
thread_local uint64_t runs = 0;

// Set when the library is first registered; the same for every later registration in the process.
const OrtApi* api = nullptr;
const Kernels* kernels = nullptr;
OrtCustomOpDomain* domain = nullptr;
std::mutex registration;

struct OrtError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  throw OrtError(message);
}

// Calls function() and returns what it throws as a status.
template <class Function>
OrtStatus* to_status(Function&& function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const ProgramError& error) {
    return api->CreateStatus(ORT_INVALID_ARGUMENT, (std::string("MaskedNetwork_v1: ") + error.what()).c_str());
  } catch (const std::exception& error) {
    return api->CreateStatus(ORT_FAIL, (std::string("MaskedNetwork_v1: ") + error.what()).c_str());
  } catch (...) {
    return api->CreateStatus(ORT_FAIL, "MaskedNetwork_v1: an unknown exception");
  }
}

bool is_supported(const Kernels& candidate) {
#if defined(__x86_64__)
  if (&candidate == &kKernelsAvx512) return has_avx512();
  if (&candidate == &kKernelsAvx2) return has_avx2();
#endif
  return &candidate == &kKernelsBaseline;
}

// The best kernels for this processor, or those that DEFENSEMBLE_OPS_ISA names.
const Kernels& chosen_kernels() {
#if defined(__x86_64__)
  const Kernels* const all[] = {&kKernelsAvx512, &kKernelsAvx2, &kKernelsBaseline};
#else
  const Kernels* const all[] = {&kKernelsBaseline};
#endif
  const char* forced = std::getenv("DEFENSEMBLE_OPS_ISA");
  if (forced == nullptr || *forced == '\0') {
    for (const Kernels* candidate : all) {
      if (is_supported(*candidate)) return *candidate;
    }
  }
  for (const Kernels* candidate : all) {
    if (std::strcmp(forced, candidate->name) != 0) continue;
    if (!is_supported(*candidate)) {
      throw ProgramError(std::string("DEFENSEMBLE_OPS_ISA is ") + forced + ", which this processor lacks; unset it");
    }
    return *candidate;
  }
  throw ProgramError(std::string("DEFENSEMBLE_OPS_ISA must be avx512, avx2 or baseline, got '") + forced + "'");
}

std::vector<int64_t> dims_of(const OrtValue* value, ONNXTensorElementDataType* type = nullptr) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api->GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owned(info, api->ReleaseTensorTypeAndShapeInfo);
  size_t rank = 0;
  check(api->GetDimensionsCount(info, &rank));
  std::vector<int64_t> dims(rank);
  check(api->GetDimensions(info, dims.data(), rank));
  if (type != nullptr) check(api->GetTensorElementType(info, type));
  return dims;
}

void* data_of(const OrtValue* value) {
  void* data = nullptr;
  check(api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  return data;
}

std::string program_of(const OrtKernelInfo* info) {
  size_t size = 0;
  check(api->KernelInfoGetAttribute_string(info, "program", nullptr, &size));
  std::string text(size, '\0');
  check(api->KernelInfoGetAttribute_string(info, "program", text.data(), &size));
  text.resize(size > 0 ? size - 1 : 0);  // without the null at the end
  return text;
}

std::vector<Constant> constants_of(const OrtKernelInfo* info) {
  size_t count = 0;
  check(api->KernelInfo_GetInputCount(info, &count));
  std::vector<Constant> constants(count);
  for (size_t i = 1; i < count; ++i) {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    check(api->KernelInfoGetConstantInput_tensor(info, i, &is_constant, &value));
    if (is_constant == 0 || value == nullptr) throw ProgramError("input " + std::to_string(i) + " is not an initialiser of the graph");
    ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    constants[i].dims = dims_of(value, &type);
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL) constants[i].kind = Constant::Kind::mask;
    if (type == ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) constants[i].kind = Constant::Kind::floats;
    constants[i].data = data_of(value);
  }
  return constants;
}

// Memory of ONNX Runtime's own pool, which the models of a server share.
class Workspace {
 public:
  Workspace(OrtAllocator& allocator, size_t floats) : allocator_(allocator), memory_(allocate(allocator, floats)) {}
  ~Workspace() { allocator_.Free(&allocator_, memory_); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  float* floats() const {
    const auto address = reinterpret_cast<uintptr_t>(memory_);
    return reinterpret_cast<float*>((address + kAlignment - 1) / kAlignment * kAlignment);
  }

 private:
  static constexpr size_t kAlignment = 64;

  static void* allocate(OrtAllocator& allocator, size_t floats) {
    const size_t bytes = floats * sizeof(float) + kAlignment;
    void* memory = nullptr;
    try {
      memory = allocator.Alloc(&allocator, bytes);
    } catch (...) {  // ONNX Runtime may use another C++ library, whose exceptions have no type and no text here
    }
    if (memory == nullptr) throw OrtError("no memory for the " + std::to_string(bytes) + " bytes of its workspace");
    return memory;
  }

  OrtAllocator& allocator_;
  void* memory_;
};

class Kernel {
 public:
  explicit Kernel(const OrtKernelInfo* info) : plan_(program_of(info), constants_of(info), *kernels) {
    size_t outputs = 0;
    check(api->KernelInfo_GetOutputCount(info, &outputs));
    if (outputs != plan_.output_shapes().size()) {
      throw ProgramError("the node has " + std::to_string(outputs) + " outputs, but its program has " +
                         std::to_string(plan_.output_shapes().size()));
    }
    check(api->CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory_));
    ++kernels_created;
  }
  ~Kernel() { api->ReleaseMemoryInfo(memory_); }
  Kernel(const Kernel&) = delete;
  Kernel& operator=(const Kernel&) = delete;

  void compute(OrtKernelContext* context) const {
    Call call(*this, context);
    call.compute();
    ++runs;
  }

 private:
  // Consecutive images that are computed together.
  struct Part {
    int64_t first;
    int count, lanes;
  };

  // One call of the node.
  class Call {
   public:
    Call(const Kernel& kernel, OrtKernelContext* context) : plan_(kernel.plan_), context_(context) {
      const OrtValue* images = nullptr;
      check(api->KernelContext_GetInput(context, 0, &images));
      if (images == nullptr) throw ProgramError("the node has no images");
      const Shape& shape = plan_.image_shape();
      ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
      const auto dims = dims_of(images, &type);
      if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) throw ProgramError("images are not FLOAT");
      if (dims.size() != 4 || dims[1] != shape.channels || dims[2] != shape.height || dims[3] != shape.width) {
        std::string got;
        for (const int64_t dim : dims) got += (got.empty() ? "" : ", ") + std::to_string(dim);
        throw ProgramError("images have shape (" + got + "), expected (N, " + std::to_string(shape.channels) + ", " +
                           std::to_string(shape.height) + ", " + std::to_string(shape.width) + ")");
      }
      count_ = dims[0];
      images_ = static_cast<const float*>(data_of(images));
      for (size_t i = 0; i < plan_.output_shapes().size(); ++i) {
        const Shape& output = plan_.output_shapes()[i];
        const int64_t output_dims[] = {count_, output.channels, output.height, output.width};
        OrtValue* value = nullptr;
        check(api->KernelContext_GetOutput(context, i, output_dims, 4, &value));
        outputs_.push_back(static_cast<float*>(data_of(value)));
      }
      OrtAllocator* allocator = nullptr;
      check(api->KernelContext_GetAllocator(context, kernel.memory_, &allocator));
      allocator_ = {allocator, api->ReleaseAllocator};
    }

    void compute() {
      std::vector<Part> parts = parts_of_batch();
      if (parts.size() == 1) return compute_part(parts[0], true);
      if (parts.empty()) return;
      // Parts are independent: a thread for each is woken once.
      for_each(parts.size(), [&](size_t i) { compute_part(parts[i], false); });
    }

   private:
    std::vector<Part> parts_of_batch() const {
      std::vector<Part> parts;
      for (int64_t first = 0; first < count_;) {
        const int64_t images = std::min(kChunk, count_ - first);
        const int lanes = plan_.lanes(images);
        const int64_t together = std::min<int64_t>(images, lanes);
        for (int64_t done = 0; done < images; done += together) {
          parts.push_back({first + done, static_cast<int>(std::min(together, images - done)), lanes});
        }
        first += images;
      }
      return parts;
    }

    void compute_part(const Part& part, bool in_threads) {
      const Workspace workspace(*allocator_, static_cast<size_t>(plan_.rows()) * part.lanes);
      std::vector<float*> outputs;
      for (size_t i = 0; i < outputs_.size(); ++i) outputs.push_back(outputs_[i] + part.first * plan_.output_shapes()[i].size());
      const Step::Chunk chunk{
          images_ + part.first * plan_.image_shape().size(), outputs.data(), workspace.floats(), plan_.offsets(), part.count, part.lanes};
      for (const auto& step : plan_.steps()) {
        if (part.lanes == 1) step->prefetch();
        const int of_step = step->parts_for(part.lanes);
        const auto tasks = std::min<int64_t>({kMostTasks, of_step, static_cast<int64_t>(step->work * part.lanes / kWorkOfATask)});
        if (!in_threads || tasks < 2) {
          step->run(chunk, 0, of_step);
        } else {
          for_each(tasks, [&](size_t i) {
            const auto bound = [&](int64_t task) { return static_cast<int>(of_step * task / tasks); };
            step->run(chunk, bound(static_cast<int64_t>(i)), bound(static_cast<int64_t>(i) + 1));
          });
        }
      }
    }

    // Calls function(0) to function(count - 1) in the session's own threads. An exception of one of them is thrown at the end.
    template <class Function>
    void for_each(size_t count, Function function) {
      struct Tasks {
        Function& function;
        std::vector<std::exception_ptr> errors;
      } tasks{function, std::vector<std::exception_ptr>(count)};
      const auto call = [](void* data, size_t index) {
        auto& all = *static_cast<Tasks*>(data);
        try {
          all.function(index);
        } catch (...) {
          all.errors[index] = std::current_exception();
        }
      };
      check(api->KernelContext_ParallelFor(context_, call, count, 0, &tasks));
      for (const auto& error : tasks.errors) {
        if (error) std::rethrow_exception(error);
      }
    }

    const Plan& plan_;
    OrtKernelContext* context_;
    int64_t count_ = 0;
    const float* images_ = nullptr;
    std::vector<float*> outputs_;
    std::unique_ptr<OrtAllocator, void (*)(OrtAllocator*)> allocator_{nullptr, nullptr};
  };

  Plan plan_;
  OrtMemoryInfo* memory_ = nullptr;
};

OrtCustomOp make_operator() {
  OrtCustomOp op{};
  op.version = kApiVersion;
  op.GetName = [](const OrtCustomOp*) { return "MaskedNetwork_v1"; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };  // the CPU
  op.GetInputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
  op.GetInputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) -> size_t { return 1; };
  op.GetInputCharacteristic = op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_VARIADIC; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };  // FLOAT and BOOL
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return 1; };
  op.CreateKernelV2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
    return to_status([&] { *kernel = new Kernel(info); });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    return to_status([&] { static_cast<const Kernel*>(kernel)->compute(context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

// An ONNX file: y = Identity(x), both FLOAT [1], IR 8, opset 13.
constexpr unsigned char kIdentity[] = {0x08, 0x08, 0x3a, 0x37, 0x0a, 0x10, 0x0a, 0x01, 0x78, 0x12, 0x01, 0x79, 0x22, 0x08, 0x49, 0x64, 0x65,
                                       0x6e, 0x74, 0x69, 0x74, 0x79, 0x12, 0x01, 0x67, 0x5a, 0x0f, 0x0a, 0x01, 0x78, 0x12, 0x0a, 0x0a, 0x08,
                                       0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x62, 0x0f, 0x0a, 0x01, 0x79, 0x12, 0x0a, 0x0a, 0x08,
                                       0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 0x42, 0x04, 0x0a, 0x00, 0x10, 0x0d};

// Creates a session that could use the domain. The first one adds the domain to the list of all domains of ONNX Runtime (1.32), which does
// that without a lock: of two that are created at the same time, as a server does, one would fail.
void announce(OrtCustomOpDomain* made) {
  OrtEnv* env = nullptr;  // that of the process, if there is one already
  check(api->CreateEnv(ORT_LOGGING_LEVEL_WARNING, "defensemble", &env));
  const std::unique_ptr<OrtEnv, void (*)(OrtEnv*)> owned_env(env, api->ReleaseEnv);
  OrtSessionOptions* options = nullptr;
  check(api->CreateSessionOptions(&options));
  const std::unique_ptr<OrtSessionOptions, void (*)(OrtSessionOptions*)> owned_options(options, api->ReleaseSessionOptions);
  check(api->SetIntraOpNumThreads(options, 1));
  check(api->AddCustomOpDomain(options, made));
  OrtSession* session = nullptr;
  check(api->CreateSessionFromArray(env, kIdentity, sizeof kIdentity, options, &session));
  api->ReleaseSession(session);
}

}  // namespace

}  // namespace defensemble_ops

#define DEFENSEMBLE_EXPORT extern "C" __attribute__((visibility("default")))

// Called by SessionOptions.register_custom_ops_library and by our backend.
DEFENSEMBLE_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace defensemble_ops;
  const OrtApi* table = base->GetApi(kApiVersion);
  if (table == nullptr) {  // an older ONNX Runtime; creating a status is part of every version
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "MaskedNetwork_v1: ONNX Runtime is too old for this library");
  }
  const std::lock_guard<std::mutex> lock(registration);
  if (api != nullptr && api != table) {
    return table->CreateStatus(ORT_FAIL, "MaskedNetwork_v1: another ONNX Runtime of this process uses this library; load a copy of it");
  }
  if (api == nullptr) api = table;  // sessions of other threads read it
  return to_status([&] {
    const Kernels& chosen = chosen_kernels();
    if (domain == nullptr) {
      static const OrtCustomOp op = make_operator();
      OrtCustomOpDomain* made = nullptr;
      check(api->CreateCustomOpDomain("defensemble", &made));
      check(api->CustomOpDomain_Add(made, &op));
      announce(made);
      kernels = &chosen;
      domain = made;  // never released: sessions of this process keep using it
    }
    check(api->AddCustomOpDomain(options, domain));
  });
}

// Counts of the calling thread, since it began.
DEFENSEMBLE_EXPORT uint64_t defensemble_ops_kernels_created() { return defensemble_ops::kernels_created; }
DEFENSEMBLE_EXPORT uint64_t defensemble_ops_runs() { return defensemble_ops::runs; }

// Which instructions the library uses on this processor; null if DEFENSEMBLE_OPS_ISA names none that can be used.
DEFENSEMBLE_EXPORT const char* defensemble_ops_instruction_set() {
  try {
    return defensemble_ops::chosen_kernels().name;
  } catch (const defensemble_ops::ProgramError&) {
    return nullptr;
  }
}
