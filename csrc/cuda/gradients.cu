// Twin of kernels/triton/gradients.py: the incoming gradient, scaled for the matrix kernels of the backward,
// and its sum.
#include "../pixel.h"
#include "arguments.h"

namespace pconv {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kAtOnce = 2;  // pixels that a thread has in flight

// Named as the arguments of kernels/triton/gradients.py; block_p: pixels of a block, block_c: its channels.
struct Problem {
  const float* ratio;
  const int8_t* state;
  float* sums;
  int pixels;
  int64_t copy_stride;
  int block_p, block_c;
  float scale;
  int n_out, pitch, ratios, copies, all;
};

// V elements, read and written at once.
template <class T, int V>
struct alignas(sizeof(T) * V) Pack {
  T items[V];
};

// What a thread reads of a pixel, at once and before it knows whether the pixel is live.
template <class T, int V>
struct Loaded {
  Pack<T, V> grad;
  float ratio;  // of the last branch
  int kind;
};

// V channels of pixel `p`, from channel `c` on. WHOLE: all of them are there and can be read at once.
template <class T, int V, bool WHOLE>
__device__ Loaded<T, V> load(const T* __restrict__ grad, const Problem& a, int p, int c) {
  Loaded<T, V> result;
  result.kind = a.state[p];
  result.ratio = a.copies ? a.ratio[(a.ratios - 1) * int64_t(a.pixels) + p] : 0.0f;
  const T* from = grad + int64_t(p) * a.n_out + c;
  if (WHOLE) {
    result.grad = *reinterpret_cast<const Pack<T, V>*>(from);
  } else {
    for (int i = 0; i < V; ++i) result.grad.items[i] = c + i < a.n_out ? from[i] : from_float<T>(0);
  }
  return result;
}

// Branch `b` of the copies of V channels.
template <class T, int V>
__device__ void write(T* __restrict__ copies, const Problem& a, int b, int p, int c, const float* g,
                      float ratio) {
  Pack<T, V> scaled;
  for (int i = 0; i < V; ++i) scaled.items[i] = from_float<T>(g[i] * (ratio * a.scale));
  *reinterpret_cast<Pack<T, V>*>(copies + b * a.copy_stride + int64_t(p) * a.pitch + c) = scaled;
}

// Adds a pixel to `total` and writes its copies.
template <class T, int V>
__device__ void take(T* __restrict__ copies, const Problem& a, int p, int c, const Loaded<T, V>& loaded,
                     float* total) {
  float g[V];
  for (int i = 0; i < V; ++i) {
    g[i] = loaded.kind == kDead ? 0.0f : to_float(loaded.grad.items[i]);
    total[i] += g[i];
  }
  if (!a.copies) return;
  const int last = a.ratios - 1;
  write<T, V>(copies, a, last, p, c, g, loaded.ratio);
  if (!a.all && loaded.kind != kMixed) return;
  for (int b = 0; b < last; ++b) write<T, V>(copies, a, b, p, c, g, a.ratio[b * int64_t(a.pixels) + p]);
}

// Adds up the block's `total` over its pixels, in a fixed order: first the lanes of a warp that share
// channels, then the warps. A thread has channels V * (thread % groups) on.
template <int V>
__device__ void add_up(const float* total, int groups, float* shared, float* sums, int channels) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  for (int i = 0; i < V; ++i) {
    float sum = total[i];
    for (int bits = 16; bits >= groups; bits /= 2) sum += __shfl_xor_sync(~0u, sum, bits);
    if (lane < groups) shared[warp * groups * V + lane * V + i] = sum;
  }
  __syncthreads();
  const int c = threadIdx.x;
  if (c >= groups * V || c >= channels) return;
  float sum = 0;
  for (int w = 0; w < kWarps; ++w) sum += shared[w * groups * V + c];
  sums[c] = sum;
}

// grad [P, n_out] -> copies [ratios, P, pitch] and sums [blocks, n_out] over live pixels, in float32. Copy b
// is scale * r_b * grad, 0 where dead. Without `all` the copies before the last are written at mixed pixels
// alone, where the weights' gradients read them. Selects, so that NaN at a dead pixel goes nowhere. Grid:
// blocks of pixels, of channels. A thread takes V channels of a pixel, of kAtOnce pixels together.
template <class T, int V, bool WHOLE>
__global__ void __launch_bounds__(kThreads, 1)
    scale_gradient(const T* __restrict__ grad, T* __restrict__ copies, const Problem a) {
  PCONV_SHARED(shared);
  const int groups = a.block_c / V, c0 = blockIdx.y * a.block_c, c = c0 + int(threadIdx.x) % groups * V;
  const int first = blockIdx.x * a.block_p, left = a.pixels - first, step = kThreads / groups;
  const int end = c < a.pitch ? first + (left < a.block_p ? left : a.block_p) : 0;
  float total[V] = {};
  for (int p = first + int(threadIdx.x) / groups; p < end; p += kAtOnce * step) {
    Loaded<T, V> loaded[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)  // the first again where there are no more
      loaded[i] = load<T, V, WHOLE>(grad, a, i * step < end - p ? p + i * step : p, c);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (i * step < end - p) take<T, V>(copies, a, p + i * step, c, loaded[i], total);
  }
  add_up<V>(total, groups, reinterpret_cast<float*>(shared), a.sums + int64_t(blockIdx.x) * a.n_out + c0,
            a.n_out - c0);
}

template <class T, int V>
void launch(dim3 grid, const T* grad, T* copies, const Problem& a, void* stream) {
  const bool whole = a.n_out == a.pitch && reinterpret_cast<uintptr_t>(grad) % sizeof(Pack<T, V>) == 0;
  const auto kernel = whole ? scale_gradient<T, V, true> : scale_gradient<T, V, false>;
  PCONV_LAUNCH(kernel, grid, kThreads, kWarps * a.block_c * sizeof(float), stream, grad, copies, a);
}

}  // namespace
}  // namespace pconv

using namespace pconv;

PCONV_ENTRY(scale_gradient) {
  const dim3 grid = args.grid();
  const Untyped grad = args.untyped("grad");
  Problem a{};
  a.ratio = args.tensor<float>("ratio");
  a.state = args.tensor<int8_t>("pixel_state");
  void* const copies = args.untyped("copies").data;
  a.sums = args.tensor<float>("sums");
  a.pixels = args.integer("P"), a.copy_stride = args.wide("copy_stride");
  const int rounds = args.integer("rounds");
  a.scale = args.real("scale");
  args.integers({{"NOUT", &a.n_out}, {"PITCH", &a.pitch}, {"RATIOS", &a.ratios}, {"COPIES", &a.copies}});
  args.integers({{"ALL", &a.all}, {"BP", &a.block_p}, {"BC", &a.block_c}});
  if (!args.complete()) return kInvalidValue;
  a.block_p *= rounds;
  if (grid.x == 0) return 0;  // no pixels
  with_float(grad.element, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWhole = 16 / sizeof(T);  // channels of a pixel are 4, 8 or a multiple of 8
    const T* from = static_cast<const T*>(grad.data);
    T* to = static_cast<T*>(copies);
    if (a.pitch % kWhole == 0)
      launch<T, kWhole>(grid, from, to, a, stream);
    else
      launch<T, 4>(grid, from, to, a, stream);
  });
  return pconv_launched();
}
