// Gradient of the weights of partial_conv2d and msfef over at most eight channels, where none of x is wanted,
// in one launch from the gradient of the features to the partial sums that weights.finish adds up:
//
//   partial[part, slot, m, n] = sum_p x[row of taps of slot at p, m] * scale * ratio_b(p) grad[p, n]
//
// A slot is a row of a kernel's taps: `cp` elements, as wide as the largest window, `row_channels` to a pixel
// (wgrad.tap_matmul's layout). With several kernels their sum, the largest with ratios of one, takes the
// plain pixels, and each by itself the mixed ones; a single kernel takes all that live. The first blocks also
// write the gradient's sum over live pixels.
//
// A warp owns a *job*, 32 elements of a slot by 64 output channels, whose sums stay in its registers for the
// block's whole life: a block has eight jobs (a group) and walks over every gridDim-th tile of 8 x 16 output
// pixels. Of each it loads the input below, holes as zeros, so that a row of taps is contiguous and pixels
// share it, and the gradient, which it scales in place for each of the group's one or two kernels, zeros for
// pixels of another class. Both lie with the summed pixels as rows: fragments are transposed on their way out
// of shared memory. Zeros times x that is valid but not finite make NaN of an infinite sum; holes never do.
#include "few_inputs_gradients_jobs.h"
#include "few_inputs_gradients_products.h"

namespace pconv {
namespace {

static_assert(kThreads == kBuffers * kPixels, "classify has a thread for each");

// Which pixels a group takes.
enum Kind : int { kPlainPixels, kMixedPixels, kLivePixels };

struct GradientProblem {
  Problem in;        // x, mask and window; phases: the kernels
  const char* grad;  // [pixels, n_out]
  float* partial;    // by section: those of plain or live pixels, after `pitch` sums of the gradient; mixed
  float scale;
  bool wide_loads;  // rows of grad are multiples of 16 bytes
  int cp, pitch;    // of partial
  int groups[2], parts[2];
  int64_t sizes[2];  // elements of a part, by section
  Group group[kMaxGroups];
  Job jobs[kMaxGroups * kJobs];
  int buffers;                       // copies of the gradient, with which shared memory begins
  int factors, used, flags, totals;  // where these begin
};

struct Tile {
  int n, y, x;  // of its first output pixel
};

template <class P>
class GradientBlock {
  using T = typename Stored<P>::Type;
  static constexpr int kItem = int(sizeof(T)), kRowBytes = Rows<P>::kBytes, kV = 16 / kItem;
  static constexpr int kBatch = sizeof(P) == 4 ? 2 : 4;  // beside the sums there are not many registers
  static constexpr int kPieces = kPixels * kWide / kV / kThreads;  // of the gradient, of a thread
  struct alignas(16) Piece {
    T v[kV];
  };

 public:
  __device__ GradientBlock(const GradientProblem& t, char* shared) : t_(t), p_(t.in), shared_(shared) {
    const int first = t.groups[0] * t.parts[0], block = int(blockIdx.x);
    section_ = block >= first;
    const int i = section_ ? block - first : block, groups = t.groups[section_];
    group_ = section_ ? t.groups[0] + i % groups : i % groups;
    part_ = i / groups;
  }

  __device__ void run() {
    const int step = t_.parts[section_];
    for (int c = 0; c < kV; ++c) totals()[c * kThreads + threadIdx.x] = 0;
    for (int first = part_; first < p_.tiles; first += kWarps * step) take_some(first, step);
    store();
    if (group_ == 0) store_total();
  }

 private:
  __device__ static int lane() { return int(threadIdx.x) % 32; }
  __device__ static int warp() { return int(threadIdx.x) / 32; }
  __device__ Kind kind() const {
    return section_ ? kMixedPixels : p_.n_kernels > 1 ? kPlainPixels : kLivePixels;
  }
  __device__ const Job& job() const { return t_.jobs[group_ * kJobs + warp()]; }
  __device__ uint32_t* used() const { return reinterpret_cast<uint32_t*>(shared_ + t_.used); }
  __device__ uint32_t* live() const { return used() + kPixels / 32; }
  __device__ float* factors() const { return reinterpret_cast<float*>(shared_ + t_.factors); }

