// Forward with at most eight output channels, in one pass over the input, of partial_conv2d and of
// upcat_partial_conv2d (source 0 is the low-resolution map, source 1 the skip):
//
//   y(p) = m'(p) (r(p) * sum over sources and taps t of <W_t, select(m, x, 0) at p + t> + b)
//
// With so few outputs, one output pixel after the other would be limited by the reads of its taps from shared
// memory. So a *wide* source's pixels are read once: their products with all taps' weights at once, [pixel]
// x [(tap, output channel)], go to shared memory, from where each output pixel's thread sums, for every tap,
// the product of the pixel which the tap falls on. An up-sampled map has a quarter of the pixels, and so of
// the work. Several chunks of channels, or groups of taps, are summed one after the other in the threads'
// registers. A *narrow* source (few channels) is multiplied by rows of taps instead, straight into outputs.
#include "few_outputs_feed.h"

namespace pconv::few {
namespace {

struct alignas(16) Four {
  float v[4];
};
struct alignas(8) Two {
  uint32_t word[2];
};

// One block's 16 x 16 output pixels. P is multiply's type of operands, or float for products in float32.
template <class P>
class Block {
  static constexpr bool kExact = std::is_same<P, float>::value;
  static constexpr int kItem = int(sizeof(P));

 public:
  static constexpr int kBlocks = kExact ? 2 : kItem == 4 ? 3 : 4;  // of a multiprocessor, so that none spills

  __device__ Block(const Problem& p, char* shared, Corner corner)
      : p_(p), corner_(corner), feed_(p, shared, corner), products_(feed_.products()) {}

  __device__ void run() {
    feed_.load_words();
    __syncthreads();
    Step step = next({-1, 0});
    feed_.fetch(step.source, step.chunk);
    if (p_.narrow_bytes[0] + p_.narrow_bytes[1]) add_narrow();
    while (step.source < p_.n_sources) {
      wait_for_copies<0>();
      __syncthreads();  // all have the chunk, and have read the last products
      const Step ahead = next(step);
      for (int group = 0; group < p_.groups; ++group) {
        if (group) __syncthreads();  // all have read the last products
        multiply_wide(p_.sources[step.source], step.chunk, group);
        __syncthreads();
        if (group == p_.groups - 1) feed_.fetch(ahead.source, ahead.chunk);
        add_taps(p_.sources[step.source], group);
      }
      step = ahead;
    }
    write();
  }

 private:
  // A chunk of a wide source, and the one after it; of source n_sources if there is none.
  struct Step {
    int source, chunk;
  };
  __device__ Step next(Step at) const {
    if (at.source >= 0 && at.chunk + 1 < p_.sources[at.source].chunks) return {at.source, at.chunk + 1};
    do ++at.source;
    while (at.source < p_.n_sources && p_.sources[at.source].narrow);
    return {at.source, 0};
  }

  // products = the region's pixels times the weights of a group of taps, an m16 tile of a warp at a time:
  // more of them would take registers from the other blocks of a multiprocessor.
  __device__ void multiply_wide(const Source& s, int chunk, int group) {
    const int tiles = (s.pixels + 15) / 16, columns = p_.group_columns(group);
    const uint32_t* weights =
        s.weights + int64_t(chunk * p_.groups + group) * s.slices * (kTiles * kSliceWords);
    for (int tile = int(threadIdx.x) / 32; tile < tiles; tile += kWarps) {
      float acc[kTiles][4] = {};
#pragma unroll 1
      for (int slice = 0; slice < s.slices; ++slice) {
        const uint32_t* b = weights + slice * (kTiles * kSliceWords);
        if constexpr (kExact) {
          multiply_exact(acc, s, tile * 16, b, slice);
        } else {
          multiply_slice(acc, s, tile * 16, b, slice);
        }
      }
#pragma unroll
      for (int j = 0; j < kTiles; ++j) put_tile(acc[j], tile * 16, s.pitch, j * 8, columns);
    }
  }

  __device__ __forceinline__ void multiply_slice(float (&acc)[kTiles][4], const Source& s, int row,
                                                 const uint32_t* b, int slice) {
    const int lane = int(threadIdx.x) % 32;
    uint32_t fa[4];
    load_matrices(fa, feed_.wide() + place_of(s, row + lane % 16, slice * 2 + lane / 16));
    round(fa);
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      const Two fb = *reinterpret_cast<const Two*>(b + j * kSliceWords + lane * 2);
      multiply<P>(acc[j], fa, fb.word);
    }
  }
  __device__ static void round(uint32_t (&a)[4]) {
    if constexpr (kItem == 4) {
#pragma unroll
      for (uint32_t& word : a) word = to_tf32(word);
    }
  }

