// Rows: which output pixels a matrix kernel works on, in which order, and which taps each of them may read.
// The contracts, buffers and results are those of kernels/triton/rows.py, kernel by kernel.
//
// A block of a windows kernel takes `block` entries of a segment (a multiple of 32), one of `compact` as
// many, each by a thread of its own.
#include "entries.h"

namespace pconv {
namespace {

// forward_windows: output pixels of a convolution with branches that share their centre.
struct Branches {
  int n;
  int shape[kMostBranches][4];   // kh, kw and where it lies in the window of the last
  uint64_t part[kMostBranches];  // its bits in a window of one word
};

struct Forward {
  Plane mask;
  Entries entries;
  Flags new_mask;
  float* ratio;  // [branches, pixels]
  int8_t* natural;
  int N, HO, WO, pixels, pad_top, pad_left, sh, sw, dh, dw, kh, kw;
  Divider by_wo, by_ho;
  Branches branches;
};

struct Found {
  bool live, whole;
};

// Ratios from a window in one word.
__device__ inline Found count_parts(const Forward& f, int j, bool ok, uint64_t bits) {
  bool whole = true;
  for (int k = 0; k < f.branches.n; ++k) {
    const uint64_t part = f.branches.part[k], hit = bits & part;
    whole = whole && hit == part;
    const float size = f.branches.shape[k][0] * f.branches.shape[k][1];
    if (ok) f.ratio[size_t(k) * f.pixels + j] = ratio_of(size, popcount(hit));
  }
  return {(bits & f.branches.part[0]) != 0, whole};
}

// Ratios of larger windows, whose masks are read again for each branch.
template <class T>
__device__ Found count_branches(const Forward& f, int j, bool ok, int n, int y0, int x0) {
  bool live = false, whole = true;
  for (int k = 0; k < f.branches.n && ok; ++k) {
    const int* shape = f.branches.shape[k];
    int count = 0;
    for (int a = 0; a < shape[0]; ++a)
      for (int b = 0; b < shape[1]; ++b)
        count += valid_at<T>(f.mask, n, y0 + (shape[2] + a) * f.dh, x0 + (shape[3] + b) * f.dw);
    whole = whole && count == shape[0] * shape[1];
    if (k == 0) live = count > 0;
    f.ratio[size_t(k) * f.pixels + j] = ratio_of(float(shape[0] * shape[1]), count);
  }
  return {live, whole};
}

template <class T, int SIDE>
__device__ Found forward_pixel(const Forward& f, int j, bool ok, int n, int y0, int x0) {
  if (SIDE == kManyWords) {
    store_taps(f.entries.words + j, f.entries.q, f.kh, f.kw,
               [&](int a, int b) { return ok && valid_at<T>(f.mask, n, y0 + a * f.dh, x0 + b * f.dw); });
    return count_branches<T>(f, j, ok, n, y0, x0);
  }
  constexpr int kSide = SIDE < 0 ? 0 : SIDE;
  const uint64_t bits = ok ? valid_window<T, kSide>(f.mask, n, y0, x0, f.kh, f.kw, f.dh, f.dw) : 0;
  f.entries.words[j] = int64_t(bits);
  return count_parts(f, j, ok, bits);
}

template <class T, int SIDE>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(const Forward f) {
  ClassCounter counter;
  for (int i = threadIdx.x; i < f.entries.block; i += kThreads) {
    const int j = blockIdx.x * f.entries.block + i;
    const bool ok = j < f.pixels;
    const int row = f.by_wo(j), n = f.by_ho(row);
    const int y0 = (row - n * f.HO) * f.sh - f.pad_top, x0 = (j - row * f.WO) * f.sw - f.pad_left;
    const Found found = forward_pixel<T, SIDE>(f, j, ok, n, y0, x0);
    State state = state_of(found.live, found.whole || f.branches.n == 1);
    if (ok) {
      f.new_mask.set(j, found.live);
      f.natural[j] = int8_t(state);
    } else {
      state = kOutside;
    }
    f.entries.put(j, state, j, (n * f.mask.H + y0) * f.mask.W + x0);
    counter.add(state);
  }
  counter.store(f.entries, 0);
}

// The bits of each branch in a window of one word.
void find_parts(Branches& branches) {
  const int pitch = branches.shape[branches.n - 1][1], high = branches.shape[branches.n - 1][0];
  for (int k = 0; k < branches.n && high * pitch <= kWordBits; ++k) {
    const int* shape = branches.shape[k];
    branches.part[k] = part_bits(shape[0], shape[1], shape[2] * pitch + shape[3], pitch);
  }
}

// adjoint_windows: input pixels of a convolution, by their residues modulo the stride.
struct Adjoint {
  Plane mask;
  Entries entries;
  const int8_t* natural;
  Types rows, columns;
  int N, HO, WO, pad_top, pad_left, dh, dw;
  int step_y, step_x, jump_y, jump_x, kh, kw, ny, nx;
  int reach[4];  // kh, kw, oy, ox; without a second kernel 0, which nothing is within
  Divider by_sh, by_sw;
  int first_y[kMostStride], first_x[kMostStride];
};

// The output pixels around a pixel: where the first one is and which tap of the kernel that is.
struct Around {
  int n, oy, ox, dy, dx;
};

// The bits of the taps at live output pixels; `mixed` if one that is reaches the pixel. SIDE > 0: there are
// that many in each direction, at neighbouring pixels.
template <int SIDE>
__device__ uint64_t adjoint_window(const Adjoint& f, const Around& at, bool& mixed) {
  const int nx = SIDE ? SIDE : f.nx;
  const uint64_t fits =
      span_bits(at.ox, -f.jump_x, nx, f.WO) & span_bits(at.dx, f.step_x, nx, f.kw);  // taps begin at 0
  const uint64_t near = span_bits(at.dx - f.reach[3], f.step_x, nx, f.reach[1]);
  uint64_t bits = 0;
#pragma unroll
  for (int a = 0; a < (SIDE ? SIDE : f.ny); ++a) {
    const int dy = at.dy + a * f.step_y, oy = at.oy - a * f.jump_y;
    const bool inside = dy < f.kh && within(oy, f.HO);
    const int8_t* first = f.natural + ((at.n * f.HO + oy) * f.WO + at.ox);
    const LiveRow row = live_row<SIDE, -1>(first, nx, -f.jump_x, inside ? fits : 0, near);
    bits |= row.live << (a * nx);
    mixed |= row.mixed && within(dy - f.reach[2], f.reach[0]);
  }
  return bits;
}

__device__ inline bool adjoint_tap(const Adjoint& f, const Around& at, int a, int b, bool& mixed) {
  const int dy = at.dy + a * f.step_y, oy = at.oy - a * f.jump_y;
  const int dx = at.dx + b * f.step_x, ox = at.ox - b * f.jump_x;
  if (dy >= f.kh || dx >= f.kw || !within(oy, f.HO) || !within(ox, f.WO)) return false;
  const int state = f.natural[(at.n * f.HO + oy) * f.WO + ox];
  const bool near = within(dy - f.reach[2], f.reach[0]) && within(dx - f.reach[3], f.reach[1]);
  mixed |= near && state == kMixed;
  return state != kDead;
}

template <int SIDE>
__global__ void __launch_bounds__(kThreads, 1) adjoint_kernel(const Adjoint f) {
  constexpr int kSide = SIDE < 0 ? 0 : SIDE;
  ClassCounter counter;
  const int segment = blockIdx.y, ty = segment / f.columns.step, tx = segment % f.columns.step;
  for (int j = threadIdx.x; j < f.entries.block; j += kThreads) {
    const int i = blockIdx.x * f.entries.block + j, e = segment * f.entries.q + i;
    const Pixel p = segment_pixel(i, ty, tx, f.N, f.rows, f.columns);
    const bool inside = p.exists && valid_at<AnySize>(f.mask, p.n, p.y, p.x);
    const int dy = f.first_y[ty], dx = f.first_x[tx];
    const Around at{p.n, f.by_sh.toward_zero(p.y + f.pad_top - dy * f.dh),
                    f.by_sw.toward_zero(p.x + f.pad_left - dx * f.dw), dy, dx};
    bool mixed = false;
    if (SIDE == kManyWords) {
      store_taps(f.entries.words + e, f.entries.total, f.ny, f.nx,
                 [&](int a, int b) { return inside && adjoint_tap(f, at, a, b, mixed); });
    } else {
      f.entries.words[e] = inside ? int64_t(adjoint_window<kSide>(f, at, mixed)) : 0;
    }
    const State state = p.exists ? state_of(inside, !mixed) : kOutside;
    f.entries.put(e, state, (p.n * f.mask.H + p.y) * f.mask.W + p.x, (p.n * f.HO + at.oy) * f.WO + at.ox);
    counter.add(state);
  }
  counter.store(f.entries, segment);
}

}  // namespace
}  // namespace pconv

