// A call of an operator, whichever it is, as pconv_ext/ops/call.py has it: feature maps, the windows that
// move over them, and how they move. An operator's file says how its arguments become one.
#pragma once
#include <optional>
#include <tuple>
#include <vector>

#include "tensors.h"

namespace pconv {

// A feature map of the image that windows move over, with its mask; `up` = 1 for a nearest 2x up-sampling.
struct MaskedMap {
  FeatureMap x;
  MaskPlanes mask;
  std::optional<ScalarType> mask_dtype;
  int up;
  MaskedMap(const Tensor& x, const OptionalTensor& mask, int up = 0);
};

// In the order of the operators' schemas: [2], [top, bottom, left, right], [2].
struct Spacing {
  std::vector<int64_t> stride, padding, dilation;
  int64_t groups;
};
// Odd square windows centred on their pixel, none at the border left out.
Spacing centred(int64_t window, const std::vector<int64_t>& stride);

// As the argument `needs` of a backward.
struct Needs {
  std::vector<bool> sources;
  bool weights, biases, scales;
  // The flags of `n` sources, then those of the parameters.
  Needs(const std::vector<bool>& flags, size_t n);
};

// Empty where not needed, a missing source's gradient `none()`.
struct Gradients {
  std::vector<Tensor> sources, weights, biases;
  Tensor scales;
};

class Call {
 public:
  // The last source has the size, dtype and layout of the output. Weights in any order of their sizes, no
  // more than kMaxBranches; `scales` [branches, O] are missing where there is one branch that none
  // multiplies.
  Call(const char* op, std::vector<MaskedMap> sources, const std::vector<Tensor>& weights,
       const OptionalTensor& scales, const Spacing& spacing);

  // Packed weights, which serve calls with other features and biases; [0] where none do.
  Tensor pack() const;
  // out, new_mask. Without `packed` that fit, the weights are packed again.
  std::tuple<Tensor, Tensor> forward(const std::vector<Tensor>& biases,
                                     const OptionalTensor& packed = std::nullopt) const;
  // Of a call of one plain source without groups, whose convolution with all branches merged another library
  // computes: [Nm, 1, Ho, Wo] float, what the ratios make of it, 0 where they are too large or no pixel
  // lives.
  Tensor dense_factors() const;
  // `out` holds that convolution, with the bias, and becomes the result: new_mask.
  Tensor complete_forward(const std::vector<Tensor>& biases, const Tensor& out) const;
  // As `backward`; `dense_input` and `dense_weight` hold the gradients of that convolution where the gradient
  // that came in is scaled by the factors. The former becomes the gradient of the source.
  Gradients complete_backward(const Tensor& grad_out, const std::vector<Tensor>& biases, const Needs& needs,
                              const Tensor& dense_input, const Tensor& dense_weight) const;
  // With biases where there are scales, whose gradient needs them.
  Gradients backward(const Tensor& grad_out, const std::vector<Tensor>& biases, const Needs& needs) const;

 private:
  std::vector<MaskedMap> maps_;
  std::vector<size_t> order_;    // of the branches, by ascending window
  std::vector<Tensor> weights_;  // in the compute type and the order given
  OptionalTensor scales_;
  Geometry g_{};
  std::vector<Source> sources_;
  Windows windows_;

  const Tensor& like() const { return maps_.back().x.tensor; }
  template <class T>
  const T* scale(size_t branch) const {
    return scales_ ? const_data<T>(*scales_) + branch * g_.O : nullptr;
  }
  template <class T>
  Problem<T> problem() const;
  void forward_into(const Tensor& out, const std::vector<Tensor>& biases, const OptionalTensor& packed,
                    bool dense_given) const;
  Tensor new_mask() const;
  Gradients backward_into(std::vector<Tensor> sources, const Tensor& grad_out,
                          const std::vector<Tensor>& biases, const Needs& needs,
                          const OptionalTensor& dense_weight) const;
};

// The gradient of an operator's only weight or bias.
Tensor only(const std::vector<Tensor>& gradients);

// The biases of an operator with one branch.
std::vector<Tensor> biases_of(const OptionalTensor& bias);

}  // namespace pconv