  // Of the gradient over live pixels, by thread: channel c of its pieces is [c][thread].
  __device__ float* totals() const { return reinterpret_cast<float*>(shared_ + t_.totals); }

  __device__ Tile tile_at(int tile) const {
    const int t = p_.by_tiles_x(tile), n = p_.by_tiles_y(t);
    return {n, (t - n * p_.tiles_y) * kTileRows, (tile - t * p_.tiles_x) * kColumns};
  }

  // The next kWarps tiles; of mixed pixels' section those that may have one. Each warp looks at one tile.
  __device__ void take_some(int first, int step) {
    uint32_t* flags = reinterpret_cast<uint32_t*>(shared_ + t_.flags);
    const int own = first + warp() * step;
    const bool flag = own < p_.tiles && (!section_ || has_edge(tile_at(own)));
    if (lane() == 0) flags[warp()] = flag;
    __syncthreads();
#pragma unroll 1
    for (int w = 0; w < kWarps; ++w)
      if (flags[w]) take(first + w * step);
    __syncthreads();  // before the flags change
  }

  // Whether the input below a tile has both valid entries and others.
  __device__ bool has_edge(const Tile& tile) const {
    if (!p_.mask.data || p_.mask.bytes == 1) return has_edge<uint8_t>(tile);
    if (p_.mask.bytes == 2) return has_edge<uint16_t>(tile);
    if (p_.mask.bytes == 4) return has_edge<uint32_t>(tile);
    return has_edge<uint64_t>(tile);
  }
  template <class M>
  __device__ bool has_edge(const Tile& tile) const {
    const int y0 = tile.y * p_.sh - p_.top, x0 = tile.x * p_.sw - p_.left, pixels = p_.at.rows * p_.columns;
    const M* mask =
        static_cast<const M*>(p_.mask.data) + tile.n * p_.mask.n + y0 * p_.mask.h + x0 * p_.mask.w;
    bool some = false, none = false;
#pragma unroll 8
    for (int i = lane(); i < pixels; i += 32) {
      const int y = p_.by_columns(i), x = i - y * p_.columns;
      const bool inside = within(y0 + y, p_.H) && within(x0 + x, p_.W);
      const M flag = inside && p_.mask.data ? mask[uint32_t(y * p_.mask_h + x * p_.mask_w)] : M(0);
      const bool valid = inside && (!p_.mask.data || (flag & M(p_.mask.keep)) != 0);
      some |= valid, none |= !valid;
    }
    return __ballot_sync(kAll, some) && __ballot_sync(kAll, none);
  }

  __device__ void take(int index) {
    const Tile tile = tile_at(index);
    __syncthreads();  // all have left the last tile
    request_gradient(tile);
    load_input<P, kBatch>(p_, shared_, tile.n, tile.y * p_.sh - p_.top, tile.x * p_.sw - p_.left);
    __syncthreads();
    classify(tile);
    wait_for_copies<0>();
    __syncthreads();
    uint32_t any = 0;
    for (int i = 0; i < kPixels / 32; ++i) any |= kind() == kMixedPixels ? used()[i] : live()[i];
    if (!any) return;
    scale();
    __syncthreads();
    multiply_tile();
  }

  // Begins the copies of the gradient at all pixels, into the first buffer.
  __device__ void request_gradient(const Tile& tile) {
#pragma unroll 2
    for (int k = 0; k < kPieces; ++k) {
      const int i = k * kThreads + int(threadIdx.x), pixel = i / (kWide / kV), piece = i % (kWide / kV);
      const int y = tile.y + pixel / kColumns, x = tile.x + pixel % kColumns;
      const int n = int(blockIdx.y) * kWide + piece * kV, left = p_.n_out - n;
      const bool inside = y < p_.HO && x < p_.WO && left > 0;
      const char* from =
          t_.grad + (inside ? (int64_t((tile.n * p_.HO + y) * p_.WO + x) * p_.n_out + n) * kItem : 0);
      char* const to = shared_ + Rows<P>::at(pixel, piece);
      if (t_.wide_loads) {
        copy_async<16>(to, from, inside ? 16 : 0);
      } else {
        Piece elements;
#pragma unroll
        for (int c = 0; c < kV; ++c)
          elements.v[c] = inside && c < left ? reinterpret_cast<const T*>(from)[c] : from_float<T>(0);
        *reinterpret_cast<Piece*>(to) = elements;
      }
    }
    commit_copies();
  }

