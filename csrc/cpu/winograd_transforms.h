// The linear maps of F(m, r) in two directions, vectors of channels at a time.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#include "cook_toom.h"
#include "isa.h"
#include "vec.h"

PCONV_BEGIN_ISA
namespace pconv::PCONV_ISA {
namespace {

// The first `rows` x `cols` entries of a matrix, or of its transpose.
template <const auto& M, int Rows, int Cols, bool Transposed = false>
struct Map {
  static constexpr int rows = Rows, cols = Cols;
  static constexpr double at(int i, int j) { return Transposed ? M.at[j][i] : M.at[i][j]; }
  static constexpr int first(int i) {
    int j = 0;
    while (j < cols - 1 && at(i, j) == 0) ++j;
    return j;
  }
};

// Entry i of map * x; zeros of the map cost nothing.
template <class Map, int I, class T, size_t... J>
PCONV_INLINE Vec<T> map_row(const Vec<T>* x, std::index_sequence<J...>) {
  constexpr int first = Map::first(I);
  constexpr T start = static_cast<T>(Map::at(I, first));
  Vec<T> sum = start == T(1) ? x[first] : start * x[first];
  const auto add = [&](auto j) __attribute__((always_inline)) {
    constexpr int col = decltype(j)::value;
    constexpr T factor = static_cast<T>(Map::at(I, col));
    if constexpr (col > first && factor != T(0)) sum += factor * x[col];
  };
  (add(std::integral_constant<int, J>{}), ...);
  return sum;
}
template <class Map, class T, size_t... I>
PCONV_INLINE void map_vectors(const Vec<T>* x, Vec<T>* y, std::index_sequence<I...>) {
  ((y[I] = map_row<Map, I, T>(x, std::make_index_sequence<Map::cols>{})), ...);
}

// y = H x W^T, where x(i, j) = load(i * W::cols + j) and store(i * W::rows + j, y(i, j)).
template <class H, class W, class T, class Load, class Store>
PCONV_INLINE void map_tile(const Load& load_entry, const Store& store_entry) {
  Vec<T> half[W::cols][H::rows];
#pragma GCC unroll 10
  for (int j = 0; j < W::cols; ++j) {
    Vec<T> x[H::cols];
#pragma GCC unroll 10
    for (int i = 0; i < H::cols; ++i) x[i] = load_entry(i * W::cols + j);
    map_vectors<H, T>(x, half[j], std::make_index_sequence<H::rows>{});
  }
#pragma GCC unroll 10
  for (int i = 0; i < H::rows; ++i) {
    Vec<T> x[W::cols], y[W::rows];
#pragma GCC unroll 10
    for (int j = 0; j < W::cols; ++j) x[j] = half[j][i];
    map_vectors<W, T>(x, y, std::make_index_sequence<W::rows>{});
#pragma GCC unroll 10
    for (int j = 0; j < W::rows; ++j) store_entry(i * W::rows + j, y[j]);
  }
}

// Entries x(i, j) = in[from[i * W::cols + j] + c] to out[to[...] + c] for c < count; `out` takes whole
// vectors, with zeros beyond the count.
template <class H, class W, class T>
static void transform(const T* in, const int64_t* from, int64_t count, T* out, const int64_t* to) {
  constexpr int64_t L = kLanes<T>;
  constexpr int entries = H::cols * W::cols;
  T block[entries * L];
  int64_t block_from[entries];
  for (int64_t c = 0; c < count; c += L, in += L) {
    if (count - c < L) {
      for (int i = 0; i < entries; ++i) {
        block_from[i] = i * L;
        memset(block + i * L, 0, L * sizeof(T));
        memcpy(block + i * L, in + from[i], (count - c) * sizeof(T));
      }
      in = block;
      from = block_from;
    }
    map_tile<H, W, T>([&](int i) { return load(in + from[i]); },
                      [&](int i, Vec<T> y) { store(out + to[i] + c, y); });
  }
}

// The same for results: out[to[i]] += scale[i] * y(i), `count` whole vectors.
template <class H, class W, class T>
static void transform_scaled(const T* in, const int64_t* from, int64_t count, T* out, const int64_t* to,
                             const T* scale) {
  for (int64_t c = 0; c < count; c += kLanes<T>)
    map_tile<H, W, T>([&](int i) { return load(in + from[i] + c); },
                      [&](int i, Vec<T> y) {
                        T* at = out + to[i] + c;
                        store(at, load(at) + scale[i] * y);
                      });
}

// What F(m, r) needs, by whether the filter's rows (first index) and columns (second) are one tap shorter: a
// zero at their end, with which infinity has nothing to add.
template <class T>
struct WinogradTransforms {
  using Transform = void (*)(const T* in, const int64_t* from, int64_t count, T* out, const int64_t* to);
  using Scaled = void (*)(const T* in, const int64_t* from, int64_t count, T* out, const int64_t* to,
                          const T* scale);
  int64_t m, r, n, window;
  Transform inputs[2][2];       // window x window pixels to n x n frequencies
  Transform weights[2][2];      // r x r taps to frequencies
  Scaled outputs[2][2];         // frequencies to m x m results
  Transform gradients;          // m x m gradients to frequencies, the transpose of outputs
  Transform weight_sums[2][2];  // frequencies to r x r taps, the transpose of weights

  bool upsampled() const { return n != window; }
};

template <class T, int M, int R, Favour Results>
static constexpr WinogradTransforms<T> winograd_transforms() {
  using F = CookToom<M, R, Results>;
  constexpr int n = F::n;
  using B1 = Map<F::B, n, n>;
  using B0 = Map<F::B, n - 1, n - 1>;
  using G1 = Map<F::G, n, R>;
  using G0 = Map<F::G, n - 1, R - 1>;
  using A1 = Map<F::A, M, n, true>;
  using A0 = Map<F::A, M, n - 1, true>;
  using S1 = Map<F::G, R, n, true>;
  using S0 = Map<F::G, R - 1, n - 1, true>;
  using AT = Map<F::A, n, M>;
  return {M,
          R,
          n,
          n,
          {{transform<B1, B1, T>, transform<B1, B0, T>}, {transform<B0, B1, T>, transform<B0, B0, T>}},
          {{transform<G1, G1, T>, transform<G1, G0, T>}, {transform<G0, G1, T>, transform<G0, G0, T>}},
          {{transform_scaled<A1, A1, T>, transform_scaled<A1, A0, T>},
           {transform_scaled<A0, A1, T>, transform_scaled<A0, A0, T>}},
          transform<AT, AT, T>,
          {{transform<S1, S1, T>, transform<S1, S0, T>}, {transform<S0, S1, T>, transform<S0, S0, T>}}};
}

// Over an up-sampled map strides are 1, and filters never shorter.
template <class T, int M, int R>
static constexpr WinogradTransforms<T> winograd_transforms_upsampled() {
  using F = CookToomUpsampled<M, R>;
  constexpr int n = F::n;
  using B = Map<F::B, n, F::window>;
  using G = Map<F::G, n, R>;
  using A = Map<F::A, F::m, n, true>;
  using S = Map<F::G, R, n, true>;
  using AT = Map<F::A, n, F::m>;
  return {F::m,
          R,
          n,
          F::window,
          {{transform<B, B, T>}},
          {{transform<G, G, T>}},
          {{transform_scaled<A, A, T>}},
          transform<AT, AT, T>,
          {{transform<S, S, T>}}};
}

}  // namespace
}  // namespace pconv::PCONV_ISA
PCONV_END_ISA
