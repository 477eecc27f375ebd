// Twin of kernels/triton/weights.py: weights folded and laid out for the matrix kernels, and their gradients
// taken out of the partial sums. All of it is limited by bandwidth, so blocks are cut for coalesced access,
// not as Triton's.
#include <algorithm>

#include "arguments.h"
#include "weights.h"

namespace pconv {
namespace {

constexpr int kThreads = 256;

template <class T>
T* as(const Untyped& tensor) {
  return static_cast<T*>(tensor.data);
}

int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// total [n_out]: sum over branches of scales * biases, both [branches, n_out].
template <class T>
__global__ void fold_bias(const T* __restrict__ biases, const T* __restrict__ scales,
                          float* __restrict__ total, int n_out, int branches) {
  const int n = blockIdx.x * kThreads + threadIdx.x;
  if (n >= n_out) return;
  float value = 0;
  for (int b = 0; b < branches; ++b)
    value += to_float(biases[b * n_out + n]) * to_float(scales[b * n_out + n]);
  total[n] = value;
}

// A block of pack_taps: kColumns columns, `rows` rows and up to kTaps taps, so that rows * taps <= kTaps.
constexpr int kColumns = 32, kTaps = 64, kPerThread = kColumns * kTaps / kThreads;
// The tile in shared memory is [rows][kColumns + 1][taps, made odd]: few bank conflicts in either direction.
constexpr int kTileFloats = 96 * (kColumns + 1);  // at most: 2 taps, 32 rows

__host__ __device__ inline int log_rows(int taps) {
  int log = 0;
  while ((2 << log) * taps <= kTaps) ++log;
  return log;
}

// Part of the packed weights: `taps` taps from `t0` on, 2^log_rows rows, kColumns columns.
struct Tile {
  int row0, k0, t0, taps, log_rows;
  __device__ int at(int r, int k, int t) const { return (r * (kColumns + 1) + k) * (taps | 1) + t; }
};

// Sum of the branches of `phase`, in float32 and in their order. Threads take taps in the order of memory.
template <class T>
__device__ void fold_tile(const T* __restrict__ weights, const T* __restrict__ scales, const Folding& f,
                          const Phase& phase, const Tile& tile, float* shared) {
  const int step_q = kThreads / tile.taps, step_t = kThreads % tile.taps;
  const int log_inner = f.adjoint ? tile.log_rows : 5, inner = (1 << log_inner) - 1;  // 2^5 columns
  const int count = kColumns << tile.log_rows;
  float value[kPerThread] = {};
  for (int b = phase.lo; b < phase.hi; ++b) {
    const Branch k = f.branches[b];
    int q = threadIdx.x / tile.taps, t = threadIdx.x % tile.taps;  // q: a row and a column
#pragma unroll
    for (int i = 0; i < kPerThread; ++i) {
      const int w_out = (f.adjoint ? tile.k0 : tile.row0) + (q >> log_inner);
      const int w_in = (f.adjoint ? tile.row0 : tile.k0) + (q & inner);
      const int y = (tile.t0 + t) / phase.kw, x = tile.t0 + t - y * phase.kw;
      value[i] += branch_tap(weights, scales, f, k, w_out, w_in, y + phase.oy, x + phase.ox, q < count);
      q += step_q, t += step_t;
      if (t >= tile.taps) t -= tile.taps, ++q;
    }
  }
  int q = threadIdx.x / tile.taps, t = threadIdx.x % tile.taps;
#pragma unroll
  for (int i = 0; i < kPerThread; ++i) {
    const int outer = q >> log_inner, rest = q & inner;
    if (q < count) shared[tile.at(f.adjoint ? rest : outer, f.adjoint ? outer : rest, t)] = value[i];
    q += step_q, t += step_t;
    if (t >= tile.taps) t -= tile.taps, ++q;
  }
}

// packed [slabs, slots, np, kp]: rows are output channels, with `adjoint` input channels. Grid: rows,
// columns, slabs x phases. Weights lie with their taps together and are packed with the columns together, so
// each block turns a tile over in shared memory.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    pack_taps(const T* __restrict__ weights, const T* __restrict__ scales, T* __restrict__ packed,
              const Folding f, int slots, int np, int kp) {
  PCONV_SHARED(memory);
  float* shared = reinterpret_cast<float*>(memory);
  const Phase& phase = f.phases[blockIdx.z % f.n_phases];
  const int slab = blockIdx.z / f.n_phases, taps = phase.kh * phase.kw, log = log_rows(taps);
  Tile tile{int(blockIdx.x << log), int(blockIdx.y) * kColumns, 0, 0, log};
  if (tile.row0 >= np) return;  // the grid is that of the phase with the most taps
  for (; tile.t0 < taps; tile.t0 += kTaps) {
    tile.taps = taps - tile.t0 < kTaps ? taps - tile.t0 : kTaps;
    fold_tile(weights + slab * f.slab_stride, scales, f, phase, tile, shared);
    __syncthreads();
    const int k = threadIdx.x % kColumns;
    for (int i = threadIdx.x / kColumns; i < tile.taps << log; i += kThreads / kColumns) {
      const int r = i & ((1 << log) - 1), t = i >> log, row = tile.row0 + r;
      if (row >= np || tile.k0 + k >= kp) continue;
      const int64_t to = (int64_t(slab * slots + phase.slot + tile.t0 + t) * np + row) * kp + tile.k0 + k;
      packed[to] = from_float<T>(shared[tile.at(r, k, t)]);
    }
    __syncthreads();
  }
}

// The tap with which each segment of a launch begins.
struct Origins {
  static constexpr int kMost = 64;
  int y[kMost], x[kMost];
};

struct RowLayout {
  int step_y, step_x, ny, nx, channels, np, kp, block_rows;
};

// packed [segments, phases, ny, np, kp] with kp = columns x channels. Grid: blocks of rows; segments from
// `segment0` on x phases x ny. Weights of so few channels are small: they are read as they come.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    pack_rows(const T* __restrict__ weights, const T* __restrict__ scales, T* __restrict__ packed,
              const Folding f, const RowLayout to, const Origins origins, int segment0) {
  const int jy = blockIdx.y % to.ny, per_segment = to.ny * f.n_phases, i = blockIdx.y / per_segment;
  const Phase& phase = f.phases[blockIdx.y / to.ny % f.n_phases];
  const int segment = segment0 + i, y = origins.y[i] + jy * to.step_y;
  packed += (int64_t(segment0) * per_segment + blockIdx.y) * to.np * to.kp;
  weights += segment * f.slab_stride;
  for (int e = threadIdx.x; e < to.block_rows * to.kp; e += kThreads) {
    const int row = blockIdx.x * to.block_rows + e / to.kp, kk = e % to.kp;
    const int jx = kk / to.channels, channel = kk % to.channels;
    if (row >= to.np) return;
    const int w_out = f.adjoint ? channel : row, w_in = f.adjoint ? row : channel;
    float value = 0;
    for (int b = phase.lo; b < phase.hi; ++b)
      value += branch_tap(weights, scales, f, f.branches[b], w_out, w_in, y, origins.x[i] + jx * to.step_x,
                          jx < to.nx);
    packed[int64_t(row) * to.kp + kk] = from_float<T>(value);
  }
}