  // The same in float32, with each thread's elements of acc where multiply has them.
  __device__ __forceinline__ void multiply_exact(float (&acc)[kTiles][4], const Source& s, int row,
                                                 const uint32_t* b, int slice) {
    const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll 1
    for (int half = 0; half < 2; ++half) {
      Four fa[2];
#pragma unroll
      for (int i = 0; i < 2; ++i)
        fa[i] = *reinterpret_cast<const Four*>(feed_.wide() + place_of(s, row + i * 8 + g, slice * 2 + half));
#pragma unroll
      for (int j = 0; j < kTiles * 2; ++j) {
        const uint32_t* column = b + j / 2 * kSliceWords + (2 * q + j % 2) * 8 + half * 4;
        const Four fb = *reinterpret_cast<const Four*>(column);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& c = acc[j / 2][i * 2 + j % 2];
#pragma unroll
          for (int k = 0; k < 4; ++k) c = fmaf(fa[i].v[k], fb.v[k], c);
        }
      }
    }
  }

  // Products are [column][pixel], `pitch` (4 modulo 16) pixels apart: neither side of them has bank
  // conflicts.
  __device__ __forceinline__ void put_tile(const float (&c)[4], int first_row, int pitch, int first,
                                           int columns) {
    const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int n = first + 2 * q + i % 2;
      if (n < columns) products_[n * pitch + first_row + g + i / 2 * 8] = c[i];
    }
  }

  // Adds the products that the taps of a group find around the thread's output pixel. The last layer of the
  // network has loops of its own, that the compiler knows the lengths of.
  __device__ void add_taps(const Source& s, int group) {
    const bool cut = s.up && ((p_.H | p_.W) & 1);
    if (p_.n_out == 3 && p_.kh == 3 && p_.kw == 3 && !cut) return add_some<3, 3>(s, 0, 9);
    add_some<0, 0>(s, group * p_.group_taps, p_.group_columns(group) / p_.n_out);
  }
  template <int OUT, int SIDE>
  __device__ __forceinline__ void add_some(const Source& s, int first, int taps) {
    const int y = int(threadIdx.x) / kTile, x = int(threadIdx.x) % kTile, kw = SIDE ? SIDE : p_.kw;
    const int y0 = y + (s.up & corner_.y), x0 = x + (s.up & corner_.x);
    const int high = p_.H - corner_.y - y, wide = p_.W - corner_.x - x;  // before the border
    const float* column = products_;
    int ky = first / kw, kx = first - ky * kw;
#pragma unroll(SIDE ? SIDE * SIDE : 1)
    for (int t = 0; t < (SIDE ? SIDE * SIDE : taps); ++t) {
      // An odd size cuts the second copy of the last low pixels off; other products outside are zeros.
      if (SIDE || (ky < high && kx < wide))
        add_outputs<OUT>(column + ((y0 + ky) >> s.up) * s.columns + ((x0 + kx) >> s.up), s.pitch);
      column += (OUT ? OUT : p_.n_out) * s.pitch;
      if (++kx == kw) kx = 0, ++ky;
    }
  }
  template <int OUT>
  __device__ __forceinline__ void add_outputs(const float* from, int pitch) {
#pragma unroll
    for (int o = 0; o < (OUT ? OUT : kMostOutputs); ++o) {
      if (!OUT && o >= p_.n_out) break;
      sum_[o] += from[o * pitch];
    }
  }

  // Products over narrow sources: a warp has the 2 x 16 output pixels of its threads.
  __device__ void add_narrow() {
    for (int i = 0; i < p_.n_sources; ++i)
      if (p_.sources[i].narrow) feed_.gather_narrow(p_.sources[i], i);
    __syncthreads();
    float acc[2][4] = {};
    for (int i = 0; i < p_.n_sources; ++i)
      if (p_.sources[i].narrow) multiply_narrow(acc, p_.sources[i], feed_.narrow(i));
    const int first = int(threadIdx.x) / 32 * 32;
    constexpr int kPitch = kThreads + 4;
    put_tile(acc[0], first, kPitch, 0, p_.n_out);
    put_tile(acc[1], first + 16, kPitch, 0, p_.n_out);
    __syncwarp();
    add_outputs<0>(products_ + threadIdx.x, kPitch);
  }

  __device__ void multiply_narrow(float (&acc)[2][4], const Source& s, const char* pixels) {
    const int lane = int(threadIdx.x) % 32, g = lane / 4, y = int(threadIdx.x) / 32 * 2;
    const int pixel_words = s.row_bytes / 4, row_words = p_.kw * pixel_words;
    for (int ky = 0; ky < p_.kh; ++ky) {
      const uint32_t* a =
          reinterpret_cast<const uint32_t*>(pixels) + ((y + ky) * s.columns + g) * pixel_words;
      for (int slice = 0; slice < s.slices; ++slice) {
        const uint32_t* b = s.weights + (ky * s.slices + slice) * kSliceWords;
        const int left = row_words - slice * 8;
        multiply_taps(acc[0], a + slice * 8, 8 * pixel_words, left, b);
        multiply_taps(acc[1], a + slice * 8 + s.columns * pixel_words, 8 * pixel_words, left, b);
      }
    }
  }
  // A slice of a row of taps; of its words the first `left` exist (what follows may be Inf: no zero weights).
  __device__ __forceinline__ void multiply_taps(float (&c)[4], const uint32_t* a, int eight_rows, int left,
                                                const uint32_t* b) {
    const int lane = int(threadIdx.x) % 32, q = lane % 4;
    if constexpr (kExact) {
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        if (k >= left) break;
#pragma unroll
        for (int i = 0; i < 4; ++i)
          c[i] = fmaf(float_of(a[i / 2 * eight_rows + k]), float_of(b[(2 * q + i % 2) * 8 + k]), c[i]);
      }
    } else {
      const Two fb = *reinterpret_cast<const Two*>(b + lane * 2);
      uint32_t fa[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int word = q + i / 2 * 4;
        fa[i] = word < left ? a[i % 2 * eight_rows + word] : 0;
      }
      round(fa);
      multiply<P>(c, fa, fb.word);
    }
  }

  // The thread's output pixel and its new mask.
  __device__ void write() {
    const int y = int(threadIdx.x) / kTile, x = int(threadIdx.x) % kTile;
    const int oy = corner_.y + p_.top + y, ox = corner_.x + p_.left + x;
    if (oy >= p_.ho || ox >= p_.wo) return;
    int count = 0;
    for (int i = 0; i < p_.n_sources; ++i)
      count +=
          count_window(feed_.words(i), y, x, p_.kh, p_.kw) * (p_.n_sources > 1 ? p_.sources[i].channels : 1);
    p_.new_mask.set((corner_.n * p_.ho + oy) * p_.wo + ox, count > 0);
    const float ratio = ratio_of(p_.window, count);
    int64_t at = corner_.n * p_.on + oy * p_.oh + ox * p_.ow;
#pragma unroll
    for (int o = 0; o < kMostOutputs; ++o) {
      if (o >= p_.n_out) break;
      put(at, count > 0 ? sum_[o] * ratio + bias(o) : 0.f);
      at += p_.oc;
    }
  }
  __device__ void put(int64_t at, float value) const {
    if constexpr (kItem == 4) {
      static_cast<float*>(p_.out)[at] = value;
    } else {
      static_cast<P*>(p_.out)[at] = from_float<P>(value);
    }
  }
  __device__ float bias(int o) const {
    if (!p_.bias.data) return 0.f;
    if constexpr (kItem == 4) {
      return static_cast<const float*>(p_.bias.data)[o];
    } else {
      return to_float(static_cast<const P*>(p_.bias.data)[o]);
    }
  }

  const Problem& p_;
  Corner corner_;
  Feed<kItem> feed_;
  float* products_;
  float sum_[kMostOutputs] = {};
};

