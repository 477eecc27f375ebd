// What pconv_ext/_backends/dense.py leaves to the engine around another library's convolution, of a Call of
// any operator, in the order of pconv_ext/ops/call.py.
#include <algorithm>
#include <numeric>

#include "call.h"

namespace pconv {
namespace {

using Ints = std::vector<int64_t>;

Call call_of(const Tensor& x, const OptionalTensor& mask, const std::vector<Tensor>& weights,
             const OptionalTensor& scales, const Spacing& spacing) {
  return Call("dense", {{x, mask}}, weights, scales, spacing);
}

}  // namespace

// sum_i a_i o W_i, each window in the middle of the largest.
Tensor merge(std::vector<Tensor> weights_, const Tensor& scales_) {
  const std::vector<Tensor> weights = to_compute(weights_);
  const Tensor scales = to_compute(scales_);
  std::vector<size_t> order(weights.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return weights[a].size(2) > weights[b].size(2); });
  const Tensor merged = empty_like_dense(weights[order[0]], scales.scalar_type());
  const int64_t O = merged.size(0), C = merged.size(1), k = merged.size(2);
  with_compute_type(scales, [&](auto zero) {
    using T = decltype(zero);
    parallel(O, [&](int64_t o, int64_t) {
      for (size_t i : order) {
        const int64_t size = weights[i].size(2), margin = (k - size) / 2;
        const T scale = const_data<T>(scales)[i * O + o];
        const T* from = const_data<T>(weights[i]) + o * C * size * size;
        T* to = mutable_data<T>(merged) + o * C * k * k;
        if (i == order[0]) {
          for (int64_t j = 0; j < C * k * k; ++j) to[j] = scale * from[j];
          continue;
        }
        for (int64_t c = 0; c < C; ++c, to += k * k)
          for (int64_t y = 0; y < size; ++y, from += size)
            for (int64_t x = 0; x < size; ++x) to[(margin + y) * k + margin + x] += scale * from[x];
      }
    });
  });
  return to_storage(merged, weights_[0].scalar_type());
}

Tensor dense_factors(const Tensor& x, const OptionalTensor& mask, std::vector<Tensor> weights, Ints stride,
                     Ints padding, Ints dilation, int64_t groups) {
  return call_of(x, mask, weights, std::nullopt, {stride, padding, dilation, groups}).dense_factors();
}

Tensor complete_forward(const Tensor& out, const Tensor& x, const OptionalTensor& mask,
                        std::vector<Tensor> weights, std::vector<Tensor> biases, const OptionalTensor& scales,
                        Ints stride, Ints padding, Ints dilation, int64_t groups) {
  return call_of(x, mask, weights, scales, {stride, padding, dilation, groups}).complete_forward(biases, out);
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, Tensor> complete_backward(
    const Tensor& dense_input, const Tensor& dense_weight, const Tensor& grad_out, const Tensor& x,
    const OptionalTensor& mask, std::vector<Tensor> weights, std::vector<Tensor> biases,
    const OptionalTensor& scales, Ints stride, Ints padding, Ints dilation, int64_t groups,
    std::vector<bool> needs) {
  const Call call = call_of(x, mask, weights, scales, {stride, padding, dilation, groups});
  const Gradients g = call.complete_backward(grad_out, biases, {needs, 1}, dense_input, dense_weight);
  return {g.weights, g.biases, g.scales};
}

STABLE_TORCH_LIBRARY_IMPL(pconv_ext, CPU, m) {
  m.impl("merge", TORCH_BOX(&merge));
  m.impl("dense_factors", TORCH_BOX(&dense_factors));
  m.impl("complete_forward", TORCH_BOX(&complete_forward));
  m.impl("complete_backward", TORCH_BOX(&complete_backward));
}

}  // namespace pconv
