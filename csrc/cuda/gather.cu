// The matrix kernel of forward and of the gradient of the features, as kernels/triton/gather.py: rows of taps
// times folded weights. A block computes BM pixels of a row list times BN channels. Each K step copies one
// tap (or one row of taps) of its pixels and the weights that belong to it to shared memory, `stages` - 1
// steps ahead of the multiplication, without a pause between the phases.
#include "gather_feed.h"
#include <type_traits>

namespace pconv {
namespace {

// How the warps of a block share its tile; P is multiply's type of operands, or float for products in
// float32.
template <class P, int BM, int BN>
struct Tile {
  static constexpr int kWarps = BM * BN == 128 * 128 ? 8 : 4, kThreads = 32 * kWarps;
  static constexpr int kWarpsN = BN == 128 ? 4 : BN == 64 || (BM == 64 && BN == 32) ? 2 : 1;
  static constexpr int kM = BM / (kWarps / kWarpsN), kN = BN / kWarpsN;  // of a warp
  // On a multiprocessor, as far as registers go. The larger tiles of the tensor cores fit twice and three
  // times without spilling, which hides more of their latency.
  static constexpr int kBlocks = std::is_same<P, float>::value || BM == 64 || BN < 64 ? 1 : BN == 64 ? 3 : 2;
  static constexpr int kItem = int(sizeof(P)), kOutRow = kN * kItem + 16;
};

// acc += the tile's rows times its columns, 32 bytes of k. `a`, `b`: the warp's first row and column.
template <class P, int MI, int NI>
__device__ __forceinline__ void multiply_slice(float (&acc)[MI][NI][4], const char* a, const char* b,
                                               int slice, int row_bytes) {
  const int lane = int(threadIdx.x) % 32;
  uint32_t fa[MI][4], fb[NI / 2][4];
#pragma unroll
  for (int m = 0; m < MI; ++m)
    load_matrices(fa[m], a + swizzled(m * 16 + lane % 16, slice * 2 + lane / 16, row_bytes));
#pragma unroll
  for (int n = 0; n < NI / 2; ++n)
    load_matrices(fb[n],
                  b + swizzled(n * 16 + lane / 16 * 8 + lane % 8, slice * 2 + lane / 8 % 2, row_bytes));
  if constexpr (sizeof(P) == 4) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int m = 0; m < MI; ++m) fa[m][i] = to_tf32(fa[m][i]);
#pragma unroll
      for (int n = 0; n < NI / 2; ++n) fb[n][i] = to_tf32(fb[n][i]);
    }
  }
#pragma unroll
  for (int m = 0; m < MI; ++m)
#pragma unroll
    for (int n = 0; n < NI; ++n)
      multiply<P>(acc[m][n], fa[m], {fb[n / 2][n % 2 * 2], fb[n / 2][n % 2 * 2 + 1]});
}

struct alignas(16) Four {
  float v[4];
};

// The same in float32, with each thread's elements of acc where multiply has them.
template <int MI, int NI>
__device__ __forceinline__ void multiply_exact(float (&acc)[MI][NI][4], const char* a, const char* b,
                                               int slice, int row_bytes) {
  const int g = int(threadIdx.x) % 32 / 4, q = int(threadIdx.x) % 4;
#pragma unroll
  for (int piece = slice * 2; piece < slice * 2 + 2; ++piece) {
    Four fa[MI][2];
#pragma unroll
    for (int i = 0; i < MI * 2; ++i)
      fa[i / 2][i % 2] = *reinterpret_cast<const Four*>(a + swizzled(i * 8 + g, piece, row_bytes));
#pragma unroll
    for (int j = 0; j < NI * 2; ++j) {
      const int n = j / 2 * 8 + 2 * q + j % 2;
      const Four fb = *reinterpret_cast<const Four*>(b + swizzled(n, piece, row_bytes));
#pragma unroll
      for (int k = 0; k < 4; ++k)
#pragma unroll
        for (int i = 0; i < MI * 2; ++i) {
          float& c = acc[i / 2][j / 2][i % 2 * 2 + j % 2];
          c = fmaf(fa[i / 2][i % 2].v[k], fb.v[k], c);
        }
    }
  }
}