// folded [segments, c_out, c_low, taps], forward (k + 1) / 2 squared taps, adjoint (k + 1) squared. Grid:
// c_out, blocks of c_low x taps, segments. Sums of at most four weights, whose lines serve the whole warp.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    fold_low(const T* __restrict__ weight, T* __restrict__ folded_low, int c_low, int stride_out, int k,
             int cut_h, int cut_w, bool adjoint) {
  const int side = adjoint ? k + 1 : (k + 1) / 2, slots = side * side, segment = blockIdx.z;
  const int types_w = (adjoint ? 1 : 2) + cut_w;
  const int i = blockIdx.y * kThreads + threadIdx.x, u = i % slots, c = i / slots;
  if (c >= c_low) return;
  const Range ys = folded_taps(u / side, segment / types_w, k, cut_h, adjoint);
  const Range xs = folded_taps(u % side, segment % types_w, k, cut_w, adjoint);
  const T* from = weight + (int64_t(blockIdx.x) * stride_out + c) * (k * k);
  float total = 0;
  for (int y = ys.begin; y < ys.end; ++y)
    for (int x = xs.begin; x < xs.end; ++x) total += to_float(from[y * k + x]);
  folded_low[(int64_t(segment) * gridDim.x + blockIdx.x) * c_low * slots + i] = from_float<T>(total);
}

