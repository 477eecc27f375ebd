// How F(m, r) covers a convolution. With stride s its window falls into s residues in each direction, each a
// filter of stride 1 over every s-th pixel: 7x7 with stride 2 into 4x4, 4x3, 3x4 and 3x3. All share one tile
// of results, so their products are summed as one product with as many times the channels.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <type_traits>
#include <vector>

#include "bands.h"
#include "isa.h"
#include "microkernels.h"
#include "pack.h"
#include "passes.h"
#include "problem.h"
#include "vec.h"
#include "winograd_transforms.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

using Offsets = std::vector<int64_t>;

// Blocks: what one residue has to say to one frequency, ordered by frequency, then by residue. Packed weights
// keep `size` entries for a block and `pad` after each frequency.
template <class T>
struct Winograd {
  const WinogradTransforms<T>* f;
  int64_t m, r, n, window, stride;
  bool short_h, short_w;  // the last residue has a tap less
  Offsets first;          // blocks before each frequency [n * n + 1]

  Winograd(const WinogradTransforms<T>& transforms, const Geometry& g)
      : f(&transforms),
        m(f->m),
        r(f->r),
        n(f->n),
        window(f->window),
        stride(g.sh),
        short_h(g.kh < stride * r),
        short_w(g.kw < stride * r),
        first{0} {
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        first.push_back(first.back() + meeting(i, short_h) * meeting(j, short_w));
  }
  int64_t tiles(int64_t results) const { return (results + m - 1) / m; }  // in one direction
  int64_t tiles(const Band& band, int64_t width) const {
    int64_t rows = 0;
    for (const Slice& s : band) rows += tiles(s.rows());
    return rows * tiles(width);
  }
  int64_t frequencies() const { return n * n; }
  int64_t blocks() const { return first.back(); }
  int64_t blocks_of(int64_t frequency) const { return first[frequency + 1] - first[frequency]; }
  bool shorter_h(int64_t residue) const { return short_h && residue == stride - 1; }
  bool shorter_w(int64_t residue) const { return short_w && residue == stride - 1; }

  int64_t size(int64_t block, int64_t pad) const { return blocks() * block + frequencies() * pad; }
  int64_t frequency_offset(int64_t frequency, int64_t block, int64_t pad) const {
    return first[frequency] * block + frequency * pad;
  }
  // Calls body(frequency, block of it) for the blocks of residue (a, b), in the order of the transforms.
  template <class F>
  void each_block(int64_t a, int64_t b, const F& body) const {
    for (int64_t i = 0; i < n - shorter_h(a); ++i)
      for (int64_t j = 0; j < n - shorter_w(b); ++j) body(i * n + j, a * meeting(j, short_w) + b);
  }
  // Where they begin.
  Offsets block_offsets(int64_t a, int64_t b, int64_t block, int64_t pad) const {
    Offsets out;
    each_block(a, b, [&](int64_t frequency, int64_t k) {
      out.push_back(frequency_offset(frequency, block, pad) + k * block);
    });
    return out;
  }
  // The pixels of a tile's window and the taps of the filter that residue (a, b) has, `row` and `col` entries
  // apart in memory.
  Offsets pixels(int64_t a, int64_t b, int64_t row, int64_t col) const {
    return grid(window - shorter_h(a), window - shorter_w(b), stride * row, stride * col, a * row + b * col);
  }
  Offsets taps(int64_t a, int64_t b, int64_t row, int64_t col) const {
    return grid(r - shorter_h(a), r - shorter_w(b), stride * row, stride * col, a * row + b * col);
  }
  // rows x cols entries from `start` on.
  static Offsets grid(int64_t rows, int64_t cols, int64_t row, int64_t col, int64_t start = 0) {
    Offsets out;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < cols; ++j) out.push_back(start + i * row + j * col);
    return out;
  }
  template <class F>
  void each_residue(const F& body) const {
    for (int64_t a = 0; a < stride; ++a)
      for (int64_t b = 0; b < stride; ++b) body(a, b);
  }

 private:
  int64_t meeting(int64_t point, bool shorter) const { return stride - (shorter && point == n - 1); }
};

constexpr int64_t kWinogradRowPad = 3;  // rows of packed weights after each frequency
constexpr int64_t kMergedChannels =
    16;  // merged and transformed at a time, while they stay in the second cache

