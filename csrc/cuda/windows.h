// What the windows kernels (rows.cu, after kernels/triton/rows.py) compute for one pixel: where it lies,
// which taps of its window are inside and valid, as bits. For host and device.
#pragma once
#include "../pixel.h"
#include "device.h"

namespace pconv {

__host__ __device__ inline int popcount(uint64_t v) {
#ifdef __CUDA_ARCH__
  return __popcll(v);
#else
  return __builtin_popcountll(v);
#endif
}

// Division by a number that a whole launch shares: v / d = v * m >> s for 0 <= v < 2^31, where
// m = ceil(2^s / d) exceeds 2^s / d by less than 2^(s - 31) / d.
class Divider {
 public:
  Divider() = default;
  explicit Divider(int divisor) : shift_(31) {
    while ((int64_t(1) << (shift_ - 31)) < divisor) ++shift_;
    factor_ = uint32_t(((uint64_t(1) << shift_) + divisor - 1) / divisor);
  }
  __host__ __device__ int operator()(int v) const { return int(uint64_t(uint32_t(v)) * factor_ >> shift_); }
  __host__ __device__ int toward_zero(int v) const { return v < 0 ? -(*this)(-v) : (*this)(v); }

 private:
  uint32_t factor_;
  int shift_;
};

// The positions of one direction, to be looked up by type.
struct Types : Positions<int> {
  int most, full;  // positions of the first `full` residues; the others have one less
  Divider by_most, by_fewer, by_one;

