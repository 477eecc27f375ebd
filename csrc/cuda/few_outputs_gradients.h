// What few_outputs_gradients.cu computes from, and how a block brings it into shared memory.
#pragma once
#include <type_traits>

#include "entries.h"
#include "matrix.h"

namespace pconv::few_gradients {

constexpr int kMostOutputs = 4;  // channels
constexpr int kMostSide = 5;     // of the window
constexpr int kColumns = 32;     // of a product: (tap, output channel), the rest zeros
constexpr int kTile = 16;        // pixels of a row of a tile; a warp has a few rows, one after the other
constexpr int kRows = 4;         // of a warp at most, where pixels have few channels and are not up-sampled
constexpr int kFewChannels = 16;
constexpr int kAtOnce = 3;  // output pixels of a thread
constexpr int kMostRegion = kAtOnce * kThreads;
constexpr int kWordRows = kRows * kWarps + 2 * (kMostSide - 1);

// The mask of a source. Its pixels count `channels` each; with `up` it is read through a nearest 2x
// up-sampling.
struct Layer {
  Plane mask;
  int up, channels;
};

// A tensor [N, C, H, W] and its strides in elements.
struct Map {
  char* data;
  int64_t n, c, h, w;
};

// Gradients of one of up to two sources. `h` x `w`: its size, H x W: that of what windows move over.
struct Problem {
  Layer layers[2];
  int n_layers, source, up;
  Map x, grad, dx;
  const char* weight;  // [n_out, channels, kh, kw], output channels `weight_stride` apart
  float* partial;      // [parts, part_stride]: [taps, channels, kMostOutputs], at the end the sums of `grad`
  int64_t weight_stride, part_stride;
  int N, H, W, h, w, ho, wo, top, left, kh, kw, n_out, sh, sw, dh, dw, channels;
  int needs_x, needs_weights;
  float window, scale, unscale;  // entries of a full window; factors of the gradient and of dx
  int rows;                      // of a warp
  int tiles, tiles_y, tiles_x;
  Divider by_tiles_y, by_tiles_x;
  int region_rows, region_columns, half, pitch;  // output pixels around a tile, see Feed::place
  Divider by_columns;
  int x_unit, dx_unit;  // bytes copied at a time; 0: element by element
  int buffers;          // of x: two if it is copied in the background

  __host__ __device__ int taps() const { return kh * kw; }
  __host__ __device__ int tile_rows() const { return rows * kWarps; }
};

// Shared memory. P: multiply's type of operands, or float for products in float32. NARROW: kFewChannels.
template <class P, bool NARROW>
struct Layout {
  using E = typename std::conditional<sizeof(P) == 4, float, P>::type;
  static constexpr int kItem = sizeof(P);
  static constexpr int kChannels = NARROW ? kFewChannels : 128 / kItem;  // of a block
  static constexpr int kGroups = kChannels / 16;
  // Pitches with which neither ldmatrix nor the loads of single floats meet in a bank.
  static constexpr int kPitchX = (kChannels + 8) * kItem;
  static constexpr int kPitchColumns = (kColumns + 8) * kItem;
  static constexpr int kPitchWeights = kItem == 2 ? kPitchColumns : (kColumns + 4) * kItem;
  static constexpr int kWordBytes = 2 * 2 * kWordRows * 8;  // by buffer and layer
  static constexpr int kScaled = kWordBytes;
  static constexpr int kColumnsAt = kScaled + kMostRegion * 16;
  static constexpr int kWeights = kColumnsAt + kThreads / 2 * kPitchColumns;
  static constexpr int kX = kWeights + kChannels * kPitchWeights;
  static constexpr int kReduced = kWarps / 2 * kGroups * 16 * kColumns * 4;  // in the place of x, at the end