// Channels [c, c + count) of packed weights of one panel, [frequency, residue, channel][columns], from merged
// ones [taps, channel][columns]; `turned` for the input gradient. False where a weight is too large.
template <class T>
static bool pack_winograd(const Winograd<T>& w, int64_t kh, int64_t kw, int64_t columns, int64_t c,
                          int64_t count, int64_t padded, bool turned, const T* merged, T* out) {
  if (!moderate(merged, kh * kw * count * columns)) return false;
  const int64_t col = count * columns, row = kw * col;
  w.each_residue([&](int64_t a, int64_t b) {
    const bool h = w.shorter_h(a), v = w.shorter_w(b);
    Offsets from = w.taps(a, b, row, col);
    if (turned) std::reverse(from.begin(), from.end());
    const Offsets to = w.block_offsets(a, b, padded * columns, kWinogradRowPad * columns);
    for (int64_t i = 0; i < count; ++i)
      w.f->weights[h][v](merged + i * columns, from.data(), columns, out + (c + i) * columns, to.data());
    for (int64_t at : to)
      if (c + count > padded - kLanes<T>)
        std::fill_n(out + at + (c + count) * columns, (padded - c - count) * columns, T(0));
  });
  return true;
}
// Channels that a thread packs at a time, where it packs as it goes: more would read and write the products
// less often, and leave the second cache.
constexpr int64_t kChunkBytes = 1408 << 10;
template <class T>
static int64_t winograd_chunk(const Winograd<T>& w, int64_t channels) {
  return channel_chunk<T>(channels, kChunkBytes / (w.blocks() * kPanel<T> * static_cast<int64_t>(sizeof(T))));
}

// Rows of tiles, of `down` in each image, that one visit works on. Packed weights are read once a visit, and
// beyond some dozens of tiles that costs less than operands that leave the second cache.
constexpr int64_t kTilesOfVisit = 32;
static int64_t winograd_rows_per_band(int64_t images, int64_t down, int64_t across, int64_t tile_bytes,
                                      bool shared, int64_t threads) {
  const int64_t all = images * down;
  if (shared) return std::max<int64_t>(1, std::min(all, kSharedBandBytes / (across * tile_bytes)));
  const int64_t tiles = std::max<int64_t>(kTilesOfVisit, (1 << 20) / tile_bytes);
  const int64_t rows =
      std::max<int64_t>(1, std::min((tiles + across - 1) / across, (all + threads - 1) / threads));
  if (rows >= down) return rows;
  // Bands of an image alike; fewer than that many where threads stay busy all the same.
  const int64_t bands = images % threads == 0 ? (down + rows / 2) / rows : (down + rows - 1) / rows;
  return (down + bands - 1) / bands;
}

// One operand of a product, a chunk of channels of some tiles: [frequency][tile][residue, channel] where the
// products of residues are summed, else [frequency][tile][channel]. A vector between frequencies keeps them
// out of each other's cache sets.
template <class T>
class WinogradOperand {
 public:
  WinogradOperand(const Winograd<T>& w, bool summed, int64_t padded, int64_t tiles)
      : w_(&w), summed_(summed), padded_(padded), tiles_(tiles) {}

  int64_t size() const { return place(w_->frequencies()); }
  int64_t place(int64_t frequency) const {
    return (summed_ ? w_->first[frequency] : frequency) * tiles_ * padded_ + frequency * kLanes<T>;
  }
  // Entries from one tile to the next.
  int64_t row(int64_t frequency) const { return (summed_ ? w_->blocks_of(frequency) : 1) * padded_; }
  // Where the transform of residue (a, b) of a tile goes.
  Offsets of_tile(int64_t tile, int64_t a, int64_t b) const {
    Offsets out;
    if (summed_)
      w_->each_block(a, b, [&](int64_t frequency, int64_t k) {
        out.push_back(place(frequency) + tile * row(frequency) + k * padded_);
      });
    else
      for (int64_t q = 0; q < w_->frequencies(); ++q) out.push_back(place(q) + tile * padded_);
    return out;
  }

 private:
  const Winograd<T>* w_;
  bool summed_;
  int64_t padded_, tiles_;
};

constexpr int64_t kLeastChannels = 16;

template <Favour Results>
static constexpr WinogradTransforms<float> kWinogradFloat[] = {
    winograd_transforms<float, 4, 2, Favour::none>(), winograd_transforms<float, 4, 3, Favour::none>(),
    winograd_transforms<float, 4, 4, Results>(),      winograd_transforms<float, 2, 2, Favour::none>(),
    winograd_transforms<float, 2, 3, Favour::none>(), winograd_transforms<float, 2, 4, Favour::none>(),
};

