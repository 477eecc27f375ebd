// Rows of a decoder stage: upcat_windows and low_adjoint_windows of kernels/triton/rows.py, see rows.cu.
#include "entries.h"

namespace pconv {
namespace {

// upcat_windows: output pixels of a decoder stage, by parity (and rows and columns that an odd size cuts).
// Their K x K windows cover KM x KM pixels of the low-resolution map, each of them up to 2 x 2 times.
struct UpCat {
  Plane low, skip;
  Entries entries;  // ints: pixel, corner in the low map, corner in the skip
  Flags new_mask;
  float* ratio;
  int8_t* natural;
  Types rows, columns;
  int N, c_low, c_skip, k, km, words_low;
};

// How many of the two copies of low-resolution position `low` lie in the window from `first` on and in the
// image.
__device__ inline int copies(int low, int first, int k, int size) {
  const int end = first + k < size ? first + k : size, begin = 2 * low > first ? 2 * low : first;
  return (2 * low + 2 < end ? 2 * low + 2 : end) - begin;
}

// Sets the window's bits over the low map; returns how many up-sampled pixels they stand for.
template <class T, int KM>
__device__ int low_window(const UpCat& f, int64_t* to, const Pixel& p, int y0, int x0) {
  const int H = f.skip.H, W = f.skip.W, ly0 = y0 >> 1, lx0 = x0 >> 1;
  if (KM == kManyWords) {
    int count = 0;
    store_taps(to, f.entries.total, f.km, f.km, [&](int a, int b) {
      const bool valid = p.exists && valid_at<T>(f.low, p.n, ly0 + a, lx0 + b);
      if (valid) count += copies(ly0 + a, y0, f.k, H) * copies(lx0 + b, x0, f.k, W);
      return valid;
    });
    return count;
  }
  constexpr int kWide = KM < 0 ? 0 : KM;
  using Bits = typename RowBits<kWide>::type;
  const int km = kWide ? kWide : f.km;
  const Bits fits = p.exists ? Bits(span_bits(lx0, 1, km, f.low.W)) : 0;
  Bits twice = 0;  // columns with both copies; the others that fit have one
  for (int b = 0; b < km; ++b) twice |= Bits(copies(lx0 + b, x0, f.k, W) == 2) << b;
  uint64_t bits = 0;
  int count = 0;
#pragma unroll
  for (int a = 0; a < (kWide ? kWide : km); ++a) {
    const Bits row = valid_row<T, kWide>(f.low, p.n, ly0 + a, lx0, km, 1, fits);
    bits |= uint64_t(row) << (a * km);
    count += copies(ly0 + a, y0, f.k, H) * (popcount(row) + popcount(row & twice));
  }
  *to = int64_t(bits);
  return count;
}

// The same of the skip.
template <class T, int K>
__device__ int skip_window(const UpCat& f, int64_t* to, const Pixel& p, int y0, int x0) {
  if (K == kManyWords) {
    int count = 0;
    store_taps(to, f.entries.total, f.k, f.k, [&](int a, int b) {
      const bool valid = p.exists && valid_at<T>(f.skip, p.n, y0 + a, x0 + b);
      count += valid;
      return valid;
    });
    return count;
  }
  constexpr int kWide = K < 0 ? 0 : K;
  const uint64_t bits = p.exists ? valid_window<T, kWide>(f.skip, p.n, y0, x0, f.k, f.k, 1, 1) : 0;
  *to = int64_t(bits);
  return popcount(bits);
}

template <class T, int K>
__global__ void __launch_bounds__(kThreads, 1) upcat_kernel(const UpCat f) {
  constexpr int kKM = K > 0 ? (K + 1) / 2 : K;
  ClassCounter counter;
  const int segment = blockIdx.y, total = f.entries.total, types = f.columns.types();
  const int ty = segment / types, tx = segment % types;
  for (int j = threadIdx.x; j < f.entries.block; j += kThreads) {
    const int i = blockIdx.x * f.entries.block + j, e = segment * f.entries.q + i;
    const Pixel p = segment_pixel(i, ty, tx, f.N, f.rows, f.columns);
    const int at = (p.n * f.skip.H + p.y) * f.skip.W + p.x, y0 = p.y - f.k / 2, x0 = p.x - f.k / 2;
    int64_t* words = f.entries.words + e;
    const int low = low_window<T, kKM>(f, words, p, y0, x0);
    const int skip = skip_window<T, K>(f, words + size_t(f.words_low) * total, p, y0, x0);
    const int count = f.c_low * low + f.c_skip * skip;
    State state = kOutside;
    if (p.exists) {
      state = state_of(count > 0, true);
      f.ratio[at] = ratio_of(float((f.c_low + f.c_skip) * f.k * f.k), count);
      f.new_mask.set(at, count > 0);
      f.natural[at] = int8_t(state);
    }
    f.entries.put(e, state, at, (p.n * f.low.H + (y0 >> 1)) * f.low.W + (x0 >> 1));
    f.entries.ints[2 * total + e] = (p.n * f.skip.H + y0) * f.skip.W + x0;
    counter.add(state);
  }
  counter.store(f.entries, segment);
}

// low_adjoint_windows: low-resolution pixels of a decoder stage, and the (K + 1) x (K + 1) output pixels that
// read each of them. The last row (column) is a segment of its own where an odd size cuts its second copy
// off.
struct LowAdjoint {
  Plane low;
  Entries entries;
  const int8_t* natural;
  Types rows, columns;
  int N, H, W, k;
};

template <int WIDE>
__device__ uint64_t live_window(const LowAdjoint& f, int n, int oy, int ox) {
  const int wide = WIDE ? WIDE : f.k + 1;
  const uint64_t fits = span_bits(ox, 1, wide, f.W);
  uint64_t bits = 0;
#pragma unroll
  for (int a = 0; a < (WIDE ? WIDE : wide); ++a) {
    const int8_t* first = f.natural + ((n * f.H + oy + a) * f.W + ox);
    bits |= live_row<WIDE, 1>(first, wide, 1, within(oy + a, f.H) ? fits : 0, 0).live << (a * wide);
  }
  return bits;
}

template <int WIDE>
__global__ void __launch_bounds__(kThreads, 1) low_adjoint_kernel(const LowAdjoint f) {
  ClassCounter counter;
  const int segment = blockIdx.y, types = f.columns.types();
  const int ty = segment / types, tx = segment % types;
  for (int j = threadIdx.x; j < f.entries.block; j += kThreads) {
    const int i = blockIdx.x * f.entries.block + j, e = segment * f.entries.q + i;
    const Pixel p = segment_pixel(i, ty, tx, f.N, f.rows, f.columns);
    const bool inside = p.exists && valid_at<AnySize>(f.low, p.n, p.y, p.x);
    const int oy = 2 * p.y - f.k / 2, ox = 2 * p.x - f.k / 2;
    if (WIDE == kManyWords) {
      store_taps(f.entries.words + e, f.entries.total, f.k + 1, f.k + 1, [&](int a, int b) {
        return inside && within(oy + a, f.H) && within(ox + b, f.W) &&
               f.natural[(p.n * f.H + oy + a) * f.W + ox + b] != kDead;
      });
    } else {
      f.entries.words[e] = inside ? int64_t(live_window < WIDE<0 ? 0 : WIDE>(f, p.n, oy, ox)) : 0;
    }
    const State state = p.exists ? state_of(inside, true) : kOutside;
    f.entries.put(e, state, (p.n * f.low.H + p.y) * f.low.W + p.x, (p.n * f.H + oy) * f.W + ox);
    counter.add(state);
  }
  counter.store(f.entries, segment);
}

template <class T>
void launch_upcat(const UpCat& f, bool many, dim3 grid, void* stream) {
  const auto launch = [&](auto size) {
    auto kernel = upcat_kernel<T, decltype(size)::value>;
    PCONV_LAUNCH(kernel, grid, dim3(kThreads), kCounterBytes, stream, f);
  };
  if (many) return launch(Constant<kManyWords>{});
  with_one_of<3>(dense(f.low, 1) && dense(f.skip, 1) ? f.k : 0, launch);
}

}  // namespace
}  // namespace pconv

