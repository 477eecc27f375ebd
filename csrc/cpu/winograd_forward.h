// The dense pass of the forward by Winograd: out = A^T (sum over channels of (G V) o (B^T window)), a product
// [tiles][channels][outputs] for each frequency.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstdint>
#include <vector>

#include "bands.h"
#include "isa.h"
#include "microkernels.h"
#include "pack.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"
#include "winograd.h"
#include "winograd_input.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

template <class T>
class WinogradForward {
 public:
  // `passes`: the merged kernel of each source. Where panels are split each thread packs a few channels at a
  // time.
  WinogradForward(const Problem<T>& p, const Winograd<T>& w, const std::vector<View>& views,
                  std::vector<Pass> passes, const std::vector<int64_t>& feature_chunk, bool split_panels)
      : p_(p),
        w_(w),
        views_(views),
        passes_(std::move(passes)),
        input_(w, views, feature_chunk, p.geo.groups,
               std::vector<int64_t>(
                   views.size(),
                   split_panels ? kPackedBytes / (w.blocks() * kPanel<T> * static_cast<int64_t>(sizeof(T)))
                                : p.geo.C)),
        product_size_(w.frequencies() * kPanel<T> + kLanes<T>) {}

  size_t chunks() const { return input_.chunks.size(); }
  // Rows of a packed panel: all chunks, the largest.
  int64_t rows() const { return input_.rows; }
  int64_t largest_rows() const { return input_.largest_rows; }
  T* part(const Panel& panel, size_t chunk, T* packed) const {
    return packed + input_.rows * panel.column + input_.chunks[chunk].row * panel.vectors * kLanes<T>;
  }
  // Entries: the scratch of packing, the operand and the products of a tile.
  int64_t merged_size() const {
    int64_t channels = 0;
    for (const WinogradChunk& c : input_.chunks) channels = std::max(channels, c.size);
    return channels * p_.geo.kh * p_.geo.kw * kPanel<T>;
  }
  int64_t tile_size() const { return input_.tile_size; }
  int64_t product_size() const { return product_size_; }

  int64_t rows_per_band(bool shared, int64_t threads) const {
    return w_.m * winograd_rows_per_band(p_.geo.N * w_.tiles(p_.geo.Ho), w_.tiles(p_.geo.Wo),
                                         (tile_size() + product_size_) * sizeof(T), shared, threads);
  }
  int64_t tile_count(const Band& band) const {
    int64_t rows = 0;
    for (const Slice& s : band) rows += w_.tiles(s.rows());
    return rows * w_.tiles(p_.geo.Wo);
  }
  std::vector<WinogradTile> tiles(const Band& band, const std::vector<T>& factor) const {
    return winograd_tiles(band, w_.m, p_.geo.Wo, factor);
  }
  void load(const std::vector<FeatureBand<T>>& features, const WinogradTile& tile, T* out) const {
    input_.load(features, tile, out);
  }

  // Rows [w.size(padded, kRowPad)] of one panel; false where a weight is too large.
  bool pack(const Panel& panel, size_t chunk, PackScratch<T>& scratch, T* merged, T* out) const {
    const WinogradChunk& c = input_.chunks[chunk];
    const Geometry& g = p_.geo;
    pack_forward(p_, passes_[c.source], panel, views_[c.source].channel + c.channel, c.size, scratch, merged);
    return pack_winograd(w_, g.kh, g.kw, panel, c.size, c.padded, false, merged, out);
  }
  // Adds a chunk to the products of `tiles` tiles; the first starts them.
  void multiply(const Panel& panel, size_t chunk, int64_t tiles, const T* data, const T* packed,
                T* products) const {
    const WinogradChunk& c = input_.chunks[chunk];
    const int64_t columns = panel.vectors * kLanes<T>, pad = kWinogradRowPad;
    for (int64_t q = 0; q < w_.frequencies(); ++q)
      product<T>(panel.vectors, tiles, {data + input_.place(panel.group, c, q), input_.tile_size, 1},
                 {packed + w_.frequency_offset(q, c.padded, pad) * columns, 0, columns},
                 w_.blocks_of(q) * c.padded, products + q * columns, product_size_, chunk > 0);
  }
  // results [pixels of the band and one more, columns] of the tiles' pixels: init + factor * product.
  void finish(const Panel& panel, const Band& band, const std::vector<WinogradTile>& tiles,
              const std::vector<T>& factor, const T* products, const T* init, T* results) const {
    const int64_t columns = panel.vectors * kLanes<T>, width = p_.geo.Wo;
    const Offsets from = w_.grid(w_.n, w_.n, w_.n * columns, columns);
    Offsets to(w_.m * w_.m);
    std::vector<T> scale(w_.m * w_.m);
    for (const WinogradTile& tile : tiles) {
      for (int64_t i = 0; i < w_.m; ++i)
        for (int64_t j = 0; j < w_.m; ++j) {
          const bool inside = tile.row + i < band[tile.slice].end && tile.col + j < width;
          const int64_t pixel = inside ? tile.pixel + i * width + j : static_cast<int64_t>(factor.size());
          to[i * w_.m + j] = pixel * columns;
          scale[i * w_.m + j] = inside ? factor[pixel] : T(0);
        }
      w_.f->outputs[0][0](products, from.data(), columns, results, to.data(), scale.data(), init);
      products += product_size_;
    }
  }

 private:
  static constexpr int64_t kPackedBytes = 1408 << 10;  // of a packed chunk, in the second cache

  const Problem<T>& p_;
  const Winograd<T>& w_;
  const std::vector<View>& views_;
  std::vector<Pass> passes_;
  WinogradInput<T> input_;
  int64_t product_size_;
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
