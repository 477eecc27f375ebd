// The matrix kernel of the gradient of the weights, twin of kernels/triton/wgrad.py: for each tap, x under it
// transposed times the gradient, summed over the pixels p of a split:
//
//   partial[split, segment, slot, c, n] = sum_p x[corner(p) + tap(slot), c] grads[p, n]
//
// A pixel's window bits say whether a tap may be read. Splits are added up, always in the same order, by
// weights.finish. Both operands have the summed pixels as rows, so fragments are transposed as they leave
// shared memory. A step of the pipeline is a few pixels: first come their entries of the row list, kAhead
// steps later the rows that these lead to are requested, and kAhead steps later multiplied.
#include "wgrad_feed.h"

namespace pconv::wgrad {
namespace {

// acc += x^T grads over the pixels of a stage, for a warp's tile from (m, n) on; 16-bit elements.
template <class Tile, int MM, int NN>
__device__ __forceinline__ void add_products(float (&acc)[MM][NN][4], const char* stage, int m, int n, Half) {
  const int lane = threadIdx.x % 32;
  const char* x = stage + Tile::kX + (lane / 16 * 8 + lane % 8) * Tile::kPitchX + (m + lane / 8 % 2 * 8) * 2;
  const char* g = stage + Tile::kG + lane % 16 * Tile::kPitchG + (n + lane / 16 * 8) * 2;
#pragma unroll
  for (int k = 0; k < Tile::K; k += 16) {
    uint32_t a[MM][4], b[NN / 2][4];
#pragma unroll
    for (int i = 0; i < MM; ++i) load_matrices_transposed(a[i], x + k * Tile::kPitchX + i * 32);
#pragma unroll
    for (int j = 0; j < NN / 2; ++j) load_matrices_transposed(b[j], g + k * Tile::kPitchG + j * 32);
#pragma unroll
    for (int j = 0; j < NN; ++j) {
      const uint32_t pair[2] = {b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]};
#pragma unroll
      for (int i = 0; i < MM; ++i) multiply<typename Tile::Math>(acc[i][j], a[i], pair);
    }
  }
}
template <class Tile, int MM, int NN>
__device__ __forceinline__ void add_products(float (&acc)[MM][NN][4], const char* stage, int m, int n,
                                             BFloat16) {
  add_products<Tile>(acc, stage, m, n, Half{});
}

// The same of float32, with 10 bits of mantissa.
template <class Tile, int MM, int NN>
__device__ __forceinline__ void add_products(float (&acc)[MM][NN][4], const char* stage, int m, int n, Tf32) {
  constexpr int PX = Tile::kPitchX / 4, PG = Tile::kPitchG / 4;
  const int lane = threadIdx.x % 32;
  const uint32_t* x = reinterpret_cast<const uint32_t*>(stage + Tile::kX) + lane % 4 * PX + m + lane / 4;
  const uint32_t* g = reinterpret_cast<const uint32_t*>(stage + Tile::kG) + lane % 4 * PG + n + lane / 4;
#pragma unroll
  for (int k = 0; k < Tile::K; k += 8) {
    uint32_t a[MM][4];
#pragma unroll
    for (int i = 0; i < MM; ++i)
#pragma unroll
      for (int w = 0; w < 4; ++w) a[i][w] = to_tf32(x[(k + w / 2 * 4) * PX + i * 16 + w % 2 * 8]);
#pragma unroll
    for (int j = 0; j < NN; ++j) {
      const uint32_t b[2] = {to_tf32(g[k * PG + j * 8]), to_tf32(g[(k + 4) * PG + j * 8])};
#pragma unroll
      for (int i = 0; i < MM; ++i) multiply<Tf32>(acc[i][j], a[i], b);
    }
  }
}

// The same in full float32, without tensor cores; a thread has the sums that `multiply` would give it.
template <class Tile, int MM, int NN>
__device__ __forceinline__ void add_products(float (&acc)[MM][NN][4], const char* stage, int m, int n,
                                             float) {
  const int lane = threadIdx.x % 32;
  const float* x = reinterpret_cast<const float*>(stage + Tile::kX) + m + lane / 4;
  const float* g = reinterpret_cast<const float*>(stage + Tile::kG) + n + lane % 4 * 2;
#pragma unroll 2
  for (int k = 0; k < Tile::K; ++k) {
    float a[MM][2];
    Pair b[NN];
#pragma unroll
    for (int i = 0; i < MM; ++i) {
      a[i][0] = x[k * (Tile::kPitchX / 4) + i * 16];
      a[i][1] = x[k * (Tile::kPitchX / 4) + i * 16 + 8];
    }
#pragma unroll
    for (int j = 0; j < NN; ++j) b[j] = *reinterpret_cast<const Pair*>(g + k * (Tile::kPitchG / 4) + j * 8);
#pragma unroll
    for (int i = 0; i < MM; ++i)
#pragma unroll
      for (int j = 0; j < NN; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] = fmaf(a[i][e / 2], b[j].v[e % 2], acc[i][j][e]);
  }
}

template <int MM, int NN>
__device__ void store(const Problem& p, const Part& part, const float (&acc)[MM][NN][4], int m, int n) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int i = 0; i < MM * 2; ++i) {
    const int row = m + i * 8 + lane / 4, tap = part.tap + row / p.block_c, c = part.c + row % p.block_c;
    if (tap >= part.phase.high * part.phase.wide || c >= p.cp) continue;
    const int64_t slot = int64_t(part.to_segment) * p.slots + part.phase.slot + tap;
    float* const to = p.partial + (slot * p.cp + c) * p.grad_pitch;
#pragma unroll
    for (int j = 0; j < NN; ++j) {
      const int column = part.n + n + j * 8 + lane % 4 * 2;  // grad_pitch is even
      if (column < p.grad_pitch)
        *reinterpret_cast<Pair*>(to + column) = {acc[i / 2][j][i % 2 * 2], acc[i / 2][j][i % 2 * 2 + 1]};
    }
  }
}