  // For each pixel what its gradient is multiplied with, by kernel of the group, and which pixels the group
  // takes and which are live.
  __device__ void classify(const Tile& tile) {
    const int pixel = int(threadIdx.x) % kPixels, y = pixel / kColumns, x = pixel % kColumns;
    const int first = y * p_.sh * p_.columns + x * p_.sw, buffer = int(threadIdx.x) / kPixels;
    const bool live = tile.y + y < p_.HO && tile.x + x < p_.WO && count(first, p_.phases[0]) > 0;
    const bool whole = count(first, p_.plain()) == p_.plain().kh * p_.plain().kw;
    const bool takes = live && (kind() == kLivePixels || whole == (kind() == kPlainPixels));
    const int k = t_.group[group_].kernels[buffer];
    if (k >= 0) {
      const Pass& w = p_.phases[k];
      factors()[threadIdx.x] = takes ? ratio_of(float(w.kh * w.kw), count(first, w)) * t_.scale : 0;
    }
    const uint32_t taken = __ballot_sync(kAll, takes), alive = __ballot_sync(kAll, live);
    if (buffer == 0 && lane() == 0) used()[warp()] = taken, this->live()[warp()] = alive;
  }
  __device__ int count(int first, const Pass& w) const {
    return count_window(p_, shared_, first + w.oy * p_.columns + w.ox, w.kh, w.kw);
  }

  // The copies of the gradient, the first over what came from memory; its sum over live pixels on the way. A
  // thread has the same channels of all its pixels.
  __device__ void scale() {
    const bool second = t_.group[group_].kernels[1] >= 0;
    float total[kV] = {};
#pragma unroll 2
    for (int k = 0; k < kPieces; ++k) {
      const int i = k * kThreads + int(threadIdx.x), pixel = i / (kWide / kV);
      Piece* const at = reinterpret_cast<Piece*>(shared_ + Rows<P>::at(pixel, i % (kWide / kV)));
      const Piece from = *at;
      const bool alive = live()[pixel / 32] >> pixel % 32 & 1;
#pragma unroll
      for (int c = 0; c < kV; ++c) total[c] += alive ? to_float(from.v[c]) : 0.f;
      *at = scaled(from, factors()[pixel]);
      if (second) at[kPixels * kRowBytes / 16] = scaled(from, factors()[kPixels + pixel]);
    }
    if (group_ == 0) {
#pragma unroll
      for (int c = 0; c < kV; ++c) totals()[c * kThreads + threadIdx.x] += total[c];
    }
  }
  __device__ static Piece scaled(const Piece& from, float factor) {
    Piece to;
#pragma unroll
    for (int c = 0; c < kV; ++c)
      to.v[c] = Stored<P>::of(factor != 0 ? to_float(from.v[c]) * factor : 0);  // a select: it may be NaN
    return to;
  }

  __device__ __forceinline__ void multiply_tile() {
    const Job& own = job();
    if (own.slot < 0) return;
    const char* x = shared_ + p_.at.input + own.row * p_.pitch + own.m * kItem;
    const char* g = shared_ + own.buffer * kPixels * kRowBytes;
#pragma unroll 1
    for (int i = 0; i < kTileRows; ++i) {
      if (used()[i / 2] >> i % 2 * kColumns & 0xFFFF)
        add_products(sums_, x, p_.sw * p_.pixel_bytes, g + i * kColumns * kRowBytes, P{});
      x += p_.sh * p_.pitch;
    }
  }

