// Vectors of floats, for the instruction set that the file which includes this is compiled for. All is of internal linkage.
#pragma once

#include <math.h>

#include <cstring>

#include "kernels.h"

#define DEFENSEMBLE_INLINE inline __attribute__((always_inline))

namespace defensemble_ops {

namespace {

template <int N>
using Vector __attribute__((vector_size(N * sizeof(float)))) = float;

#if defined(__AVX512F__)
constexpr int kWidth = 16, kAccumulators = 24;
#elif defined(__AVX2__)
constexpr int kWidth = 8, kAccumulators = 12;
#else
constexpr int kWidth = 4, kAccumulators = 12;
#endif

// By memcpy, because the compiler takes a pointer to a vector for aligned.
template <int N>
DEFENSEMBLE_INLINE Vector<N> load(const float* from) {
  Vector<N> vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

template <int N>
DEFENSEMBLE_INLINE void store(float* to, Vector<N> vector) {
  std::memcpy(to, &vector, sizeof vector);
}

template <int N>
DEFENSEMBLE_INLINE Vector<N> splat(float value) {
  return value - Vector<N>{};  // adding 0 would not be free: it turns -0 into 0
}

// NaN stays NaN, as in ONNX Runtime.
template <int N>
DEFENSEMBLE_INLINE Vector<N> relu(Vector<N> vector) {
  const Vector<N> zero{};
  return zero > vector ? zero : vector;
}

DEFENSEMBLE_INLINE float activated(float value, Activation activation) {
  if (activation == Activation::relu) return 0 > value ? 0 : value;
  if (activation == Activation::sigmoid) return 1 / (1 + expf(-value));
  return value;
}

}  // namespace

}  // namespace defensemble_ops
