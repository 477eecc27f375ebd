// msfef on the CPU: out = m'_min o sum_i a_i o (r_i conv(W_i, x o m) + b_i), folded to V_i = a_i o W_i and
// beta = sum_i a_i o b_i (identity 1), so that branch outputs never exist.
#include <algorithm>
#include <numeric>

#include "tensors.h"

namespace pconv {
namespace {

// The call in the compute type, branches by ascending kernel.
struct Call {
  FeatureMap x;
  MaskPlanes mask;
  std::vector<size_t> order;
  std::vector<Tensor> weights, biases;  // in the order given
  Tensor scales;
  Geometry g{};
  std::vector<Source> sources;
  Windows windows;

  Call(const Tensor& x_, const OptionalTensor& mask_, const std::vector<Tensor>& weights_,
       const std::vector<Tensor>& biases_, const Tensor& scales_, const std::vector<int64_t>& stride)
      : x(x_), mask(mask_), order(weights_.size()), scales(to_compute(scales_)) {
    STD_TORCH_CHECK(weights_.size() <= kMaxBranches, "msfef: the CPU kernels take at most ", kMaxBranches,
                    " kernel sizes, got ", weights_.size(), ": use backend=\"reference\"");
    for (const Tensor& w : weights_) weights.push_back(to_compute(w));
    for (const Tensor& b : biases_) biases.push_back(to_compute(b));
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return weights[a].size(2) < weights[b].size(2); });
    g.N = x.size(0), g.C = x.size(1), g.H = x.size(2), g.W = x.size(3), g.groups = 1;
    g.O = scales.size(1), g.kh = g.kw = weights[order.back()].size(2);
    g.sh = std::min(stride[0], g.H), g.sw = std::min(stride[1], g.W);
    g.dh = g.dw = 1, g.pt = g.pl = g.kh / 2;
    g.Ho = (g.H - 1) / g.sh + 1, g.Wo = (g.W - 1) / g.sw + 1;
    g.Hp = (g.Ho - 1) * g.sh + g.kh, g.Wp = (g.Wo - 1) * g.sw + g.kw;
    sources.push_back(make_source(x, mask, 0));
    std::vector<std::pair<int64_t, int64_t>> kernels;
    for (size_t i : order) kernels.emplace_back(weights[i].size(2), weights[i].size(2));
    windows = count_windows(g, sources, kernels);
  }

  template <class T>
  const T* scale(size_t i) const {
    return const_data<T>(scales) + i * g.O;
  }
  template <class T>
  Problem<T> problem() const {
    Problem<T> p{dtype_of(x.tensor), g, sources, {}, &windows};
    for (size_t i : order)
      p.branches.push_back({weights[i].size(2), weights[i].size(2), const_data<T>(weights[i]), scale<T>(i)});
    return p;
  }
};

}  // namespace

std::tuple<Tensor, Tensor> msfef(const Tensor& x_, const OptionalTensor& mask_, std::vector<Tensor> weights_,
                                 std::vector<Tensor> biases_, const Tensor& scales_,
                                 std::vector<int64_t> stride) {
  const Call call(x_, mask_, weights_, biases_, scales_, stride);
  const Geometry& g = call.g;
  const Tensor out = empty_map(g.N, g.O, g.Ho, g.Wo, x_.scalar_type(), call.x.channels_last);
  with_compute_type(x_, [&](auto zero) {
    using T = decltype(zero);
    std::vector<T> beta(g.O, T(0));
    for (size_t i = 0; i < call.biases.size(); ++i)
      for (int64_t o = 0; o < g.O; ++o) beta[o] += call.scale<T>(i)[o] * const_data<T>(call.biases[i])[o];
    engine<T>().forward(call.problem<T>(), beta.data(), target_of(out, call.x.channels_last));
  });
  return {out, updated_mask(g, call.windows, mask_ ? mask_->scalar_type() : x_.scalar_type())};
}

// With G_i = dL/dV_i and s = sum m'_min dL/dy: dL/dW_i = a_i o G_i, dL/db_i = a_i o s, dL/da_i = <W_i, G_i> +
// b_i o s.
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, Tensor> msfef_backward(
    const Tensor& grad_, const Tensor& x_, const OptionalTensor& mask_, std::vector<Tensor> weights_,
    std::vector<Tensor> biases_, const Tensor& scales_, std::vector<int64_t> stride,
    std::vector<bool> needs) {
  const Call call(x_, mask_, weights_, biases_, scales_, stride);
  const FeatureMap grad(grad_);
  const Geometry& g = call.g;
  const ScalarType dtype = x_.scalar_type(), compute = compute_type(x_);
  const size_t n = call.weights.size();
  const Tensor grad_x = needs[0] ? empty_map(g.N, g.C, g.H, g.W, dtype, call.x.channels_last) : none();
  std::vector<Tensor> grad_weights, grad_biases;
  for (size_t i = 0; needs[1] && i < n; ++i)
    grad_weights.push_back(empty_like_dense(call.weights[i], compute));
  for (size_t i = 0; needs[2] && i < call.biases.size(); ++i)
    grad_biases.push_back(empty_like_dense(call.biases[i], compute));
  const Tensor grad_scales = needs[3] ? empty_like_dense(call.scales, compute) : none();
  with_compute_type(x_, [&](auto zero) {
    using T = decltype(zero);
    const Problem<T> p = call.problem<T>();
    const Gradient gradient{grad.tensor.const_data_ptr(), grad.channels_last};
    if (needs[0]) engine<T>().grad_input(p, gradient, {target_of(grad_x, call.x.channels_last)});
    if (!needs[1] && !needs[2] && !needs[3]) return;
    std::vector<T*> weight_targets, scale_targets;
    for (size_t i : call.order) {
      weight_targets.push_back(needs[1] ? mutable_data<T>(grad_weights[i]) : nullptr);
      scale_targets.push_back(needs[3] ? mutable_data<T>(grad_scales) + i * g.O : nullptr);
    }
    std::vector<T> sum(g.O);
    engine<T>().grad_weight(p, gradient, weight_targets, scale_targets, sum.data());
    for (size_t i = 0; i < call.biases.size(); ++i)
      for (int64_t o = 0; o < g.O; ++o) {
        if (needs[2]) mutable_data<T>(grad_biases[i])[o] = call.scale<T>(i)[o] * sum[o];
        if (needs[3]) mutable_data<T>(grad_scales)[i * g.O + o] += const_data<T>(call.biases[i])[o] * sum[o];
      }
  });
  for (Tensor& t : grad_weights) t = to_storage(t, dtype);
  for (Tensor& t : grad_biases) t = to_storage(t, dtype);
  return {grad_x, grad_weights, grad_biases, needs[3] ? to_storage(grad_scales, dtype) : grad_scales};
}

STABLE_TORCH_LIBRARY_IMPL(pconv_ext, CPU, m) {
  m.impl("msfef", TORCH_BOX(&msfef));
  m.impl("msfef_backward", TORCH_BOX(&msfef_backward));
}

}  // namespace pconv
