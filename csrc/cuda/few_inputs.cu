// Forward of partial_conv2d and msfef over at most eight channels, from the image to the features in one
// launch: out = live * (sum over kernels k of ratio_k <V_k, select(valid, x, 0)> + bias), and the new mask.
//
// A block keeps the weights of its output channels in shared memory, as pack_rows lays them out, and walks
// over tiles of 16 columns of output pixels. Of each it loads the input below, holes as zeros, as pixels of
// `row_channels` elements: so a row of taps is contiguous and one K step, without a copy for every pixel, and
// bits that say which of it is valid. A warp owns two rows of 16 pixels. Where all of them that live see no
// hole it multiplies by the kernels' sum, else by one kernel after the other, with acc *= ratio_k /
// ratio_(k + 1) in between.
#include "few_inputs_feed.h"
#include <algorithm>

namespace pconv {
namespace {

constexpr int kMostThreads = 512;

template <class P, int NI>
class Block {
  static constexpr int kItem = int(sizeof(P)), kChannels = NI * 8, kOutRow = out_row(kChannels, kItem);
  static constexpr bool kExact = std::is_same<P, float>::value;

 public:
  __device__ Block(const Problem& p, char* shared)
      : p_(p), shared_(shared), lane_(int(threadIdx.x) % 32), warp_(int(threadIdx.x) / 32) {}

  __device__ void run() {
    load_weights(p_, shared_, kChannels, int(blockIdx.y) * kChannels);
    for (int tile = int(blockIdx.x); tile < p_.tiles; tile += int(gridDim.x)) {
      const int t = p_.by_tiles_x(tile), n = p_.by_tiles_y(t);
      const int y = (t - n * p_.tiles_y) * int(blockDim.x / kColumns), x = (tile - t * p_.tiles_x) * kColumns;
      __syncthreads();  // all have left the last tile
      load_input<P>(p_, shared_, n, y * p_.sh - p_.top, x * p_.sw - p_.left);
      wait_for_copies<0>();  // of the weights
      __syncthreads();
      compute(n, y + warp_ * kRowsOfWarp, x);
    }
  }

 private:
  // The warp's pixels, from (y, x) of image n on. Each lane looks after one of them.
  __device__ void compute(int n, int y, int x) {
    if (y >= p_.HO) return;
    const int py = y + lane_ / kColumns, px = x + lane_ % kColumns;
    const bool inside = py < p_.HO && px < p_.WO;
    const bool live = inside && count(p_.phases[0]) > 0;
    const bool whole = count(p_.plain()) == p_.plain().kh * p_.plain().kw;
    if (inside && blockIdx.y == 0) p_.new_mask.set((n * p_.HO + py) * p_.WO + px, live);
    const uint32_t alive = __ballot_sync(kAll, live), mixed = __ballot_sync(kAll, live && !whole);
#pragma unroll
    for (int i = 0; i < kRowsOfWarp * NI * 4; ++i) acc_[i / (NI * 4)][i / 4 % NI][i % 4] = 0;
    if (alive) accumulate(mixed != 0, live);
    write(alive, n, y, x);
  }

  // Valid entries of the window of the lane's pixel.
  __device__ int count(const Pass& w) const {
    const int y = (warp_ * kRowsOfWarp + lane_ / kColumns) * p_.sh, x = lane_ % kColumns * p_.sw;
    return count_window(p_, shared_, (y + w.oy) * p_.columns + x + w.ox, w.kh, w.kw);
  }
  __device__ float ratio(const Pass& w) const { return ratio_of(float(w.kh * w.kw), count(w)); }

  __device__ void accumulate(bool mixed, bool live) {
    const int last = mixed ? p_.n_kernels - 1 : p_.n_phases - 1;
    float own = mixed ? ratio(p_.phases[0]) : 1.f;
#pragma unroll 1
    for (int k = mixed ? 0 : last; k <= last; ++k) {
      multiply_pass(p_.phases[k]);
      if (!mixed) return;
      float factor = own;
      if (k < last) {
        own = ratio(p_.phases[k + 1]);
        factor /= own;  // of a live pixel that is positive
      }
      scale(live ? factor : 0.f);
    }
  }
  // Each pixel's sums times the factor of its lane.
  __device__ void scale(float factor) {
#pragma unroll
    for (int i = 0; i < kRowsOfWarp * 2; ++i) {
      const float f = __shfl_sync(kAll, factor, i * 8 + lane_ / 4);
#pragma unroll
      for (int n = 0; n < NI; ++n) acc_[i / 2][n][i % 2 * 2] *= f, acc_[i / 2][n][i % 2 * 2 + 1] *= f;
    }
  }

