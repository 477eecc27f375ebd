// What few_outputs.cu computes from, where it lies in shared memory, and how its weights are packed.
#pragma once
#include <algorithm>
#include <type_traits>

#include "entries.h"
#include "matrix.h"

namespace pconv::few {

constexpr int kTile = 16;        // output pixels of a block: 16 x 16, one for each thread
constexpr int kMostOutputs = 8;  // channels
constexpr int kMostSide = 7;     // of the window
constexpr int kMostRegion = kTile + kMostSide - 1;
constexpr int kFewChannels = 8;  // at most, of a narrow source
constexpr int kColumns = 32;     // of a product over a wide source: n8 tiles of (tap, output channel)
constexpr int kTiles = kColumns / 8;
constexpr int kWords = 32 * 8;   // bytes reserved for the rows of validity of a source
constexpr int kSlice = 32;       // bytes of k of one product, see matrix.h
constexpr int kSliceWords = 64;  // packed words of a slice of 8 columns: two for each lane

// A map that the window lies over. *Wide* ones keep, in shared memory, one swizzled row of `row_bytes` for
// each of their pixels under the tile, for `chunks` blocks of channels in turn. *Narrow* ones (few channels)
// keep all channels of the pixels at the output's resolution, `row_bytes` a pixel, side by side, so that a
// row of taps is contiguous.
struct Source {
  const char* x;
  const uint32_t* weights;  // packed
  Plane mask;
  int64_t n, c, h, w;           // strides of x, in elements
  int up;                       // 1: read through a nearest 2x up-sampling
  int channels, first_channel;  // of the weights
  bool narrow;
  int unit;                                      // bytes copied at a time; 0: element by element
  int log_row_bytes, row_bytes, chunks, slices;  // slices: of a row of a chunk or, narrow, of a row of taps
  int rows, columns, pixels;                     // of the region in shared memory
  int pitch;                                     // pixels of a column of products
  int packed_words;
  Divider by_columns;
};

struct Problem {
  Source sources[2];
  int n_sources;
  int H, W, ho, wo, top, left, kh, kw, n_out;
  int group_taps, groups;  // taps of one product over a wide source, and how many products cover all
  int tiles_y, tiles_x;
  Divider by_tiles_y, by_tiles_x;
  float window;  // entries of a full window
  Untyped bias;  // of null: none
  void* out;
  int64_t on, oc, oh, ow;  // its strides
  Flags new_mask;
  int wide_bytes, narrow_bytes[2], product_bytes;  // parts of the shared memory, after the words
  // For the host alone, and last: the kernels' registers depend on where the rest lies.
  int N, sh, sw, dh, dw;