PCONV_ENTRY(forward_windows) {
  using namespace pconv;
  const dim3 grid = args.grid();
  Forward f{};
  const Untyped mask = args.untyped("mask"), new_mask = args.untyped("new_mask");
  f.ratio = args.tensor<float>("ratio");
  f.natural = args.tensor<int8_t>("pixel_state");
  f.entries = entries(args);
  int H, W, kind, n_words;
  args.integers({{"N", &f.N}, {"H", &H}, {"W", &W}, {"HO", &f.HO}, {"WO", &f.WO}, {"Q", &f.entries.q}});
  args.integers({{"n_blocks", &f.entries.n_blocks}, {"pad_top", &f.pad_top}, {"pad_left", &f.pad_left}});
  Plane strides{};
  read_strides(args, strides, "mask_n", "mask_h", "mask_w");
  f.branches.n = args.rows<4>("WINDOWS", f.branches.shape, kMostBranches);
  args.integers({{"SH", &f.sh}, {"SW", &f.sw}, {"DH", &f.dh}, {"DW", &f.dw}, {"MASK", &kind}});
  args.integers({{"WORDS", &n_words}, {"BLOCK", &f.entries.block}});
  if (!args.complete() || f.branches.n < 1) return kInvalidValue;
  f.new_mask = flags(new_mask);
  f.entries.total = f.entries.q;
  f.mask = plane(mask, kind, H, W, strides);
  find_parts(f.branches);
  f.kh = f.branches.shape[f.branches.n - 1][0], f.kw = f.branches.shape[f.branches.n - 1][1];
  f.pixels = f.N * f.HO * f.WO;
  f.by_wo = Divider(f.WO), f.by_ho = Divider(f.HO);
  with_mask(f.mask, [&](auto element) {
    const auto launch = [&](auto width) {
      auto kernel = forward_kernel<decltype(element), decltype(width)::value>;
      PCONV_LAUNCH(kernel, grid, dim3(kThreads), kCounterBytes, stream, f);
    };
    if (n_words > 1) return launch(Constant<kManyWords>{});
    with_one_of<3, 5, 7>(dense(f.mask, f.dw) && f.kh == f.kw ? f.kw : 0, launch);
  });
  return pconv_launched();
}

