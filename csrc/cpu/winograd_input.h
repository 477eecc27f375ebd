// The features of a band as an operand of Winograd products: [tile][group][chunk][frequency, residue,
// channel] for sums over channels, [group][chunk][frequency, residue, tile, channel] for sums over tiles.
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

// A chunk of channels of one source within a group, the index-th. `entries` of a tile's group lie before it,
// `row` rows of a packed panel.
struct WinogradChunk {
  size_t source;
  int64_t channel, size, padded, index;
  int64_t entries, row;
};

template <class T>
class WinogradInput {
 public:
  // Chunks of each source of the part as the features have them.
  WinogradInput(const WinogradPart<T>& part, const std::vector<View>& views,
                const std::vector<int64_t>& chunk, int64_t groups)
      : w_(part.w), groups_(groups), padded_(views.size()), from_(views.size()), to_(views.size()) {
    constexpr int64_t L = kLanes<T>;
    const Winograd<T>& w = w_;
    for (size_t s : part.sources) {
      const Geometry& g = views[s].g;
      const int64_t padded = (chunk[s] + L - 1) / L * L;
      for (int64_t c = 0; c < g.Cg(); c += chunk[s]) {
        const int64_t index = chunks.size();
        chunks.push_back({s, c, chunk[s], padded, index, group_entries_, rows});
        group_entries_ += w.size(padded, 0);
        rows += w.size(padded, kWinogradRowPad);
        largest_rows = std::max(largest_rows, w.size(padded, kWinogradRowPad));
      }
      padded_[s] = padded;
      w.each_residue(
          [&](int64_t a, int64_t b) { from_[s].push_back(w.pixels(a, b, g.Wp * chunk[s], chunk[s])); });
    }
    arrange(1, 0, chunks.size());
    tile_size = odd_lines<T>(size());
  }

  std::vector<WinogradChunk> chunks;   // of each group
  int64_t rows = 0, largest_rows = 0;  // of a packed panel: all chunks, the largest
  int64_t tile_size;                   // entries from one tile to the next, for sums over channels

  // Chunks [begin, end) of each group at once, with room for so many tiles side by side.
  void arrange(int64_t tiles, size_t begin, size_t end) {
    tiles_ = tiles;
    begin_ = begin, end_ = end;
    for (size_t s = 0; s < to_.size(); ++s) {
      to_[s].clear();
      w_.each_residue([&](int64_t a, int64_t b) {
        to_[s].push_back(w_.frequency_offsets(a, b, tiles * padded_[s], kLanes<T>));
      });
    }
  }
  // Entries of the chunks.
  int64_t size() const { return place(groups_, chunks[begin_], 0); }
  // Entries of a chunk's frequency; residues are tiles * padded apart.
  int64_t place(int64_t group, const WinogradChunk& c, int64_t frequency) const {
    const int64_t entries =
        (end_ < chunks.size() ? chunks[end_].entries : group_entries_) - chunks[begin_].entries;
    const int64_t index = group * (end_ - begin_) + c.index - begin_;
    return tiles_ * (group * entries + c.entries - chunks[begin_].entries) +
           index * w_.frequencies() * kLanes<T> +
           w_.frequency_offset(frequency, tiles_ * c.padded, kLanes<T>);
  }
  // `at`: the tile's place among those side by side.
  void load(const std::vector<FeatureBand<T>>& features, const WinogradTile& tile, T* out,
            int64_t at = 0) const {
    for (int64_t group = 0; group < groups_; ++group)
      for (size_t i = begin_; i < end_; ++i) {
        const WinogradChunk& c = chunks[i];
        const FeatureBand<T>& f = features[c.source];
        const T* in =
            f.window(tile.slice, tile.row, tile.col) + f.channel_offset(group * f.view.g.Cg() + c.channel);
        T* const place_of_chunk = out + place(group, c, 0) + at * c.padded;
        size_t k = 0;
        w_.each_residue([&](int64_t a, int64_t b) {
          w_.f->inputs[w_.shorter_h(a)][w_.shorter_w(b)](in, from_[c.source][k].data(), c.size,
                                                         place_of_chunk, to_[c.source][k].data());
          ++k;
        });
      }
  }

 private:
  const Winograd<T>& w_;
  int64_t groups_, group_entries_ = 0, tiles_ = 1;
  size_t begin_ = 0, end_ = 0;
  std::vector<int64_t> padded_;                  // channels of a chunk, per source
  std::vector<std::vector<Offsets>> from_, to_;  // [source][residue]
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
