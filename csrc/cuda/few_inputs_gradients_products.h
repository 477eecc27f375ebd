// The products of few_inputs_gradients.cu, by precision.
#pragma once
#include "few_inputs_feed.h"

namespace pconv {
namespace {

constexpr int kWide = 64, kHigh = 32;  // output channels and elements of a row of taps of a warp's sums

// How elements of the gradient are stored.
template <class P>
struct Stored {
  using Type = P;
  __device__ static P of(float v) { return from_float<P>(v); }
};
template <>
struct Stored<Tf32> {
  using Type = float;
  __device__ static float of(float v) { return float_of(to_tf32(bits_of(v))); }
};

// A copy of the gradient in shared memory: rows of kWide elements whose pieces of 16 bytes lie where matrices
// are read without bank conflicts. float32 is read by words, of four rows at a time.
template <class P>
struct Rows {
  static constexpr bool kWords = sizeof(P) == 4;
  static constexpr int kBytes = kWords ? kWide * 4 + 32 : kWide * 2;
  __device__ static int at(int row, int piece) {
    return kWords ? row * kBytes + piece * 16 : swizzled(row, piece, kBytes);
  }
};

using Sums = float[kHigh / 16][kWide / 8][4];

struct alignas(8) Pair {
  float v[2];
};

// sums += x^T g over 16 pixels, whose rows of taps are `step` bytes apart; rows of g are swizzled.
template <class P>
__device__ __forceinline__ void add_products(Sums& sums, const char* x, int step, const char* g, P) {
  const int lane = threadIdx.x % 32;
  uint32_t a[kHigh / 16][4];
  x += (lane / 16 * 8 + lane % 8) * step + lane / 8 % 2 * 16;
#pragma unroll
  for (int i = 0; i < kHigh / 16; ++i) load_matrices_transposed(a[i], x + i * 32);
#pragma unroll
  for (int j = 0; j < kWide / 16; ++j) {
    uint32_t b[4];
    load_matrices_transposed(b, g + Rows<P>::at(lane % 16, j * 2 + lane / 16));
#pragma unroll
    for (int i = 0; i < kHigh / 16; ++i) {
      multiply<P>(sums[i][j * 2], a[i], {b[0], b[1]});
      multiply<P>(sums[i][j * 2 + 1], a[i], {b[2], b[3]});
    }
  }
}
__device__ __forceinline__ uint32_t word_at(const char* g, int row, int eight) {
  return *reinterpret_cast<const uint32_t*>(g + row * Rows<Tf32>::kBytes + eight * 32);
}
__device__ __forceinline__ void add_products(Sums& sums, const char* x, int step, const char* g, Tf32) {
  const int lane = threadIdx.x % 32;
  x += lane % 4 * step + lane / 4 * 4, g += lane % 4 * Rows<Tf32>::kBytes + lane / 4 * 4;
#pragma unroll
  for (int k = 0; k < kColumns; k += 8) {
    uint32_t a[kHigh / 16][4];  // both operands have been rounded already
#pragma unroll
    for (int i = 0; i < kHigh / 4; ++i)
      a[i / 4][i % 4] =
          *reinterpret_cast<const uint32_t*>(x + (k + i / 2 % 2 * 4) * step + i / 4 * 64 + i % 2 * 32);
#pragma unroll
    for (int j = 0; j < kWide / 8; ++j) {
      const uint32_t b[2] = {word_at(g, k, j), word_at(g, k + 4, j)};
#pragma unroll
      for (int i = 0; i < kHigh / 16; ++i) multiply<Tf32>(sums[i][j], a[i], b);
    }
  }
}
// In full float32, without tensor cores; a thread has the sums that `multiply` would give it.
__device__ __forceinline__ void add_products(Sums& sums, const char* x, int step, const char* g, float) {
  const int lane = threadIdx.x % 32;
  x += lane / 4 * 4, g += lane % 4 * 8;
#pragma unroll 2
  for (int k = 0; k < kColumns; ++k, x += step, g += Rows<float>::kBytes) {
    float a[kHigh / 8];
#pragma unroll
    for (int i = 0; i < kHigh / 8; ++i) a[i] = *reinterpret_cast<const float*>(x + i * 32);
#pragma unroll
    for (int j = 0; j < kWide / 8; ++j) {
      const Pair b = *reinterpret_cast<const Pair*>(g + j * 32);
#pragma unroll
      for (int i = 0; i < kHigh / 4; ++i)
        sums[i / 4][j][i % 4] = fmaf(a[i / 2], b.v[i % 2], sums[i / 4][j][i % 4]);
    }
  }
}

}  // namespace
}  // namespace pconv
