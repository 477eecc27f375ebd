// Gradients with at most four output channels, of partial_conv2d and, one source after the other, of
// upcat_partial_conv2d, in one pass over the source's pixels q:
//
//   s(p)        = r(p) g(p) at live output pixels, 0 at dead ones (g may be NaN there)
//   B(q)[t, o]  = sum over q's copies u at the output's resolution of s(u - t + padding)[o]
//   dW[o, c, t] = sum over valid q of x(q)[c] B(q)[t, o]
//   dx(q)[c]    = sum over t and o of W[o, c, t] B(q)[t, o] at valid q, 0 at holes
//
// Without up-sampling q is its only copy; an odd size cuts the second copies of the last ones off. x is read
// once and dx written once. Blocks stay on their multiprocessor and take tile after tile, so that the sums of
// dW live in registers; x of the next tile is copied while the current one is multiplied. A warp has 16
// pixels of a row at a time, and makes their B in its own part of the shared memory.
#include "few_outputs_gradients_products.h"

namespace pconv::few_gradients {
namespace {

template <class P, bool NARROW>
class Block {
  using L = Layout<P, NARROW>;
  using E = typename L::E;
  static constexpr int kItem = L::kItem, kGroups = L::kGroups;

 public:
  static constexpr int kBlocks = NARROW ? 3 : 2;  // of a multiprocessor, so that none spills

  __device__ Block(const Problem& p, char* shared)
      : p_(p),
        shared_(shared),
        first_(int(blockIdx.y) * L::kChannels),
        feed_(p, shared, first_),
        columns_(shared + L::kColumnsAt + thread() / 32 * (16 * L::kPitchColumns)) {}

  __device__ void run() {
    int tile = int(blockIdx.x), buffer = 0;
    for (int i = thread() % 32 * 4; i < 16 * L::kPitchColumns; i += 128)
      *reinterpret_cast<uint32_t*>(columns_ + i) = 0;  // the columns that no (tap, channel) has
    if (p_.needs_x) load_weights();
    if (tile < p_.tiles) feed_.load_words(0, feed_.corner(tile));
    __syncthreads();
    if (tile < p_.tiles) request(0, feed_.corner(tile));
    for (; tile < p_.tiles; buffer ^= 1) {
      const Corner at = feed_.corner(tile);
      const int ahead = tile + int(gridDim.x);
      __syncthreads();  // all are done with the last tile
      load(buffer, at, ahead);
      wait_for_copies<0>();
      __syncthreads();
      if (ahead < p_.tiles) request(buffer ^ 1, feed_.corner(ahead));
      for (int r = 0; r < p_.rows; ++r) multiply_row(buffer, at, thread() / 32 * p_.rows + r);
      tile = ahead;
    }
    write_sums();
    if (p_.needs_weights) write_weights();
  }

 private:
  // Validity of the next tile, and what the current one needs: the loads of the gradient are under way first.
  __device__ __forceinline__ void load(int buffer, Corner at, int ahead) {
    E raw[kAtOnce][kMostOutputs];
    feed_.load_gradient(raw, at);
    if (ahead < p_.tiles) feed_.load_words(buffer ^ 1, feed_.corner(ahead));
    if (p_.needs_weights && !p_.x_unit) feed_.gather_x(buffer, at);
    feed_.scale_gradient(raw, sums_, buffer, at);
  }
  // Begins what can be copied in the background.
  __device__ void request(int buffer, Corner at) {
    if (p_.needs_weights && p_.x_unit) feed_.copy_x(buffer, at);
    commit_copies();
  }

  // The weights of the block's channels, [channel][(tap, output channel)], zeros where there are none.
  __device__ void load_weights() {
    const E* weight = reinterpret_cast<const E*>(p_.weight);
    for (int i = thread(); i < L::kChannels * kColumns; i += kThreads) {
      const int c = i / kColumns, n = i % kColumns, t = n / p_.n_out, o = n - t * p_.n_out;
      const bool exists = c < feed_.channels() && t < p_.taps();
      const int64_t from = o * p_.weight_stride + (first_ + c) * int64_t(p_.taps()) + t;
      put(shared_ + L::kWeights + c * L::kPitchWeights, n, exists ? to_float(weight[from]) : 0.f);
    }
  }

  // Stores an operand.
  __device__ __forceinline__ static void put(char* row, int i, float v) {
    if constexpr (kItem == 4) {
      reinterpret_cast<uint32_t*>(row)[i] = std::is_same<P, float>::value ? bits_of(v) : to_tf32(bits_of(v));
    } else {
      reinterpret_cast<P*>(row)[i] = from_float<P>(v);
    }
  }