PCONV_ENTRY(upcat_windows) {
  using namespace pconv;
  const dim3 grid = args.grid();
  UpCat f{};
  const Untyped low = args.untyped("mask_low"), skip = args.untyped("mask_skip");
  const Untyped new_mask = args.untyped("new_mask");
  f.ratio = args.tensor<float>("ratio");
  f.natural = args.tensor<int8_t>("pixel_state");
  f.entries = entries(args);
  int H, W, LH, LW, cut_h, cut_w, low_kind, skip_kind, words_skip;
  args.integers({{"N", &f.N}, {"H", &H}, {"W", &W}, {"LH", &LH}, {"LW", &LW}, {"Q", &f.entries.q}});
  args.integers({{"n_blocks", &f.entries.n_blocks}});
  Plane low_strides{}, skip_strides{};
  read_strides(args, low_strides, "low_n", "low_h", "low_w");
  read_strides(args, skip_strides, "skip_n", "skip_h", "skip_w");
  args.integers(
      {{"C_LOW", &f.c_low}, {"C_SKIP", &f.c_skip}, {"K", &f.k}, {"CUT_H", &cut_h}, {"CUT_W", &cut_w}});
  args.integers({{"LOW_MASK", &low_kind}, {"SKIP_MASK", &skip_kind}, {"WORDS_LOW", &f.words_low}});
  args.integers({{"WORDS_SKIP", &words_skip}, {"BLOCK", &f.entries.block}});
  if (!args.complete()) return kInvalidValue;
  f.new_mask = flags(new_mask);
  f.entries.total = int(grid.y) * f.entries.q;
  f.low = plane(low, low_kind, LH, LW, low_strides);
  f.skip = plane(skip, skip_kind, H, W, skip_strides);
  f.rows = Types(positions_over_upsampled(H, f.k)), f.columns = Types(positions_over_upsampled(W, f.k));
  if (f.rows.cut != cut_h || f.columns.cut != cut_w) return kInvalidValue;
  f.km = (f.k + 1) / 2;
  const bool many = f.words_low > 1 || words_skip > 1;
  if (f.low.data && f.skip.data && f.low.bytes != f.skip.bytes)
    launch_upcat<AnySize>(f, many, grid, stream);
  else
    with_mask(f.low.data ? f.low : f.skip,
              [&](auto element) { launch_upcat<decltype(element)>(f, many, grid, stream); });
  return pconv_launched();
}

