// The part of ONNX Runtime's C API that the operator library and the backend use, declared by hand, so that its headers need not be
// installed.
//
// OrtApi is a table of function pointers to which new versions only append: a slot never moves. The number behind each slot is
// its index in the table; the assertions below and a test check the gaps.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtArenaCfg;
struct OrtCustomOpDomain;
struct OrtEnv;
struct OrtKernelContext;
struct OrtKernelInfo;
struct OrtMemoryInfo;
struct OrtRunOptions;
struct OrtSession;
struct OrtSessionOptions;
struct OrtStatus;
struct OrtTensorTypeAndShapeInfo;
struct OrtTypeInfo;
struct OrtValue;

enum OrtLoggingLevel : int {
  ORT_LOGGING_LEVEL_VERBOSE,
  ORT_LOGGING_LEVEL_INFO,
  ORT_LOGGING_LEVEL_WARNING,
  ORT_LOGGING_LEVEL_ERROR,
  ORT_LOGGING_LEVEL_FATAL,
};
enum OrtAllocatorType : int { OrtArenaAllocator = 1 };
enum OrtMemType : int { OrtMemTypeDefault = 0 };
enum ExecutionMode : int { ORT_SEQUENTIAL, ORT_PARALLEL };
enum GraphOptimizationLevel : int { ORT_DISABLE_ALL = 0, ORT_ENABLE_BASIC = 1, ORT_ENABLE_EXTENDED = 2, ORT_ENABLE_ALL = 99 };
enum ONNXTensorElementDataType : int {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_STRING,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BOOL,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_DOUBLE,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT32,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT64,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX64,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_COMPLEX128,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16,
};

enum OrtErrorCode : int { ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2 };
enum OrtCustomOpInputOutputCharacteristic : int { INPUT_OUTPUT_REQUIRED, INPUT_OUTPUT_OPTIONAL, INPUT_OUTPUT_VARIADIC };

struct OrtApi;

struct OrtAllocator {
  uint32_t version;
  void* (*Alloc)(OrtAllocator* allocator, size_t size);
  void (*Free)(OrtAllocator* allocator, void* memory);
  const OrtMemoryInfo* (*Info)(const OrtAllocator* allocator);
};

// A custom operator, as of API version 18. Functions that are null are not called.
struct OrtCustomOp {
  uint32_t version;  // the API version that the operator was compiled with
  void* (*CreateKernel)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info);
  const char* (*GetName)(const OrtCustomOp* op);
  const char* (*GetExecutionProviderType)(const OrtCustomOp* op);
  ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp* op);
  ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp* op);
  void (*KernelCompute)(void* kernel, OrtKernelContext* context);
  void (*KernelDestroy)(void* kernel);
  OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp* op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp* op);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp* op, void* context);
  int (*GetStartVersion)(const OrtCustomOp* op);
  int (*GetEndVersion)(const OrtCustomOp* op);
  size_t (*GetMayInplace)(int** inputs, int** outputs);
  void (*ReleaseMayInplace)(int* inputs, int* outputs);
  size_t (*GetAliasMap)(int** inputs, int** outputs);
  void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

using OrtLoggingFunction = void (*)(void* param, OrtLoggingLevel severity, const char* category, const char* log_id,
                                    const char* code_location, const char* message);