// One block's tile. ROW_BYTES: of a K step, 128 and windows of one word, or 0 where that is known at run time
// only.
template <class P, int BM, int BN, int ROW_BYTES>
class Block {
  using T = Tile<P, BM, BN>;
  static constexpr int kMi = T::kM / 16, kNi = T::kN / 8;

 public:
  __device__ Block(const Problem& p, char* shared)
      : p_(p),
        rows_(reinterpret_cast<Row*>(shared)),
        tiles_(shared + BM * sizeof(Row)),
        segment_(int(blockIdx.y)),
        first_n_(int(blockIdx.x % (p.np / BN)) * BN),
        start_(int(blockIdx.x / (p.np / BN)) * BM) {
    const int warp = int(threadIdx.x) / 32;
    warp_m_ = warp / T::kWarpsN * T::kM, warp_n_ = warp % T::kWarpsN * T::kN;
  }

  __device__ void run() {
    const int* limits = p_.limits + segment_ * 3;
    if (start_ >= limits[2]) return;
    first_ = segment_ * p_.capacity + start_;
    const bool mixed = start_ < limits[0], live = start_ < limits[1];
    const int lo = mixed ? 0 : p_.plain_phase, hi = p_.plain_phase + (live && !mixed);
    for (int i = 0; i < p_.n_sources && live; ++i) accumulate(p_.sources[i], lo, hi);
    write(live);
  }

 private:
  __device__ void accumulate(const Source& s, int lo, int hi) {
    const int row_bytes = ROW_BYTES ? ROW_BYTES : s.bk * T::kItem;
    for (int r = int(threadIdx.x); r < BM; r += T::kThreads)
      rows_[r] = {s.x + int64_t(s.corners[first_ + r]) * s.pitch * T::kItem, uint64_t(s.words[first_ + r])};
    __syncthreads();
    const Part part(s, T::kItem, row_bytes, ROW_BYTES ? 16 : s.unit);
    Cursor ahead(p_, s, segment_, lo, hi), now = ahead;
    for (int i = 0; i < p_.stages - 1; ++i) fetch(s, ahead, part, i, row_bytes);
    int stage = 0, refill = p_.stages - 1;
    for (int phase = lo; phase < hi; ++phase) {
      if (phase == now.phase()) {
        for (int i = now.steps(); i > 0; --i) {
          wait_for_copies(p_.stages - 2);
          __syncthreads();  // all have the step's data, and have left the stage that is filled next
          fetch(s, ahead, part, refill, row_bytes);
          multiply_step(stage, row_bytes);
          stage = stage + 1 < p_.stages ? stage + 1 : 0;
          refill = refill + 1 < p_.stages ? refill + 1 : 0;
        }
        now.next_phase();
      }
      if (s.ratios > 0) scale(least(phase, s.ratios - 1), least(phase + 1, s.ratios - 1));
    }
    wait_for_copies<0>();
    __syncthreads();
  }

  // Begins the copies of the next step, if there is one.
  __device__ __forceinline__ void fetch(const Source& s, Cursor& at, const Part& part, int stage,
                                        int row_bytes) {
    if (!at.done()) {
      char* tile = tiles_ + stage * (BM + BN) * row_bytes;
      fetch_rows(tile, s, at, part, row_bytes);
      const int pieces = row_bytes / 16, piece = int(threadIdx.x) % pieces;
      const char* from = s.weights + (at.weight_offset() + int64_t(first_n_) * s.kp) * T::kItem + piece * 16;
#pragma unroll 4
      for (int n = int(threadIdx.x) / pieces; n < BN; n += T::kThreads / pieces)
        copy_async<16>(tile + BM * row_bytes + swizzled(n, piece, row_bytes), from + n * s.kp * T::kItem, 16);
      at.advance();
    }
    commit_copies();
  }

