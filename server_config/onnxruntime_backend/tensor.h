// Tensors as both sides see them: the element type's names in ONNX Runtime, Triton and config.pbtxt, and the shape.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "include/onnxruntime_api.h"
#include "include/triton_api.h"

namespace onnx_backend {

struct ElementType {
  ONNXTensorElementDataType onnx;
  TRITONSERVER_DataType triton;
  const char* config_name;
  size_t size;  // bytes
};

// Null for types that the backend does not serve (strings, complex numbers, types without a name in Triton).
const ElementType* element_type_from_onnx(ONNXTensorElementDataType type);

using Shape = std::vector<int64_t>;  // -1: any size

std::string text_from_shape(const Shape& shape);

// Bytes of a tensor of this shape. Throws Failure if a dimension is negative or the product does not fit into 64 bits.
uint64_t byte_count(const Shape& shape, const ElementType& type);

// An input or output as the graph states it.
struct TensorInfo {
  std::string name;
  const ElementType* type;
  Shape dims;
};

}  // namespace onnx_backend