  static int bytes(const Problem& p) {
    const int x = p.buffers * p.tile_rows() * kTile * kPitchX;
    return kX + (x > kReduced ? x : kReduced);
  }
};

// Reads what launches and plans know of the problem.
inline void read_problem(Args& args, Problem& p) {
  args.integers({{"N", &p.N}, {"C", &p.channels}, {"H", &p.h}, {"W", &p.w}, {"KH", &p.kh}, {"KW", &p.kw}});
  args.integers({{"NOUT", &p.n_out}, {"SH", &p.sh}, {"SW", &p.sw}, {"DH", &p.dh}, {"DW", &p.dw}});
  args.integers({{"UP", &p.up}, {"NEEDS_WEIGHTS", &p.needs_weights}});
}

// Whether the kernel can compute this at all, and if so how it is cut into tiles.
inline bool fits(Args& args, Problem& p, int item) {
  if (!args.complete() || most(p.kh, p.kw) > kMostSide || p.n_out < 1 || p.n_out > kMostOutputs ||
      p.taps() * p.n_out > kColumns || p.sh != 1 || p.sw != 1 || p.dh != 1 || p.dw != 1)
    return false;
  p.rows = p.channels <= kFewChannels && !p.up ? kRows * 2 / item : 1;
  p.tiles_y = (p.h + p.tile_rows() - 1) / p.tile_rows(), p.tiles_x = (p.w + kTile - 1) / kTile;
  p.tiles = p.N * p.tiles_y * p.tiles_x;
  p.by_tiles_y = Divider(p.tiles_y), p.by_tiles_x = Divider(p.tiles_x);
  p.region_rows = (p.tile_rows() << p.up) + p.kh - 1, p.region_columns = (kTile << p.up) + p.kw - 1;
  p.by_columns = Divider(p.region_columns);
  p.half = (p.region_columns + 1) / 2, p.pitch = p.up ? 2 * p.half : p.region_columns;
  return true;
}

// A tile of the source's pixels begins here.
struct Corner {
  int n, y, x;
};

struct alignas(16) Four {
  float v[4];
};

// threadIdx.x, asked anew each time: else all that follows from it in a block's phases stays in registers
// from tile to tile, more than there are.
__device__ __forceinline__ int thread() {
#ifdef __CUDA_ARCH__
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
#else
  return int(threadIdx.x);
#endif
}

template <class P, bool NARROW>
class Feed {
 public:
  using L = Layout<P, NARROW>;
  using E = typename L::E;
  template <int N>
  struct alignas(N * sizeof(E)) Items {
    E v[N];
  };

  __device__ Feed(const Problem& p, char* shared, int first_channel)
      : p_(p), shared_(shared), first_(first_channel) {}

  __device__ Corner corner(int tile) const {
    const int across = p_.by_tiles_x(tile), n = p_.by_tiles_y(across);
    return {n, (across - n * p_.tiles_y) * p_.tile_rows(), (tile - across * p_.tiles_x) * kTile};
  }
  __device__ int channels() const {
    const int left = p_.channels - first_;
    return left < L::kChannels ? left : L::kChannels;
  }
  __device__ char* x(int buffer) const {
    return shared_ + L::kX + (p_.buffers > 1 ? buffer : 0) * (p_.tile_rows() * kTile * L::kPitchX);
  }
  __device__ Four* scaled() const { return reinterpret_cast<Four*>(shared_ + L::kScaled); }

  // Where the gradient at column `x` of the region lies, in units of pixels: even and odd columns apart where
  // every other one is read by neighbouring threads.
  __device__ int place(int x) const { return (x >> p_.up) + (x & p_.up) * p_.half; }

  // Whether the source's pixel in row y and column x of the tile exists and is no hole.
  __device__ bool valid(int buffer, int y, int x) const {
    return words(buffer, p_.source)[(y << p_.up) + p_.kh - 1] >> ((x << p_.up) + p_.kw - 1) & 1;
  }

  // Validity of all pixels that windows over the tile's pixels hold; a part of the warps for each layer.
  __device__ void load_words(int buffer, Corner at) const {
    const int warp = thread() / 32, each = p_.n_layers > 1 ? kWarps / 2 : kWarps;
    const int i = warp >= each;
    uint64_t* to = words(buffer, i);
    const Layer& layer = p_.layers[i];
    const int first = warp - i * each, bytes = layer.mask.data ? layer.mask.bytes : 1;
    if (bytes == 1) {
      load_rows<uint8_t>(to, layer, at, first, each);
    } else if (bytes == 2) {
      load_rows<uint16_t>(to, layer, at, first, each);
    } else if (bytes == 4) {
      load_rows<uint32_t>(to, layer, at, first, each);
    } else {
      load_rows<uint64_t>(to, layer, at, first, each);
    }
  }

