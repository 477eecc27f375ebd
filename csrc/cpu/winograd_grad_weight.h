// The dense pass of the weight gradient by Winograd: dL/dV = G^T (sum over tiles of (B^T window) o (A g)) G.
#pragma once
#include <algorithm>
#include <cstdint>
#include <optional>
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

// Fewer tiles average too little of what they round, and are too short a sum to be fast.
constexpr LeastTiles kLeastTiles{48, 32};
constexpr int64_t kTileRun = 64;  // tiles whose operands of one frequency stay in the first cache

template <class T>
class WinogradGradWeight {
 public:
  // Chunks of channels as `layout` has them.
  WinogradGradWeight(const Problem<T>& p, const WinogradPart<T>& part, const std::vector<View>& views,
                     const Layout& layout, const Panels& panels)
      : p_(p),
        w_(part.w),
        panels_(panels),
        input_(part, views, layout.chunk, p.geo.groups),
        gradient_size_(w_.frequencies() * panels.columns) {
    // Where the sums of all weights are large, every band adds to much of them: few bands then, and a quarter
    // of the features at a time. Else bands whose operands stay in the third cache.
    const int64_t weight_bytes = p.geo.kh * p.geo.kw * p.geo.Cg() * p.geo.O * sizeof(T);
    const bool few_bands = 10 * weight_bytes >= kMostOperandBytes;
    operand_bytes_ = few_bands ? kMostOperandBytes : kLeastOperandBytes;
    chunks_at_once_ = few_bands ? (chunks().size() + 3) / 4 : chunks().size();
  }

  const std::vector<WinogradChunk>& chunks() const { return input_.chunks; }
  size_t chunks_at_once() const { return chunks_at_once_; }
  int64_t rows_per_band() const {
    const int64_t across = w_.tiles(p_.geo.Wo),
                  tile_bytes = (features(1, 0).size() + gradient_size_) * static_cast<int64_t>(sizeof(T));
    const int64_t tiles = std::max(kTileRun, operand_bytes_ / tile_bytes);
    return w_.m * std::max<int64_t>(1, std::min(tiles / across, p_.geo.N * w_.tiles(p_.geo.Ho)));
  }
  int64_t tile_count(const Band& band) const { return w_.tiles(band, p_.geo.Wo); }
  // Entries: operands of at most so many tiles, sums of a task.
  int64_t operand_size(int64_t tiles) {
    most_tiles_ = tiles;
    int64_t most = 0;
    for (size_t c = 0; c < chunks().size(); c += chunks_at_once_)
      most = std::max(most, features(tiles, c).size());
    return most + gradient_place(panels_.columns, panels_.list.size());
  }
  int64_t sum_size() const { return input_.largest_rows * kPanel<T>; }

  // `gradient` [panel][pixels and a row of zeros, columns] is scaled by `factor` [pixels].
  void load_gradients(const Band& band, const std::vector<T>& factor, const T* gradient, T* memory) {
    tiles_ = winograd_tiles(band, w_.m, p_.geo.Wo, factor);
    gradients_ = memory;
    features_ = memory + gradient_place(panels_.columns, panels_.list.size());
    const int64_t pixels = factor.size();
    parallel(tiles_.size(), [&](int64_t t, int64_t) {
      const WinogradTile& tile = tiles_[t];
      for (const Panel& panel : panels_.list) {
        const int64_t columns = panel.vectors * kLanes<T>;
        Offsets from;
        for (int64_t i = 0; i < w_.m; ++i)
          for (int64_t j = 0; j < w_.m; ++j) {
            const bool inside = tile.row + i < band[tile.slice].end && tile.col + j < p_.geo.Wo;
            from.push_back((inside ? tile.pixel + i * p_.geo.Wo + j : pixels) * columns);
          }
        const Offsets to = w_.grid(w_.n, w_.n, w_.n * step(panel), step(panel), t * columns);
        w_.f->gradients(gradient + (pixels + 1) * panel.column, from.data(), columns, gradients(panel),
                        to.data());
      }
    });
  }
  // Chunks from `first` on, as many as are loaded at once.
  void load_features(const std::vector<FeatureBand<T>>& features, size_t first) {
    loaded_.emplace(this->features(tiles_.size(), first));
    parallel(tiles_.size(), [&](int64_t t, int64_t) { loaded_->load(features, tiles_[t], t, features_); });
  }
  // Channels of a chunk against one panel: sums (+)= their products.
  void multiply(const Panel& panel, size_t chunk, T* sums, bool add) const {
    const WinogradChunk& c = input_.chunks[chunk];
    const WinogradOperand<T>& operand = loaded_->chunk(chunk);
    const int64_t columns = panel.vectors * kLanes<T>;
    if (tiles_.empty() && !add) std::fill_n(sums, w_.size(c.padded, kWinogradRowPad) * columns, T(0));
    for (int64_t q = 0; q < w_.frequencies(); ++q)
      for (int64_t k = 0; k < w_.blocks_of(q); ++k) {
        const T* data = features_ + loaded_->place(panel.group, chunk) + operand.place(q) + k * c.padded;
        T* out = sums + (w_.frequency_offset(q, c.padded, kWinogradRowPad) + k * c.padded) * columns;
        product<T>(panel.vectors, c.size, {data, 1, operand.row(q)},
                   {gradients(panel) + q * step(panel), 0, columns}, tiles_.size(), out, columns, add,
                   kTileRun);
      }
  }
  // From sums to gradients [taps * chunk, columns].
  void finish(const Panel& panel, size_t chunk, const T* sums, T* grads) const {
    const WinogradChunk& c = input_.chunks[chunk];
    const int64_t columns = panel.vectors * kLanes<T>, kw = p_.geo.kw;
    const int64_t col = c.size * columns, row = kw * col;
    w_.each_residue([&](int64_t a, int64_t b) {
      const bool h = w_.shorter_h(a), v = w_.shorter_w(b);
      const Offsets from = w_.block_offsets(a, b, c.padded * columns, kWinogradRowPad * columns);
      const Offsets to = w_.taps(a, b, row, col);
      for (int64_t i = 0; i < c.size; ++i)
        w_.f->weight_sums[h][v](sums + i * columns, from.data(), columns, grads + i * columns, to.data());
    });
  }

 private:
  static constexpr int64_t kLeastOperandBytes = 6 << 20, kMostOperandBytes = 20 << 20;

  // Of the chunks that are loaded with the first-th.
  WinogradFeatures<T> features(int64_t tiles, size_t first) const {
    return {input_, tiles, first, std::min(first + chunks_at_once_, chunks().size())};
  }
  // Gradients of a panel, [frequency][tile][columns], and the entries from one frequency to the next.
  int64_t step(const Panel& panel) const { return (most_tiles_ * panel.vectors + 1) * kLanes<T>; }
  T* gradients(const Panel& panel) const { return gradients_ + gradient_place(panel.column, panel.index); }
  // Entries of so many panels, with columns in all.
  int64_t gradient_place(int64_t columns, int64_t panels) const {
    return w_.frequencies() * (most_tiles_ * columns + panels * kLanes<T>);
  }

  const Problem<T>& p_;
  const Winograd<T>& w_;
  const Panels& panels_;
  WinogradInput<T> input_;
  int64_t gradient_size_, operand_bytes_, most_tiles_ = 0;
  size_t chunks_at_once_;
  std::vector<WinogradTile> tiles_;  // of the band
  std::optional<WinogradFeatures<T>> loaded_;
  T *features_ = nullptr, *gradients_ = nullptr;
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