// A block of `finish`: kPairs (input channel, tap) pairs, as Triton's, since products are written for each.
constexpr int kPairs = 64, kOutputs = 16, kFinishThreads = 512;
constexpr int kPairPitch = kPairs + 2;  // neither direction has bank conflicts

// Named as the arguments of kernels/triton/weights.py.
struct Finish {
  const float* partial;
  float* products;
  int parts, stride_out, blocks_f;
  float unscale;
  int n_out, c_in, kh, kw, oy, ox, window_w, own, slots, cp, grad_pitch, row_channels, scale_row, has_scales,
      low, segments, cut_h, cut_w;
};

// Where tap (y, x) of channel c lies in a part's segment, without the output channel.
__device__ int partial_at(const Finish& a, int first_slot, int y, int x, int width, int c) {
  if (a.row_channels > 0) return (first_slot + y) * a.cp + x * a.row_channels + c;
  return (first_slot + y * width + x) * a.cp + c;
}

// Sum over the parts, in their order, at one place or two; many loads in flight.
__device__ void add_parts(const float* __restrict__ at, const float* __restrict__ other, int parts,
                          int64_t stride, float& total) {
  if (!other) {
#pragma unroll 8
    for (int part = 0; part < parts; ++part) total += at[part * stride];
    return;
  }
#pragma unroll 4
  for (int part = 0; part < parts; ++part) {
    total += at[part * stride];
    total += other[part * stride];
  }
}

__device__ float sum_partials(const Finish& a, int f, int o) {
  const int taps = a.kh * a.kw, c = f / taps, t = f % taps, y = t / a.kw, x = t % a.kw;
  const int64_t per_segment = int64_t(a.slots) * a.cp * a.grad_pitch;
  float total = 0;
  for (int segment = 0; segment < a.segments; ++segment) {
    const float* from = a.partial + segment * per_segment + o;
    const float* own = nullptr;
    int at;
    if (a.low) {
      const LowAxis ys = low_axis(segment / (2 + a.cut_w), a.kh, a.cut_h);
      const LowAxis xs = low_axis(segment % (2 + a.cut_w), a.kh, a.cut_w);
      if (y >= ys.end || x >= xs.end) continue;
      at = partial_at(a, 0, (y + ys.parity) / 2, (x + xs.parity) / 2, (a.kw + 1) / 2, c);
    } else {
      at = partial_at(a, 0, a.oy + y, a.ox + x, a.window_w, c);
      // an own row of taps is as wide as the window, own taps are those of the kernel
      if (a.own >= 0)
        own = from +
              int64_t(partial_at(a, a.own, y, a.row_channels > 0 ? a.ox + x : x, a.kw, c)) * a.grad_pitch;
    }
    add_parts(from + int64_t(at) * a.grad_pitch, own, a.parts, a.segments * per_segment, total);
  }
  return total * a.unscale;
}

