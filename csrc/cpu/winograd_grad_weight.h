// The dense pass of the weight gradient by Winograd: dL/dV = G^T (sum over tiles of (B^T window) o (A g)) G.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "bands.h"
#include "isa.h"
#include "microkernels.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"
#include "winograd.h"
#include "winograd_input.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// Fewer tiles average too little of what they round, and are too short a sum to be fast. Shorter chains than
// those of channels, since the transforms back to taps amplify more.
constexpr LeastTiles kLeastTiles{48, 32};
constexpr int64_t kTileChain = 16;

template <class T>
class WinogradGradWeight {
 public:
  // Chunks of channels as `layout` has them.
  WinogradGradWeight(const Problem<T>& p, const Winograd<T>& w, const std::vector<View>& views,
                     const Layout& layout, const Panels& panels)
      : p_(p),
        w_(w),
        panels_(panels),
        input_(w, views, layout.chunk, p.geo.groups),
        gradient_size_(w.frequencies() * panels.columns) {}

  // Entries: operands of a tile, sums of a task.
  int64_t tile_size() const { return input_.tile_size + gradient_size_; }
  int64_t sum_size() const { return input_.largest_rows * kPanel<T>; }

  int64_t rows_per_band() const {
    const int64_t across = w_.tiles(p_.geo.Wo), row_bytes = across * tile_size() * sizeof(T);
    // Every band adds to the gradient of all weights: few bands where that is large, else ones that stay in
    // the third cache.
    const int64_t weight_bytes = p_.geo.kh * p_.geo.kw * p_.geo.Cg() * p_.geo.O * sizeof(T);
    const int64_t bytes = std::min(kMostOperandBytes, std::max(kLeastOperandBytes, 10 * weight_bytes));
    return w_.m * std::max<int64_t>(1, std::min(bytes / row_bytes, p_.geo.N * w_.tiles(p_.geo.Ho)));
  }
  int64_t tile_count(const Band& band) const { return w_.tiles(band, p_.geo.Wo); }

  // `gradient` [panel][pixels and a row of zeros, columns] is scaled by `factor` [pixels].
  void load(const Band& band, const std::vector<FeatureBand<T>>& features, const std::vector<T>& factor,
            const T* gradient, T* memory) {
    const std::vector<WinogradTile> tiles = winograd_tiles(band, w_.m, p_.geo.Wo, factor);
    const int64_t pixels = factor.size();
    tiles_ = tiles.size();
    data_ = memory;
    gradients_ = memory + tiles_ * input_.tile_size;
    parallel(tiles_, [&](int64_t t, int64_t) {
      input_.load(features, tiles[t], data_ + t * input_.tile_size);
      for (const Panel& panel : panels_.list) {
        const int64_t columns = panel.vectors * kLanes<T>;
        Offsets from;
        for (int64_t i = 0; i < w_.m; ++i)
          for (int64_t j = 0; j < w_.m; ++j) {
            const bool inside = tiles[t].row + i < band[tiles[t].slice].end && tiles[t].col + j < p_.geo.Wo;
            from.push_back((inside ? tiles[t].pixel + i * p_.geo.Wo + j : pixels) * columns);
          }
        const Offsets to = w_.grid(w_.n, w_.n, w_.n * columns, columns);
        w_.f->gradients(
            gradient + (pixels + 1) * panel.column, from.data(), columns,
            gradients_ + tiles_ * w_.frequencies() * panel.column + t * w_.frequencies() * columns,
            to.data());
      }
    });
  }
  // Channels of a chunk against one panel: writes grads [taps * chunk, columns], with `sums` as scratch;
  // where no tile counts `grads` stay, which are 0.
  void multiply(const Panel& panel, size_t chunk, T* sums, T* grads) const {
    if (tiles_ == 0) return;
    const WinogradChunk& c = input_.chunks[chunk];
    const int64_t columns = panel.vectors * kLanes<T>, kw = p_.geo.kw;
    const T* gradients = gradients_ + tiles_ * w_.frequencies() * panel.column;
    for (int64_t q = 0; q < w_.frequencies(); ++q)
      for (int64_t k = 0; k < w_.blocks_of(q); ++k) {
        const T* data = data_ + input_.place(panel.group, c, q) + k * c.padded;
        T* out = sums + (w_.frequency_offset(q, c.padded, kWinogradRowPad) + k * c.padded) * columns;
        product<T>(panel.vectors, c.size, {data, 1, input_.tile_size},
                   {gradients + q * columns, 0, w_.frequencies() * columns}, tiles_, out, columns, false,
                   kTileChain);
      }
    const int64_t col = c.size * columns, row = kw * col;
    w_.each_residue([&](int64_t a, int64_t b) {
      const bool h = w_.shorter_h(a), v = w_.shorter_w(b);
      const Offsets from = w_.frequency_offsets(a, b, c.padded * columns, kWinogradRowPad * columns);
      const Offsets to = w_.taps(a, b, row, col);
      for (int64_t i = 0; i < c.size; ++i)
        w_.f->weight_sums[h][v](sums + i * columns, from.data(), columns, grads + i * columns, to.data());
    });
  }

 private:
  static constexpr int64_t kLeastOperandBytes = 6 << 20, kMostOperandBytes = 20 << 20;

  const Problem<T>& p_;
  const Winograd<T>& w_;
  const Panels& panels_;
  WinogradInput<T> input_;
  int64_t gradient_size_, tiles_ = 0;
  T *data_ = nullptr, *gradients_ = nullptr;
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