template <class Tile>
__global__ __launch_bounds__(Tile::kThreads,
                             Tile::kBlocks) void tap_matmul(const __grid_constant__ Problem p) {
  PCONV_SHARED(shared);
  const Part part = part_of_block(p, Tile::BM, Tile::BN);
  Feed<Tile> feed(p, part, shared);
  const int warp = threadIdx.x / 32, n = warp % (Tile::BN / Tile::WN) * Tile::WN;
  const int m = warp / (Tile::BN / Tile::WN) * Tile::WM;
  float acc[Tile::WM / 16][Tile::WN / 8][4] = {};
  constexpr int kAhead = kStages - 1;
#pragma unroll 1
  for (int i = 0; i < kAhead; ++i) feed.request_entries();
  commit_copies();
  wait_for_copies<0>();
  for (int step = -kAhead; step < feed.requested(); ++step) {  // those below 0 fill the pipeline
    wait_for_copies<kAhead - 1>();
    __syncthreads();
    if (step + kAhead < feed.requested()) feed.request_rows(step + kAhead);
    feed.request_entries();
    commit_copies();
    if (step >= 0) add_products<Tile>(acc, feed.stage_of(step), m, n, typename Tile::Math{});
  }
  store(p, part, acc, m, n);
}

template <class Tile>
int launch(const Problem& p, dim3 grid, void* stream) {
  allow_shared(tap_matmul<Tile>);
  PCONV_LAUNCH(tap_matmul<Tile>, grid, dim3(Tile::kThreads), Tile::kSharedBytes, stream, p);
  return pconv_launched();
}

template <class M>
int launch_tile(const Problem& p, int bm, int bn, dim3 grid, void* stream) {
  if (bm == 64 && bn == 32) return launch<Tile<M, 64, 32>>(p, grid, stream);
  if (bm != 128) return kInvalidValue;
  if (bn == 16) return launch<Tile<M, 128, 16>>(p, grid, stream);
  if (bn == 32) return launch<Tile<M, 128, 32>>(p, grid, stream);
  if (bn == 64) return launch<Tile<M, 128, 64>>(p, grid, stream);
  return bn == 128 ? launch<Tile<M, 128, 128>>(p, grid, stream) : kInvalidValue;
}

// The widest copy that `address` and every row that is `bytes` after another allow.
int copy_bytes(const void* address, int bytes) {
  int width = 16;
  while ((reinterpret_cast<uintptr_t>(address) | static_cast<unsigned>(bytes)) % width) width /= 2;
  return width;
}

}  // namespace
}  // namespace pconv::wgrad

PCONV_ENTRY(tap_matmul) {
  using namespace pconv;
  using namespace pconv::wgrad;
  const dim3 grid = args.grid();
  Problem p;
  const Untyped x = args.untyped("x");
  p.grads = args.tensor<const char>("grads");
  p.ints = args.tensor<const int>("ints");
  p.words = args.tensor<const int64_t>("words");
  p.limits = args.tensor<const int>("limits");
  p.partial = args.tensor<float>("partial");
  p.entries = args.wide("entries"), p.capacity = args.wide("capacity");
  p.copy_stride = args.wide("copy_stride");
  int bm, bn, stages;
  args.integers({{"tap_y", &p.tap_y}, {"tap_x", &p.tap_x}, {"splits", &p.splits}, {"C", &p.channels}});
  args.integers({{"PITCH", &p.pitch}, {"CP", &p.cp}, {"GRAD_PITCH", &p.grad_pitch}});
  p.phase_count = args.rows<7>("PASSES", p.phases, kMostPasses);
  args.integers({{"SLOTS", &p.slots}, {"NX", &p.nx}, {"ROW_CHANNELS", &p.row_channels}});
  args.integers({{"SOURCE", &p.source}, {"WORDS", &p.window_words}, {"WORD0", &p.word0}});
  args.integers({{"SEGMENTS", &p.segments}, {"SHARED", &p.shared}, {"BC", &p.block_c}, {"BM", &bm}});
  args.integers({{"BN", &bn}, {"BP", &p.block_p}, {"STAGES", &stages}});
  const int precision = args.precision("PRECISION"), item = x.element == kFloat32 ? 4 : 2;
  if (!args.complete()) return kInvalidValue;
  p.x = static_cast<const char*>(x.data);
  p.x_bytes = copy_bytes(p.x, (p.row_channels ? p.row_channels : p.pitch) * item);
  p.grad_bytes = copy_bytes(p.grads, p.grad_pitch * item);
  if (x.element == kFloat16) return launch_tile<Half>(p, bm, bn, grid, stream);
  if (x.element == kBFloat16) return launch_tile<BFloat16>(p, bm, bn, grid, stream);
  if (precision == kIeee) return launch_tile<float>(p, bm, bn, grid, stream);
  return launch_tile<Tf32>(p, bm, bn, grid, stream);
}