  __device__ float* own_part() const {
    return t_.partial + (section_ ? t_.parts[0] * t_.sizes[0] : 0) + part_ * t_.sizes[section_];
  }
  __device__ void store() const {
    const Job& own = job();
    if (own.slot < 0) return;
    float* const to = own_part() + (section_ ? 0 : t_.pitch) + int64_t(own.slot) * t_.cp * t_.pitch;
#pragma unroll
    for (int i = 0; i < kHigh / 8; ++i) {
      const int m = own.m + i * 8 + lane() / 4;
      if (m >= t_.cp) continue;
#pragma unroll
      for (int j = 0; j < kWide / 8; ++j) {
        const int n = int(blockIdx.y) * kWide + j * 8 + lane() % 4 * 2;  // pitch is even
        const float* pair = &sums_[i / 2][j][i % 2 * 2];
        if (n < t_.pitch) *reinterpret_cast<Pair*>(to + int64_t(m) * t_.pitch + n) = {pair[0], pair[1]};
      }
    }
  }
  // The sum over live pixels: that of threads with the same channels, one after the other.
  __device__ void store_total() {
    __syncthreads();
    const int own = int(threadIdx.x), n = int(blockIdx.y) * kWide + own;
    if (own >= kWide || n >= t_.pitch) return;
    float sum = 0;
    for (int i = own / kV; i < kThreads; i += kWide / kV) sum += totals()[own % kV * kThreads + i];
    own_part()[n] = sum;
  }

  const GradientProblem& t_;
  const Problem& p_;
  char* shared_;
  int section_, group_, part_;
  Sums sums_ = {};
};

// Grid: groups x parts of the first section and then of the second, blocks of output channels.
template <class P>
__global__ void __launch_bounds__(kThreads, 2)
    few_inputs_gradients(const __grid_constant__ GradientProblem t) {
  PCONV_SHARED(shared);
  GradientBlock<P>(t, shared).run();
}

template <class P>
int launch(GradientProblem& t, dim3 grid, void* stream) {
  Problem& p = t.in;
  p.at.rows = (kTileRows - 1) * p.sh + p.plain().kh;
  p.at.input = t.buffers * kPixels * Rows<P>::kBytes;
  p.at.words = p.at.input + p.at.rows * p.pitch;
  t.factors = p.at.words + (p.at.rows * p.columns / 32 + 2) * int(sizeof(uint32_t));
  t.used = t.factors + kBuffers * kPixels * int(sizeof(float));
  t.flags = t.used + 2 * kPixels / 32 * int(sizeof(uint32_t));
  t.totals = t.flags + kWarps * int(sizeof(uint32_t));
  p.at.bytes = t.totals + kThreads * 16 / int(sizeof(P)) * int(sizeof(float));
  allow_shared(few_inputs_gradients<P>);
  PCONV_LAUNCH(few_inputs_gradients<P>, grid, dim3(kThreads), p.at.bytes, stream, t);
  return pconv_launched();
}

// CP and WINDOWS, after the sizes.
struct Windows {
  int count, cp;
  Pass windows[kMostPasses];
};
void read_windows(Args& args, Windows& w) {
  w.cp = args.integer("CP"), w.count = args.rows<4>("WINDOWS", w.windows, kMostPasses);
}

// Whether the kernel can compute this at all, and if so the rest of `p`. The innermost pixels of a row of
// taps are read from shared memory by 16 bytes.
bool fits(Args& args, Problem& p, const Plane& mask, int item, const Windows& w) {
  if (!args.complete() || w.count < 1 || w.count > kMostPhases || w.cp <= 0) return false;
  p.n_kernels = p.n_phases = w.count;
  std::copy(w.windows, w.windows + w.count, p.phases);
  if (!can_load(p, mask) || int64_t(p.N) * p.HO * p.WO == 0) return false;
  if (item != 4 && p.sw * p.row_channels * item % 16) return false;
  const int reads = most(w.cp, kHigh) / p.row_channels;  // of a row, also beyond the window
  set_up(p, mask, item, most(reads, p.plain().kw));
  p.tiles_x = (p.WO + kColumns - 1) / kColumns, p.tiles_y = (p.HO + kTileRows - 1) / kTileRows;
  p.tiles = p.N * p.tiles_y * p.tiles_x;
  p.by_tiles_x = Divider(p.tiles_x), p.by_tiles_y = Divider(p.tiles_y);
  return true;
}

}  // namespace
}  // namespace pconv

