// Rows of the implicit GEMM (one output pixel each) gathered into tiles of kRows, and the segments a tile
// needs: taps that no row of the tile can use (outside the image, or holes) are left out.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "isa.h"
#include "microkernels.h"
#include "passes.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

constexpr uint64_t kAllTaps = ~uint64_t{0};
constexpr int64_t kBlock =
    448;  // depth of the reduction per visit of a tile: a block of B stays in the second cache

template <class T>
struct Row {
  const T* a;
  int32_t pixel;  // row of C
  T scale;
  uint64_t bits;  // taps of the largest window with a valid entry
};

// One tap of a pass: its entries in a row of A, its rows in a panel of B, its bit.
struct Tap {
  int64_t a, b, len;
  uint64_t bit;
};

struct SegmentList {
  uint64_t bits;
  std::vector<Segment> segments;
  std::vector<int32_t> begin;  // per block, one more at the end
};

template <class T>
struct Tile {
  int32_t rows, list;
  int32_t pixel[kRows];
  const T* a[kRows];
  T scale[kRows];
};

// Taps in the order of B, cut into blocks of about kBlock rows of B.
struct TapTable {
  std::vector<Tap> taps;
  std::vector<int32_t> block;  // first tap of each block, one more at the end

  void add(Tap tap) {
    if (block.empty() || tap.b + tap.len - taps[block.back()].b > kBlock) block.push_back(taps.size());
    taps.push_back(tap);
  }
  void close() { block.push_back(taps.size()); }
  size_t blocks() const { return block.size() - 1; }

  SegmentList select(uint64_t bits) const {
    SegmentList out{bits, {}, {}};
    for (size_t k = 0; k + 1 < block.size(); ++k) {
      const size_t begin = out.segments.size();
      out.begin.push_back(begin);
      for (int32_t t = block[k]; t < block[k + 1]; ++t) {
        const Tap& tap = taps[t];
        if (!(bits & tap.bit)) continue;
        Segment* last = out.segments.size() > begin ? &out.segments.back() : nullptr;
        if (last && last->a + last->len == tap.a && last->b + last->len == tap.b)
          last->len += tap.len;
        else
          out.segments.push_back({tap.a, tap.b, tap.len});
      }
    }
    out.begin.push_back(out.segments.size());
    return out;
  }
};

// Rows in the order given become tiles; neighbours should need the same taps.
template <class T>
class TileList {
 public:
  void push(const T* a, int32_t pixel, T scale, uint64_t bits, const TapTable& table) {
    if (open_ == 0) tiles_.emplace_back();
    Tile<T>& tile = tiles_.back();
    tile.a[open_] = a;
    tile.pixel[open_] = pixel;
    tile.scale[open_] = scale;
    open_bits_ |= bits;
    if (++open_ == kRows) seal(table);
  }
  // Ends the rows that use this table.
  void close(const TapTable& table) {
    if (open_) seal(table);
    first_list_ = lists_.size();
  }
  // Adds to C [pixels, columns] of one panel.
  void multiply(const Panel& panel, int64_t a_offset, const T* b, T* c) const {
    const int64_t columns = panel.vectors * kLanes<T>;
    for (size_t block = 0; block < blocks_; ++block)
      for (const Tile<T>& tile : tiles_) {
        const SegmentList& list = lists_[tile.list];
        if (block + 1 >= list.begin.size()) continue;
        const int64_t n = list.begin[block + 1] - list.begin[block];
        if (n == 0) continue;
        const T* a[kRows] = {};
        T* rows[kRows] = {};
        for (int32_t r = 0; r < tile.rows; ++r) {
          a[r] = tile.a[r] + a_offset;
          rows[r] = c + tile.pixel[r] * columns;
        }
        gemm(panel.vectors, tile.rows, a, list.segments.data() + list.begin[block], n, b, rows, tile.scale);
      }
  }

 private:
  void seal(const TapTable& table) {
    size_t k = lists_.size();
    while (k > first_list_ && lists_[k - 1].bits != open_bits_ && lists_.size() - k < 4) --k;
    if (k == first_list_ || lists_[k - 1].bits != open_bits_) {
      lists_.push_back(table.select(open_bits_));
      blocks_ = std::max(blocks_, table.blocks());
      k = lists_.size();
    }
    tiles_.back().list = static_cast<int32_t>(k - 1);
    tiles_.back().rows = open_;
    open_ = 0;
    open_bits_ = 0;
  }

  std::vector<Tile<T>> tiles_;
  std::vector<SegmentList> lists_;
  size_t blocks_ = 0, first_list_ = 0;
  int32_t open_ = 0;  // rows of the last tile while it takes more
  uint64_t open_bits_ = 0;
};

// Bit i * kw + j set where valid[i][j] is: `rows` rows of `cols` <= 8 bytes of 0 or 1, 8 bytes readable in
// each.
static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "window_bits takes the first byte as the lowest");
PCONV_INLINE uint64_t window_bits(const uint8_t* valid, int64_t stride, int64_t rows, int64_t cols) {
  uint64_t bits = 0;
  for (int64_t i = 0; i < rows; ++i) {
    uint64_t bytes;
    memcpy(&bytes, valid + i * stride, 8);
    const uint64_t packed = (bytes * 0x0102040810204080ull) >> 56;
    bits |= (packed & ((uint64_t{1} << cols) - 1)) << (i * cols);
  }
  return bits;
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