  Types() = default;
  explicit Types(Positions<int> positions) : Positions<int>(positions) {
    most = (size - cut + step - 1) / step;
    full = size - cut - (most - 1) * step;
    by_most = Divider(most > 1 ? most : 1);
    by_fewer = Divider(most > 2 ? most - 1 : 1);
    by_one = Divider(1);
  }
  __host__ __device__ int count(int type) const { return type >= step ? 1 : most - (type >= full); }
  __host__ __device__ Divider by_count(int type) const {
    return type >= step ? by_one : type < full ? by_most : by_fewer;
  }
};

struct Pixel {
  int n, y, x;
  bool exists;
};

// Pixel `j` of the segment of row type `ty` and column type `tx`.
__host__ __device__ inline Pixel segment_pixel(int j, int ty, int tx, int N, const Types& rows,
                                               const Types& columns) {
  const int high = rows.count(ty), wide = columns.count(tx);
  const int t = columns.by_count(tx)(j), n = rows.by_count(ty)(t);
  const int y = rows.position(ty, t - n * (high > 1 ? high : 1));
  const int x = columns.position(tx, j - t * (wide > 1 ? wide : 1));
  return {n, y, x, n < N && high > 0 && wide > 0};
}

// A mask as integers or bits of floats, read where `keep` has ones: the sign of a float says nothing.
struct Plane {
  const void* data;  // null: all of the image is valid
  int bytes;         // of an element
  uint64_t keep;
  int H, W;
  int64_t n, h, w;  // strides
};

// Element type of masks whose size is looked up at each load.
struct AnySize {};

template <class T>
__host__ __device__ inline bool is_set(const Plane& mask, int64_t at) {
  return (static_cast<const T*>(mask.data)[at] & T(mask.keep)) != 0;
}
template <>
__host__ __device__ inline bool is_set<AnySize>(const Plane& mask, int64_t at) {
  if (mask.bytes == 1) return is_set<uint8_t>(mask, at);
  if (mask.bytes == 2) return is_set<uint16_t>(mask, at);
  if (mask.bytes == 4) return is_set<uint32_t>(mask, at);
  return is_set<uint64_t>(mask, at);
}

__host__ __device__ inline bool within(int i, int size) {
  return unsigned(i) < unsigned(size);
}

// Whether (y, x) lies in the image and is no hole.
template <class T>
__host__ __device__ bool valid_at(const Plane& mask, int n, int y, int x) {
  if (!within(y, mask.H) || !within(x, mask.W)) return false;
  return !mask.data || is_set<T>(mask, n * mask.n + y * mask.h + x * mask.w);
}

// Bit k: position `first + k * step` lies in [0, size), for k < count <= 63.
__host__ __device__ inline uint64_t span_bits(int first, int step, int count, int size) {
  uint64_t bits = 0;
  for (int k = 0; k < count; ++k) bits |= uint64_t(within(first + k * step, size)) << k;
  return bits;
}

// Rows of bits. COUNT > 0: that many, of neighbouring elements, known to the compiler so that loads are
// issued together; else `count` of them, `step` apart.
template <int COUNT>
struct RowBits {
  using type = uint32_t;
};
template <>
struct RowBits<0> {
  using type = uint64_t;
};

// Bit k: element k of a row of `mask` from (y, x) on is valid, in the columns that `fits` names. Nothing else
// is read; rows outside do not branch, so that the loads of several rows are under way together.
template <class T, int COUNT, class Bits = typename RowBits<COUNT>::type>
__host__ __device__ Bits valid_row(const Plane& mask, int n, int y, int x, int count, int step, Bits fits) {
  const Bits read = within(y, mask.H) ? fits : 0;
  if (!mask.data) return read;
  const int64_t first = n * mask.n + y * mask.h + x * mask.w;
  const int64_t apart = COUNT ? 1 : step * mask.w;
  Bits bits = 0;
#pragma unroll
  for (int k = 0; k < (COUNT ? COUNT : count); ++k)
    if ((read >> k & 1) && is_set<T>(mask, first + k * apart)) bits |= Bits(1) << k;
  return bits;
}

// Valid entries of the window of `high` x `wide` taps, (dh, dw) apart, whose first is (y, x). SIDE > 0: it is
// a square of that size.
template <class T, int SIDE>
__host__ __device__ uint64_t valid_window(const Plane& mask, int n, int y, int x, int high, int wide, int dh,
                                          int dw) {
  using Bits = typename RowBits<SIDE>::type;
  if (SIDE) high = wide = SIDE;
  const Bits fits = Bits(span_bits(x, dw, wide, mask.W));
  uint64_t bits = 0;
  if (!mask.data) {  // asked here as well, so that nothing branches between the rows
    for (int i = 0; i < high; ++i) bits |= uint64_t(within(y + i * dh, mask.H) ? fits : 0) << (i * wide);
    return bits;
  }
#pragma unroll
  for (int i = 0; i < (SIDE ? SIDE : high); ++i)
    bits |= uint64_t(valid_row<T, SIDE>(mask, n, y + i * dh, x, wide, dw, fits)) << (i * wide);
  return bits;
}

// The states of a row of output pixels, `step` apart: which are live, and whether one of `near` is mixed.
struct LiveRow {
  uint64_t live;
  bool mixed;
};
template <int COUNT, int STEP>
__host__ __device__ LiveRow live_row(const int8_t* first, int count, int step, uint64_t fits, uint64_t near) {
  using Bits = typename RowBits<COUNT>::type;
  const Bits read = Bits(fits);
  Bits live = 0, mixed = 0;
#pragma unroll
  for (int k = 0; k < (COUNT ? COUNT : count); ++k) {
    if (!(read >> k & 1)) continue;
    const int state = first[k * (COUNT ? STEP : step)];
    live |= Bits(state != kDead) << k;
    mixed |= Bits(state == kMixed) << k;
  }
  return {live, (mixed & Bits(near)) != 0};
}

// Bits of a window (rows of `pitch`) that belong to a high x wide part of it, from bit `first` on.
inline uint64_t part_bits(int high, int wide, int first, int pitch) {
  uint64_t bits = 0;
  for (int i = 0; i < high; ++i) bits |= ((uint64_t(1) << wide) - 1) << (first + i * pitch);
  return bits;
}

// Stores the bits `tap(i, k)` of a high x wide window of any size in words that lie `pitch` apart.
template <class Tap>
__host__ __device__ void store_taps(int64_t* to, int pitch, int high, int wide, Tap tap) {
  uint64_t bits = 0;
  int used = 0;
  for (int i = 0; i < high; ++i) {
    for (int k = 0; k < wide; ++k) {
      bits |= uint64_t(tap(i, k)) << used;
      if (++used < kWordBits) continue;
      *to = int64_t(bits);
      to += pitch;
      bits = used = 0;
    }
  }
  if (used) *to = int64_t(bits);
}

}  // namespace pconv