PCONV_PLAN(few_inputs_gradients) {
  using namespace pconv;
  Problem p = {};
  Plane mask{};
  Windows w{};
  const int item = args.integer("ITEM");
  read_window(args, p, mask);
  read_windows(args, w);
  const int processors = args.integer("PROCESSORS");
  if (!args.complete()) return;
  if (!fits(args, p, mask, item, w)) return answer.put("fits", 0);
  // the merged or only kernel, and each of several by itself
  const Section both[] = {deal(p, w.count - 1, w.count, w.cp), deal(p, 0, w.count > 1 ? w.count : 0, w.cp)};
  const int wide = (p.n_out + kWide - 1) / kWide, pitch = (p.n_out + 7) / 8 * 8;
  const int room = 2 * processors;  // for blocks that run at the same time
  int64_t splits[2] = {}, sizes[2] = {};
  std::vector<Group> groups;
  std::vector<Job> jobs;
  int blocks = 0;
  for (int i = 0; i < 2; ++i) {
    const int count = int(both[i].groups.size());
    if (count) splits[i] = most(1, least(p.tiles, room / (count * wide)));
    sizes[i] = (i == 0 ? pitch : 0) + int64_t(both[i].slots) * w.cp * pitch;
    blocks += int(splits[i]) * count;
    groups.insert(groups.end(), both[i].groups.begin(), both[i].groups.end());
    jobs.insert(jobs.end(), both[i].jobs.begin(), both[i].jobs.end());
  }
  answer.put("fits", groups.size() <= kMaxGroups);
  answer.put("grid", {blocks, wide});
  answer.put("scratch", splits[0] * sizes[0] + splits[1] * sizes[1]);
  answer.put("channels", pitch);
  answer.put("splits", {splits[0], splits[1]});  // by section, as what follows
  answer.put("sizes", {sizes[0], sizes[1]});
  answer.put("slots", {both[0].slots, both[1].slots});
  answer.put("sections", {int64_t(both[0].groups.size()), int64_t(both[1].groups.size())});
  answer.rows<2>("groups", groups);
  answer.rows<4>("jobs", jobs);
}

PCONV_ENTRY(few_inputs_gradients) {
  using namespace pconv;
  const dim3 grid = args.grid();
  GradientProblem t = {};
  Problem& p = t.in;
  const Untyped x = args.untyped("x"), mask = args.untyped("mask");
  t.grad = args.tensor<const char>("grad");
  t.partial = args.tensor<float>("partial");
  Plane strides{};
  Windows w{};
  read_window(args, p, strides);
  read_windows(args, w);
  t.scale = args.real("scale");
  t.pitch = args.integer("PITCH");
  const int groups = args.rows<2>("GROUPS", t.group, kMaxGroups);
  const int jobs = args.rows<4>("JOBS", t.jobs, kMaxGroups * kJobs);
  args.integers({{"GROUPS0", &t.groups[0]}, {"GROUPS1", &t.groups[1]}});
  args.integers({{"SPLITS0", &t.parts[0]}, {"SPLITS1", &t.parts[1]}});
  t.sizes[0] = args.wide("SIZE0"), t.sizes[1] = args.wide("SIZE1");
  const int kind = args.integer("MASK"), precision = args.precision("PRECISION");
  const int item = x.element == kFloat32 ? 4 : 2;
  if (!fits(args, p, strides, item, w) || jobs != groups * kJobs || groups != t.groups[0] + t.groups[1])
    return kInvalidValue;
  t.cp = w.cp;
  t.buffers = 1;
  for (int i = 0; i < groups; ++i)
    if (t.group[i].kernels[1] >= 0) t.buffers = kBuffers;
  p.x = static_cast<const char*>(x.data);
  p.mask = plane(mask, kind, p.H, p.W, strides);
  t.wide_loads = (reinterpret_cast<uintptr_t>(t.grad) | uint64_t(p.n_out * item)) % 16 == 0;
  if (x.element == kFloat16) return launch<Half>(t, grid, stream);
  if (x.element == kBFloat16) return launch<BFloat16>(t, grid, stream);
  if (precision == kIeee) return launch<float>(t, grid, stream);
  return launch<Tf32>(t, grid, stream);
}