PCONV_ENTRY(adjoint_windows) {
  using namespace pconv;
  const dim3 grid = args.grid();
  Adjoint f{};
  const Untyped mask = args.untyped("mask");
  f.natural = args.tensor<int8_t>("pixel_state");
  f.entries = entries(args);
  int H, W, sh, sw, kind, n_words;
  args.integers({{"N", &f.N}, {"H", &H}, {"W", &W}, {"HO", &f.HO}, {"WO", &f.WO}, {"Q", &f.entries.q}});
  args.integers({{"n_blocks", &f.entries.n_blocks}, {"pad_top", &f.pad_top}, {"pad_left", &f.pad_left}});
  Plane strides{};
  read_strides(args, strides, "mask_n", "mask_h", "mask_w");
  args.tuple("FIRST_Y", f.first_y, kMostStride), args.tuple("FIRST_X", f.first_x, kMostStride);
  args.integers({{"STEP_Y", &f.step_y}, {"STEP_X", &f.step_x}, {"JUMP_Y", &f.jump_y}, {"JUMP_X", &f.jump_x}});
  args.integers({{"KH", &f.kh}, {"KW", &f.kw}, {"NY", &f.ny}, {"NX", &f.nx}});
  args.tuple("REACH", f.reach, 4);
  args.integers({{"SH", &sh}, {"SW", &sw}, {"DH", &f.dh}, {"DW", &f.dw}, {"MASK", &kind}});
  args.integers({{"WORDS", &n_words}, {"BLOCK", &f.entries.block}});
  if (!args.complete()) return kInvalidValue;
  f.entries.total = int(grid.y) * f.entries.q;
  f.mask = plane(mask, kind, H, W, strides);
  f.rows = Types({H, sh, 0}), f.columns = Types({W, sw, 0});
  f.by_sh = Divider(sh), f.by_sw = Divider(sw);
  const auto launch = [&](auto width) {
    auto kernel = adjoint_kernel<decltype(width)::value>;
    PCONV_LAUNCH(kernel, grid, dim3(kThreads), kCounterBytes, stream, f);
  };
  if (n_words > 1)
    launch(Constant<kManyWords>{});
  else
    with_one_of<2, 3, 4, 5, 7>(f.jump_x == 1 && f.ny == f.nx ? f.nx : 0, launch);
  return pconv_launched();
}
