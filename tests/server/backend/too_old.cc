// A stand-in for the library of an ONNX Runtime that is too old: it offers no API of the version that is asked for.
#include "include/onnxruntime_api.h"

namespace {
const OrtApi* get_api(uint32_t) { return nullptr; }
const char* get_version() { return "1.14.1"; }
const OrtApiBase base = {get_api, get_version};
}  // namespace

extern "C" __attribute__((visibility("default"))) const OrtApiBase* OrtGetApiBase() { return &base; }
