// How a block of few_outputs.cu reads its sources: validity as rows of bits, then the pixels of its region,
// holes and what lies outside as zeros, into shared memory.
#pragma once
#include "few_outputs.h"

namespace pconv::few {

// A block's region begins here, at the resolution of the output.
struct Corner {
  int n, y, x;
};

// Validity of the source's rows `first`, `first` + `step` (4 or 8), ... of the region, a word each: bit i of
// words[r] says whether pixel (r, i), at the output's resolution, lies in the image and is no hole. The loads
// of all rows are under way together, since none depends on a branch.
template <class T>
__device__ __forceinline__ void load_rows(uint64_t* words, const Source& s, const Problem& p, Corner corner,
                                          int first, int step) {
  constexpr int kRows = (kMostRegion + 3) / 4;
  const int lane = int(threadIdx.x) % 32, x = corner.x + lane, rows = kTile + p.kh - 1;
  const int above = most(-corner.y, 0), high = least(rows, p.H - corner.y) - above;  // rows in the image
  const bool inside = lane < kTile + p.kw - 1 && within(x, p.W), masked = s.mask.data != nullptr;
  const T* any = static_cast<const T*>(masked ? s.mask.data : s.x);  // read where nothing has to be
  const T* from =
      any + corner.n * s.mask.n + ((corner.y + first) >> s.up) * s.mask.h + (x >> s.up) * s.mask.w;
  const int64_t apart = (step >> s.up) * s.mask.h;
  T seen[kRows];
  bool valid[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    valid[i] = inside && high > 0 && within(first + i * step - above, high);
    seen[i] = *(valid[i] && masked ? from : any);
    from += apart;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = first + i * step;
    const uint32_t bits = __ballot_sync(~0u, valid[i] && (!masked || T(seen[i] & T(s.mask.keep))));
    if (lane == 0 && row < rows) words[row] = bits;
  }
}

// Valid entries of the high x wide window whose first is bit x of words[y].
__device__ inline int count_window(const uint64_t* words, int y, int x, int high, int wide) {
  const uint64_t columns = ((uint64_t(1) << wide) - 1) << x;
  int count = 0;
  for (int i = 0; i < high; ++i) count += popcount(words[y + i] & columns);
  return count;
}

template <class E, int BYTES>
struct alignas(BYTES) Piece {
  E e[BYTES / sizeof(E)];
};

// Where 16-byte piece `piece` of a wide source's pixel lies: `swizzled` of matrix.h.
__device__ inline int place_of(const Source& s, int pixel, int piece) {
  const int turn = (pixel >> (7 - s.log_row_bytes)) & ((1 << (s.log_row_bytes - 4)) - 1);
  return (pixel << s.log_row_bytes) + (piece ^ turn) * 16;
}

// Shared memory is: words of validity, a chunk of a wide source, the narrow sources, products. ITEM: bytes of
// an element.
template <int ITEM>
class Feed {
  static constexpr int kItem = ITEM;
  using E = typename std::conditional<kItem == 2, uint16_t, uint32_t>::type;  // an element's bits

 public:
  __device__ Feed(const Problem& p, char* shared, Corner corner) : p_(p), shared_(shared), corner_(corner) {}

  __device__ uint64_t* words(int source) const {
    return reinterpret_cast<uint64_t*>(shared_ + source * kWords);
  }
  __device__ char* wide() const { return shared_ + 2 * kWords; }
  __device__ char* narrow(int source) const {
    return wide() + p_.wide_bytes + (source ? p_.narrow_bytes[0] : 0);
  }
  __device__ float* products() const { return reinterpret_cast<float*>(narrow(1) + p_.narrow_bytes[1]); }

  // Validity of both sources; half of the warps each, and every thread's loads together.
  __device__ void load_words() const {
    const int warp = int(threadIdx.x) / 32, each = p_.n_sources > 1 ? kWarps / 2 : kWarps;
    const int source = warp >= each, first = warp - source * each;
    const Source& s = p_.sources[source];
    const int bytes = s.mask.data ? s.mask.bytes : 1;
    if (bytes == 1) {
      load_rows<uint8_t>(words(source), s, p_, corner_, first, each);
    } else if (bytes == 2) {
      load_rows<uint16_t>(words(source), s, p_, corner_, first, each);
    } else if (bytes == 4) {
      load_rows<uint32_t>(words(source), s, p_, corner_, first, each);
    } else {
      load_rows<uint64_t>(words(source), s, p_, corner_, first, each);
    }
  }

  // Begins the copies of a chunk of a wide source, if there is one.
  __device__ void fetch(int source, int chunk) {
    if (source < p_.n_sources) {
      const Source& s = p_.sources[source];
      if (s.unit == 16) {
        copy_pixels<16>(s, source, chunk);
      } else if (s.unit == 8) {
        copy_pixels<8>(s, source, chunk);
      } else if (s.unit == 4) {
        copy_pixels<4>(s, source, chunk);
      } else {
        gather_pixels(s, source, chunk);
      }
    }
    commit_copies();
  }