  __device__ __forceinline__ void multiply_pass(const Pass& pass) {
    const int first = warp_ * kRowsOfWarp * p_.sh + pass.oy, g = lane_ / 4;
    const char* a = shared_ + p_.at.input + first * p_.pitch + g * p_.sw * p_.pixel_bytes;
    const char* b = shared_ + pass.first * kChannels * p_.row_bytes;
#pragma unroll 1
    for (int i = 0; i < pass.kh; ++i) {
      if constexpr (kExact) {
        for (int piece = pass.word / 4; piece < (pass.word + pass.words) / 4; ++piece)
          multiply_exact(a, b, piece);
      } else {
        for (int slice = pass.word / 8; slice * 8 < pass.word + pass.words; ++slice)
          multiply_slice(a, b, slice, pass);
      }
      a += p_.pitch, b += kChannels * p_.row_bytes;
    }
  }

  // Eight words of a row of taps. Words of pixels beyond the kernel are not used: their weights are zero, but
  // they may be NaN.
  __device__ __forceinline__ void multiply_slice(const char* a, const char* b, int slice, const Pass& pass) {
    const int word = slice * 8 + lane_ % 4 - pass.word;
    const bool used[] = {unsigned(word) < unsigned(pass.words), unsigned(word + 4) < unsigned(pass.words)};
    uint32_t fa[kRowsOfWarp][4], fb[NI / 2][4];
    a += slice * 32 + lane_ % 4 * 4;
#pragma unroll
    for (int i = 0; i < kRowsOfWarp * 4; ++i) {
      const char* from = i % 2 ? right_of(a) : a;
      const uint32_t value = *reinterpret_cast<const uint32_t*>(from + i / 2 % 2 * 16);
      fa[i / 4][i % 4] = used[i / 2 % 2] ? value : 0;
      if (i % 4 == 3) a = below(a);
    }
    b += swizzled(lane_ / 16 * 8 + lane_ % 8, slice * 2 + lane_ / 8 % 2, p_.row_bytes);
#pragma unroll
    for (int n = 0; n < NI / 2; ++n) {
      load_matrices(fb[n], b);
      b += 16 * p_.row_bytes;
    }
    if constexpr (kItem == 4) {  // the input has been rounded already
#pragma unroll
      for (int i = 0; i < NI * 2; ++i) fb[i / 4][i % 4] = to_tf32(fb[i / 4][i % 4]);
    }
#pragma unroll
    for (int i = 0; i < kRowsOfWarp * NI; ++i) {
      const int m = i / NI, n = i % NI;
      multiply<P>(acc_[m][n], fa[m], {fb[n / 2][n % 2 * 2], fb[n / 2][n % 2 * 2 + 1]});
    }
  }
  // The input of the eighth pixel to the right, and of the pixel below.
  __device__ __forceinline__ const char* right_of(const char* a) const {
    return a + 8 * p_.sw * p_.pixel_bytes;
  }
  __device__ __forceinline__ const char* below(const char* a) const { return a + p_.sh * p_.pitch; }

  // Four words of a row of taps in float32, with each thread's sums where multiply has them.
  struct alignas(16) Four {
    float v[4];
  };
  __device__ __forceinline__ void multiply_exact(const char* a, const char* b, int piece) {
    Four fa[kRowsOfWarp][2];
#pragma unroll
    for (int i = 0; i < kRowsOfWarp * 2; ++i) {
      fa[i / 2][i % 2] = *reinterpret_cast<const Four*>((i % 2 ? right_of(a) : a) + piece * 16);
      if (i % 2) a = below(a);
    }
#pragma unroll
    for (int j = 0; j < NI * 2; ++j) {
      const int n = j / 2 * 8 + lane_ % 4 * 2 + j % 2;
      const Four fb = *reinterpret_cast<const Four*>(b + swizzled(n, piece, p_.row_bytes));
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int i = 0; i < kRowsOfWarp * 2; ++i) {
          float& c = acc_[i / 2][j / 2][i % 2 * 2 + j % 2];
          c = fmaf(fa[i / 2][i % 2].v[k], fb.v[k], c);
        }
    }
  }