  // All that row `y` of the tile contributes and gets.
  __device__ __forceinline__ void multiply_row(int buffer, Corner at, int y) {
    if (at.y + y >= p_.h) return;
    char* x = feed_.x(buffer) + y * (kTile * L::kPitchX);
    if (p_.n_out == 3 && p_.kh == 3 && p_.kw == 3) {  // known to the compiler
      make_columns<3, 3>(buffer, at, y);
    } else {
      make_columns<0, 0>(buffer, at, y);
    }
    __syncwarp();
    if (p_.needs_weights) {
      Products<L, P>::weights(acc_, x, columns_, feed_.channels());
      __syncwarp();
    }
    if (p_.needs_x) {
      multiply_features(x);
      __syncwarp();
      write_features(x, buffer, at, y);
    }
    __syncwarp();  // the warp has read its columns
  }

  // B of the warp's pixels: each lane every other tap of one of them.
  template <int OUT, int SIDE>
  __device__ __forceinline__ void make_columns(int buffer, Corner at, int y) {
    const int x = thread() % 16, half = thread() / 16 % 2;
    const int kw = SIDE ? SIDE : p_.kw, taps = SIDE ? SIDE * SIDE : p_.taps(), n_out = OUT ? OUT : p_.n_out;
    const bool valid = feed_.valid(buffer, y, x);
    const bool second_row = valid && p_.up && ((at.y + y) << 1) + 1 < p_.H;
    const bool second_column = valid && p_.up && ((at.x + x) << 1) + 1 < p_.W;
    const int row = (y << p_.up) + p_.kh - 1, column = (x << p_.up) + kw - 1;
    char* to = columns_ + x * L::kPitchColumns;
#pragma unroll(SIDE ? (SIDE * SIDE + 1) / 2 : 1)
    for (int i = 0; i < (taps + 1) / 2; ++i) {
      const int t = 2 * i + half, ky = t / kw, kx = t - ky * kw;
      if (t >= taps) break;
      float sum[kMostOutputs] = {};
      const Four* from = feed_.scaled() + (row - ky) * p_.pitch;
      const int first = feed_.place(column - kx), second = feed_.place(column - kx + 1);
      if (valid) add<OUT>(sum, from[first]);
      if (second_column) add<OUT>(sum, from[second]);
      if (second_row) add<OUT>(sum, from[p_.pitch + first]);
      if (second_row && second_column) add<OUT>(sum, from[p_.pitch + second]);
#pragma unroll
      for (int o = 0; o < (OUT ? OUT : kMostOutputs); ++o)
        if (o < n_out) put(to, t * n_out + o, sum[o]);
    }
  }
  template <int OUT>
  __device__ __forceinline__ static void add(float (&sum)[kMostOutputs], const Four& s) {
#pragma unroll
    for (int o = 0; o < (OUT ? OUT : kMostOutputs); ++o) sum[o] += s.v[o];
  }

  // dx = B W in the place of the pixels of x, 16 channels at a time.
  __device__ __forceinline__ void multiply_features(char* x) {
    const int g = thread() % 32 / 4, q = thread() % 4;
#pragma unroll 1
    for (int i = 0; i < kGroups; ++i) {
      if (i * 16 >= feed_.channels()) break;
      float c[2][4] = {};
      Products<L, P>::features(c, columns_, shared_ + L::kWeights + i * 16 * L::kPitchWeights);
#pragma unroll
      for (int j = 0; j < 4; ++j) {  // n8 tile j % 2, pixels g + j / 2 * 8
        E* to = reinterpret_cast<E*>(x + (g + j / 2 * 8) * L::kPitchX) + i * 16 + j % 2 * 8 + 2 * q;
        const float* v = c[j % 2] + j / 2 * 2;
        *reinterpret_cast<Pair<E>*>(to) = {from_float<E>(v[0] * p_.unscale),
                                           from_float<E>(v[1] * p_.unscale)};
      }
    }
  }
  // dx of the warp's pixels: in 16-byte pieces where its rows allow it.
  __device__ __forceinline__ void write_features(const char* from, int buffer, Corner at, int y) {
    const int lane = thread() % 32, n = feed_.channels();
    E* to = reinterpret_cast<E*>(p_.dx.data) + at.n * p_.dx.n + (at.y + y) * p_.dx.h + at.x * p_.dx.w +
            first_ * p_.dx.c;
    const int columns = p_.w - at.x;  // that exist
    if (p_.dx_unit) {
      constexpr int kEach = 16 / kItem, kPieces = L::kChannels / kEach;
      const int piece = lane % kPieces * kEach;
#pragma unroll
      for (int x = lane / kPieces; x < 16; x += 32 / kPieces) {
        if (x >= columns || piece >= n) continue;
        Four v{};
        if (feed_.valid(buffer, y, x))
          v = *reinterpret_cast<const Four*>(from + x * L::kPitchX + piece * kItem);
        *reinterpret_cast<Four*>(to + x * p_.dx.w + piece) = v;
      }
      return;
    }
#pragma unroll 1
    for (int i = lane; i < 16 * L::kChannels; i += 32) {
      const int x = i / L::kChannels, c = i % L::kChannels;
      if (x >= columns || c >= n) continue;
      to[x * p_.dx.w + c * p_.dx.c] =
          feed_.valid(buffer, y, x) ? reinterpret_cast<const E*>(from + x * L::kPitchX)[c] : from_float<E>(0);
    }
  }

