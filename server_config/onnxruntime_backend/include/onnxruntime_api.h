// The part of ONNX Runtime's C API that the backend uses, declared by hand, so that its headers need not be installed.
//
// OrtApi is a table of function pointers to which new versions only append: a slot never moves. The number behind each slot is
// its index in the table; the assertions below and a test check the gaps.
#pragma once

#include <cstddef>
#include <cstdint>

struct OrtAllocator;
struct OrtArenaCfg;
struct OrtEnv;
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

using OrtLoggingFunction = void (*)(void* param, OrtLoggingLevel severity, const char* category, const char* log_id,
                                    const char* code_location, const char* message);

struct OrtApi {
  void* gap_0[2];
  const char* (*GetErrorMessage)(const OrtStatus* status);  // 2
  void* gap_3[1];
  OrtStatus* (*CreateEnvWithCustomLogger)(OrtLoggingFunction function, void* param, OrtLoggingLevel level, const char* log_id,
                                          OrtEnv** env);  // 4
  void* gap_5[2];
  OrtStatus* (*CreateSession)(const OrtEnv* env, const char* path, const OrtSessionOptions* options, OrtSession** session);  // 7
  void* gap_8[1];
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
  void* gap_26[4];
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
  void* gap_79[13];
  void (*ReleaseEnv)(OrtEnv* env);                   // 92
  void (*ReleaseStatus)(OrtStatus* status);          // 93
  void (*ReleaseMemoryInfo)(OrtMemoryInfo* memory);  // 94
  void (*ReleaseSession)(OrtSession* session);       // 95
  void (*ReleaseValue)(OrtValue* value);             // 96
  void* gap_97[1];
  void (*ReleaseTypeInfo)(OrtTypeInfo* info);                              // 98
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);  // 99
  void (*ReleaseSessionOptions)(OrtSessionOptions* options);               // 100
  void* gap_101[29];
  OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions* options, const char* key, const char* value);  // 130
  void* gap_131[13];
  OrtStatus* (*CreateAndRegisterAllocator)(OrtEnv* env, const OrtMemoryInfo* memory, const OrtArenaCfg* arena);  // 144; null: the default
};
static_assert(offsetof(OrtApi, CreateSession) == 7 * sizeof(void*), "a gap is wrong");
static_assert(offsetof(OrtApi, CreateTensorWithDataAsOrtValue) == 49 * sizeof(void*), "a gap is wrong");
static_assert(offsetof(OrtApi, ReleaseEnv) == 92 * sizeof(void*), "a gap is wrong");
static_assert(offsetof(OrtApi, AddSessionConfigEntry) == 130 * sizeof(void*), "a gap is wrong");
static_assert(offsetof(OrtApi, CreateAndRegisterAllocator) == 144 * sizeof(void*), "a gap is wrong");

struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);  // null where the library is older than that version
  const char* (*GetVersionString)();
};
