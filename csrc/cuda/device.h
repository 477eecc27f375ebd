// What kernels are written with: CUDA's headers or, under PCONV_EMULATE, their stand-ins (emulation.h), and
// element types.
#pragma once
#ifdef PCONV_EMULATE
#include "emulation.h"
#else
#include <cuda_runtime.h>
#endif
#include <cstdint>
#include <cstring>

#ifdef PCONV_EMULATE
#define PCONV_SHARED(name) char* name = emulation::block->shared
inline int pconv_launched() {
  return -emulation::findings();
}
#else
#define PCONV_LAUNCH(kernel, grid, size, shared, stream, ...) \
  kernel<<<grid, size, shared, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#define PCONV_SHARED(name) extern __shared__ __align__(128) char name[]
inline int pconv_launched() {
  return static_cast<int>(cudaGetLastError());
}
#endif

namespace pconv {

constexpr unsigned kAll = ~0u;    // lanes
constexpr int kWordBits = 63;     // of an int64, without its sign
constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

__host__ __device__ inline int least(int a, int b) {
  return a < b ? a : b;
}
__host__ __device__ inline int most(int a, int b) {
  return a > b ? a : b;
}

// 16-bit floats by their bits. Conversions round to nearest even; on the host in the bits alone.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

__host__ __device__ inline uint32_t bits_of(float f) {
  uint32_t b;
  memcpy(&b, &f, 4);
  return b;
}
__host__ __device__ inline float float_of(uint32_t b) {
  float f;
  memcpy(&f, &b, 4);
  return f;
}

__host__ __device__ inline float to_float(float v) {
  return v;
}
__host__ __device__ inline float to_float(BFloat16 v) {
  return float_of(uint32_t(v.bits) << 16);
}
__host__ __device__ inline float to_float(Half v) {
#ifdef __CUDA_ARCH__
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
  return f;
#else
  const uint32_t sign = uint32_t(v.bits & 0x8000) << 16, e = (v.bits >> 10) & 31, m = v.bits & 0x3FF;
  if (e == 31) return float_of(sign | 0x7F800000 | (m << 13));
  if (e == 0) return float_of(sign | bits_of(float(m) * 5.9604644775390625e-8f));  // m * 2^-24
  return float_of(sign | ((e + 112) << 23) | (m << 13));
#endif
}

template <class T>
__host__ __device__ T from_float(float v);
template <>
__host__ __device__ inline float from_float<float>(float v) {
  return v;
}
template <>
__host__ __device__ inline BFloat16 from_float<BFloat16>(float v) {
#ifdef __CUDA_ARCH__
  BFloat16 r;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
#else
  const uint32_t b = bits_of(v);
  if ((b & 0x7FFFFFFF) > 0x7F800000) return {uint16_t((b >> 16) | 0x40)};  // NaN stays one
  return {uint16_t((b + 0x7FFF + ((b >> 16) & 1)) >> 16)};
#endif
}
template <>
__host__ __device__ inline Half from_float<Half>(float v) {
#ifdef __CUDA_ARCH__
  Half r;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(r.bits) : "f"(v));
  return r;
#else
  const uint32_t b = bits_of(v), sign = (b >> 16) & 0x8000, magnitude = b & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return {uint16_t(sign | 0x7E00)};
  if (magnitude >= 0x477FF000) return {uint16_t(sign | 0x7C00)};  // rounds to 65536 or more
  if (magnitude < 0x38800000) {                                   // subnormal: a multiple of 2^-24
    const float scaled = float_of(magnitude) + 0.5f;              // 2^-24 is the last bit of 0.5
    return {uint16_t(sign | (bits_of(scaled) - 0x3F000000))};
  }
  const uint32_t rounded = magnitude - 0x38000000 + 0xFFF + ((magnitude >> 13) & 1);
  return {uint16_t(sign | (rounded >> 13))};
#endif
}

// Element types of tensors, as kernels/cuda/library.py numbers them.
enum Element : int { kFloat32, kFloat16, kBFloat16, kUInt8, kInt8, kInt16, kInt32, kInt64, kFloat64 };

// Calls `f(T{})` for a floating element type.
template <class F>
void with_float(int element, F f) {
  if (element == kFloat32) return f(float{});
  if (element == kFloat16) return f(Half{});
  f(BFloat16{});
}

// A tensor argument: its first element and what its elements are.
struct Untyped {
  void* data;
  int element;
};

// Element n of one in a floating type of features.
__host__ __device__ inline float float_at(const Untyped& tensor, int n) {
  if (tensor.element == kFloat32) return static_cast<const float*>(tensor.data)[n];
  if (tensor.element == kFloat16) return to_float(static_cast<const Half*>(tensor.data)[n]);
  return to_float(static_cast<const BFloat16*>(tensor.data)[n]);
}

}  // namespace pconv