template <class P>
__global__ void __launch_bounds__(kThreads, Block<P>::kBlocks)
    few_outputs_matmul(const __grid_constant__ Problem p) {
  PCONV_SHARED(shared);
  const int block = int(blockIdx.x), across = p.by_tiles_x(block), n = p.by_tiles_y(across);
  const int y = (across - n * p.tiles_y) * kTile - p.top, x = (block - across * p.tiles_x) * kTile - p.left;
  Block<P>(p, shared, {n, y, x}).run();
}

template <class P, class T>
int launch(const Problem& p, dim3 grid, const Untyped& weight, const Untyped& packed, void* stream) {
  const int words = std::max(p.sources[0].packed_words, p.sources[1].packed_words);
  const dim3 blocks((words + kThreads - 1) / kThreads, p.n_sources);
  const auto pack = pack_few_outputs<P, T>;
  PCONV_LAUNCH(pack, blocks, dim3(kThreads), 0, stream, p, static_cast<const T*>(weight.data),
               static_cast<uint32_t*>(packed.data), p.c_in());
  const int error = pconv_launched();
  if (error) return error;
  const auto kernel = few_outputs_matmul<P>;
  allow_shared(kernel);
  PCONV_LAUNCH(kernel, grid, dim3(kThreads), p.shared_bytes(), stream, p);
  return pconv_launched();
}

}  // namespace
}  // namespace pconv::few

