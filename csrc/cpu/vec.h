// Vectors of the instruction set (PCONV_VECTOR_BYTES), conversions and the block transpose.
#pragma once
#include <cstdint>
#include <cstring>

#include "isa.h"
#include "problem.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
  typedef float type __attribute__((vector_size(PCONV_VECTOR_BYTES)));
  typedef float unaligned __attribute__((vector_size(PCONV_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t bits __attribute__((vector_size(PCONV_VECTOR_BYTES)));
};
template <>
struct VecOf<double> {
  typedef double type __attribute__((vector_size(PCONV_VECTOR_BYTES)));
  typedef double unaligned __attribute__((vector_size(PCONV_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t bits __attribute__((vector_size(PCONV_VECTOR_BYTES)));
};
template <class T>
using Vec = typename VecOf<T>::type;
template <class T>
constexpr int64_t kLanes = PCONV_VECTOR_BYTES / sizeof(T);

#define PCONV_INLINE static inline __attribute__((always_inline))

template <class T>
PCONV_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename VecOf<T>::unaligned*>(p);
}
template <class T>
PCONV_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename VecOf<T>::unaligned*>(p) = v;
}

// Keeps a vector that was loaded from being loaded anew by every instruction that uses it.
template <class V>
PCONV_INLINE void keep_in_register(V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#elif defined(__aarch64__)
  asm("" : "+w"(v));
#endif
}

// 16-bit storage to the compute type and back, rounding to nearest even.
PCONV_INLINE float bf16_to_float(uint16_t v) {
  const uint32_t bits = static_cast<uint32_t>(v) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}
PCONV_INLINE uint16_t float_to_bf16(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
}
#if defined(__x86_64__) && PCONV_VECTOR_BYTES > 16
PCONV_INLINE float half_to_float(uint16_t v) {
  return _cvtsh_ss(v);
}
PCONV_INLINE uint16_t float_to_half(float f) {
  return _cvtss_sh(f, 0);
}
#else
PCONV_INLINE float half_to_float(uint16_t v) {
  // Shift exponent and mantissa into place, then rescale: exact for normal and subnormal numbers.
  const uint32_t magnitude = static_cast<uint32_t>(v & 0x7fff) << 13;
  uint32_t bits = magnitude;
  float f;
  memcpy(&f, &bits, 4);
  f *= 0x1p112f;
  memcpy(&bits, &f, 4);
  if ((v & 0x7c00) == 0x7c00) bits = 0x7f800000 | magnitude;
  bits |= static_cast<uint32_t>(v & 0x8000) << 16;
  memcpy(&f, &bits, 4);
  return f;
}
PCONV_INLINE uint16_t float_to_half(float f) {
  uint32_t bits;
  memcpy(&bits, &f, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  bits &= 0x7fffffff;
  if (bits > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
  if (bits >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);  // rounds beyond 65504
  if (bits < 0x38800000) {                                              // subnormal: let the adder round
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return static_cast<uint16_t>(sign | (bits - 0x3f000000));
  }
  bits += 0xfff + ((bits >> 13) & 1);
  return static_cast<uint16_t>(sign | ((bits - 0x38000000) >> 13));
}
#endif

// n consecutive stored entries <-> compute type.
template <class T>
static void widen(DType dtype, const void* src, int64_t offset, int64_t n, T* dst) {
  if (dtype == DType::bf16) {
    const uint16_t* s = static_cast<const uint16_t*>(src) + offset;
    for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<T>(bf16_to_float(s[i]));
  } else if (dtype == DType::f16) {
    const uint16_t* s = static_cast<const uint16_t*>(src) + offset;
    for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<T>(half_to_float(s[i]));
  } else {
    memcpy(dst, static_cast<const T*>(src) + offset, n * sizeof(T));
  }
}
template <class T>
static void narrow(DType dtype, const T* src, int64_t n, void* dst, int64_t offset) {
  if (dtype == DType::bf16) {
    uint16_t* d = static_cast<uint16_t*>(dst) + offset;
    for (int64_t i = 0; i < n; ++i) d[i] = float_to_bf16(static_cast<float>(src[i]));
  } else if (dtype == DType::f16) {
    uint16_t* d = static_cast<uint16_t*>(dst) + offset;
    for (int64_t i = 0; i < n; ++i) d[i] = float_to_half(static_cast<float>(src[i]));
  } else {
    memcpy(static_cast<T*>(dst) + offset, src, n * sizeof(T));
  }
}
PCONV_INLINE bool is_wide(DType dtype) {
  return dtype == DType::f32 || dtype == DType::f64;
}

// dst[j * ldd + i] = src[i * lds + j] for i < rows, j < cols.
template <class T>
static void transpose_scalar(const T* src, int64_t lds, int64_t rows, int64_t cols, T* dst, int64_t ldd) {
  for (int64_t j = 0; j < cols; ++j)
    for (int64_t i = 0; i < rows; ++i) dst[j * ldd + i] = src[i * lds + j];
}

#if defined(__x86_64__) && PCONV_VECTOR_BYTES > 16
PCONV_INLINE void transpose8x8(const float* s, int64_t lds, float* d, int64_t ldd) {
  __m256 r[8], t[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(s + i * lds);
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 2; ++i) {
    r[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(d + i * ldd, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(d + (i + 4) * ldd, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
#if PCONV_VECTOR_BYTES == 64
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // within GCC 12's own intrinsics
#endif
PCONV_INLINE void transpose16x16(const float* s, int64_t lds, float* d, int64_t ldd) {
  __m512 r[16], t[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_ps(s + i * lds);
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // r[4 i + k]: columns k, k + 4, k + 8, k + 12 of rows 4 i to 4 i + 3
    r[4 * i] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
    r[4 * i + 1] = _mm512_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
    r[4 * i + 2] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
    r[4 * i + 3] = _mm512_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512 a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x88),
                 b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xdd);
    const __m512 c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x88),
                 e = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xdd);
    _mm512_storeu_ps(d + i * ldd, _mm512_shuffle_f32x4(a, c, 0x88));
    _mm512_storeu_ps(d + (i + 4) * ldd, _mm512_shuffle_f32x4(b, e, 0x88));
    _mm512_storeu_ps(d + (i + 8) * ldd, _mm512_shuffle_f32x4(a, c, 0xdd));
    _mm512_storeu_ps(d + (i + 12) * ldd, _mm512_shuffle_f32x4(b, e, 0xdd));
  }
}
// Three rows beside each other, as those of a picture's colours.
struct Interleave3 {
  alignas(64) int32_t first[3][16] = {}, second[3][16] = {};  // of rows 0 and 1, then of those and row 2
  constexpr Interleave3() {
    for (int v = 0; v < 3; ++v)
      for (int i = 0; i < 16; ++i) {
        const int row = (16 * v + i) % 3, col = (16 * v + i) / 3;
        first[v][i] = row < 2 ? row * 16 + col : 0;
        second[v][i] = row < 2 ? i : 16 + col;
      }
  }
};
static void interleave3(const float* src, int64_t lds, int64_t cols, float* dst) {
  static constexpr Interleave3 from;
  int64_t j = 0;
  for (; j + 16 <= cols; j += 16) {
    const __m512 a = _mm512_loadu_ps(src + j), b = _mm512_loadu_ps(src + lds + j),
                 c = _mm512_loadu_ps(src + 2 * lds + j);
#pragma GCC unroll 3
    for (int v = 0; v < 3; ++v)
      _mm512_storeu_ps(dst + 3 * j + 16 * v,
                       _mm512_permutex2var_ps(_mm512_permutex2var_ps(a, _mm512_load_si512(from.first[v]), b),
                                              _mm512_load_si512(from.second[v]), c));
  }
  transpose_scalar(src + j, lds, 3, cols - j, dst + 3 * j, 3);
}
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif
// Blocks of S x S, rows and cols being multiples of S, S at a time along the side whose rows lie further
// apart: as a rule those are planes, whose lines share a set of the first cache, and 64 of them at once push
// each other out before they are used up.
template <int64_t S>
static void transpose_blocks(const float* src, int64_t lds, int64_t rows, int64_t cols, float* dst,
                             int64_t ldd) {
  const bool far = lds > ldd;
  const int64_t outer = far ? rows : cols, inner = far ? cols : rows;
  for (int64_t o = 0; o < outer; o += S)
    for (int64_t k = 0; k < inner; k += S) {
      const int64_t i = far ? o : k, j = far ? k : o;
#if PCONV_VECTOR_BYTES == 64
      if (S == 16) {
        transpose16x16(src + i * lds + j, lds, dst + j * ldd + i, ldd);
        continue;
      }
#endif
      transpose8x8(src + i * lds + j, lds, dst + j * ldd + i, ldd);
    }
}
static void transpose(const float* src, int64_t lds, int64_t rows, int64_t cols, float* dst, int64_t ldd) {
  const int64_t rows8 = rows / 8 * 8, cols8 = cols / 8 * 8;
  int64_t done = 0;  // rows
#if PCONV_VECTOR_BYTES == 64
  if (rows == 3 && ldd == 3) return interleave3(src, lds, cols, dst);
  done = rows / 16 * 16;
  const int64_t cols16 = cols / 16 * 16;
  transpose_blocks<16>(src, lds, done, cols16, dst, ldd);
  transpose_blocks<8>(src + cols16, lds, done, cols8 - cols16, dst + cols16 * ldd, ldd);
#endif
  transpose_blocks<8>(src + done * lds, lds, rows8 - done, cols8, dst + done, ldd);
  transpose_scalar(src + cols8, lds, rows8, cols - cols8, dst + cols8 * ldd, ldd);
  transpose_scalar(src + rows8 * lds, lds, rows - rows8, cols, dst + rows8, ldd);
}
#else
static void transpose(const float* src, int64_t lds, int64_t rows, int64_t cols, float* dst, int64_t ldd) {
  transpose_scalar(src, lds, rows, cols, dst, ldd);
}
#endif
static void transpose(const double* src, int64_t lds, int64_t rows, int64_t cols, double* dst, int64_t ldd) {
  transpose_scalar(src, lds, rows, cols, dst, ldd);
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
