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
  // `pass` is the merged kernel. Where panels are split each thread packs a few channels at a time.
  WinogradGradInput(const Problem<T>& p, const Winograd<T>& w, const View& view, const Source& source,
                    const Axis& rows, const Axis& cols, const Pass& pass, int64_t gradient_chunk,
                    bool split_panels)
      : p_(p),
        w_(w),
        view_(view),
        up_(source.up),
        rows_(rows),
        cols_(cols),
        pass_(pass),
        gradient_chunk_(gradient_chunk),
        product_size_(w.size(kPanel<T>, 0) + kLanes<T>) {
    constexpr int64_t L = kLanes<T>;
    const int64_t channels = p.geo.Og();
    const int64_t most = kPackedBytes / (w.blocks() * kPanel<T> * static_cast<int64_t>(sizeof(T)));
    const int64_t step = split_panels && most < channels ? std::max(L, most / L * L) : channels;
    for (int64_t o = 0; o < channels; o += step) {
      const int64_t size = std::min(step, channels - o), padded = (size + L - 1) / L * L;
      chunks_.push_back({o, size, padded, group_size_, packed_rows_});
      group_size_ += w.frequencies() * (padded + L);
      packed_rows_ += w.size(padded, kRowPad);
      largest_rows_ = std::max(largest_rows_, w.size(padded, kRowPad));
    }
    tile_size_ = odd_lines<T>(p.geo.groups * group_size_);
  }

  size_t chunks() const { return chunks_.size(); }
  int64_t rows() const { return packed_rows_; }
  int64_t largest_rows() const { return largest_rows_; }
  T* part(const Panel& panel, size_t chunk, T* packed) const {
    return packed + packed_rows_ * panel.column + chunks_[chunk].row * panel.vectors * kLanes<T>;
  }
  int64_t merged_size() const { return chunks_[0].size * p_.geo.kh * p_.geo.kw * kPanel<T>; }
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
  void load(const GradientTile<T>& tile, int64_t plane, T* out) const {
    const Geometry& g = p_.geo;
    const Offsets from =
        w_.grid(w_.n, w_.n, cols_.all().size() * gradient_chunk_, gradient_chunk_);
    for (int64_t group = 0; group < g.groups; ++group)
      for (const Chunk& c : chunks_) {
        const Offsets to = w_.grid(w_.n, w_.n, w_.n * (c.padded + kLanes<T>), c.padded + kLanes<T>);
        for (int64_t done = 0, run; done < c.size; done += run) {
          const int64_t channel = group * g.Og() + c.channel + done, within = channel % gradient_chunk_;
          run = std::min(c.size - done, gradient_chunk_ - within);
          w_.f->inputs[0][0](tile.gradient + channel / gradient_chunk_ * plane + within, from.data(), run,
                             out + group * group_size_ + c.place + done, to.data());
        }
      }
  }

  // Rows [w.size(padded, kRowPad)] of one panel; false where a weight is too large.
  bool pack(const Panel& panel, size_t chunk, PackScratch<T>& scratch, T* merged, T* out) const {
    const Chunk& c = chunks_[chunk];
    const Geometry& g = p_.geo;
    pack_grad_input(p_, pass_, pass_.placements, panel, view_.channel + panel.first, c.channel, c.size, scratch,
                    merged);
    return pack_winograd(w_, g.kh, g.kw, panel, c.size, c.padded, true, merged, out);
  }
  void multiply(const Panel& panel, size_t chunk, int64_t tiles, const T* data, const T* packed,
                T* products) const {
    const Chunk& c = chunks_[chunk];
    const int64_t columns = panel.vectors * kLanes<T>;
    data += panel.group * group_size_ + c.place;
    for (int64_t q = 0; q < w_.frequencies(); ++q)
      for (int64_t k = 0; k < w_.blocks_of(q); ++k)
        product<T>(panel.vectors, tiles, {data + q * (c.padded + kLanes<T>), tile_size_, 1},
                   {packed + (w_.frequency_offset(q, c.padded, kRowPad) + k * c.padded) * columns, 0, columns},
                   c.padded, products + (w_.first[q] + k) * columns, product_size_, chunk > 0);
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
        w_.f->outputs[h][v](products, from.data(), columns, results, to.data(), ones.data(), nullptr);
      });
      products += product_size_;
    }
  }

 private:
  struct Chunk {
    int64_t channel, size, padded;
    int64_t place, row;  // in a tile's group, in a packed panel
  };
  static constexpr int64_t kRowPad = kWinogradRowPad;
  static constexpr int64_t kPackedBytes = 2 << 20;  // of a packed chunk: the products outgrow the second cache

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
  const Pass& pass_;
  int64_t gradient_chunk_, group_size_ = 0, tile_size_, product_size_, packed_rows_ = 0, largest_rows_ = 0;
  std::vector<Chunk> chunks_;
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
