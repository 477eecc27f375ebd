// F(m, r): m outputs of a filter of r taps from n = m + r - 1 products, in each direction of an image
//   Y = A^T ((G w) o (B^T x))
// (Cook and Toom; Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, CVPR 2016). A, B and
// G follow from n - 1 points and infinity, which is the last; they are computed by the compiler.
#pragma once
#include <cstdint>

namespace pconv {

template <int Rows, int Cols>
struct Matrix {
  double at[Rows][Cols] = {};
};

// Which results of a tile carry the least of the error: all alike, or the first ones, which a border above or
// to the left of them amplifies by the largest ratios.
enum class Favour { none, first };

// Points in eighths, so that A and B are exact in float. Pairs p, -p with the least sum of squares of what
// the three matrices make of a rounding error, by search; 0, 1, -1, 2, -2, ... has 1.3 to 4 times the error.
constexpr double cook_toom_point(int n, Favour favour, int i) {
  constexpr double eighths[][7] = {{8, -8},
                                   {0, 8, -8},
                                   {3, -3, 10, -10},
                                   {0, 5, -5, 12, -12},
                                   {2.5, -2.5, 7, -7, 13, -13},
                                   {2.5, -2.5, 7.5, -7.5, 15, -15}};
  return eighths[n == 7 && favour == Favour::first ? 5 : n - 3][i] / 8;
}

template <int M, int R, Favour Results>
struct CookToom {
  static constexpr int m = M, r = R, n = M + R - 1, window = n;
  static_assert(n >= 3 && n <= 7);

  static constexpr double power(double x, int k) {
    double product = 1;
    for (int i = 0; i < k; ++i) product *= x;
    return product;
  }
  static constexpr Matrix<n, M> outputs() {
    Matrix<n, M> a;
    for (int k = 0; k < M; ++k) {
      for (int i = 0; i < n - 1; ++i) a.at[i][k] = power(cook_toom_point(n, Results, i), k);
      a.at[n - 1][k] = k == M - 1;
    }
    return a;
  }
  static constexpr Matrix<n, R> weights() {
    Matrix<n, R> g;
    for (int k = 0; k < R; ++k) {
      for (int i = 0; i < n - 1; ++i) {
        double norm = 1;
        for (int j = 0; j < n - 1; ++j)
          if (j != i) norm *= cook_toom_point(n, Results, i) - cook_toom_point(n, Results, j);
        g.at[i][k] = power(cook_toom_point(n, Results, i), k) / norm;
      }
      g.at[n - 1][k] = k == R - 1;
    }
    return g;
  }
  // Row i: the coefficients of the product of (x - p_j) over all points but p_i, for infinity over all.
  static constexpr Matrix<n, n> inputs() {
    Matrix<n, n> b;
    for (int i = 0; i < n; ++i) {
      b.at[i][0] = 1;
      int degree = 0;
      for (int j = 0; j < n - 1; ++j) {
        if (j == i) continue;
        ++degree;
        for (int k = degree; k >= 0; --k)
          b.at[i][k] = (k > 0 ? b.at[i][k - 1] : 0) - cook_toom_point(n, Results, j) * b.at[i][k];
      }
    }
    return b;
  }
  static constexpr Matrix<n, M> A = outputs();
  static constexpr Matrix<n, R> G = weights();
  static constexpr Matrix<n, n> B = inputs();
};

// 2M outputs of a filter of R taps over a map that is read up-sampled twofold, from `window` stored pixels:
// F(M, (R + 1) / 2) for the outputs of either parity, with the sums of the taps that fall on one stored
// pixel.
template <int M, int R>
struct CookToomUpsampled {
  using Parity = CookToom<M, (R + 1) / 2, Favour::none>;
  static constexpr int m = 2 * M, r = R, n = 2 * Parity::n;

  // Stored pixel of a tap in the window of outputs 0 and 1.
  static constexpr int pixel(int parity, int tap) {
    const int first = R / 2 + R / 2 % 2;
    return (parity + tap - R / 2 + first) / 2;
  }
  static constexpr int window = Parity::n + pixel(1, 0);

  static constexpr Matrix<n, m> outputs() {
    Matrix<n, m> a;
    for (int i = 0; i < n; ++i)
      for (int k = 0; k < M; ++k) a.at[i][2 * k + i / Parity::n] = Parity::A.at[i % Parity::n][k];
    return a;
  }
  static constexpr Matrix<n, R> weights() {
    Matrix<n, R> g;
    for (int i = 0; i < n; ++i)
      for (int tap = 0; tap < R; ++tap) {
        const int parity = i / Parity::n;
        g.at[i][tap] = Parity::G.at[i % Parity::n][pixel(parity, tap) - pixel(parity, 0)];
      }
    return g;
  }
  static constexpr Matrix<n, window> inputs() {
    Matrix<n, window> b;
    for (int i = 0; i < n; ++i)
      for (int k = 0; k < Parity::n; ++k)
        b.at[i][pixel(i / Parity::n, 0) + k] = Parity::B.at[i % Parity::n][k];
    return b;
  }
  static constexpr Matrix<n, m> A = outputs();
  static constexpr Matrix<n, R> G = weights();
  static constexpr Matrix<n, window> B = inputs();
};

}  // namespace pconv
