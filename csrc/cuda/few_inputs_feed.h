// What few_inputs.cu computes with: the description of a launch, and what a block loads into shared memory.
#pragma once
#include <type_traits>

#include "entries.h"
#include "matrix.h"

namespace pconv {
namespace {

constexpr int kColumns = 16, kRowsOfWarp = 2;  // pixels of a tile and of a warp
constexpr int kMostPhases = 8;
constexpr int kMostSteps = 2, kMostSide = 8;  // of the stride and of the largest kernel
constexpr int kTileSide = 80;                 // more than the rows or columns of a tile's input
constexpr int kStagedRows = 8;                // that a warp writes at a time

// Bytes of a pixel on its way out: 16 more than its channels, so that there are no bank conflicts.
__host__ __device__ constexpr int out_row(int channels, int item) {
  return channels * item + 16;
}

// One pass: the kernel's rows, from row `oy` of the largest window on, times the weights from row `first` of
// those in shared memory on. Of a row of taps it reads words `word` to `word + words`.
struct Pass {
  int kh, kw, oy, ox, first, word, words;
};

// Where the parts of a block's shared memory begin: after the weights the bias, rows on their way out, the
// tile's input and its validity.
struct Layout {
  int bias, staged, input, rows, words, bytes;
};

struct Problem {
  const char* x;
  int64_t xn, xc;       // its strides in bytes
  int xh, xw;           // in these directions offsets within a tile have 32 bits
  const char* weights;  // [phases, kh][np][row_bytes]
  Plane mask;
  int mask_h, mask_w;  // its strides once more, in 32 bits
  Untyped bias;        // data null: none
  char* out;           // [N, HO, WO, n_out]
  Flags new_mask;
  int N, H, W, HO, WO, c_in, n_out, np, sh, sw, top, left;
  int row_bytes, pixel_bytes, row_channels;  // of the weights' rows of taps, of a pixel in shared memory
  int n_kernels, n_phases, weight_rows;
  Pass phases[kMostPhases];  // by kernel, and where there are several their sum
  int columns, pitch;        // of a tile's input: pixels, bytes
  int tiles, tiles_x, tiles_y;
  Divider by_columns, by_tiles_x, by_tiles_y;
  bool wide_stores;
  Layout at;
  // For the host alone, and last: the kernels' registers depend on where the rest lies.
  int64_t x_h, x_w;  // strides of x in elements, as they come
  int dh, dw;