  __device__ __forceinline__ void fetch_rows(char* tile, const Source& s, const Cursor& at, const Part& part,
                                             int row_bytes) {
    if (ROW_BYTES || s.unit == 16) return fetch_units<16>(tile, s, at, part, row_bytes);
    if (s.unit == 8) return fetch_units<8>(tile, s, at, part, row_bytes);
    if (s.unit == 4) return fetch_units<4>(tile, s, at, part, row_bytes);
    fetch_units<2>(tile, s, at, part, row_bytes);
  }
  template <int UNIT>
  __device__ __forceinline__ void fetch_units(char* tile, const Source& s, const Cursor& at, const Part& part,
                                              int row_bytes) {
    gather_rows<UNIT, BM, T::kThreads, ROW_BYTES != 0>(tile, rows_, s, at, part, T::kItem, row_bytes,
                                                       p_.entries, first_);
  }

  __device__ __forceinline__ void multiply_step(int stage, int row_bytes) {
    const char* tile = tiles_ + stage * (BM + BN) * row_bytes;
    const char *a = tile + warp_m_ * row_bytes, *b = tile + (BM + warp_n_) * row_bytes;
#pragma unroll(ROW_BYTES ? ROW_BYTES / 32 : 1)
    for (int slice = 0; slice < row_bytes / 32; ++slice) {
      if constexpr (std::is_same<P, float>::value) {
        multiply_exact(acc_, a, b, slice, row_bytes);
      } else {
        multiply_slice<P>(acc_, a, b, slice, row_bytes);
      }
    }
  }

  // After the phase of kernel `at`: times its ratio over that of the next, or its ratio if it is the last.
  __device__ void scale(int at, int next) {
#pragma unroll
    for (int i = 0; i < kMi * 2; ++i) {
      const int pixel = p_.ints[first_ + row_of(i)];
      float factor = pixel >= 0 ? p_.ratio[at * p_.pixels + pixel] : 0.f;
      if (at != next) factor /= pixel >= 0 ? p_.ratio[next * p_.pixels + pixel] : 1.f;
#pragma unroll
      for (int n = 0; n < kNi * 2; ++n) acc_[i / 2][n / 2][i % 2 * 2 + n % 2] *= factor;
    }
  }
  // In the tile: of acc_[i / 2][..][i % 2 * 2 ..].
  __device__ int row_of(int i) const { return warp_m_ + i * 8 + int(threadIdx.x) % 32 / 4; }

  // out = unscale * acc + bias, 16 rows of the warp at a time through shared memory, so that rows are written
  // whole.
  __device__ void write(bool live) {
    const int lane = int(threadIdx.x) % 32, g = lane / 4, q = lane % 4;
    char* staged = tiles_ + int(threadIdx.x) / 32 * 16 * T::kOutRow;
    float add[kNi * 2];
#pragma unroll
    for (int i = 0; i < kNi * 2; ++i)
      add[i] = live ? bias(first_n_ + warp_n_ + i / 2 * 8 + 2 * q + i % 2) : 0.f;
#pragma unroll
    for (int m = 0; m < kMi; ++m) {
#pragma unroll
      for (int i = 0; i < kNi * 4; ++i) {
        const int n = i / 4 * 8 + 2 * q + i % 2;
        put(staged + (g + i % 4 / 2 * 8) * T::kOutRow + n * T::kItem,
            acc_[m][i / 4][i % 4] * p_.unscale + add[i / 4 * 2 + i % 2]);
      }
      __syncwarp();
      if (p_.wide_stores) {
        write_rows<16>(staged, m);
      } else {
        write_rows<T::kItem>(staged, m);
      }
      __syncwarp();
    }
  }
  __device__ static void put(char* to, float value) {
    if constexpr (T::kItem == 4) {
      *reinterpret_cast<float*>(to) = value;
    } else {
      *reinterpret_cast<P*>(to) = from_float<P>(value);
    }
  }
  __device__ float bias(int n) const {
    if (!p_.bias.data || n >= p_.n_out) return 0.f;
    return float_at(p_.bias, n);
  }
  template <int BYTES>
  __device__ void write_rows(const char* staged, int m) {
    constexpr int kPieces = T::kN * T::kItem / BYTES;
    for (int i = int(threadIdx.x) % 32; i < 16 * kPieces; i += 32) {
      const int row = i / kPieces, begin = i % kPieces * BYTES;
      const int pixel = p_.ints[first_ + warp_m_ + m * 16 + row];
      const int n = first_n_ + warp_n_ + begin / T::kItem;
      if (pixel < 0 || n >= p_.n_out) continue;
      char* to = p_.out + (int64_t(pixel) * p_.n_out + n) * T::kItem;
      struct alignas(BYTES) Piece {
        char bytes[BYTES];
      };
      *reinterpret_cast<Piece*>(to) = *reinterpret_cast<const Piece*>(staged + row * T::kOutRow + begin);
    }
  }

