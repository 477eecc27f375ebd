// One direction of the input gradient: which gradient rows (or columns) meet which input rows.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "../pixel.h"
#include "isa.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// A gradient pixel that a class of input rows (or columns) meets, relative to the row's base, and the kernel
// rows of the largest kernel that connect them: one, or two where an up-sampled source is summed over its
// copies.
struct AxisTap {
  int64_t offset;
  std::vector<int64_t> kernel;
};

// Input rows against gradient rows. Offsets are at most 0; `before` is how far they reach.
struct Axis {
  bool up;
  int64_t size, out, kernel, stride, dilation, pad;  // size: stored rows; out: gradient rows
  int64_t before;
  std::vector<std::vector<AxisTap>> classes;
  std::vector<int64_t> class_of;  // [size]

  Axis(bool up, int64_t size, int64_t out, int64_t kernel, int64_t stride, int64_t dilation, int64_t pad)
      : up(up),
        size(size),
        out(out),
        kernel(kernel),
        stride(stride),
        dilation(dilation),
        pad(pad),
        before(up ? kernel : (kernel - 1) * dilation / stride) {
    if (up) {
      // Stored row i lies at rows 2i and 2i + 1 of the image, 2i + 1 missing at the end of an odd size.
      for (int64_t copies = 2; copies >= (out % 2 ? 1 : 2); --copies) {
        classes.emplace_back();
        for (int64_t u = 0; u <= kernel; ++u) {
          AxisTap tap{u - kernel, {}};
          for (int64_t copy = 0; copy < copies; ++copy)
            if (kernel - 1 - u + copy >= 0 && kernel - 1 - u + copy < kernel)
              tap.kernel.push_back(kernel - 1 - u + copy);
          if (!tap.kernel.empty()) classes.back().push_back(tap);
        }
      }
      for (int64_t i = 0; i < size; ++i) class_of.push_back(stored_positions(size, out).type_of(i));
      return;
    }
    std::vector<int64_t> residues;  // met by a tap, so no more than kernel rows
    for (int64_t k = 0; k < kernel; ++k) residues.push_back(k * dilation % stride);
    std::sort(residues.begin(), residues.end());
    residues.erase(std::unique(residues.begin(), residues.end()), residues.end());
    for (int64_t residue : residues) {
      classes.emplace_back();
      for (int64_t k = kernel; k-- > 0;)
        if ((k * dilation - residue) % stride == 0)
          classes.back().push_back({(residue - k * dilation) / stride, {k}});
    }
    if (static_cast<int64_t>(residues.size()) < stride) classes.emplace_back();
    for (int64_t i = 0; i < size; ++i)
      class_of.push_back(std::find(residues.begin(), residues.end(), (i + pad) % stride) - residues.begin());
  }
  // Gradient row that offset 0 stands for.
  int64_t base(int64_t i) const { return up ? 2 * i + 1 + kernel / 2 : (i + pad) / stride; }
  int64_t extent() const { return before + std::max(out - 1, base(size - 1)) + 1; }
  // Whether the taps of every class are consecutive and few enough for window_bits.
  bool bits() const {
    bool fit = dilation == 1;
    for (const auto& taps : classes) fit &= taps.size() <= 8;
    return fit;
  }
};

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
