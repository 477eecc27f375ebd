// What the CPU and the CUDA kernels decide alike about a pixel and its window. Plain C++, which nvcc compiles
// for the device too.
#pragma once

#ifdef __CUDACC__
#define PCONV_BOTH __host__ __device__
#else
#define PCONV_BOTH
#endif

namespace pconv {

// Classes of pixels. Plain: every kernel's window is whole, so the kernels can be merged. Dead: the smallest
// kernel's window has no valid entry.
enum State : int { kMixed, kPlain, kDead, kOutside };

PCONV_BOTH inline State state_of(bool live, bool whole) {
  return !live ? kDead : whole ? kPlain : kMixed;
}

// Window size over valid entries; 0 where there are none.
template <class T>
PCONV_BOTH inline T ratio_of(T size, int count) {
  return count > 0 ? size / static_cast<T>(count) : T(0);
}

// One direction of an image: its positions come in `step + cut` types, those of each residue modulo `step`,
// except the last `cut`, which are types of their own.
template <class Int>
struct Positions {
  Int size, step, cut;

  PCONV_BOTH Int types() const { return step + cut; }
  PCONV_BOTH Int type_of(Int position) const {
    return position < size - cut ? position % step : step + position - (size - cut);
  }
  PCONV_BOTH Int position(Int type, Int i) const {
    return type < step ? type + i * step : size - cut + type - step;
  }
};

// Output positions over a map that is up-sampled twofold, by the way their window meets the stored map: by
// parity, but for the last ones of an odd size, whose windows end between the two copies of a stored pixel.
template <class Int>
PCONV_BOTH inline Positions<Int> positions_over_upsampled(Int size, Int kernel) {
  const Int reach = kernel / 2 < size ? kernel / 2 : size;
  return {size, 2, size % 2 ? reach : 0};
}

// Stored positions of such a map: the last one of an odd size has one copy only.
template <class Int>
PCONV_BOTH inline Positions<Int> stored_positions(Int stored, Int size) {
  return {stored, 1, size % 2};
}

}  // namespace pconv
