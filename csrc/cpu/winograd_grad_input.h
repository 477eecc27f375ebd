// The dense pass of the input gradient by Winograd: a correlation of the scaled gradient with the turned
// filter of each residue modulo the stride. One transform of a gradient tile serves all residues.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "grad_input_axis.h"
#include "grad_input_rows.h"
#include "isa.h"
#include "microkernels.h"
#include "pack.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"
#include "winograd.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// Tile (row, col) of a slice of stored rows whose first pixel is `pixel`.
template <class T>
struct GradientTile {
  const T* gradient;
  int64_t row, col;
  Slice slice;
  int64_t pixel;
};

template <class T>
class WinogradGradInput {
 public:
  // `chunk` output channels at a time, as the gradients have them.
  WinogradGradInput(const Problem<T>& p, const Winograd<T>& w, const View& view, const Source& source,
                    const Axis& rows, const Axis& cols, int64_t chunk)
      : p_(p),
        w_(w),
        view_(view),
        up_(source.up),
        rows_(rows),
        cols_(cols),
        chunk_(chunk),
        padded_((chunk + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        chunk_size_(w.frequencies() * (padded_ + kLanes<T>)),
        tile_size_(odd_lines<T>(p.geo.O / chunk * chunk_size_)),
        product_size_(w.size(kPanel<T>, 0) + kLanes<T>) {}

  // Rows of a packed chunk of one panel.
  int64_t chunk_rows() const { return w_.size(padded_, kWinogradRowPad); }
  // Entries: the scratch of packing, the operand and the products of a tile.
  int64_t merged_size() const { return kMergedChannels * p_.geo.kh * p_.geo.kw * kPanel<T>; }
  int64_t tile_size() const { return tile_size_; }
  int64_t product_size() const { return product_size_; }

  int64_t tile_rows_per_band(bool shared, int64_t threads) const {
    return winograd_rows_per_band(p_.geo.N * rows_.tiles->count(rows_.image()),
                                  cols_.tiles->count(cols_.image()), (tile_size_ + product_size_) * sizeof(T),
                                  shared, threads);
  }
  int64_t tile_count(const Slice& s) const {
    return tile_rows(s).size() * cols_.tiles->count(cols_.image());
  }
  // Tiles of a slice that any gradient reaches.
  void add_tiles(const Slice& s, const GradientBand<T>& gradient, int64_t pixel,
                 std::vector<GradientTile<T>>& tiles) const {
    const Span rows = tile_rows(s);
    for (int64_t row = rows.begin; row < rows.end; ++row)
      for (int64_t col = 0; col < cols_.tiles->count(cols_.image()); ++col) {
        const int64_t r = rows_.tiles->first + row * w_.m - gradient.first;
        const int64_t c = cols_.tiles->first + col * w_.m + gradient.left;
        bool any = false;
        for (int64_t i = 0; i < w_.n; ++i)
          for (int64_t j = 0; j < w_.n; ++j) any |= gradient.mark(0, r + i)[c + j] != 0;
        if (any) tiles.push_back({gradient.row(0, r) + c * gradient.chunk, row, col, s, pixel});
      }
  }
  // Chunks of the gradient lie `plane` entries apart.
  void load(const GradientTile<T>& tile, int64_t plane, T* out) const {
    const Offsets from = w_.grid(w_.n, w_.n, cols_.all().size() * chunk_, chunk_);
    const Offsets to = w_.grid(w_.n, w_.n, w_.n * (padded_ + kLanes<T>), padded_ + kLanes<T>);
    for (int64_t i = 0; i < p_.geo.O / chunk_; ++i)
      w_.f->inputs[0][0](tile.gradient + i * plane, from.data(), chunk_, out + i * chunk_size_, to.data());
  }
  // Channels [o, o + count) of a chunk, from merged weights; false where a weight is too large.
  bool pack(const Panel& panel, int64_t o, int64_t count, const T* merged, T* out) const {
    return pack_winograd(w_, p_.geo.kh, p_.geo.kw, panel.vectors * kLanes<T>, o, count, padded_, true, merged,
                         out);
  }
  // Adds a chunk of a group to the products of `tiles` tiles; the first starts them.
  void multiply(const Panel& panel, int64_t chunk, int64_t tiles, const T* data, const T* packed,
                T* products) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    data += (panel.group * (p_.geo.Og() / chunk_) + chunk) * chunk_size_;
    for (int64_t q = 0; q < w_.frequencies(); ++q)
      for (int64_t k = 0; k < w_.blocks_of(q); ++k)
        product<T>(panel.vectors, tiles, {data + q * (padded_ + kLanes<T>), tile_size_, 1},
                   {packed + (w_.frequency_offset(q, padded_, kWinogradRowPad) + k * padded_) * columns, 0,
                    columns},
                   padded_, products + (w_.first[q] + k) * columns, product_size_, chunk > 0);
  }
  // Adds the tiles' results to results [pixels and one more, columns].
  void finish(const Panel& panel, const std::vector<GradientTile<T>>& tiles, const T* products, int64_t pixels,
              T* results) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    const std::vector<T> ones(w_.m * w_.m, T(1));
    Offsets to(w_.m * w_.m);
    for (const GradientTile<T>& tile : tiles) {
      w_.each_residue([&](int64_t a, int64_t b) {
        const bool h = w_.shorter_h(a), v = w_.shorter_w(b);
        for (int64_t i = 0; i < w_.m; ++i)
          for (int64_t j = 0; j < w_.m; ++j) {
            const int64_t y = position(rows_, tile.row, a, w_.r - h, i);
            const int64_t x = position(cols_, tile.col, b, w_.r - v, j);
            const bool inside = y >= tile.slice.begin && y < tile.slice.end && x >= 0 && x < cols_.size;
            to[i * w_.m + j] =
                (inside ? tile.pixel + (y - tile.slice.begin) * cols_.size + x : pixels) * columns;
          }
        const Offsets from = w_.frequency_offsets(a, b, columns, 0);
        w_.f->outputs[h][v](products, from.data(), columns, results, to.data(), ones.data());
      });
      products += product_size_;
    }
  }

 private:
  Span tile_rows(const Slice& s) const {
    return rows_.tiles->of(s.begin << up_, std::min(s.end << up_, rows_.image()));
  }
  // Stored row (or column) of result i of a residue.
  int64_t position(const Axis& axis, int64_t tile, int64_t residue, int64_t taps, int64_t i) const {
    const int64_t at = w_.stride * (axis.tiles->first + tile * w_.m + taps - 1 + i) + residue - axis.pad;
    return at < axis.image() ? at >> up_ : axis.image();
  }

  const Problem<T>& p_;
  const Winograd<T>& w_;
  const View& view_;
  int up_;
  const Axis &rows_, &cols_;
  int64_t chunk_, padded_, chunk_size_, tile_size_, product_size_;
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
