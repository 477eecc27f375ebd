// The dense pass of the forward by Winograd: out = A^T (sum over channels of (G V) o (B^T window)), a product
// [tiles][channels][outputs] for each frequency.
#pragma once
#include <algorithm>
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
  WinogradForward(const Problem<T>& p, const WinogradPart<T>& part, const std::vector<View>& views,
                  const std::vector<int64_t>& chunk)
      : p_(p),
        w_(part.w),
        input_(part, views, chunk, p.geo.groups),
        product_size_(w_.frequencies() * kPanel<T> + kLanes<T>) {}

  const std::vector<WinogradChunk>& chunks() const { return input_.chunks; }
  // Rows of a packed panel: all chunks, the largest.
  int64_t rows() const { return input_.rows; }
  int64_t largest_rows() const { return input_.largest_rows; }
  T* part(const Panel& panel, const WinogradChunk& c, T* packed) const {
    return packed + input_.rows * panel.column + c.row * panel.vectors * kLanes<T>;
  }
  // Entries: the scratch of packing, the products of a tile.
  int64_t merged_size() const { return kMergedChannels * p_.geo.kh * p_.geo.kw * kPanel<T>; }
  int64_t m() const { return w_.m; }
  int64_t product_size() const { return product_size_; }

  int64_t tile_count(const Band& band) const { return w_.tiles(band, p_.geo.Wo); }
  std::vector<WinogradTile> tiles(const Band& band, const std::vector<T>& factor) const {
    return winograd_tiles(band, w_.m, p_.geo.Wo, factor);
  }
  WinogradFeatures<T> features(int64_t tiles) const { return {input_, tiles, 0, input_.chunks.size()}; }

  // Channels [c, c + count) of a chunk, from merged weights; false where a weight is too large.
  bool pack(const Panel& panel, const WinogradChunk& chunk, int64_t c, int64_t count, const T* merged,
            T* out) const {
    return pack_winograd(w_, p_.geo.kh, p_.geo.kw, panel.vectors * kLanes<T>, c, count, chunk.padded, false,
                         merged, out);
  }
  // Adds a chunk to the products of `tiles` tiles; the first starts them.
  void multiply(const Panel& panel, const WinogradChunk& c, int64_t tiles,
                const WinogradFeatures<T>& features, const T* data, const T* packed, T* products) const {
    const int64_t columns = panel.vectors * kLanes<T>, pad = kWinogradRowPad;
    const WinogradOperand<T>& chunk = features.chunk(c.index);
    data += features.place(panel.group, c.index);
    for (int64_t q = 0; q < w_.frequencies(); ++q)
      product<T>(panel.vectors, tiles, {data + chunk.place(q), chunk.row(q), 1},
                 {packed + w_.frequency_offset(q, c.padded, pad) * columns, 0, columns}, chunk.row(q),
                 products + q * columns, product_size_, c.index > 0);
  }
  // Adds factor * product to results [pixels of the band and one more, columns] of the tiles' pixels.
  void finish(const Panel& panel, const Band& band, const std::vector<WinogradTile>& tiles,
              const std::vector<T>& factor, const T* products, T* results) const {
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
      w_.f->outputs[0][0](products, from.data(), columns, results, to.data(), scale.data());
      products += product_size_;
    }
  }

 private:
  const Problem<T>& p_;
  const Winograd<T>& w_;
  WinogradInput<T> input_;
  int64_t product_size_;
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
