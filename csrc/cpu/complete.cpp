// What pconv_ext/_backends/dense.py leaves to the engine around another library's convolution, of a Call of any
// operator, in the order of pconv_ext/ops/call.py.
#include "call.h"

namespace pconv {
namespace {

using Ints = std::vector<int64_t>;

Call call_of(const Tensor& x, const OptionalTensor& mask, const std::vector<Tensor>& weights,
             const OptionalTensor& scales, const Spacing& spacing) {
  return Call("dense", {{x, mask}}, weights, scales, spacing);
}

}  // namespace

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
  m.impl("dense_factors", TORCH_BOX(&dense_factors));
  m.impl("complete_forward", TORCH_BOX(&complete_forward));
  m.impl("complete_backward", TORCH_BOX(&complete_backward));
}

}  // namespace pconv