  // Reads a narrow source: all loads of a thread together, of up to two pixels.
  __device__ void gather_narrow(const Source& s, int source) {
    constexpr int kItems = 8 / kItem, kPixels = 2;
    static_assert(kMostRegion * kMostRegion <= kPixels * kThreads, "");
    const E* from[kPixels];
    bool valid[kPixels];
#pragma unroll
    for (int i = 0; i < kPixels; ++i) {
      const int pixel = int(threadIdx.x) + i * kThreads, row = s.by_columns(pixel);
      const int column = pixel - row * s.columns;
      valid[i] = pixel < s.pixels && bit(words(source)[row], 0, column);
      from[i] = reinterpret_cast<const E*>(s.x) + corner_.n * s.n + ((corner_.y + row) >> s.up) * s.h +
                ((corner_.x + column) >> s.up) * s.w;
    }
    char* to = narrow(source) + threadIdx.x * s.row_bytes;
    for (int channel = 0; channel * kItem < s.row_bytes; channel += kItems, to += 8) {
      Piece<E, 8> loaded[kPixels];
#pragma unroll
      for (int i = 0; i < kPixels; ++i)
        loaded[i] = load<8>(from[i] + channel * s.c, s.c, valid[i] ? s.channels - channel : 0);
#pragma unroll
      for (int i = 0; i < kPixels; ++i)
        if (int(threadIdx.x) + i * kThreads < s.pixels)
          *reinterpret_cast<Piece<E, 8>*>(to + i * kThreads * s.row_bytes) = loaded[i];
    }
  }

 private:
  // Words of row `row` of a region, and whether a column of it is valid; `up`: of the low resolution.
  __device__ uint64_t row_words(int source, int up, int row) const {
    return words(source)[most((row << up) - (up & corner_.y), 0)];
  }
  __device__ bool bit(uint64_t words, int up, int column) const {
    return words >> most((column << up) - (up & corner_.x), 0) & 1;
  }

  // Each warp takes rows of the region. Channels-last: neighbouring threads copy neighbouring pieces.
  template <int UNIT>
  __device__ __forceinline__ void copy_pixels(const Source& s, int source, int chunk) const {
    constexpr int kLogUnit = UNIT == 16 ? 4 : UNIT == 8 ? 3 : 2;
    const int lane = int(threadIdx.x) % 32, log = s.log_row_bytes - kLogUnit, step = 32 >> log;
    const int at = (lane & ((1 << log) - 1)) * UNIT, begin = chunk * s.row_bytes + at;
    const int left = most(s.channels * kItem - begin, 0), bytes = least(left, UNIT);
    const int apart = int(s.w) * kItem;
    for (int row = int(threadIdx.x) / 32; row < s.rows; row += kWarps) {
      const uint64_t bits = row_words(source, s.up, row);
      const char* first = s.x + first_of_row(s, s.up, row) * kItem + begin;
#pragma unroll 1
      for (int column = lane >> log; column < s.columns; column += step)
        copy_async<UNIT>(wide() + place_of(s, row * s.columns + column, at / 16) + at % 16,
                         first + int64_t(column) * apart, bit(bits, s.up, column) ? bytes : 0);
    }
  }
  // Element of the first channel in the first column, which may lie outside.
  __device__ int64_t first_of_row(const Source& s, int up, int row) const {
    return corner_.n * s.n + ((corner_.y >> up) + row) * s.h + (corner_.x >> up) * s.w;
  }

  // Any strides: neighbouring threads read neighbouring pixels.
  __device__ void gather_pixels(const Source& s, int source, int chunk) {
    constexpr int kItems = 16 / kItem;
    const int column = int(threadIdx.x) % 32;
    if (column >= s.columns) return;
    for (int row = int(threadIdx.x) / 32; row < s.rows; row += kWarps) {
      const bool valid = bit(row_words(source, s.up, row), s.up, column);
      const E* first = reinterpret_cast<const E*>(s.x) + first_of_row(s, s.up, row) + column * s.w;
      for (int piece = 0; piece < s.row_bytes / 16; ++piece) {
        const int channel = chunk * (s.row_bytes / kItem) + piece * kItems;
        const auto loaded = load<16>(first + channel * s.c, s.c, valid ? s.channels - channel : 0);
        char* to = wide() + place_of(s, row * s.columns + column, piece);
        *reinterpret_cast<Piece<E, 16>*>(to) = loaded;
      }
    }
  }
  // `count` elements, `apart` from each other, and zeros.
  template <int BYTES>
  __device__ static __forceinline__ Piece<E, BYTES> load(const E* from, int64_t apart, int count) {
    Piece<E, BYTES> piece;
#pragma unroll
    for (int i = 0; i < BYTES / kItem; ++i, from += apart) piece.e[i] = i < count ? *from : E(0);
    return piece;
  }

  const Problem& p_;
  char* shared_;
  Corner corner_;
};

}  // namespace pconv::few
