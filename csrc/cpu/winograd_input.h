// The features of a band as operands of Winograd products: [group][chunk][frequency][tile][residue, channel].
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "bands.h"
#include "isa.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"
#include "winograd.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// m x m results from (row, col) on; `pixel` is the first's place in the band.
struct WinogradTile {
  size_t slice;
  int64_t row, col, pixel;
};

// Tiles of a band with a result that counts: `factor` [pixels of the band] is 0 where none does.
template <class T>
static std::vector<WinogradTile> winograd_tiles(const Band& band, int64_t m, int64_t width,
                                                const std::vector<T>& factor) {
  std::vector<WinogradTile> tiles;
  int64_t first = 0;
  for (size_t s = 0; s < band.size(); ++s) {
    for (int64_t row = band[s].begin; row < band[s].end; row += m)
      for (int64_t col = 0; col < width; col += m) {
        const int64_t pixel = first + (row - band[s].begin) * width + col;
        bool any = false;
        for (int64_t i = 0; i < std::min(m, band[s].end - row); ++i)
          for (int64_t j = 0; j < std::min(m, width - col); ++j) any |= factor[pixel + i * width + j] != T(0);
        if (any) tiles.push_back({s, row, col, pixel});
      }
    first += band[s].rows() * width;
  }
  return tiles;
}

// A chunk of channels of one source within a group, the index-th; `row` rows of a packed panel lie before it.
struct WinogradChunk {
  size_t source;
  int64_t channel, size, padded, index, row;
};

// The chunks of a part.
template <class T>
struct WinogradInput {
  const Winograd<T>& w;
  int64_t groups;
  std::vector<WinogradChunk> chunks;         // of each group
  int64_t rows = 0, largest_rows = 0;        // of a packed panel: all chunks, the largest
  std::vector<std::vector<Offsets>> pixels;  // [source][residue]

  // Chunks of each source of the part as the features have them.
  WinogradInput(const WinogradPart<T>& part, const std::vector<View>& views,
                const std::vector<int64_t>& chunk, int64_t groups)
      : w(part.w), groups(groups), pixels(views.size()) {
    constexpr int64_t L = kLanes<T>;
    for (size_t s : part.sources) {
      const Geometry& g = views[s].g;
      const int64_t padded = (chunk[s] + L - 1) / L * L;
      for (int64_t c = 0; c < g.Cg(); c += chunk[s]) {
        const int64_t index = chunks.size();
        chunks.push_back({s, c, chunk[s], padded, index, rows});
        rows += w.size(padded, kWinogradRowPad);
        largest_rows = std::max(largest_rows, w.size(padded, kWinogradRowPad));
      }
      w.each_residue(
          [&](int64_t a, int64_t b) { pixels[s].push_back(w.pixels(a, b, g.Wp * chunk[s], chunk[s])); });
    }
  }
};

// Chunks [begin, end) of every group for so many tiles.
template <class T>
class WinogradFeatures {
 public:
  WinogradFeatures(const WinogradInput<T>& input, int64_t tiles, size_t begin, size_t end)
      : input_(&input), begin_(begin) {
    for (size_t i = begin; i < end; ++i) {
      chunks_.push_back({input.w, true, input.chunks[i].padded, tiles});
      place_.push_back(place_.back() + chunks_.back().size());
    }
  }

  int64_t size() const { return input_->groups * place_.back(); }
  const WinogradOperand<T>& chunk(size_t index) const { return chunks_[index - begin_]; }
  int64_t place(int64_t group, size_t index) const { return group * place_.back() + place_[index - begin_]; }

  void load(const std::vector<FeatureBand<T>>& features, const WinogradTile& tile, int64_t t, T* out) const {
    const Winograd<T>& w = input_->w;
    size_t source = features.size();
    std::vector<Offsets> to;  // [residue], the same for all chunks of a source
    for (size_t i = begin_; i < begin_ + chunks_.size(); ++i) {
      const WinogradChunk& c = input_->chunks[i];
      if (c.source != source) {
        to.clear();
        w.each_residue([&](int64_t a, int64_t b) { to.push_back(chunk(i).of_tile(t, a, b)); });
        source = c.source;
      }
      const FeatureBand<T>& f = features[c.source];
      for (int64_t group = 0; group < input_->groups; ++group) {
        const T* in =
            f.window(tile.slice, tile.row, tile.col) + f.channel_offset(group * f.view.g.Cg() + c.channel);
        size_t k = 0;
        w.each_residue([&](int64_t a, int64_t b) {
          w.f->inputs[w.shorter_h(a)][w.shorter_w(b)](in, input_->pixels[c.source][k].data(), c.size,
                                                      out + place(group, i), to[k].data());
          ++k;
        });
      }
    }
  }

 private:
  const WinogradInput<T>* input_;
  size_t begin_;
  std::vector<WinogradOperand<T>> chunks_;
  Offsets place_{0};  // of each chunk in a group
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