  __device__ float* partial() const { return p_.partial + int64_t(blockIdx.x) * p_.part_stride; }

  // The sums of the gradient over the block's live pixels, in a fixed order.
  __device__ void write_sums() {
    float* totals = reinterpret_cast<float*>(shared_ + L::kScaled);  // [warp][output channel]
    __syncthreads();                                                 // all are done with the last tile
#pragma unroll
    for (int o = 0; o < kMostOutputs; ++o) {
      float sum = sums_[o];
      for (int bits = 16; bits > 0; bits /= 2) sum += __shfl_xor_sync(~0u, sum, bits);
      if (threadIdx.x % 32 == 0) totals[thread() / 32 * kMostOutputs + o] = sum;
    }
    __syncthreads();
    if (blockIdx.y || threadIdx.x >= kMostOutputs) return;
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += totals[w * kMostOutputs + threadIdx.x];
    partial()[p_.part_stride - kMostOutputs + threadIdx.x] = sum;
  }

  // Adds up the warps' sums, half of the warps to the other half each time; the first writes them.
  __device__ void write_weights() {
    float* const reduced = reinterpret_cast<float*>(shared_ + L::kX);
    const int warp = thread() / 32, lane = thread() % 32;
#pragma unroll 1
    for (int left = kWarps / 2; left > 0; left /= 2) {
      float* slot = reduced + warp % left * (kGroups * 16 * kColumns) + lane;
      if (warp >= left && warp < 2 * left) visit([&](float& c, int i) { slot[i * 32] = c; });
      __syncthreads();
      if (warp < left) visit([&](float& c, int i) { c += slot[i * 32]; });
      __syncthreads();
    }
    if (warp) return;
    const int g = lane / 4, q = lane % 4;
    visit([&](float& v, int i) {
      const int e = i % 4, c = i / 16 * 16 + e / 2 * 8 + g, n = i / 4 % 4 * 8 + 2 * q + e % 2;
      const int t = n / p_.n_out, o = n - t * p_.n_out;
      if (c < feed_.channels() && t < p_.taps())
        partial()[(t * int64_t(p_.channels) + first_ + c) * kMostOutputs + o] = v;
    });
  }
  // f(c, i) of the thread's sums.
  template <class F>
  __device__ __forceinline__ void visit(F f) {
#pragma unroll
    for (int i = 0; i < kGroups; ++i)
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) f(acc_[i][j][e], (i * 4 + j) * 4 + e);
  }

  const Problem& p_;
  char* shared_;
  int first_;  // channel
  Feed<P, NARROW> feed_;
  char* columns_;  // B of the warp's pixels, kColumns of each
  float acc_[kGroups][4][4] = {};
  float sums_[kMostOutputs] = {};
};

template <class P, bool NARROW>
__global__ void __launch_bounds__(kThreads, Block<P, NARROW>::kBlocks)
    few_outputs_gradients_matmul(const __grid_constant__ Problem p) {
  PCONV_SHARED(shared);
  Block<P, NARROW>(p, shared).run();
}

template <class P, bool NARROW>
int launch(const Problem& p, dim3 grid, void* stream) {
  using L = Layout<P, NARROW>;
  const auto kernel = few_outputs_gradients_matmul<P, NARROW>;
  const int bytes = L::bytes(p);
  if (bytes > kSharedBytes) return kInvalidValue;
  allow_shared(kernel);
  const dim3 blocks(grid.x, (p.channels + L::kChannels - 1) / L::kChannels);
  PCONV_LAUNCH(kernel, blocks, dim3(kThreads), bytes, stream, p);
  return pconv_launched();
}

template <class P>
int launch(const Problem& p, dim3 grid, void* stream) {
  return p.channels <= kFewChannels ? launch<P, true>(p, grid, stream) : launch<P, false>(p, grid, stream);
}

// The widest copy that all pixels of a channels-last map allow; 0 if it is none, or below `least`.
int unit_of(const Map& map, int item, int least) {
  if (map.c != 1) return 0;
  const uint64_t all = reinterpret_cast<uintptr_t>(map.data) | uint64_t(map.n * item) |
                       uint64_t(map.h * item) | uint64_t(map.w * item);
  int unit = 16;
  while (all % unit) unit /= 2;
  return unit >= least ? unit : 0;
}

}  // namespace
}  // namespace pconv::few_gradients