// What has to average the roundings of large tiles, and what it takes to try small ones.
struct LeastTiles {
  int64_t large = 1, small = 1;
};

// The cheapest way to cover a convolution of `channels`, if there is one that beats the direct form.
template <class T, Favour Results>
static std::optional<Winograd<T>> choose_winograd(const Geometry& g, int64_t channels,
                                                  LeastTiles least = {}) {
  if constexpr (std::is_same_v<T, float>) {
    const auto residue = [&](int64_t k) { return (k + g.sh - 1) / g.sh; };
    if (algorithm() == Algorithm::direct) return {};
    if (g.sh != g.sw || g.sh > 2 || g.dh != 1 || g.dw != 1 || residue(g.kh) != residue(g.kw)) return {};
    if (g.Og() < kLeastChannels || channels / g.groups < kLeastChannels) return {};
    // Weights are packed once, at the price of so many tiles.
    constexpr int64_t kPacking = 14;
    const int64_t direct = (g.N * g.Ho * g.Wo + kPacking) * g.kh * g.kw;
    std::optional<Winograd<T>> best;
    int64_t cost = direct * 85 / 100;
    for (const WinogradTransforms<T>& f : kWinogradFloat<Results>) {
      if (f.r != residue(g.kh)) continue;
      const Winograd<T> w(f, g);
      const int64_t tiles = g.N * w.tiles(g.Ho) * w.tiles(g.Wo), products = (tiles + kPacking) * w.blocks();
      if (tiles < (w.m > 2 ? least.large : least.small)) continue;
      if (products < cost) best.emplace(w), cost = products;
    }
    return best;
  }
  return {};
}
template <class T, Favour Results>
static std::optional<Winograd<T>> choose_winograd(const Problem<T>& p, LeastTiles least = {}) {
  int64_t channels = p.geo.C;
  for (const Source& s : p.sources) channels = std::min(channels, s.C);
  return choose_winograd<T, Results>(p.geo, channels, least);
}

// Sources whose products are summed before they are transformed.
template <class T>
struct WinogradPart {
  Winograd<T> w;
  std::vector<size_t> sources;
};

static constexpr WinogradTransforms<float> kWinogradUpsampled = winograd_transforms_upsampled<float, 4, 3>();

// All sources by `w`, if there is one; or an up-sampled map where it is stored and `w` for the others, where
// that has so much less to do that it pays for larger weights. No parts: the direct form.
template <class T>
static std::vector<WinogradPart<T>> winograd_parts(const Problem<T>& p, const std::optional<Winograd<T>>& w,
                                                   bool upsampled, LeastTiles least = {}) {
  std::vector<WinogradPart<T>> parts;
  if constexpr (std::is_same_v<T, float>) {
    if (!w) return parts;
    const WinogradTransforms<T>& up = kWinogradUpsampled;
    constexpr int64_t kLeastTilesUp = 32;
    const Geometry& g = p.geo;
    const int64_t tiles = g.N * ((g.Ho + up.m - 1) / up.m) * ((g.Wo + up.m - 1) / up.m);
    upsampled &= g.kh == up.r && g.kw == up.r && g.H % 2 == 0 && g.W % 2 == 0 &&
                 tiles >= std::max(kLeastTilesUp, least.large);
    WinogradPart<T> rest{*w, {}};
    for (size_t i = 0; i < p.sources.size(); ++i)
      if (upsampled && p.sources[i].up)
        parts.push_back({Winograd<T>(up, g), {i}});
      else
        rest.sources.push_back(i);
    if (!rest.sources.empty()) parts.push_back(rest);
  }
  return parts;
}
// How sources are read for these parts.
template <class T>
static std::vector<Reading> readings(const std::vector<WinogradPart<T>>& parts, size_t sources) {
  std::vector<Reading> out(sources);
  for (const WinogradPart<T>& part : parts)
    for (size_t i : part.sources) {
      const bool stored = part.w.f->upsampled();
      out[i] = {stored ? part.w.m / 2 : part.w.m, stored};
    }
  return out;
}
// Rows that all tiles come in.
template <class T>
static int64_t tile_rows(const std::vector<WinogradPart<T>>& parts) {
  int64_t rows = 1;
  for (const WinogradPart<T>& part : parts) rows = std::max(rows, part.w.m);
  return rows;
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
