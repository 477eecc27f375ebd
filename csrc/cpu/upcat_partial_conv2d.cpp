// upcat_partial_conv2d on the CPU: two sources, of which an index up-samples the first, so the concatenation
// is two pointers; the count is C1 * cnt1 + C2 * cnt2.
#include "call.h"

namespace pconv {
namespace {

Call call_of(const Tensor& x_low, const OptionalTensor& mask_low, const Tensor& skip,
             const OptionalTensor& mask_skip, const Tensor& weight) {
  return Call("upcat_partial_conv2d", {{x_low, mask_low, 1}, {skip, mask_skip}}, {weight}, std::nullopt,
              centred(weight.size(2), {1, 1}));
}

}  // namespace

std::tuple<Tensor, Tensor> upcat_partial_conv2d(const Tensor& x_low, const OptionalTensor& mask_low,
                                                const Tensor& skip, const OptionalTensor& mask_skip,
                                                const Tensor& weight, const OptionalTensor& bias) {
  return call_of(x_low, mask_low, skip, mask_skip, weight).forward(biases_of(bias));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> upcat_partial_conv2d_backward(
    const Tensor& grad_out, const Tensor& x_low, const OptionalTensor& mask_low, const Tensor& skip,
    const OptionalTensor& mask_skip, const Tensor& weight, std::vector<bool> needs) {
  const Gradients g = call_of(x_low, mask_low, skip, mask_skip, weight).backward(grad_out, {}, {needs, 2});
  return {g.sources[0], g.sources[1], only(g.weights), only(g.biases)};
}

STABLE_TORCH_LIBRARY_IMPL(pconv_ext, CPU, m) {
  m.impl("upcat_partial_conv2d", TORCH_BOX(&upcat_partial_conv2d));
  m.impl("upcat_partial_conv2d_backward", TORCH_BOX(&upcat_partial_conv2d_backward));
}

}  // namespace pconv