// Gradient of one branch [c_out, c_in, kh, kw]: unscale times the sum of partial [parts, segments, slots, cp,
// grad_pitch], with scales times those; and the products <W, G> [blocks_f, c_out]. Grid: pairs, output
// channels. Partial sums have output channels together, gradients have pairs together: turned over in shared
// memory.
template <class T>
__global__ void __launch_bounds__(kFinishThreads, 1)
    finish(const Finish a, const T* __restrict__ weight, const T* __restrict__ scales, T* __restrict__ grad) {
  PCONV_SHARED(shared);
  float* tile = reinterpret_cast<float*>(shared);
  const int f0 = blockIdx.x * kPairs, o0 = blockIdx.y * kOutputs, pairs = a.c_in * a.kh * a.kw;
  const int column = threadIdx.x % kOutputs;
  for (int i = threadIdx.x / kOutputs; i < kPairs; i += kFinishThreads / kOutputs) {
    const bool ok = f0 + i < pairs && o0 + column < a.n_out;
    tile[column * kPairPitch + i] = ok ? sum_partials(a, f0 + i, o0 + column) : 0.0f;
  }
  __syncthreads();
  const int o = o0 + threadIdx.x / 32, lane = threadIdx.x % 32;  // a warp to an output channel
  if (o >= a.n_out) return;
  const int64_t at = int64_t(o) * (int64_t(a.stride_out) * a.kh * a.kw) + f0;
  const float scale = a.has_scales ? to_float(scales[a.scale_row * a.n_out + o]) : 1.0f;
  float product = 0;
  for (int i = lane; i < kPairs && f0 + i < pairs; i += 32) {
    const float total = tile[(o - o0) * kPairPitch + i];
    if (a.has_scales) product += to_float(weight[at + i]) * total;
    grad[at + i] = from_float<T>(a.has_scales ? total * scale : total);
  }
  if (!a.has_scales) return;
  for (int bits = 16; bits > 0; bits /= 2) product += __shfl_xor_sync(~0u, product, bits);
  if (lane == 0) a.products[int64_t(a.scale_row * a.blocks_f + int(blockIdx.x)) * a.n_out + o] = product;
}

}  // namespace
}  // namespace pconv

using namespace pconv;

PCONV_ENTRY(fold_bias) {
  args.grid();
  const Untyped biases = args.untyped("biases"), scales = args.untyped("scales");
  float* total = args.tensor<float>("total");
  int n_out, branches, block;
  args.integers({{"NOUT", &n_out}, {"N_BRANCHES", &branches}, {"BLOCK", &block}});
  if (!args.complete()) return kInvalidValue;
  with_float(biases.element, [&](auto zero) {
    using T = decltype(zero);
    PCONV_LAUNCH(fold_bias<T>, dim3(ceil_div(n_out, kThreads)), kThreads, 0, stream, as<const T>(biases),
                 as<const T>(scales), total, n_out, branches);
  });
  return pconv_launched();
}

PCONV_ENTRY(pack_taps) {
  const dim3 grid = args.grid();
  const Untyped weights = args.untyped("weights"), scales = args.untyped("scales");
  const Untyped packed = args.untyped("packed");
  Folding f;
  read_folding(args, f);
  int slots, np, kp, block_t, block_k;
  args.integers({{"SLOTS", &slots}, {"NP", &np}, {"KP", &kp}, {"ADJOINT", &f.adjoint}});
  args.integers({{"HAS_SCALES", &f.has_scales}, {"BT", &block_t}, {"BK", &block_k}});
  if (!args.complete()) return kInvalidValue;
  int taps = 0;
  for (int i = 0; i < f.n_phases; ++i) taps = std::max(taps, f.phases[i].kh * f.phases[i].kw);
  const dim3 blocks(ceil_div(np, 1 << log_rows(taps)), ceil_div(kp, kColumns), grid.z);
  with_float(weights.element, [&](auto zero) {
    using T = decltype(zero);
    PCONV_LAUNCH(pack_taps<T>, blocks, kThreads, kTileFloats * sizeof(float), stream, as<const T>(weights),
                 as<const T>(scales), as<T>(packed), f, slots, np, kp);
  });
  return pconv_launched();
}