  const Problem& p_;
  Row* rows_;
  char* tiles_;
  int segment_, first_n_, start_, warp_m_, warp_n_;
  int64_t first_ = 0;  // entry of the tile's first row
  float acc_[kMi][kNi][4] = {};
};

// out[pixel, :n_out] = unscale * ratio * (sum over sources and taps) + bias; 0 for dead pixels.
template <class P, int BM, int BN, int ROW_BYTES>
__global__ void __launch_bounds__(Tile<P, BM, BN>::kThreads, Tile<P, BM, BN>::kBlocks)
    gather_matmul(const __grid_constant__ Problem p) {
  PCONV_SHARED(shared);
  Block<P, BM, BN, ROW_BYTES>(p, shared).run();
}

// The largest of `from`, 8, 4, ... that divides `n`.
int alignment(uint64_t n, int from) {
  while (n % from) from /= 2;
  return from;
}

template <class P, int BM, int BN, int ROW_BYTES>
int launch(Problem& p, dim3 grid, int row_bytes, void* stream) {
  using T = Tile<P, BM, BN>;
  const size_t rows = BM * sizeof(Row), stage = (BM + BN) * row_bytes, staged = T::kWarps * 16 * T::kOutRow;
  p.stages = most(2, least(p.stages, 8));
  while (p.stages > 2 && rows + p.stages * stage > most_shared()) --p.stages;
  const size_t shared = rows + (p.stages * stage > staged ? p.stages * stage : staged);
  const auto kernel = gather_matmul<P, BM, BN, ROW_BYTES>;
  allow_shared(kernel);
  PCONV_LAUNCH(kernel, grid, T::kThreads, shared, stream, p);
  return pconv_launched();
}

template <class P, int BM, int BN>
int launch_tile(Problem& p, dim3 grid, void* stream) {
  const Source &first = p.sources[0], &last = p.sources[p.n_sources - 1];
  const int item = int(sizeof(P));
  const auto whole = [&](const Source& s) {
    return s.bk * item == 128 && s.unit == 16 && s.n_words == 1 &&
           (s.row_channels > 0 || s.channels * item % 16 == 0);
  };
  const bool full = whole(first) && whole(last);
  if (full) return launch<P, BM, BN, 128>(p, grid, 128, stream);
  return launch<P, BM, BN, 0>(p, grid, most(first.bk, last.bk) * item, stream);
}

// The tiles of kernels/tuning.py.
template <class P>
int launch_blocks(Problem& p, dim3 grid, int bm, int bn, void* stream) {
  if (bm == 128 && bn == 128) return launch_tile<P, 128, 128>(p, grid, stream);
  if (bm == 64 && bn == 64) return launch_tile<P, 64, 64>(p, grid, stream);
  if (bm == 64 && bn == 32) return launch_tile<P, 64, 32>(p, grid, stream);
  if (bm == 64 && bn == 16) return launch_tile<P, 64, 16>(p, grid, stream);
  if constexpr (!std::is_same<P, float>::value) {
    if (bm == 128 && bn == 64) return launch_tile<P, 128, 64>(p, grid, stream);
    if (bm == 128 && bn == 32) return launch_tile<P, 128, 32>(p, grid, stream);
    if (bm == 128 && bn == 16) return launch_tile<P, 128, 16>(p, grid, stream);
  }
  return kInvalidValue;
}

