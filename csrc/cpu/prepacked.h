// Packed weights that outlive a call: a header that says what they fit, then the weights of all panels as
// Forward lays them out where chunks are all channels of a source.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <vector>

#include "forward.h"
#include "isa.h"
#include "problem.h"
#include "vec.h"
#include "winograd.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// All that the layout depends on. Equal headers, equal layouts.
template <class T>
class PrepackedHeader {
 public:
  // With `size` entries of weights.
  PrepackedHeader(const Problem<T>& p, const Winograd<T>& w, int64_t size) {
    const Geometry& g = p.geo;
    words_ = {size, kLanes<T>, w.m, w.r, w.stride, g.kh, g.kw, g.O, g.groups};
    words_.push_back(p.sources.size());
    for (const Source& s : p.sources) words_.push_back(s.C);
    words_.push_back(p.branches.size());
    for (const Branch<T>& b : p.branches) words_.insert(words_.end(), {b.kh, b.kw, b.scale != nullptr});
  }
  // Entries, whole lines of the cache.
  int64_t size() const {
    constexpr int64_t line = 64 / sizeof(T);
    return (bytes() / static_cast<int64_t>(sizeof(T)) + line - 1) / line * line;
  }
  void write(T* to) const {
    std::fill_n(to, size(), T(0));
    memcpy(to, words_.data(), bytes());
  }
  // The weights behind an equal header, else null.
  T* weights(const Prepacked<T>& from) const {
    if (from.size != size() + words_[0] || memcmp(from.data, words_.data(), bytes()) != 0) return nullptr;
    return from.data + size();
  }

 private:
  int64_t bytes() const { return words_.size() * sizeof(int64_t); }
  std::vector<int64_t> words_;
};

template <class T>
static bool forward_prepacked(const Problem<T>& p, const T* bias, Target out,
                              const std::optional<Winograd<T>>& w) {
  const std::vector<WinogradPart<T>> parts = winograd_parts(p, w, false);
  Forward<T> f(p, bias, out, parts, true);
  T* const weights = PrepackedHeader<T>(p, *w, f.packed_size()).weights(p.prepacked);
  return weights && f.run(f.parts(weights));
}

// F(m, 2) and up-sampled maps read where they are stored make of weights 7 to 11 times as many values: to
// read those takes the time of packing them again.
template <class T>
static int64_t pack(const Problem<T>& p) {
  const std::optional<Winograd<T>> w = choose_winograd<T, Favour::first>(p);
  if (!w || w->r == 2) return 0;
  const std::vector<WinogradPart<T>> parts = winograd_parts(p, w, false);
  Forward<T> f(p, nullptr, {}, parts, true);
  const PrepackedHeader<T> header(p, *w, f.packed_size());
  const int64_t size = header.size() + f.packed_size();
  if (p.prepacked.size == 0) return size;
  header.write(p.prepacked.data);
  return f.pack_all(f.parts(p.prepacked.data + header.size())) ? size : 0;
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
