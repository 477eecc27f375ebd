// The two inner kernels: C += s o (A B) over row pointers, and its transpose for weights. Both keep kRows x
// NV vectors of C in registers; a panel of B is up to kPanelVectors vectors wide.
#pragma once
#include <cstdint>

#include "isa.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

constexpr int64_t kRows = 6;
constexpr int64_t kPanelVectors = PCONV_VECTOR_BYTES == 64 ? 4 : 2;
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

template <class T, int NV>
static void gemm_rows(int64_t rows, const T* const* a, const Segment* segments, int64_t n, const T* b,
                      T* const* c, const T* scale) {
  switch (rows) {
    case 6:
      return gemm_tile<T, NV, 6>(a, segments, n, b, c, scale);
    case 5:
      return gemm_tile<T, NV, 5>(a, segments, n, b, c, scale);
    case 4:
      return gemm_tile<T, NV, 4>(a, segments, n, b, c, scale);
    case 3:
      return gemm_tile<T, NV, 3>(a, segments, n, b, c, scale);
    case 2:
      return gemm_tile<T, NV, 2>(a, segments, n, b, c, scale);
    default:
      return gemm_tile<T, NV, 1>(a, segments, n, b, c, scale);
  }
}
template <class T>
static void gemm(int64_t vectors, int64_t rows, const T* const* a, const Segment* segments, int64_t n,
                 const T* b, T* const* c, const T* scale) {
  switch (vectors) {
#if PCONV_VECTOR_BYTES == 64
    case 4:
      return gemm_rows<T, 4>(rows, a, segments, n, b, c, scale);
    case 3:
      return gemm_rows<T, 3>(rows, a, segments, n, b, c, scale);
#endif
    case 2:
      return gemm_rows<T, 2>(rows, a, segments, n, b, c, scale);
    default:
      return gemm_rows<T, 1>(rows, a, segments, n, b, c, scale);
  }
}

// Sums for Winograd's transforms, which amplify rounding errors: chains of kChain products, chains added up
// in runs of kRun products, runs in C. The error of one long chain would grow with its length.
constexpr int64_t kChain = 32, kRun = 256;

// An operand: entries between its rows (of A) and between the steps of the reduction.
template <class T>
struct Operand {
  const T* data;
  int64_t row, step;
};

// One chain: C [MR][NV vectors], rows `ldc` apart, (=|+=) A [MR][n] B [n][NV vectors].
template <class T, int NV, int MR>
static __attribute__((noinline)) void chain_tile(Operand<T> a, Operand<T> b, int64_t n, T* c, int64_t ldc,
                                                 bool add) {
  constexpr int64_t L = kLanes<T>;
  Vec<T> acc[MR][NV];
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) acc[r][v] = Vec<T>{};
  for (int64_t k = 0; k < n; ++k, a.data += a.step, b.data += b.step) {
    Vec<T> bv[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) bv[v] = load(b.data + v * L);
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
    for (int v = 0; v < NV; ++v) {
      T* at = c + r * ldc + v * L;
      store(at, add ? load(at) + acc[r][v] : acc[r][v]);
    }
}

template <class T, int NV, int MR>
static void product_tile(Operand<T> a, Operand<T> b, int64_t depth, T* c, int64_t ldc, bool add) {
  constexpr int64_t columns = NV * kLanes<T>;
  T sums[MR * columns];
  const bool direct = !add && depth <= kRun;  // C is the only run
  for (int64_t k = 0; k < depth; k += kChain) {
    const int64_t n = depth - k < kChain ? depth - k : kChain;
    chain_tile<T, NV, MR>({a.data + k * a.step, a.row, a.step}, {b.data + k * b.step, 0, b.step}, n,
                          direct ? c : sums, direct ? ldc : columns, k % kRun > 0);
    if (direct || ((k + n) % kRun > 0 && k + n < depth)) continue;
    for (int r = 0; r < MR; ++r)
      for (int64_t v = 0; v < columns; v += kLanes<T>) {
        T* at = c + r * ldc + v;
        const Vec<T> run = load(sums + r * columns + v);
        store(at, add ? load(at) + run : run);
      }
    add = true;
  }
}

template <class T, int NV>
static void product_rows(int64_t rows, Operand<T> a, Operand<T> b, int64_t depth, T* c, int64_t ldc,
                         bool add) {
  switch (rows) {
    case 6:
      return product_tile<T, NV, 6>(a, b, depth, c, ldc, add);
    case 5:
      return product_tile<T, NV, 5>(a, b, depth, c, ldc, add);
    case 4:
      return product_tile<T, NV, 4>(a, b, depth, c, ldc, add);
    case 3:
      return product_tile<T, NV, 3>(a, b, depth, c, ldc, add);
    case 2:
      return product_tile<T, NV, 2>(a, b, depth, c, ldc, add);
    default:
      return product_tile<T, NV, 1>(a, b, depth, c, ldc, add);
  }
}
// C [rows][vectors] (=|+=) A [rows][depth] B [depth][vectors].
template <class T>
static void product(int64_t vectors, int64_t rows, Operand<T> a, Operand<T> b, int64_t depth, T* c,
                    int64_t ldc, bool add) {
  for (int64_t tiles = (rows + kRows - 1) / kRows; tiles > 0; --tiles) {
    const int64_t count = (rows + tiles - 1) / tiles;  // even tiles: a last one of 2 rows starves
    switch (vectors) {
#if PCONV_VECTOR_BYTES == 64
      case 4:
        product_rows<T, 4>(count, a, b, depth, c, ldc, add);
        break;
      case 3:
        product_rows<T, 3>(count, a, b, depth, c, ldc, add);
        break;
#endif
      case 2:
        product_rows<T, 2>(count, a, b, depth, c, ldc, add);
        break;
      default:
        product_rows<T, 1>(count, a, b, depth, c, ldc, add);
    }
    rows -= count;
    a.data += count * a.row;
    c += count * ldc;
  }
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

template <class T, int NV>
static void outer_rows(int64_t rows, const T* a, const PixelPair* pixels, int64_t n, const T* b, T* c,
                       int64_t ldc) {
  switch (rows) {
    case 6:
      return outer_tile<T, NV, 6>(a, pixels, n, b, c, ldc);
    case 5:
      return outer_tile<T, NV, 5>(a, pixels, n, b, c, ldc);
    case 4:
      return outer_tile<T, NV, 4>(a, pixels, n, b, c, ldc);
    case 3:
      return outer_tile<T, NV, 3>(a, pixels, n, b, c, ldc);
    case 2:
      return outer_tile<T, NV, 2>(a, pixels, n, b, c, ldc);
    default:
      return outer_tile<T, NV, 1>(a, pixels, n, b, c, ldc);
  }
}
template <class T>
static void outer(int64_t vectors, int64_t rows, const T* a, const PixelPair* pixels, int64_t n, const T* b,
                  T* c, int64_t ldc) {
  switch (vectors) {
#if PCONV_VECTOR_BYTES == 64
    case 4:
      return outer_rows<T, 4>(rows, a, pixels, n, b, c, ldc);
    case 3:
      return outer_rows<T, 3>(rows, a, pixels, n, b, c, ldc);
#endif
    case 2:
      return outer_rows<T, 2>(rows, a, pixels, n, b, c, ldc);
    default:
      return outer_rows<T, 1>(rows, a, pixels, n, b, c, ldc);
  }
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