PCONV_PLAN(few_outputs) {
  using namespace pconv;
  using namespace pconv::few;
  Problem p{};
  const int item = args.integer("ITEM");
  read_problem(args, p);
  if (!args.complete()) return;
  if (!fits(args, p, item)) return answer.put("fits", 0);
  answer.put("fits", 1);
  answer.put("grid", {int64_t(p.N) * p.tiles_y * p.tiles_x});
  answer.put("scratch", p.sources[0].packed_words + p.sources[1].packed_words);
  // whether a source may have any layout; others are read fast in channels-last storage alone
  answer.put("any_layout", {p.sources[0].narrow, p.sources[1].narrow});
}

PCONV_ENTRY(few_outputs) {
  using namespace pconv;
  using namespace pconv::few;
  const dim3 grid = args.grid();
  Problem p{};
  Source &first = p.sources[0], &second = p.sources[1];
  first.x = args.tensor<const char>("x0"), second.x = args.tensor<const char>("x1");
  const Untyped masks[2] = {args.untyped("mask0"), args.untyped("mask1")};
  const Untyped weight = args.untyped("weight"), packed = args.untyped("packed");
  p.bias = args.untyped("bias");
  const Untyped out = args.untyped("out"), new_mask = args.untyped("new_mask");
  first.n = args.wide("x0_n"), first.c = args.wide("x0_c");
  first.h = args.wide("x0_h"), first.w = args.wide("x0_w");
  read_strides(args, first.mask, "mask0_n", "mask0_h", "mask0_w");
  second.n = args.wide("x1_n"), second.c = args.wide("x1_c");
  second.h = args.wide("x1_h"), second.w = args.wide("x1_w");
  read_strides(args, second.mask, "mask1_n", "mask1_h", "mask1_w");
  p.on = args.wide("out_n"), p.oc = args.wide("out_c"), p.oh = args.wide("out_h"), p.ow = args.wide("out_w");
  int low_h, low_w, kinds[2], has_bias;
  args.integers({{"H0", &low_h}, {"W0", &low_w}, {"H", &p.H}, {"W", &p.W}});
  read_problem(args, p);
  args.integers({{"MASK0", &kinds[0]}, {"MASK1", &kinds[1]}, {"HAS_BIAS", &has_bias}});
  const int precision = args.precision("PRECISION"), item = bytes_of(out.element);
  if (!fits(args, p, item)) return kInvalidValue;
  p.out = out.data;
  p.new_mask = flags(new_mask);
  if (!has_bias) p.bias.data = nullptr;
  first.mask = plane(masks[0], kinds[0], low_h, low_w, first.mask);
  second.mask = plane(masks[1], kinds[1], p.H, p.W, second.mask);
  for (int i = 0; i < p.n_sources; ++i) p.sources[i].unit = unit_of(p.sources[i], item);
  first.weights = static_cast<const uint32_t*>(packed.data);
  second.weights = first.weights + first.packed_words;
  if (out.element == kFloat16) return launch<Half, Half>(p, grid, weight, packed, stream);
  if (out.element == kBFloat16) return launch<BFloat16, BFloat16>(p, grid, weight, packed, stream);
  if (precision == kIeee) return launch<float, float>(p, grid, weight, packed, stream);
  return launch<Tf32, float>(p, grid, weight, packed, stream);
}