  __host__ __device__ const Pass& plain() const { return phases[n_phases - 1]; }
};

// Reads what launches and plans know of x and its windows: strides in elements (for now), sizes.
inline void read_window(Args& args, Problem& p, Plane& mask) {
  p.xn = args.wide("x_n"), p.xc = args.wide("x_c"), p.x_h = args.wide("x_h"), p.x_w = args.wide("x_w");
  read_strides(args, mask, "mask_n", "mask_h", "mask_w");
  args.integers({{"N", &p.N}, {"C", &p.c_in}, {"H", &p.H}, {"W", &p.W}, {"NOUT", &p.n_out}, {"HO", &p.HO}});
  args.integers({{"WO", &p.WO}, {"TOP", &p.top}, {"LEFT", &p.left}, {"SH", &p.sh}, {"SW", &p.sw}});
  args.integers({{"DH", &p.dh}, {"DW", &p.dw}, {"ROW_CHANNELS", &p.row_channels}});
}

// Whether load_input can load what lies below a tile: offsets in it have 32 bits, in bytes of at most eight
// to an element.
inline bool can_load(const Problem& p, const Plane& mask) {
  const auto near = [](int64_t h, int64_t w) { return kTileSide * (h + w) * 8 < int64_t(1) << 31; };
  return p.row_channels > 0 && p.dh == 1 && p.dw == 1 && most(p.sh, p.sw) <= kMostSteps &&
         most(p.plain().kh, p.plain().kw) <= kMostSide && int64_t(p.N) * p.HO * p.WO < int64_t(1) << 31 &&
         near(p.x_h, p.x_w) && near(mask.h, mask.w);
}

// Turns strides into those of `item` bytes to an element, and finds the width of a tile's input, of which
// `reads` pixels lie under a window.
inline void set_up(Problem& p, const Plane& mask, int item, int reads) {
  p.xn *= item, p.xc *= item, p.xh = int(p.x_h) * item, p.xw = int(p.x_w) * item;
  p.mask_h = int(mask.h), p.mask_w = int(mask.w);
  p.pixel_bytes = p.row_channels * item;
  p.columns = (kColumns - 1) * p.sw + reads;
  p.pitch = (p.columns * p.pixel_bytes + 15) / 16 * 16;
  p.by_columns = Divider(p.columns);
}

// Begins the copies of the weights of `channels` output channels from `first_n` on, those rows of taps that
// the phases have, and fetches the bias.
__device__ inline void load_weights(const Problem& p, char* shared, int channels, int first_n) {
  const int pieces = p.row_bytes / 16, rows = p.plain().kh;
  for (int k = 0; k < p.n_phases; ++k) {
    const Pass& pass = p.phases[k];
    for (int i = int(threadIdx.x); i < pass.kh * channels * pieces; i += int(blockDim.x)) {
      const int row = i / pieces, piece = i % pieces, y = row / channels, n = first_n + row % channels;
      const int64_t from = int64_t(k * rows + pass.oy + y) * p.np + n;
      copy_async<16>(shared + swizzled(pass.first * channels + row, piece, p.row_bytes),
                     p.weights + (n < p.np ? from * p.row_bytes + piece * 16 : 0), n < p.np ? 16 : 0);
    }
  }
  commit_copies();
  float* bias = reinterpret_cast<float*>(shared + p.at.bias);
  for (int i = int(threadIdx.x); i < channels; i += int(blockDim.x))
    bias[i] = p.bias.data && first_n + i < p.n_out ? float_at(p.bias, first_n + i) : 0.f;
}

// Four channels of a pixel in the type that is multiplied.
template <class P>
struct Channels {
  using Bits = typename std::conditional<sizeof(P) == 4, uint32_t, uint16_t>::type;
  struct alignas(4 * sizeof(Bits)) Value {
    Bits v[4];
  };
};

// Loads the input below a tile, whose first pixel is (y0, x0) of image n: zeros outside and in holes. Its
// pixels are numbered row by row, and bit i % 32 of word i / 32 says whether pixel i is valid: so no lane is
// idle, and nothing waits for the mask before features are read. Holes are read with the rest, and not used.
template <class P, class T, int kBatch>
__device__ void load_input(const Problem& p, char* shared, int n, int y0, int x0) {
  using Bits = typename Channels<P>::Bits;
  using Four = typename Channels<P>::Value;
  const int pixels = p.at.rows * p.columns, lane = int(threadIdx.x) % 32, step = int(blockDim.x);
  uint32_t* words = reinterpret_cast<uint32_t*>(shared + p.at.words);
  const T* mask = static_cast<const T*>(p.mask.data) + n * p.mask.n + y0 * p.mask.h + x0 * p.mask.w;
  const char* image = p.x + n * p.xn + int64_t(y0) * p.xh + int64_t(x0) * p.xw;
  for (int c0 = 0; c0 < p.row_channels; c0 += 4, image += 4 * p.xc)
    for (int first = int(threadIdx.x) - lane; first < pixels; first += kBatch * step) {
      Four values[kBatch];
      T flags[kBatch];
      uint32_t to[kBatch], in_image = 0;
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = first + lane + j * step, y = p.by_columns(i), x = i - y * p.columns;
        const bool inside = i < pixels && within(y0 + y, p.H) && within(x0 + x, p.W);
        flags[j] = inside && p.mask.data ? mask[uint32_t(y * p.mask_h + x * p.mask_w)] : T(0);
        in_image |= uint32_t(inside) << j;
        const char* from = image + uint32_t(y * p.xh + x * p.xw);
#pragma unroll
        for (int c = 0; c < 4; ++c, from += p.xc)
          values[j].v[c] = inside && c0 + c < p.c_in ? *reinterpret_cast<const Bits*>(from) : Bits(0);
        to[j] = y * p.pitch + x * p.pixel_bytes;
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = first + j * step;  // of the warp's first lane
        const bool valid = (in_image >> j & 1) && (!p.mask.data || (flags[j] & T(p.mask.keep)) != 0);
        const uint32_t bits = __ballot_sync(kAll, valid);
        if (i + lane >= pixels) continue;
        if (lane == 0) words[i / 32] = bits;
#pragma unroll
        for (Bits& v : values[j].v) {
          if (std::is_same<P, Tf32>::value) v = Bits(to_tf32(v));
          v = valid ? v : Bits(0);
        }
        *reinterpret_cast<Four*>(shared + p.at.input + to[j] + c0 * sizeof(P)) = values[j];
      }
    }
}
template <class P, int kBatch = sizeof(P) == 4 ? 4 : 6>
__device__ void load_input(const Problem& p, char* shared, int n, int y, int x) {
  if (!p.mask.data || p.mask.bytes == 1) return load_input<P, uint8_t, kBatch>(p, shared, n, y, x);
  if (p.mask.bytes == 2) return load_input<P, uint16_t, kBatch>(p, shared, n, y, x);
  if (p.mask.bytes == 4) return load_input<P, uint32_t, kBatch>(p, shared, n, y, x);
  load_input<P, uint64_t, kBatch>(p, shared, n, y, x);
}

// Valid entries of a high x wide window (wide <= 8), the first of them pixel `first` of the input.
__device__ inline int count_window(const Problem& p, const char* shared, int first, int high, int wide) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(shared + p.at.words);
  int count = 0;
  for (int i = 0; i < high; ++i, first += p.columns) {
    const uint64_t bits = words[first / 32] | uint64_t(words[first / 32 + 1]) << 32;
    count += __popc(uint32_t(bits >> first % 32) & ((1u << wide) - 1));
  }
  return count;
}

}  // namespace
}  // namespace pconv