struct OrtApi {
  OrtStatus* (*CreateStatus)(OrtErrorCode code, const char* message);  // 0
  void* gap_1[1];
  const char* (*GetErrorMessage)(const OrtStatus* status);                           // 2
  OrtStatus* (*CreateEnv)(OrtLoggingLevel level, const char* log_id, OrtEnv** env);  // 3
  OrtStatus* (*CreateEnvWithCustomLogger)(OrtLoggingFunction function, void* param, OrtLoggingLevel level, const char* log_id,
                                          OrtEnv** env);  // 4
  void* gap_5[2];
  OrtStatus* (*CreateSession)(const OrtEnv* env, const char* path, const OrtSessionOptions* options, OrtSession** session);  // 7
  OrtStatus* (*CreateSessionFromArray)(const OrtEnv* env, const void* model, size_t size, const OrtSessionOptions* options,
                                       OrtSession** session);  // 8
  OrtStatus* (*Run)(OrtSession* session, const OrtRunOptions* options, const char* const* input_names, const OrtValue* const* inputs,
                    size_t input_count, const char* const* output_names, size_t output_count, OrtValue** outputs);  // 9
  OrtStatus* (*CreateSessionOptions)(OrtSessionOptions** options);                                                  // 10
  void* gap_11[2];
  OrtStatus* (*SetSessionExecutionMode)(OrtSessionOptions* options, ExecutionMode mode);  // 13
  void* gap_14[6];
  OrtStatus* (*SetSessionLogId)(OrtSessionOptions* options, const char* log_id);  // 20
  void* gap_21[2];
  OrtStatus* (*SetSessionGraphOptimizationLevel)(OrtSessionOptions* options, GraphOptimizationLevel level);  // 23
  OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions* options, int count);                                 // 24
  OrtStatus* (*SetInterOpNumThreads)(OrtSessionOptions* options, int count);                                 // 25
  OrtStatus* (*CreateCustomOpDomain)(const char* domain, OrtCustomOpDomain** made);                          // 26
  OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);                        // 27
  OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);                    // 28
  void* gap_29[1];
  OrtStatus* (*SessionGetInputCount)(const OrtSession* session, size_t* count);   // 30
  OrtStatus* (*SessionGetOutputCount)(const OrtSession* session, size_t* count);  // 31
  void* gap_32[1];
  OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession* session, size_t index, OrtTypeInfo** info);   // 33
  OrtStatus* (*SessionGetOutputTypeInfo)(const OrtSession* session, size_t index, OrtTypeInfo** info);  // 34
  void* gap_35[1];
  OrtStatus* (*SessionGetInputName)(const OrtSession* session, size_t index, OrtAllocator* allocator, char** name);   // 36
  OrtStatus* (*SessionGetOutputName)(const OrtSession* session, size_t index, OrtAllocator* allocator, char** name);  // 37
  void* gap_38[11];
  OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo* memory, void* data, size_t byte_count, const int64_t* dims, size_t rank,
                                               ONNXTensorElementDataType type, OrtValue** value);  // 49
  void* gap_50[1];
  OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** data);  // 51
  void* gap_52[3];
  OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo* info, const OrtTensorTypeAndShapeInfo** tensor);  // 55
  void* gap_56[4];
  OrtStatus* (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* type);  // 60
  OrtStatus* (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* rank);                       // 61
  OrtStatus* (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* dims, size_t rank);              // 62
  void* gap_63[2];
  OrtStatus* (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** info);  // 65
  void* gap_66[3];
  OrtStatus* (*CreateCpuMemoryInfo)(OrtAllocatorType allocator, OrtMemType type, OrtMemoryInfo** memory);  // 69
  void* gap_70[6];
  OrtStatus* (*AllocatorFree)(OrtAllocator* allocator, void* memory);  // 76
  void* gap_77[1];
  OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator** allocator);  // 78
  void* gap_79[8];
  OrtStatus* (*KernelInfoGetAttribute_string)(const OrtKernelInfo* info, const char* name, char* text, size_t* size);  // 87
  OrtStatus* (*KernelContext_GetInputCount)(const OrtKernelContext* context, size_t* count);                           // 88
  OrtStatus* (*KernelContext_GetOutputCount)(const OrtKernelContext* context, size_t* count);                          // 89
  OrtStatus* (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** value);         // 90
  OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank,
                                        OrtValue** value);  // 91
  void (*ReleaseEnv)(OrtEnv* env);                          // 92
  void (*ReleaseStatus)(OrtStatus* status);                 // 93
  void (*ReleaseMemoryInfo)(OrtMemoryInfo* memory);         // 94
  void (*ReleaseSession)(OrtSession* session);              // 95
  void (*ReleaseValue)(OrtValue* value);                    // 96
  void* gap_97[1];
  void (*ReleaseTypeInfo)(OrtTypeInfo* info);                              // 98
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);  // 99
  void (*ReleaseSessionOptions)(OrtSessionOptions* options);               // 100
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);                // 101
  void* gap_102[28];
  OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions* options, const char* key, const char* value);  // 130
  void* gap_131[1];
  void (*ReleaseAllocator)(OrtAllocator* allocator);  // 132
  void* gap_133[11];
  OrtStatus* (*CreateAndRegisterAllocator)(OrtEnv* env, const OrtMemoryInfo* memory, const OrtArenaCfg* arena);  // 144; null: the default
  void* gap_145[85];
  OrtStatus* (*KernelInfo_GetInputCount)(const OrtKernelInfo* info, size_t* count);   // 230
  OrtStatus* (*KernelInfo_GetOutputCount)(const OrtKernelInfo* info, size_t* count);  // 231
  void* gap_232[17];
  OrtStatus* (*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index, int* is_constant,
                                                  const OrtValue** value);  // 249
  void* gap_250[3];
  OrtStatus* (*KernelContext_GetAllocator)(const OrtKernelContext* context, const OrtMemoryInfo* memory, OrtAllocator** allocator);  // 253
  void* gap_254[20];
  OrtStatus* (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*function)(void* data, size_t index), size_t total,
                                          size_t batches, void* data);  // 274
};
static_assert(offsetof(OrtApi, CreateSession) == 7 * sizeof(void*), "a gap is wrong");
static_assert(offsetof(OrtApi, CreateTensorWithDataAsOrtValue) == 49 * sizeof(void*), "a gap is wrong");
static_assert(offsetof(OrtApi, ReleaseEnv) == 92 * sizeof(void*), "a gap is wrong");
static_assert(offsetof(OrtApi, AddSessionConfigEntry) == 130 * sizeof(void*), "a gap is wrong");
static_assert(offsetof(OrtApi, CreateAndRegisterAllocator) == 144 * sizeof(void*), "a gap is wrong");
static_assert(offsetof(OrtApi, KernelContext_ParallelFor) == 274 * sizeof(void*), "a gap is wrong");

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null where the library is older than that version
  const char* (*GetVersionString)();
};