PCONV_PLAN(few_outputs_gradients) {
  using namespace pconv;
  using namespace pconv::few_gradients;
  Problem p{};
  const int item = args.integer("ITEM");
  read_problem(args, p);
  const int processors = args.integer("PROCESSORS");
  if (!args.complete()) return;
  if (!fits(args, p, item)) return answer.put("fits", 0);
  const bool few = p.channels <= kFewChannels;
  const int blocks = most(1, least(p.tiles, (few ? 3 : 2) * processors));
  const int64_t weights = p.needs_weights ? int64_t(p.taps()) * p.channels * kMostOutputs : 0;
  answer.put("fits", 1);
  answer.put("grid", {blocks});
  answer.put("scratch", blocks * (weights + kMostOutputs));
  answer.put("channels", kMostOutputs);  // of the partial sums
  answer.put("any_layout", few);         // others are read fast in channels-last storage alone
}

PCONV_ENTRY(few_outputs_gradients) {
  using namespace pconv;
  using namespace pconv::few_gradients;
  const dim3 grid = args.grid();
  Problem p{};
  const Untyped x = args.untyped("x"), masks[2] = {args.untyped("mask0"), args.untyped("mask1")};
  const Untyped grad = args.untyped("grad");
  p.weight = args.tensor<const char>("weight");
  const Untyped dx = args.untyped("dx");
  p.partial = args.tensor<float>("partial");
  p.x = {static_cast<char*>(x.data), args.wide("x_n"), args.wide("x_c"), args.wide("x_h"), args.wide("x_w")};
  p.grad = {static_cast<char*>(grad.data), args.wide("grad_n"), args.wide("grad_c"), args.wide("grad_h"),
            args.wide("grad_w")};
  p.dx = {static_cast<char*>(dx.data), args.wide("dx_n"), args.wide("dx_c"), args.wide("dx_h"),
          args.wide("dx_w")};
  read_strides(args, p.layers[0].mask, "mask0_n", "mask0_h", "mask0_w");
  read_strides(args, p.layers[1].mask, "mask1_n", "mask1_h", "mask1_w");
  p.weight_stride = args.wide("weight_stride"), p.part_stride = args.wide("part_stride");
  p.window = args.real("window"), p.unscale = args.real("unscale");
  read_problem(args, p);
  int kinds[2];
  args.integers({{"LAST_H", &p.H}, {"LAST_W", &p.W}, {"HO", &p.ho}, {"WO", &p.wo}, {"TOP", &p.top}});
  args.integers({{"LEFT", &p.left}, {"SOURCES", &p.n_layers}, {"SOURCE", &p.source}});
  args.integers({{"COUNTED0", &p.layers[0].channels}, {"COUNTED1", &p.layers[1].channels}});
  args.integers({{"MASK0", &kinds[0]}, {"MASK1", &kinds[1]}, {"NEEDS_X", &p.needs_x}});
  const int precision = args.precision("PRECISION"), item = bytes_of(x.element);
  if (!fits(args, p, item)) return kInvalidValue;
  p.scale = 1 / p.unscale;
  p.layers[0].up = p.n_layers > 1;
  for (int i = 0; i < 2; ++i) p.layers[i].mask = plane(masks[i], kinds[i], p.H, p.W, p.layers[i].mask);
  p.x_unit = unit_of(p.x, item, 4), p.dx_unit = unit_of(p.dx, item, 16);
  if (p.channels * item % 16) p.dx_unit = 0;
  p.buffers = p.x_unit && p.needs_weights ? 2 : 1;
  if (x.element == kFloat16) return launch<Half>(p, grid, stream);
  if (x.element == kBFloat16) return launch<BFloat16>(p, grid, stream);
  if (precision == kIeee) return launch<float>(p, grid, stream);
  return launch<Tf32>(p, grid, stream);
}
