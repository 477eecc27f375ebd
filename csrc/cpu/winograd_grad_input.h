// The dense pass of the input gradient by Winograd: a correlation of the scaled gradient with the turned
// filter of each residue modulo the stride. One transform of a gradient tile serves all residues. A map that
// is read up-sampled gathers four pixels in one: a filter of stride 2 moves over the gradient, as in the
// forward.
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
  WinogradGradInput(const Problem<T>& p, const Winograd<T>& w, const Source& source, const Axis& rows,
                    const Axis& cols, int64_t chunk)
      : p_(p),
        w_(w),
        up_(source.up),
        rows_(rows),
        cols_(cols),
        chunk_(chunk),
        padded_((chunk + kLanes<T> - 1) / kLanes<T> * kLanes<T>),
        product_size_((up_ ? w.frequencies() * kPanel<T> : w.size(kPanel<T>, 0)) + kLanes<T>) {}

  // Rows of a packed chunk of one panel.
  int64_t chunk_rows() const { return w_.size(padded_, kWinogradRowPad); }
  // Entries: the scratch of packing, the operands and the products of so many tiles.
  int64_t merged_size() const { return kMergedChannels * kernel(p_.geo.kh) * kernel(p_.geo.kw) * kPanel<T>; }
  int64_t operand_size(int64_t tiles) const { return p_.geo.O / chunk_ * operand(tiles).size(); }
  int64_t product_size(int64_t tiles) const { return tiles * product_size_; }

  int64_t tile_rows_per_band(bool shared, int64_t threads) const {
    return winograd_rows_per_band(p_.geo.N, rows_.tiles->count(rows_.size), cols_.tiles->count(cols_.size),
                                  (operand_size(1) + product_size(1)) * sizeof(T), shared, threads);
  }
  int64_t tile_count(const Slice& s) const {
    return rows_.tiles->of(s.begin, s.end).size() * cols_.tiles->count(cols_.size);
  }
  // Tiles of a slice that any gradient reaches.
  void add_tiles(const Slice& s, const GradientBand<T>& gradient, int64_t pixel,
                 std::vector<GradientTile<T>>& tiles) const {
    const Span rows = rows_.tiles->of(s.begin, s.end);
    for (int64_t row = rows.begin; row < rows.end; ++row)
      for (int64_t col = 0; col < cols_.tiles->count(cols_.size); ++col) {
        const int64_t r = rows_.tiles->first + row * rows_.tiles->step - gradient.first;
        const int64_t c = cols_.tiles->first + col * cols_.tiles->step + gradient.left;
        bool any = false;
        for (int64_t i = 0; i < rows_.tiles->span; ++i)
          for (int64_t j = 0; j < cols_.tiles->span; ++j) any |= gradient.mark(0, r + i)[c + j] != 0;
        if (any) tiles.push_back({gradient.row(0, r) + c * gradient.chunk, row, col, s, pixel});
      }
  }
  // Tile t of so many. Chunks of the gradient lie `plane` entries apart.
  void load(const GradientTile<T>& tile, int64_t t, int64_t tiles, int64_t plane, T* out) const {
    const int64_t row = cols_.all().size() * chunk_, pixel = chunk_;
    const WinogradOperand<T> chunks = operand(tiles);
    each_input_residue([&](int64_t a, int64_t b) {
      const Offsets from = up_ ? w_.pixels(a, b, row, pixel) : w_.grid(w_.n, w_.n, row, pixel);
      const Offsets to = chunks.of_tile(t, a, b);
      const auto transform = w_.f->inputs[up_ && w_.shorter_h(a)][up_ && w_.shorter_w(b)];
      for (int64_t i = 0; i < p_.geo.O / chunk_; ++i)
        transform(tile.gradient + i * plane, from.data(), chunk_, out + i * chunks.size(), to.data());
    });
  }
  // Channels [o, o + count) of a chunk, from merged weights; false where a weight is too large.
  bool pack(const Panel& panel, int64_t o, int64_t count, const T* merged, T* out) const {
    return pack_winograd(w_, kernel(p_.geo.kh), kernel(p_.geo.kw), panel.vectors * kLanes<T>, o, count,
                         padded_, !up_, merged, out);
  }
  // Adds a chunk of a group to the products of `tiles` tiles; the first starts them.
  void multiply(const Panel& panel, int64_t chunk, int64_t tiles, const T* data, const T* packed,
                T* products) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    const WinogradOperand<T> chunks = operand(tiles);
    data += (panel.group * (p_.geo.Og() / chunk_) + chunk) * chunks.size();
    for (int64_t q = 0; q < w_.frequencies(); ++q) {
      const Operand<T> gradients{data + chunks.place(q), chunks.row(q), 1};
      const T* weights = packed + w_.frequency_offset(q, padded_, kWinogradRowPad) * columns;
      if (up_)  // residues are summed
        product<T>(panel.vectors, tiles, gradients, {weights, 0, columns}, chunks.row(q),
                   products + q * columns, product_size_, chunk > 0);
      else
        for (int64_t k = 0; k < w_.blocks_of(q); ++k)
          product<T>(panel.vectors, tiles, gradients, {weights + k * padded_ * columns, 0, columns}, padded_,
                     products + (w_.first[q] + k) * columns, product_size_, chunk > 0);
    }
  }
  // Adds the tiles' results to results [pixels and one more, columns].
  void finish(const Panel& panel, const std::vector<GradientTile<T>>& tiles, const T* products,
              int64_t pixels, T* results) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    const std::vector<T> ones(w_.m * w_.m, T(1));
    Offsets to(w_.m * w_.m);
    for (const GradientTile<T>& tile : tiles) {
      each_output_residue([&](int64_t a, int64_t b) {
        const bool h = !up_ && w_.shorter_h(a), v = !up_ && w_.shorter_w(b);
        for (int64_t i = 0; i < w_.m; ++i)
          for (int64_t j = 0; j < w_.m; ++j) {
            const int64_t y = position(rows_, tile.row, a, w_.r - h, i);
            const int64_t x = position(cols_, tile.col, b, w_.r - v, j);
            const bool inside = y >= tile.slice.begin && y < tile.slice.end && x >= 0 && x < cols_.size;
            to[i * w_.m + j] =
                (inside ? tile.pixel + (y - tile.slice.begin) * cols_.size + x : pixels) * columns;
          }
        const Offsets from =
            up_ ? w_.grid(w_.n, w_.n, w_.n * columns, columns) : w_.block_offsets(a, b, columns, 0);
        w_.f->outputs[h][v](products, from.data(), columns, results, to.data(), ones.data());
      });
      products += product_size_;
    }
  }

 private:
  WinogradOperand<T> operand(int64_t tiles) const { return {w_, up_ != 0, padded_, tiles}; }
  int64_t kernel(int64_t size) const { return size + up_; }
  template <class F>
  void each_input_residue(const F& body) const {
    if (up_)
      w_.each_residue(body);
    else
      body(0, 0);
  }
  template <class F>
  void each_output_residue(const F& body) const {
    if (up_)
      body(0, 0);
    else
      w_.each_residue(body);
  }
  // Row (or column) of result i of a residue.
  int64_t position(const Axis& axis, int64_t tile, int64_t residue, int64_t taps, int64_t i) const {
    if (up_) return tile * w_.m + i;
    return w_.stride * (axis.tiles->first + tile * w_.m + taps - 1 + i) + residue - axis.pad;
  }

  const Problem<T>& p_;
  const Winograd<T>& w_;
  int up_;
  const Axis &rows_, &cols_;
  int64_t chunk_, padded_, product_size_;  // channels of a chunk, entries of a tile's products
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