PCONV_ENTRY(low_adjoint_windows) {
  using namespace pconv;
  const dim3 grid = args.grid();
  LowAdjoint f{};
  const Untyped low = args.untyped("mask_low");
  f.natural = args.tensor<int8_t>("pixel_state");
  f.entries = entries(args);
  int LH, LW, cut_h, cut_w, kind, n_words;
  args.integers({{"N", &f.N}, {"H", &f.H}, {"W", &f.W}, {"LH", &LH}, {"LW", &LW}, {"Q", &f.entries.q}});
  args.integers({{"n_blocks", &f.entries.n_blocks}});
  Plane strides{};
  read_strides(args, strides, "low_n", "low_h", "low_w");
  args.integers(
      {{"K", &f.k}, {"CUT_H", &cut_h}, {"CUT_W", &cut_w}, {"LOW_MASK", &kind}, {"WORDS", &n_words}});
  args.integers({{"BLOCK", &f.entries.block}});
  if (!args.complete()) return kInvalidValue;
  f.entries.total = int(grid.y) * f.entries.q;
  f.low = plane(low, kind, LH, LW, strides);
  f.rows = Types(stored_positions(LH, f.H)), f.columns = Types(stored_positions(LW, f.W));
  if (f.rows.cut != cut_h || f.columns.cut != cut_w) return kInvalidValue;
  const auto launch = [&](auto width) {
    auto kernel = low_adjoint_kernel<decltype(width)::value>;
    PCONV_LAUNCH(kernel, grid, dim3(kThreads), kCounterBytes, stream, f);
  };
  if (n_words > 1)
    launch(Constant<kManyWords>{});
  else
    with_one_of<2, 4, 6>(f.k + 1, launch);
  return pconv_launched();
}
