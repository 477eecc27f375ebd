// The two inner kernels: C += s o (A B) over row pointers, and its transpose for weights. Both keep kRows x
// NV vectors of C in registers; a panel of B is up to kPanelVectors vectors wide.
#pragma once
#include <cstdint>
#include <type_traits>

#include "isa.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

constexpr int kRows = 6;
constexpr int kPanelVectors = PCONV_VECTOR_BYTES == 64 ? 4 : 2;
template <class T>
constexpr int64_t kPanel = kPanelVectors * kLanes<T>;

// A run of the reduction: `len` consecutive entries of every row of A against as many rows of the panel.
struct Segment {
  int64_t a, b, len;
};

// Row r of C [rows, NV vectors] += scale[r] * sum over segments of a[r][...] * b[...][NV vectors].
template <class T, int NV, int MR>
static __attribute__((noinline)) void gemm_tile(const T* const* a, const Segment* segments,
                                                int64_t n_segments, const T* b, T* const* c, const T* scale) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = Vec<T>{};
  for (int64_t s = 0; s < n_segments; ++s) {
    const T* row[MR];
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) row[r] = a[r] + segments[s].a;
    const T* p = b + segments[s].b * (NV * L);
    const int64_t len = segments[s].len;
    for (int64_t k = 0; k < len; ++k, p += NV * L) {
      Vec<T> bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) bv[v] = load(p + v * L);
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const T x = row[r][k];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] += x * bv[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c[r] + v * L, load(c[r] + v * L) + scale[r] * acc[r][v]);
}

// Calls f(n) with n as a constant, 1 <= n <= Most.
template <int Most, class F>
PCONV_INLINE void with_constant(int64_t n, const F& f) {
  if constexpr (Most > 1)
    if (n < Most) return with_constant<Most - 1>(n, f);
  f(std::integral_constant<int, Most>{});
}

template <class T>
static void gemm(int64_t vectors, int64_t rows, const T* const* a, const Segment* segments, int64_t n,
                 const T* b, T* const* c, const T* scale) {
  with_constant<kPanelVectors>(vectors, [&](auto nv) {
    with_constant<kRows>(rows, [&](auto mr) { gemm_tile<T, nv, mr>(a, segments, n, b, c, scale); });
  });
}

// An operand: entries between its rows (of A) and between the steps of the reduction.
template <class T>
struct Operand {
  const T* data;
  int64_t row, step;
};

// Sums for Winograd's transforms, which amplify rounding errors: chains of products, which are summed in a
// run, and runs in C. The error of one long chain would grow with its length. Sums of fewer rows than
// elsewhere stay in registers beside the chain where there are 32; else they cost something, and chains are
// longer.
constexpr int64_t kChain = PCONV_VECTOR_BYTES == 64 ? 8 : 16, kRun = 256;
constexpr int kProductRows = PCONV_VECTOR_BYTES == 64 ? 3 : 6;

// One run: C [MR][NV vectors], rows `ldc` apart, (=|+=) A [MR][n] B [n][NV vectors].
template <class T, int NV, int MR>
static __attribute__((noinline)) void product_tile(Operand<T> a, Operand<T> b, int64_t n, T* c, int64_t ldc,
                                                   bool add) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> sum[MR][NV], acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) sum[r][v] = Vec<T>{};
  for (int64_t k = 0; k < n;) {
    const int64_t end = k + kChain < n ? k + kChain : n;
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] = Vec<T>{};
    for (; k < end; ++k, a.data += a.step, b.data += b.step) {
      Vec<T> bv[NV];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        bv[v] = load(b.data + v * L);
        keep_in_register(bv[v]);
      }
#pragma GCC unroll 8
      for (int r = 0; r < MR; ++r) {
        const T x = a.data[r * a.row];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) acc[r][v] += x * bv[v];
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) sum[r][v] += acc[r][v];
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      T* at = c + r * ldc + v * L;
      store(at, add ? load(at) + sum[r][v] : sum[r][v]);
    }
}

// C [rows][vectors] (=|+=) A [rows][depth] B [depth][vectors].
template <class T>
static void product(int64_t vectors, int64_t rows, Operand<T> a, Operand<T> b, int64_t depth, T* c,
                    int64_t ldc, bool add, int64_t run = kRun) {
  with_constant<kPanelVectors>(vectors, [&](auto nv) {
    for (int64_t k = 0; k < depth; k += run) {
      const int64_t n = depth - k < run ? depth - k : run;
      const Operand<T> depth_b{b.data + k * b.step, 0, b.step};
      for (int64_t r = 0; r < rows; r += kProductRows)
        with_constant<kProductRows>(rows - r < kProductRows ? rows - r : kProductRows, [&](auto mr) {
          product_tile<T, nv, mr>({a.data + r * a.row + k * a.step, a.row, a.step}, depth_b, n, c + r * ldc,
                                  ldc, add || k > 0);
        });
    }
  });
}

// One pixel of the reduction of the weight gradient: where its window starts in A, which row of the panel is
// its gradient.
struct PixelPair {
  int32_t a, b;
};

// C [MR, NV vectors], rows ldc apart, += sum over pixels of a[pixel.a + 0..MR) (outer) b[pixel.b][NV
// vectors].
template <class T, int NV, int MR>
static __attribute__((noinline)) void outer_tile(const T* a, const PixelPair* pixels, int64_t n, const T* b,
                                                 T* c, int64_t ldc) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = Vec<T>{};
  for (int64_t i = 0; i < n; ++i) {
    const T* row = a + pixels[i].a;
    const T* p = b + pixels[i].b * (NV * L);
    Vec<T> bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(p + v * L);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const T x = row[r];
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += x * bv[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) store(c + r * ldc + v * L, load(c + r * ldc + v * L) + acc[r][v]);
}

template <class T>
static void outer(int64_t vectors, int64_t rows, const T* a, const PixelPair* pixels, int64_t n, const T* b,
                  T* c, int64_t ldc) {
  with_constant<kPanelVectors>(vectors, [&](auto nv) {
    with_constant<kRows>(rows, [&](auto mr) { outer_tile<T, nv, mr>(a, pixels, n, b, c, ldc); });
  });
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
