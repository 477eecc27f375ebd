#include "call.h"

#include <algorithm>
#include <numeric>
#include <type_traits>

#include "../pixel.h"

namespace pconv {

MaskedMap::MaskedMap(const Tensor& x_, const OptionalTensor& mask_, int up_) : x(x_), mask(mask_), up(up_) {
  if (mask_) mask_dtype = mask_->scalar_type();
}

Spacing centred(int64_t window, const std::vector<int64_t>& stride) {
  return {stride, std::vector<int64_t>(4, window / 2), {1, 1}, 1};
}

Needs::Needs(const std::vector<bool>& flags, size_t n)
    : sources(flags.begin(), flags.begin() + n),
      weights(flags[n]),
      biases(flags[n + 1]),
      scales(flags.size() > n + 2 && flags[n + 2]) {}

Tensor only(const std::vector<Tensor>& gradients) {
  return gradients.empty() ? none() : gradients.front();
}

std::vector<Tensor> biases_of(const OptionalTensor& bias) {
  return bias ? std::vector<Tensor>{*bias} : std::vector<Tensor>{};
}

Call::Call(const char* op, std::vector<MaskedMap> sources, const std::vector<Tensor>& weights,
           const OptionalTensor& scales, const Spacing& spacing)
    : maps_(std::move(sources)),
      order_(weights.size()),
      weights_(to_compute(weights)),
      scales_(to_compute(scales)) {
  STD_TORCH_CHECK(!weights.empty() && weights.size() <= kMaxBranches, op, ": the CPU kernels take 1 to ",
                  kMaxBranches, " kernel sizes, got ", weights.size(), ": use backend=\"reference\"");
  std::iota(order_.begin(), order_.end(), 0);
  std::sort(order_.begin(), order_.end(),
            [&](size_t a, size_t b) { return weights_[a].size(2) < weights_[b].size(2); });
  const Tensor& largest = weights_[order_.back()];
  for (const MaskedMap& map : maps_) {
    sources_.push_back(make_source(map.x, map.mask, map.up));
    g_.C += map.x.size(1);
  }
  g_.N = like().size(0), g_.H = like().size(2), g_.W = like().size(3);
  g_.O = largest.size(0), g_.kh = largest.size(2), g_.kw = largest.size(3), g_.groups = spacing.groups;
  g_.dh = spacing.dilation[0], g_.dw = spacing.dilation[1];
  g_.pt = spacing.padding[0], g_.pl = spacing.padding[2];
  const int64_t high = g_.H + spacing.padding[0] + spacing.padding[1];
  const int64_t wide = g_.W + spacing.padding[2] + spacing.padding[3];
  // A stride beyond the image is as good as its size, and columns are kept by residue modulo the stride.
  g_.sh = std::min(spacing.stride[0], high), g_.sw = std::min(spacing.stride[1], wide);
  g_.Ho = (high - g_.dh * (g_.kh - 1) - 1) / g_.sh + 1;
  g_.Wo = (wide - g_.dw * (g_.kw - 1) - 1) / g_.sw + 1;
  g_.Hp = (g_.Ho - 1) * g_.sh + (g_.kh - 1) * g_.dh + 1;
  g_.Wp = (g_.Wo - 1) * g_.sw + (g_.kw - 1) * g_.dw + 1;
  std::vector<std::pair<int64_t, int64_t>> sizes;
  for (size_t i : order_) sizes.emplace_back(weights_[i].size(2), weights_[i].size(3));
  windows_ = count_windows(g_, sources_, sizes);
}

template <class T>
Problem<T> Call::problem() const {
  Problem<T> p{dtype_of(like()), g_, sources_, {}, &windows_};
  for (size_t i : order_)
    p.branches.push_back({weights_[i].size(2), weights_[i].size(3), const_data<T>(weights_[i]), scale<T>(i)});
  return p;
}

Tensor Call::pack() const {
  Problem<float> p = problem<float>();
  const bool narrow = compute_type(like()) == ScalarType::Float;
  const int64_t size = narrow ? engine<float>().pack(p) : 0;
  const Tensor packed = torch::stable::empty({size}, ScalarType::Float);
  p.prepacked = {mutable_data<float>(packed), size};
  ask_for_large_pages(p.prepacked.data, size * sizeof(float));
  return size == 0 || engine<float>().pack(p) == size ? packed : none();
}

std::tuple<Tensor, Tensor> Call::forward(const std::vector<Tensor>& biases,
                                         const OptionalTensor& packed) const {
  const bool channels_last = maps_.back().x.channels_last;
  const Tensor out = empty_map(g_.N, g_.O, g_.Ho, g_.Wo, like().scalar_type(), channels_last);
  forward_into(out, biases, packed, false);
  return {out, new_mask()};
}

Tensor Call::complete_forward(const std::vector<Tensor>& biases, const Tensor& out) const {
  forward_into(out, biases, std::nullopt, true);
  return new_mask();
}

Tensor Call::dense_factors() const {
  const int64_t plane = g_.Ho * g_.Wo, whole = windows_.whole.back();
  const Tensor factors = empty_map(windows_.Nm, 1, g_.Ho, g_.Wo, ScalarType::Float, false);
  float* to = mutable_data<float>(factors);
  for (int64_t n = 0; n < windows_.Nm; ++n) {
    const int32_t *smallest = windows_.counts(0, g_, n), *largest = windows_.counts(order_.size() - 1, g_, n);
    for (int64_t i = 0; i < plane; ++i) {
      const float ratio = ratio_of(static_cast<float>(whole), largest[i]);
      *to++ = smallest[i] > 0 && ratio <= kDenseRatioLimit ? ratio : 0.0f;
    }
  }
  return factors;
}

// With scales the branches are folded, V_i = a_i o W_i and beta = sum_i a_i o b_i, so that their
// outputs never exist.
void Call::forward_into(const Tensor& out, const std::vector<Tensor>& biases_, const OptionalTensor& packed,
                        bool dense_given) const {
  const std::vector<Tensor> biases = to_compute(biases_);
  with_compute_type(like(), [&](auto zero) {
    using T = decltype(zero);
    const T* bias = biases.empty() ? nullptr : const_data<T>(biases[0]);
    std::vector<T> folded;
    if (bias && scales_) {
      folded.assign(g_.O, T(0));
      for (size_t i = 0; i < biases.size(); ++i)
        for (int64_t o = 0; o < g_.O; ++o) folded[o] += scale<T>(i)[o] * const_data<T>(biases[i])[o];
      bias = folded.data();
    }
    Problem<T> p = problem<T>();
    p.dense_given = dense_given;
    if constexpr (std::is_same_v<T, float>)
      if (packed) p.prepacked = {mutable_data<float>(*packed), packed->numel()};
    engine<T>().forward(p, bias, target_of(out, maps_.back().x.channels_last));
  });
}

Tensor Call::new_mask() const {
  const auto masked =
      std::find_if(maps_.begin(), maps_.end(), [](const MaskedMap& map) { return bool(map.mask_dtype); });
  const ScalarType mask_dtype = masked == maps_.end() ? like().scalar_type() : *masked->mask_dtype;
  return updated_mask(g_, windows_, mask_dtype);
}

Gradients Call::backward(const Tensor& grad_out, const std::vector<Tensor>& biases,
                         const Needs& needs) const {
  std::vector<Tensor> sources;
  for (size_t i = 0; i < maps_.size(); ++i) {
    const FeatureMap& x = maps_[i].x;
    const Tensor empty = needs.sources[i] ? empty_map(x.size(0), x.size(1), x.size(2), x.size(3),
                                                      like().scalar_type(), x.channels_last)
                                          : none();
    sources.push_back(empty);
  }
  return backward_into(sources, grad_out, biases, needs, std::nullopt);
}

Gradients Call::complete_backward(const Tensor& grad_out, const std::vector<Tensor>& biases,
                                  const Needs& needs, const Tensor& dense_input,
                                  const Tensor& dense_weight) const {
  return backward_into({dense_input}, grad_out, biases, needs, to_compute(dense_weight));
}

// With G_i = dL/dV_i and s = sum m'_min dL/dy: dL/dW_i = a_i o G_i, dL/db_i = a_i o s, dL/da_i = <W_i, G_i> +
// b_i o s.
Gradients Call::backward_into(std::vector<Tensor> sources, const Tensor& grad_out,
                              const std::vector<Tensor>& biases_, const Needs& needs,
                              const OptionalTensor& dense_weight) const {
  const FeatureMap grad(grad_out);
  const ScalarType dtype = like().scalar_type(), compute = compute_type(like());
  Gradients result{std::move(sources), {}, {}, none()};
  std::vector<Target> targets;
  bool features = false;
  for (size_t i = 0; i < maps_.size(); ++i) {
    features |= needs.sources[i];
    targets.push_back(needs.sources[i] ? target_of(result.sources[i], maps_[i].x.channels_last) : Target{});
  }
  const size_t n = weights_.size();
  const bool needs_scales = needs.scales && scales_;
  const size_t n_biases = scales_ ? biases_.size() : n;
  const std::vector<Tensor> biases = to_compute(biases_);
  for (size_t i = 0; needs.weights && i < n; ++i)
    result.weights.push_back(empty_like_dense(weights_[i], compute));
  for (size_t i = 0; needs.biases && i < n_biases; ++i)
    result.biases.push_back(torch::stable::empty({g_.O}, compute));
  if (needs_scales) result.scales = empty_like_dense(*scales_, compute);
  with_compute_type(like(), [&](auto zero) {
    using T = decltype(zero);
    Problem<T> p = problem<T>();
    p.dense_given = dense_weight.has_value();
    if (dense_weight && dense_weight->numel()) p.dense_gradient = const_data<T>(*dense_weight);
    const Gradient gradient{grad.tensor.const_data_ptr(), grad.channels_last};
    if (features) engine<T>().grad_input(p, gradient, targets);
    if (!needs.weights && !needs.biases && !needs_scales) return;
    std::vector<T*> weight_targets, scale_targets;
    for (size_t i : order_) {
      weight_targets.push_back(needs.weights ? mutable_data<T>(result.weights[i]) : nullptr);
      scale_targets.push_back(needs_scales ? mutable_data<T>(result.scales) + i * g_.O : nullptr);
    }
    std::vector<T> sum(g_.O);
    const bool needs_sum = needs.biases || (needs_scales && n_biases > 0);
    engine<T>().grad_weight(p, gradient, weight_targets, scale_targets, needs_sum ? sum.data() : nullptr);
    for (size_t i = 0; i < n_biases; ++i)
      for (int64_t o = 0; o < g_.O; ++o) {
        if (needs.biases) mutable_data<T>(result.biases[i])[o] = scales_ ? scale<T>(i)[o] * sum[o] : sum[o];
        if (needs_scales)
          mutable_data<T>(result.scales)[i * g_.O + o] += const_data<T>(biases[i])[o] * sum[o];
      }
  });
  for (Tensor& t : result.weights) t = to_storage(t, dtype);
  for (Tensor& t : result.biases) t = to_storage(t, dtype);
  if (needs_scales) result.scales = to_storage(result.scales, dtype);
  return result;
}

}  // namespace pconv