PCONV_ENTRY(pack_rows) {
  const dim3 grid = args.grid();
  const Untyped weights = args.untyped("weights"), scales = args.untyped("scales");
  const Untyped packed = args.untyped("packed");
  Folding f;
  read_folding(args, f);
  const std::vector<int> first_y = args.tuple("FIRST_Y"), first_x = args.tuple("FIRST_X");
  RowLayout to;
  args.integers({{"STEP_Y", &to.step_y}, {"STEP_X", &to.step_x}, {"NY", &to.ny}, {"NX", &to.nx}});
  args.integers({{"ROW_CHANNELS", &to.channels}, {"NP", &to.np}, {"KP", &to.kp}, {"ADJOINT", &f.adjoint}});
  args.integers({{"HAS_SCALES", &f.has_scales}, {"BR", &to.block_rows}});
  if (!args.complete() || first_y.empty() || first_x.empty()) return kInvalidValue;
  const int per_segment = to.ny * f.n_phases, segments = grid.y / per_segment, wide = first_x.size();
  for (int s0 = 0; s0 < segments; s0 += Origins::kMost) {
    const int n = std::min(segments - s0, Origins::kMost);
    Origins origins;
    for (int i = 0; i < n; ++i) {  // segments that are no residues have the taps of the first
      const size_t row = (s0 + i) / wide;
      origins.y[i] = first_y[row < first_y.size() ? row : 0], origins.x[i] = first_x[(s0 + i) % wide];
    }
    with_float(weights.element, [&](auto zero) {
      using T = decltype(zero);
      PCONV_LAUNCH(pack_rows<T>, dim3(grid.x, n * per_segment), kThreads, 0, stream, as<const T>(weights),
                   as<const T>(scales), as<T>(packed), f, to, origins, s0);
    });
  }
  return pconv_launched();
}

PCONV_ENTRY(fold_low) {
  const dim3 grid = args.grid();
  const Untyped weight = args.untyped("weight"), folded_low = args.untyped("folded_low");
  int c_low, stride_out, k, cut_h, cut_w, adjoint, slots, block_c, block_t;
  args.integers({{"C_LOW", &c_low}, {"stride_out", &stride_out}, {"K", &k}, {"CUT_H", &cut_h}});
  args.integers({{"CUT_W", &cut_w}, {"ADJOINT", &adjoint}, {"SLOTS", &slots}, {"BC", &block_c}});
  args.integers({{"BT", &block_t}});
  if (!args.complete()) return kInvalidValue;
  const dim3 blocks(grid.x, ceil_div(c_low * slots, kThreads), grid.z);
  with_float(weight.element, [&](auto zero) {
    using T = decltype(zero);
    PCONV_LAUNCH(fold_low<T>, blocks, kThreads, 0, stream, as<const T>(weight), as<T>(folded_low), c_low,
                 stride_out, k, cut_h, cut_w, adjoint != 0);
  });
  return pconv_launched();
}

PCONV_ENTRY(finish) {
  const dim3 grid = args.grid();
  Finish a;
  a.partial = args.tensor<float>("partial");
  const Untyped weight = args.untyped("weight"), scales = args.untyped("scales");
  const Untyped grad = args.untyped("grad");
  a.products = args.tensor<float>("scale_grad");
  args.integers({{"splits", &a.parts}, {"stride_out", &a.stride_out}, {"blocks_f", &a.blocks_f}});
  a.unscale = args.real("unscale");
  int block_o, block_f;
  args.integers({{"NOUT", &a.n_out}, {"CIN", &a.c_in}, {"KH", &a.kh}, {"KW", &a.kw}, {"OY", &a.oy}});
  args.integers({{"OX", &a.ox}, {"WINDOW_W", &a.window_w}, {"OWN", &a.own}, {"SLOTS", &a.slots}});
  args.integers({{"CP", &a.cp}, {"GRAD_PITCH", &a.grad_pitch}, {"ROW_CHANNELS", &a.row_channels}});
  args.integers({{"SCALE_ROW", &a.scale_row}, {"HAS_SCALES", &a.has_scales}, {"LOW", &a.low}});
  args.integers({{"SEGMENTS", &a.segments}, {"CUT_H", &a.cut_h}, {"CUT_W", &a.cut_w}});
  args.integers({{"BO", &block_o}, {"BF", &block_f}});
  if (!args.complete() || block_f != kPairs) return kInvalidValue;
  with_float(grad.element, [&](auto zero) {
    using T = decltype(zero);
    PCONV_LAUNCH(finish<T>, dim3(grid.x, ceil_div(a.n_out, kOutputs)), kFinishThreads,
                 kOutputs * kPairPitch * sizeof(float), stream, a, as<const T>(weight), as<const T>(scales),
                 as<T>(grad));
  });
  return pconv_launched();
}