// A tuple of all its fields, or of none.
void read_gather(Args& args, const char* name, Source& s) {
  int items[sizeof(Gather) / sizeof(int)] = {};
  args.tuple(name, items, int(sizeof(Gather) / sizeof(int)));
  memcpy(static_cast<Gather*>(&s), items, sizeof items);
}

int unit_of(const Source& s, int64_t copy_stride, int item) {
  const int widest = s.row_channels ? least(16, s.row_channels * item) : 16;
  return alignment(reinterpret_cast<uintptr_t>(s.x) | uint64_t(s.pitch * item) | uint64_t(copy_stride * item),
                   widest);
}

}  // namespace
}  // namespace pconv

PCONV_ENTRY(gather_matmul) {
  using namespace pconv;
  const dim3 grid = args.grid();
  Problem p = {};
  Source &first = p.sources[0], &second = p.sources[1];
  first.x = args.tensor<const char>("x0"), second.x = args.tensor<const char>("x1");
  first.weights = args.tensor<const char>("weights0"), second.weights = args.tensor<const char>("weights1");
  p.ints = args.tensor<const int>("ints");
  const int64_t* bits = args.tensor<const int64_t>("words");
  p.limits = args.tensor<const int>("limits");
  p.ratio = args.tensor<const float>("ratio");
  p.bias = args.untyped("bias");
  const Untyped out = args.untyped("out");
  p.entries = args.wide("entries"), p.capacity = args.wide("capacity"), p.pixels = args.wide("P");
  p.copy_stride = args.wide("copy_stride");
  p.unscale = args.real("unscale");
  args.integers({{"tap_y0", &first.tap_y}, {"tap_x0", &first.tap_x}});
  args.integers({{"tap_y1", &second.tap_y}, {"tap_x1", &second.tap_x}});
  read_gather(args, "GATHER0", first);
  first.n_phases = args.rows<7>("PASSES0", first.phases, kMostPasses);
  read_gather(args, "GATHER1", second);
  second.n_phases = args.rows<7>("PASSES1", second.phases, kMostPasses);
  p.n_first_y = args.tuple("FIRST_Y", p.first_y, kMostStride);
  p.n_first_x = args.tuple("FIRST_X", p.first_x, kMostStride);
  int words0, ratios, has_bias, bm, bn;
  args.integers({{"WORDS0", &words0}, {"NOUT", &p.n_out}, {"NP", &p.np}, {"RATIOS", &ratios}});
  args.integers({{"PLAIN_PASS", &p.plain_phase}, {"HAS_BIAS", &has_bias}, {"BM", &bm}, {"BN", &bn}});
  args.integers({{"STAGES", &p.stages}});
  const int precision = args.precision("PRECISION"), item = out.element == kFloat32 ? 4 : 2;
  if (!args.complete() || !p.n_first_y || !p.n_first_x) return kInvalidValue;
  p.out = static_cast<char*>(out.data);
  p.n_sources = second.channels ? 2 : 1;
  p.sources[p.n_sources - 1].ratios = ratios;
  if (!has_bias) p.bias.data = nullptr;
  for (int i = 0; i < p.n_sources; ++i) {
    Source& s = p.sources[i];
    s.words = bits + i * words0 * p.entries;
    s.corners = p.ints + (i + 1) * p.entries;
    s.unit = unit_of(s, p.copy_stride, item);
  }
  p.wide_stores = alignment(reinterpret_cast<uintptr_t>(p.out) | uint64_t(p.n_out * item), 16) == 16;
  if (out.element == kFloat16) return launch_blocks<Half>(p, grid, bm, bn, stream);
  if (out.element == kBFloat16) return launch_blocks<BFloat16>(p, grid, bm, bn, stream);
  if (precision == kIeee) return launch_blocks<float>(p, grid, bm, bn, stream);
  return launch_blocks<Tf32>(p, grid, bm, bn, stream);
}
