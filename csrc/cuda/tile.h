// Validity of the input under a block's rectangle of output pixels, for the kernels that need no row list
// (few_inputs.cu, few_outputs.cu): one word of bits a row, in shared memory.
#pragma once
#include "windows.h"

namespace pconv {

// A rectangle of image `n`, which may reach beyond its borders; at most 64 columns.
struct Region {
  int n, y, x, rows, columns;
};

// Bit i of words[r]: pixel (y + r, x + i) of the region lies in the H x W image and is no hole. `up` = 1: the
// mask is read through a nearest 2x up-sampling. For all threads of the block; a barrier shows the words.
template <class T>
__device__ void load_validity(uint64_t* words, const Plane& mask, int up, int H, int W,
                              const Region& region) {
  const int lane = int(threadIdx.x) % 32;
  for (int r = int(threadIdx.x) / 32; r < region.rows; r += int(blockDim.x) / 32) {
    const int y = region.y + r, x = region.x + lane;
    const auto valid = [&](int column) {
      return lane + column < region.columns && within(y, H) && within(x + column, W) &&
             valid_at<T>(mask, region.n, y >> up, (x + column) >> up);
    };
    const uint32_t first = __ballot_sync(~0u, valid(0)), second = __ballot_sync(~0u, valid(32));
    if (lane == 0) words[r] = first | uint64_t(second) << 32;
  }
}

// Valid entries of the high x wide window whose first is bit x of words[y].
__host__ __device__ inline int count_window(const uint64_t* words, int y, int x, int high, int wide) {
  const uint64_t columns = ((uint64_t(1) << wide) - 1) << x;
  int count = 0;
  for (int i = 0; i < high; ++i) count += popcount(words[y + i] & columns);
  return count;
}

}  // namespace pconv