  // out = sums + bias of live pixels, 0 of dead ones: eight pixels at a time through shared memory, so that
  // their rows are written whole.
  struct alignas(8) Two {
    float v[2];
  };
  __device__ void write(uint32_t alive, int n, int y, int x) {
    char* staged = shared_ + p_.at.staged + warp_ * kStagedRows * kOutRow;
    const Two* bias = reinterpret_cast<const Two*>(shared_ + p_.at.bias) + lane_ % 4;
    Two add[NI];
#pragma unroll
    for (int k = 0; k < NI; ++k) add[k] = bias[k * 4];
#pragma unroll
    for (int i = 0; i < kRowsOfWarp * 2; ++i) {
#pragma unroll
      for (int k = 0; k < NI; ++k) {
        const float* sums = &acc_[i / 2][k][i % 2 * 2];
        put(staged + lane_ / 4 * kOutRow + (k * 8 + lane_ % 4 * 2) * kItem,
            {{sums[0] + add[k].v[0], sums[1] + add[k].v[1]}});
      }
      __syncwarp();
      const int64_t first = int64_t((n * p_.HO + y + i / 2) * p_.WO + x + i % 2 * 8) * p_.n_out;
      const int count = y + i / 2 < p_.HO ? least(p_.WO - x - i % 2 * 8, 8) : 0;
      if (p_.wide_stores) {
        write_rows<uint32_t, 4>(staged, alive >> (i * 8), first, count);
      } else {
        write_rows<typename Channels<P>::Bits, 1>(staged, alive >> (i * 8), first, count);
      }
      __syncwarp();
    }
  }
  __device__ static void put(char* to, Two pair) {
    if constexpr (kItem == 4) {
      *reinterpret_cast<Two*>(to) = pair;
    } else {
      const P low = from_float<P>(pair.v[0]), high = from_float<P>(pair.v[1]);
      *reinterpret_cast<uint32_t*>(to) = low.bits | uint32_t(high.bits) << 16;
    }
  }
  // Pieces of COUNT words of type W, of `count` pixels whose first channel is element `first` of out.
  template <class W, int COUNT>
  __device__ void write_rows(const char* staged, uint32_t alive, int64_t first, int count) {
    constexpr int kBytes = int(sizeof(W)) * COUNT, kPieces = kChannels * kItem / kBytes;
    struct alignas(kBytes) Piece {
      W word[COUNT];
    };
#pragma unroll 1
    for (int i = lane_; i < count * kPieces; i += 32) {
      const int row = i / kPieces, begin = i % kPieces * kBytes,
                n = int(blockIdx.y) * kChannels + begin / kItem;
      if (n >= p_.n_out) continue;
      Piece piece = *reinterpret_cast<const Piece*>(staged + row * kOutRow + begin);
#pragma unroll
      for (W& word : piece.word) word = alive >> row & 1 ? word : W(0);
      *reinterpret_cast<Piece*>(p_.out + (first + row * p_.n_out + n) * kItem) = piece;
    }
  }