  // The gradient at the thread's output pixels of the region, before it is known whether they are live.
  __device__ void load_gradient(E (&raw)[kAtOnce][kMostOutputs], Corner at) const {
    const E* grad = reinterpret_cast<const E*>(p_.grad.data) + at.n * p_.grad.n;
    const int thread = few_gradients::thread();
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = thread + j * kThreads, row = p_.by_columns(i);
      const int y = first_row(at) + row, x = first_column(at) + i - row * p_.region_columns;
      const bool inside = row < p_.region_rows && within(y, p_.ho) && within(x, p_.wo);
      const E* from = grad + y * p_.grad.h + x * p_.grad.w;
#pragma unroll
      for (int o = 0; o < kMostOutputs; ++o)
        raw[j][o] = inside && o < p_.n_out ? from[o * p_.grad.c] : from_float<E>(0);
    }
  }

  // Stores the gradient times ratio and scale, 0 at dead pixels, and adds it to `sums` as it is, where the
  // pixel belongs to no later tile: a tile has the pixels whose windows end in it, the last one the rest too.
  __device__ void scale_gradient(const E (&raw)[kAtOnce][kMostOutputs], float (&sums)[kMostOutputs],
                                 int buffer, Corner at) const {
    const int high = at.y + p_.tile_rows() >= p_.h ? kMostRegion : p_.tile_rows() << p_.up;
    const int wide = at.x + kTile >= p_.w ? kMostRegion : kTile << p_.up;
    const int thread = few_gradients::thread();
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j) {
      const int i = thread + j * kThreads, row = p_.by_columns(i);
      const int column = i - row * p_.region_columns;
      if (row >= p_.region_rows) break;
      int count = 0;
      for (int l = 0; l < p_.n_layers; ++l)
        count += p_.layers[l].channels * count_valid(words(buffer, l) + row, column);
      const float ratio = ratio_of(p_.window, count) * p_.scale;
      Four s;
#pragma unroll
      for (int o = 0; o < kMostOutputs; ++o) {
        const float g = count > 0 ? to_float(raw[j][o]) : 0.f;
        s.v[o] = g * ratio;
        sums[o] += row < high && column < wide ? g : 0.f;
      }
      scaled()[row * p_.pitch + place(column)] = s;
    }
  }

  // Begins the copies of the tile's pixels, holes as zeros. Channels-last storage.
  __device__ void copy_x(int buffer, Corner at) const {
    if (p_.x_unit == 16) {
      copy_pixels<16>(buffer, at);
    } else if (p_.x_unit == 8) {
      copy_pixels<8>(buffer, at);
    } else {
      copy_pixels<4>(buffer, at);
    }
  }

  // The same of single elements, in any layout: neighbouring threads read neighbouring pixels, and each has
  // four channels of two of them under way.
  __device__ __forceinline__ void gather_x(int buffer, Corner at) const {
    constexpr int kPixels = 2, kItems = 4;
    const E* from = reinterpret_cast<const E*>(p_.x.data) + at.n * p_.x.n + first_ * p_.x.c;
    const int n = channels(), pixels = p_.tile_rows() * kTile;
    for (int pixel = thread(); pixel < pixels; pixel += kPixels * kThreads) {
      for (int c = 0; c < n; c += kItems) {
        Items<kItems> loaded[kPixels];
#pragma unroll
        for (int j = 0; j < kPixels; ++j) {
          const int y = (pixel + j * kThreads) / kTile, x = pixel % kTile;
          const bool read = pixel + j * kThreads < pixels && valid(buffer, y, x);
          const E* first = from + (at.y + y) * p_.x.h + (at.x + x) * p_.x.w + c * p_.x.c;
#pragma unroll
          for (int i = 0; i < kItems; ++i)
            loaded[j].v[i] = read && c + i < n ? first[i * p_.x.c] : from_float<E>(0);
        }
        char* to = this->x(buffer) + pixel * L::kPitchX + c * L::kItem;
#pragma unroll
        for (int j = 0; j < kPixels; ++j)
          if (pixel + j * kThreads < pixels)
            *reinterpret_cast<Items<kItems>*>(to + j * kThreads * L::kPitchX) = loaded[j];
      }
    }
  }

 private:
  __device__ uint64_t* words(int buffer, int layer) const {
    return reinterpret_cast<uint64_t*>(shared_) + (buffer * 2 + layer) * kWordRows;
  }
  // Where the region begins, in the output.
  __device__ int first_row(Corner at) const { return (at.y << p_.up) + p_.top - p_.kh + 1; }
  __device__ int first_column(Corner at) const { return (at.x << p_.up) + p_.left - p_.kw + 1; }

  // Validity of the layer's rows `first`, `first` + `step`, ... of the region, a word each, bit i for column
  // i. Each thread's loads are all under way together, since none depends on a branch. Of the columns after
  // the 32nd, a warp takes four rows at a time.
  template <class T>
  __device__ __forceinline__ void load_rows(uint64_t* words, const Layer& layer, Corner at, int first,
                                            int step) const {
    constexpr int kHeads = NARROW ? kWordRows / 4 : 6, kTails = 2;  // in all, over four warps or more
    const int lane = thread() % 32, rows = p_.region_rows + p_.kh - 1;
    const int columns = p_.region_columns + p_.kw - 1;
    const T* data = static_cast<const T*>(layer.mask.data);
    const T keep = T(layer.mask.keep);
    const T* from = data + at.n * layer.mask.n;
    const auto read = [&](int row, int column) {
      const int y = (at.y << p_.up) - p_.kh + 1 + row, x = (at.x << p_.up) - p_.kw + 1 + column;
      bool valid = row < rows && column < columns && within(y, p_.H) && within(x, p_.W);
      if (data && valid)
        valid = (from[(y >> layer.up) * layer.mask.h + (x >> layer.up) * layer.mask.w] & keep) != 0;
      return valid;
    };
    bool heads[kHeads], tails[kTails];
#pragma unroll
    for (int i = 0; i < kHeads; ++i) heads[i] = read(first + i * step, lane);
#pragma unroll
    for (int i = 0; i < kTails; ++i) tails[i] = read((first + i * step) * 4 + lane / 8, 32 + lane % 8);
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      const int row = first + i * step;
      const uint32_t bits = __ballot_sync(~0u, heads[i]);
      if (lane == 0 && row < rows) reinterpret_cast<uint32_t*>(words + row)[0] = bits;
    }
