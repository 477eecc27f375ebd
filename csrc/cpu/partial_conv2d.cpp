// partial_conv2d on the CPU: one source, one branch; any stride, padding, dilation, groups, one plane of mask
// or one per channel.
#include "call.h"

namespace pconv {

std::tuple<Tensor, Tensor> partial_conv2d(const Tensor& x, const OptionalTensor& mask, const Tensor& weight,
                                          const OptionalTensor& bias, std::vector<int64_t> stride,
                                          std::vector<int64_t> padding, std::vector<int64_t> dilation,
                                          int64_t groups) {
  const Call call("partial_conv2d", {{x, mask}}, {weight}, std::nullopt, {stride, padding, dilation, groups});
  return call.forward(biases_of(bias));
}

std::tuple<Tensor, Tensor, Tensor> partial_conv2d_backward(const Tensor& grad_out, const Tensor& x,
                                                           const OptionalTensor& mask, const Tensor& weight,
                                                           std::vector<int64_t> stride,
                                                           std::vector<int64_t> padding,
                                                           std::vector<int64_t> dilation, int64_t groups,
                                                           std::vector<bool> needs) {
  const Call call("partial_conv2d", {{x, mask}}, {weight}, std::nullopt, {stride, padding, dilation, groups});
  const Gradients g = call.backward(grad_out, {}, {needs, 1});
  return {g.sources[0], only(g.weights), only(g.biases)};
}

STABLE_TORCH_LIBRARY_IMPL(pconv_ext, CPU, m) {
  m.impl("partial_conv2d", TORCH_BOX(&partial_conv2d));
  m.impl("partial_conv2d_backward", TORCH_BOX(&partial_conv2d_backward));
}

}  // namespace pconv