  __host__ __device__ int taps() const { return kh * kw; }
  int c_in() const { return sources[0].channels + sources[1].channels; }
  __host__ __device__ int group_columns(int group) const {
    const int left_over = taps() - group * group_taps;
    return (left_over < group_taps ? left_over : group_taps) * n_out;
  }
  int shared_bytes() const {
    return 2 * kWords + wide_bytes + narrow_bytes[0] + narrow_bytes[1] + product_bytes;
  }
};

// Packed weights of a wide source are [chunk][group][slice][tile of 8 columns], of a narrow one [row of
// taps][slice], each of 64 words, w[n][i] of matrix.h's b. Lane 4 g + q has w[g][q] and w[g][q + 4] one after
// the other; for products in float32 without tensor cores the order is [n][i].
template <class P>
__device__ inline void packed_place(int at, int& n, int& i) {
  if (std::is_same<P, float>::value) {
    n = at / 8, i = at % 8;
  } else {
    n = at / 8, i = at / 2 % 4 + at % 2 * 4;
  }
}

// The weight that element (n, k) of a packed slice holds, as its place in [C_out, C_in, kh, kw]; -1: zero.
__device__ inline int64_t packed_weight(const Problem& p, const Source& s, int item, int block, int n, int k,
                                        int c_in) {
  int out, channel, tap;
  const int slice_items = kSlice / item;
  if (s.narrow) {
    const int slice = block % s.slices, ky = block / s.slices;
    const int at = slice * slice_items + k, pixel = s.row_bytes / item, kx = at / pixel;
    if (kx >= p.kw) return -1;
    out = n, channel = at % pixel, tap = ky * p.kw + kx;
  } else {
    const int tile = block % kTiles, slice = block / kTiles % s.slices;
    const int group = block / (kTiles * s.slices) % p.groups, chunk = block / (kTiles * s.slices) / p.groups;
    const int column = tile * 8 + n;
    if (column >= p.group_columns(group)) return -1;
    out = column % p.n_out, tap = group * p.group_taps + column / p.n_out;
    channel = chunk * (s.row_bytes / item) + slice * slice_items + k;
  }
  if (out >= p.n_out || channel >= s.channels) return -1;
  return (int64_t(out) * c_in + s.first_channel + channel) * p.taps() + tap;
}

// Packs the weights [C_out, C_in, kh, kw] of source blockIdx.y.
template <class P, class T>
__global__ void __launch_bounds__(kThreads)
    pack_few_outputs(const __grid_constant__ Problem p, const T* weight, uint32_t* packed, int c_in) {
  const Source& s = p.sources[blockIdx.y];
  const int word = int(blockIdx.x) * kThreads + int(threadIdx.x);
  if (word >= s.packed_words) return;
  constexpr int kItem = int(sizeof(T));
  int n, i;
  packed_place<P>(word % kSliceWords, n, i);
  uint32_t value = 0;
#pragma unroll
  for (int e = 0; e < 4 / kItem; ++e) {
    const int64_t at = packed_weight(p, s, kItem, word / kSliceWords, n, i * (4 / kItem) + e, c_in);
    if (at < 0) continue;
    if constexpr (kItem == 2) {
      value |= uint32_t(weight[at].bits) << (e * 16);
    } else {
      value = bits_of(weight[at]);
      if (!std::is_same<P, float>::value) value = to_tf32(value);
    }
  }
  packed[(blockIdx.y ? p.sources[0].packed_words : 0) + word] = value;
}

inline int rounded(int n, int to) {
  return (n + to - 1) / to * to;
}

// Where a source's region lies and how its rows are cut, for at most `row_bytes` of a wide source.
inline void place(const Problem& p, Source& s, int item, int row_bytes) {
  const int high = kTile + p.kh - 1, wide = kTile + p.kw - 1, up = s.narrow ? 0 : s.up;
  const auto span = [&](int before, int size) { return ((size - 1 - before) >> up) - (-before >> up) + 1; };
  s.rows = span(p.top, high), s.columns = span(p.left, wide);
  s.pixels = s.rows * s.columns, s.by_columns = Divider(s.columns);
  s.pitch = rounded(s.pixels, 16) + 4;
  if (s.narrow) {
    s.row_bytes = (s.channels <= 4 ? 4 : 8) * item;
    s.slices = rounded(p.kw * s.row_bytes, kSlice) / kSlice;
    s.packed_words = p.kh * s.slices * kSliceWords;
    return;
  }
  s.log_row_bytes = 5;
  while (1 << s.log_row_bytes < row_bytes && 1 << s.log_row_bytes < s.channels * item) ++s.log_row_bytes;
  s.row_bytes = 1 << s.log_row_bytes;
  s.chunks = (s.channels * item + s.row_bytes - 1) / s.row_bytes, s.slices = s.row_bytes / kSlice;
  s.packed_words = s.chunks * p.groups * s.slices * kTiles * kSliceWords;
}

inline void place_all(Problem& p, int item, int row_bytes) {
  p.wide_bytes = 0, p.product_bytes = 0;
  for (int i = 0; i < p.n_sources; ++i) {
    Source& s = p.sources[i];
    place(p, s, item, row_bytes);
    const int product = s.narrow ? p.n_out * (kThreads + 4) : p.group_columns(0) * s.pitch;
    p.product_bytes = std::max(p.product_bytes, product * 4);
    p.narrow_bytes[i] = s.narrow ? rounded(s.pixels * s.row_bytes, 16) : 0;
    if (!s.narrow) p.wide_bytes = std::max(p.wide_bytes, rounded(s.pixels, 16) * s.row_bytes);
  }
}

// Reads what launches and plans know of the problem.
inline void read_problem(Args& args, Problem& p) {
  Source &first = p.sources[0], &second = p.sources[1];
  args.integers({{"N", &p.N}, {"HO", &p.ho}, {"WO", &p.wo}, {"TOP", &p.top}, {"LEFT", &p.left}});
  args.integers({{"KH", &p.kh}, {"KW", &p.kw}, {"NOUT", &p.n_out}, {"SH", &p.sh}, {"SW", &p.sw}});
  args.integers({{"DH", &p.dh}, {"DW", &p.dw}, {"C0", &first.channels}, {"C1", &second.channels}});
  args.integers({{"UP", &first.up}});
}

// Whether the kernel can compute this at all, and if so the rest of `p` but for pointers and strides.
inline bool fits(Args& args, Problem& p, int item) {
  if (!args.complete() || p.n_out < 1 || p.n_out > kMostOutputs || most(p.kh, p.kw) > kMostSide ||
      p.sh != 1 || p.sw != 1 || p.dh != 1 || p.dw != 1)
    return false;
  p.n_sources = p.sources[1].channels ? 2 : 1;
  p.sources[1].first_channel = p.sources[0].channels;
  p.window = float((p.n_sources > 1 ? p.c_in() : 1) * p.taps());
  p.group_taps = std::min(kColumns / p.n_out, p.taps());
  p.groups = (p.taps() + p.group_taps - 1) / p.group_taps;
  p.tiles_y = (p.ho + kTile - 1) / kTile, p.tiles_x = (p.wo + kTile - 1) / kTile;
  p.by_tiles_y = Divider(p.tiles_y), p.by_tiles_x = Divider(p.tiles_x);
  for (int i = 0; i < p.n_sources; ++i) p.sources[i].narrow = p.sources[i].channels <= kFewChannels;
  int row_bytes = 128;
  place_all(p, item, row_bytes);
  while (p.shared_bytes() > kSharedBytes && row_bytes > kSlice) place_all(p, item, row_bytes /= 2);
  return p.shared_bytes() <= kSharedBytes;
}

// Bytes that can be copied at a time, 0 if single elements have to.
inline int unit_of(const Source& s, int item) {
  if (s.c != 1) return 0;
  const uint64_t all =
      reinterpret_cast<uintptr_t>(s.x) | uint64_t(s.n * item) | uint64_t(s.h * item) | uint64_t(s.w * item);
  int unit = 16;
  while (all % unit) unit /= 2;
  return unit >= 4 ? unit : 0;
}

}  // namespace pconv::few