#pragma unroll
    for (int i = 0; i < kTails; ++i) {
      const int row = (first + i * step) * 4 + lane / 8;
      const uint32_t bits = __ballot_sync(~0u, tails[i]);
      if (lane % 8 == 0 && row < rows) reinterpret_cast<uint32_t*>(words + row)[1] = bits >> lane & 255;
    }
  }

  // Valid entries of the window whose first is bit `column` of words[0]: at most 32, so counted together.
  __device__ int count_valid(const uint64_t* words, int column) const {
    uint32_t bits = 0;
    const uint32_t row = (1u << p_.kw) - 1;
    for (int i = 0; i < p_.kh; ++i) bits = bits << p_.kw | (uint32_t(words[i] >> column) & row);
    return popcount(bits);
  }

  template <int UNIT>
  __device__ __forceinline__ void copy_pixels(int buffer, Corner at) const {
    constexpr int kUnits = L::kChannels * L::kItem / UNIT, kStep = kThreads / kUnits;
    const int unit = thread() % kUnits;
    if (unit * UNIT >= channels() * L::kItem) return;
    const char* from = p_.x.data + (at.n * p_.x.n + first_) * L::kItem + unit * UNIT;
    for (int pixel = thread() / kUnits; pixel < p_.tile_rows() * kTile; pixel += kStep) {
      const int y = pixel / kTile, x = pixel % kTile;
      const int64_t offset = ((at.y + y) * p_.x.h + (at.x + x) * p_.x.w) * L::kItem;
      copy_async<UNIT>(this->x(buffer) + pixel * L::kPitchX + unit * UNIT, from + offset,
                       valid(buffer, y, x) ? UNIT : 0);
    }
  }

  const Problem& p_;
  char* shared_;
  int first_;
};

}  // namespace pconv::few_gradients
