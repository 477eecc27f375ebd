// What the kernels that look at masks share: the entries they write for `compact`, counts of classes, updated
// masks, and the reading of their arguments.
#pragma once
#include "arguments.h"
#include "limits.h"
#include "windows.h"

namespace pconv {
constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kClasses = 3;
constexpr int kManyWords = -1;  // as the side of a window: any size, in several words

// What a windows kernel writes about every pixel, before it is sorted: segments of q entries.
struct Entries {
  int8_t* state;
  int* ints;
  int64_t* words;
  int* counts;
  int q, n_blocks;
  int total;  // of all segments
  int block;

  __device__ void put(int e, int state_, int pixel, int corner) const {
    state[e] = int8_t(state_);
    ints[e] = pixel;
    ints[total + e] = corner;
  }
};

// Counts, over a block, the entries of each class. All threads of a warp take part in every call.
class ClassCounter {
 public:
  __device__ void add(int state) {
#pragma unroll
    for (int c = 0; c < kClasses; ++c) warp_[c] += __popc(__ballot_sync(kAll, state == c));
  }
  __device__ void store(const Entries& to, int segment) const {
    PCONV_SHARED(memory);
    int* totals = reinterpret_cast<int*>(memory);  // [class][warp]
    const int c = threadIdx.x;
    if (threadIdx.x % 32 == 0)
      for (int k = 0; k < kClasses; ++k) totals[k * kWarps + threadIdx.x / 32] = warp_[k];
    __syncthreads();
    if (c >= kClasses) return;
    int sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += totals[c * kWarps + w];
    to.counts[(segment * kClasses + c) * to.n_blocks + blockIdx.x] = sum;
  }

 private:
  int warp_[kClasses] = {0, 0, 0};
};
constexpr int kCounterBytes = kClasses * kWarps * sizeof(int);

// Zeros and ones in the type of an updated mask, by their bits.
struct Flags {
  void* data;
  int bytes;
  uint64_t one;

  __device__ void set(int at, bool value) const {
    const uint64_t v = value ? one : 0;
    if (bytes == 1) return void(static_cast<uint8_t*>(data)[at] = uint8_t(v));
    if (bytes == 2) return void(static_cast<uint16_t*>(data)[at] = uint16_t(v));
    if (bytes == 4) return void(static_cast<uint32_t*>(data)[at] = uint32_t(v));
    static_cast<uint64_t*>(data)[at] = v;
  }
};

inline int bytes_of(int element) {
  constexpr int bytes[] = {4, 2, 2, 1, 1, 2, 4, 8, 8};
  return bytes[element];
}

inline Flags flags(Untyped mask) {
  const int e = mask.element;
  const uint64_t one = e == kFloat32    ? 0x3F800000
                       : e == kFloat16  ? 0x3C00
                       : e == kBFloat16 ? 0x3F80
                       : e == kFloat64  ? 0x3FF0000000000000
                                        : 1;
  return {mask.data, bytes_of(e), one};
}

inline Entries entries(Args& args) {
  Entries e{};
  e.state = args.tensor<int8_t>("entry_state");
  e.ints = args.tensor<int>("entry_ints");
  e.words = args.tensor<int64_t>("entry_words");
  e.counts = args.tensor<int>("counts");
  return e;
}

// The strides of a mask, NAME_n, NAME_h and NAME_w.
inline void read_strides(Args& args, Plane& mask, const char* n, const char* h, const char* w) {
  mask.n = args.wide(n), mask.h = args.wide(h), mask.w = args.wide(w);
}

// `kind`: MASK of rows.valid_at.
inline Plane plane(Untyped data, int kind, int H, int W, Plane strides) {
  const int bytes = bytes_of(data.element);
  const uint64_t sign = kind == 2 ? uint64_t(1) << (bytes * 8 - 1) : 0;
  return {kind == 0 ? nullptr : data.data, bytes, ~sign, H, W, strides.n, strides.h, strides.w};
}

// Calls `f(T{})` with the type of a mask's elements.
template <class F>
void with_mask(const Plane& mask, F f) {
  if (!mask.data || mask.bytes == 1) return f(uint8_t{});
  if (mask.bytes == 2) return f(uint16_t{});
  if (mask.bytes == 4) return f(uint32_t{});
  f(uint64_t{});
}

// Whether columns `step` apart are neighbours in memory.
inline bool dense(const Plane& mask, int step) {
  return step == 1 && (!mask.data || mask.w == 1);
}

template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls `f(Constant<N>{})`, N the first of NS that equals `n`, and 0 if none does.
template <int... NS, class F>
void with_one_of(int n, F f) {
  bool found = false;
  const int tried[] = {0, (!found && n == NS ? (found = true, f(Constant<NS>{}), 0) : 0)...};
  (void)tried;
  if (!found) f(Constant<0>{});
}

}  // namespace pconv