  const Problem& p_;
  char* shared_;
  int lane_, warp_;
  float acc_[kRowsOfWarp][NI][4];
};

// Grid: any number of blocks that share the tiles, blocks of output channels.
template <class P, int NI>
__global__ void __launch_bounds__(kMostThreads, 1) few_inputs(const __grid_constant__ Problem p) {
  PCONV_SHARED(shared);
  Block<P, NI>(p, shared).run();
}

// Multiprocessors of the current device and the shared memory of each.
struct Device {
  int processors = 2, shared = 0;
  Device() {
#ifdef PCONV_EMULATE
    shared = emulation::most_shared + 1024;
#else
    int device = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
#endif
  }
};

Layout layout(const Problem& p, int channels, int item, int threads) {
  Layout at;
  at.rows = (threads / kColumns - 1) * p.sh + p.plain().kh;
  at.bias = p.weight_rows * channels * p.row_bytes;
  at.staged = at.bias + channels * int(sizeof(float));
  at.input = at.staged + threads / 32 * kStagedRows * out_row(channels, item);
  at.words = at.input + at.rows * p.pitch;
  at.bytes = at.words + (at.rows * p.columns / 32 + 2) * int(sizeof(uint32_t));
  return at;
}

struct Choice {
  int channels, threads, blocks;  // of a block, of a block, on a multiprocessor
};

// As many channels to a block as 512 threads on a multiprocessor leave room for: that many hide the latency
// of shared memory, and two blocks of 256 each other's loads of a tile. Fewer threads where nothing else
// fits.
Choice choose(const Problem& p, int item, const Device& device) {
  const int allowed = int(most_shared());
  int most = item == 2 ? 64 : 32;
  while (most > 16 && most / 2 >= p.n_out) most /= 2;
  for (int want = kMostThreads; want >= 128; want /= 2)
    for (int channels = most; channels >= 16; channels /= 2)
      for (int threads = want > 256 ? 256 : want; threads <= want; threads *= 2) {
        const int bytes = layout(p, channels, item, threads).bytes;
        const int room = device.shared / (bytes + 1024);  // the system's share of each block
        if (bytes <= allowed && room * threads >= want) return {channels, threads, want / threads};
      }
  return {};
}

template <class P, int NI>
int launch_channels(const Problem& p, dim3 grid, int threads, void* stream) {
  const auto kernel = few_inputs<P, NI>;
  allow_shared(kernel);
  PCONV_LAUNCH(kernel, grid, threads, p.at.bytes, stream, p);
  return pconv_launched();
}

template <class P>
int launch(Problem& p, void* stream) {
  const Device device;
  const Choice c = choose(p, int(sizeof(P)), device);
  if (!c.channels) return kInvalidValue;
  p.at = layout(p, c.channels, int(sizeof(P)), c.threads);
  p.tiles_x = (p.WO + kColumns - 1) / kColumns;
  p.tiles_y = (p.HO + c.threads / kColumns - 1) / (c.threads / kColumns);
  p.tiles = p.N * p.tiles_y * p.tiles_x;
  p.by_tiles_x = Divider(p.tiles_x), p.by_tiles_y = Divider(p.tiles_y);
  const int wide = (p.n_out + c.channels - 1) / c.channels, blocks = device.processors * c.blocks / wide;
  const dim3 grid(blocks < 1 ? 1 : blocks < p.tiles ? blocks : p.tiles, wide);
  if constexpr (sizeof(P) == 2) {
    if (c.channels == 64) return launch_channels<P, 8>(p, grid, c.threads, stream);
  }
  if (c.channels == 32) return launch_channels<P, 4>(p, grid, c.threads, stream);
  return launch_channels<P, 2>(p, grid, c.threads, stream);
}

// Finishes the passes and where their weights lie.
void set_up_passes(Problem& p) {
  p.weight_rows = 0;
  for (int k = 0; k < p.n_phases; ++k) {
    Pass& pass = p.phases[k];
    pass.first = p.weight_rows;
    p.weight_rows += pass.kh;
    pass.word = pass.ox * p.pixel_bytes / 4, pass.words = pass.kw * p.pixel_bytes / 4;
  }
  p.n_kernels = p.n_phases > 1 ? p.n_phases - 1 : 1;
}

// Sizes, KP and PASSES; whether the kernel can compute this at all, and if so the rest of `p`.
bool fits(Args& args, Problem& p, Plane& mask, int item, int kp, int n_passes, const Pass* passes) {
  if (!args.complete() || n_passes < 1 || n_passes > kMostPhases) return false;
  p.n_phases = n_passes;
  std::copy(passes, passes + n_passes, p.phases);
  if (!can_load(p, mask) || kp <= 0) return false;
  p.row_bytes = kp * item;
  set_up(p, mask, item, p.plain().kw);
  set_up_passes(p);
  return layout(p, 16, item, 128).bytes <= kSharedBytes;
}

}  // namespace
}  // namespace pconv

PCONV_PLAN(few_inputs) {
  using namespace pconv;
  Problem p = {};
  Plane mask{};
  Pass passes[kMostPasses];
  const int item = args.integer("ITEM");
  read_window(args, p, mask);
  const int kp = args.integer("KP"), n = args.rows<7>("PASSES", passes, kMostPasses);
  const bool all = fits(args, p, mask, item, kp, n, passes);
  if (!args.complete()) return;
  answer.put("fits", all);
  answer.put("channels", (p.n_out + 15) / 16 * 16);  // rows of the packed weights
}

PCONV_ENTRY(few_inputs) {
  using namespace pconv;
  args.grid();  // the device decides
  Problem p = {};
  const Untyped x = args.untyped("x"), mask = args.untyped("mask");
  p.weights = args.tensor<const char>("weights");
  p.bias = args.untyped("bias");
  p.out = args.tensor<char>("out");
  const Untyped new_mask = args.untyped("new_mask");
  Plane strides{};
  Pass passes[kMostPasses];
  read_window(args, p, strides);
  const int kp = args.integer("KP"), n = args.rows<7>("PASSES", passes, kMostPasses);
  p.np = args.integer("NP");
  const int kind = args.integer("MASK"), has_bias = args.integer("HAS_BIAS");
  const int precision = args.precision("PRECISION"), item = x.element == kFloat32 ? 4 : 2;
  if (!fits(args, p, strides, item, kp, n, passes)) return kInvalidValue;
  p.x = static_cast<const char*>(x.data);
  p.new_mask = flags(new_mask);
  p.mask = plane(mask, kind, p.H, p.W, strides);
  if (!has_bias) p.bias.data = nullptr;
  p.wide_stores = (reinterpret_cast<uintptr_t>(p.out) | uint64_t(p.n_out * item)) % 16 == 0;
  if (x.element == kFloat16) return launch<Half>(p, stream);
  if (x.element == kBFloat16) return launch<BFloat16>(p, stream);
  if (precision == kIeee) return launch<float>(p, stream);
  return launch<Tf32>(p, stream);
}
