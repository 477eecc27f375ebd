// The products of few_outputs_gradients.cu, over a warp's 16 pixels: x [pixel][channel] and B ("columns")
// [pixel][column] lie in shared memory, as do the weights [channel][column].
#pragma once
#include "few_outputs_gradients.h"

namespace pconv::few_gradients {

template <class T>
struct alignas(2 * sizeof(T)) Pair {
  T v[2];
};

template <class L, class P>
class Products {
  static constexpr bool kExact = std::is_same<P, float>::value;
  static constexpr int kItem = L::kItem, kGroups = L::kGroups;

 public:
  using Sums = float[kGroups][kColumns / 8][4];

  // acc += x^T B: rows are channels, the pixels are summed.
  __device__ __forceinline__ static void weights(Sums& acc, const char* x, const char* columns,
                                                 int channels) {
    if constexpr (kExact) {
      weights_exact(acc, x, columns);
    } else if constexpr (kItem == 4) {
      weights_tf32(acc, x, columns);
    } else {
      const int lane = thread() % 32;
      const char* b = columns + lane % 16 * L::kPitchColumns + lane / 16 * 16;
      const char* a = x + (lane / 16 * 8 + lane % 8) * L::kPitchX + lane / 8 % 2 * 16;
      uint32_t fb[2][4];
#pragma unroll
      for (int j = 0; j < 2; ++j) load_matrices_transposed(fb[j], b + j * 32);
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        if (i * 16 >= channels) break;
        uint32_t fa[4];
        load_matrices_transposed(fa, a + i * 32);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t pair[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
          multiply<P>(acc[i][j], fa, pair);
        }
      }
    }
  }
  __device__ __forceinline__ static void weights_tf32(Sums& acc, const char* x, const char* columns) {
    constexpr int PX = L::kPitchX / 4, PC = L::kPitchColumns / 4;
    const int g = thread() % 32 / 4, q = thread() % 4;
    const uint32_t* a = reinterpret_cast<const uint32_t*>(x) + q * PX + g;
    const uint32_t* b = reinterpret_cast<const uint32_t*>(columns) + q * PC + g;
#pragma unroll
    for (int k = 0; k < 16; k += 8) {
#pragma unroll
      for (int i = 0; i < kGroups; ++i) {
        uint32_t fa[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) fa[w] = to_tf32(a[(k + w / 2 * 4) * PX + i * 16 + w % 2 * 8]);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t pair[2] = {b[k * PC + j * 8], b[(k + 4) * PC + j * 8]};
          multiply<Tf32>(acc[i][j], fa, pair);
        }
      }
    }
  }
  // The same in full float32; a thread has the sums that `multiply` would give it.
  __device__ __forceinline__ static void weights_exact(Sums& acc, const char* x, const char* columns) {
    const int g = thread() % 32 / 4, q = thread() % 4;
    const float* a = reinterpret_cast<const float*>(x) + g;
    const float* b = reinterpret_cast<const float*>(columns) + 2 * q;
#pragma unroll 4
    for (int k = 0; k < 16; ++k, a += L::kPitchX / 4, b += L::kPitchColumns / 4) {
      Pair<float> fb[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) fb[j] = *reinterpret_cast<const Pair<float>*>(b + j * 8);
#pragma unroll
      for (int i = 0; i < kGroups * 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j)
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            float& c = acc[i / 2][j][i % 2 * 2 + e];
            c = fmaf(a[i * 8], fb[j].v[e], c);
          }
    }
  }

  // c += B W^T of 16 channels, of which `weights` has one after the other.
  __device__ __forceinline__ static void features(float (&c)[2][4], const char* columns,
                                                  const char* weights) {
    const int lane = thread() % 32, g = lane / 4, q = lane % 4;
    if constexpr (kExact) {
      const float* a = reinterpret_cast<const float*>(columns + g * L::kPitchColumns);
      const float* b = reinterpret_cast<const float*>(weights + 2 * q * L::kPitchWeights);
#pragma unroll 4
      for (int k = 0; k < kColumns; ++k)
#pragma unroll
        for (int j = 0; j < 2; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e)
            c[j][e] = fmaf(a[e / 2 * 8 * (L::kPitchColumns / 4) + k],
                           b[(j * 8 + e % 2) * (L::kPitchWeights / 4) + k], c[j][e]);
    } else if constexpr (kItem == 4) {
      const uint32_t* a = reinterpret_cast<const uint32_t*>(columns + g * L::kPitchColumns) + q;
      const uint32_t* b = reinterpret_cast<const uint32_t*>(weights + g * L::kPitchWeights) + q;
#pragma unroll
      for (int k = 0; k < kColumns; k += 8) {
        uint32_t fa[4];
#pragma unroll
        for (int w = 0; w < 4; ++w) fa[w] = a[w % 2 * 8 * (L::kPitchColumns / 4) + k + w / 2 * 4];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t* from = b + j * 8 * (L::kPitchWeights / 4) + k;
          const uint32_t fb[2] = {from[0], from[4]};
          multiply<Tf32>(c[j], fa, fb);
        }
      }
    } else {
      const char* a = columns + lane % 16 * L::kPitchColumns + lane / 16 * 16;
      const char* b = weights + (lane / 16 * 8 + lane % 8) * L::kPitchWeights + lane / 8 % 2 * 16;
#pragma unroll
      for (int k = 0; k < 2; ++k) {
        uint32_t fa[4], fb[4];
        load_matrices(fa, a + k * 32);
        load_matrices(fb, b + k * 32);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t pair[2] = {fb[j * 2], fb[j * 2 + 1]};
          multiply<P>(c[j], fa, pair);
        }
      }
    }
  }
};

}  // namespace pconv::few_gradients
