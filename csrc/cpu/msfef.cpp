// msfef on the CPU: out = m'_min o sum_i a_i o (r_i conv(W_i, x o m) + b_i), one source and several branches.
#include <algorithm>

#include "call.h"

namespace pconv {
namespace {

Call call_of(const Tensor& x, const OptionalTensor& mask, const std::vector<Tensor>& weights,
             const Tensor& scales, const std::vector<int64_t>& stride) {
  int64_t largest = 0;
  for (const Tensor& w : weights) largest = std::max(largest, w.size(2));
  return Call("msfef", {{x, mask}}, weights, scales, centred(largest, stride));
}

}  // namespace

std::tuple<Tensor, Tensor> msfef(const Tensor& x, const OptionalTensor& mask, std::vector<Tensor> weights,
                                 std::vector<Tensor> biases, const Tensor& scales,
                                 std::vector<int64_t> stride) {
  return call_of(x, mask, weights, scales, stride).forward(biases);
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor> msfef_backward(
    const Tensor& grad_out, const Tensor& x, const OptionalTensor& mask, std::vector<Tensor> weights,
    std::vector<Tensor> biases, const Tensor& scales, std::vector<int64_t> stride, std::vector<bool> needs) {
  const Gradients g = call_of(x, mask, weights, scales, stride).backward(grad_out, biases, {needs, 1});
  return {g.sources[0], g.weights, g.biases, g.scales};
}

STABLE_TORCH_LIBRARY_IMPL(pconv_ext, CPU, m) {
  m.impl("msfef", TORCH_BOX(&msfef));
  m.impl("msfef_backward", TORCH_BOX(&msfef_backward));
}

}  // namespace pconv
