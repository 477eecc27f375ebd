"""The losses of the MSFEF inpainting network, section 3.3 of its paper, and the VGG-16 that two of them need.

::

    loss = InpaintingLoss(load_vgg16())
    terms = loss(output, target, mask)  # avail, missing, perceptual, style and total
    terms["total"].backward()
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from ._arguments import about
from ._vgg16 import POOLS, load_vgg16, vgg16_features

__all__ = ["WEIGHTS", "InpaintingLoss", "gram_matrix", "load_vgg16", "vgg16_features"]

#: Weight of every term in the total, w_1 to w_4 of eq. (5), with the paper's values (section 4.2). The terms
#: of absolute differences are ours.
WEIGHTS: Mapping[str, float] = MappingProxyType(
    {
        "avail": 1.0,
        "missing": 6.0,
        "perceptual": 0.01,
        "style": 120.0,
        "avail_l1": 0.0,
        "missing_l1": 0.0,
    }
)

_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
#: Height and width that a picture needs for all of the pooled features.
SMALLEST = 2 ** len(POOLS)


def merged_weights(user: str, weights: Mapping[str, float]) -> dict[str, float]:
    """`WEIGHTS` with those of `weights` in place of theirs.

    Raises:
        ValueError: unknown names, negative or infinite weights, or all 0; names `user`.
    """
    merged = {**WEIGHTS, **weights}
    if merged.keys() != WEIGHTS.keys():
        raise ValueError(
            f"{about(user, 'weights')} may have the names {', '.join(WEIGHTS)}, got {[*weights]}"
        )
    if not all(math.isfinite(w) and w >= 0 for w in merged.values()) or not any(merged.values()):
        raise ValueError(f"{about(user, 'weights')} must be finite, at least 0 and not all 0, got {merged}")
    return {name: float(weight) for name, weight in merged.items()}


def needs_vgg16(weights: Mapping[str, float]) -> bool:
    """Whether terms of these weights are computed from VGG-16's features."""
    return any(weights.get(name) for name in ("perceptual", "style"))


def gram_matrix(phi: Tensor) -> Tensor:
    """Compute K * phi^T phi of eq. (4), with K = 1 / (H * W * C), for every image.

    In float32 (float64 for float64), also under autocast, and scaled before the product: a sum of H * W
    squares overflows float16.

    Args:
        phi: [N, C, H, W], floating.

    Returns:
        [N, C, C], float32 or float64.
    """
    with torch.autocast(phi.device.type, enabled=False):
        # In the order in which channels-last maps lie, and so their gradients.
        columns = _wide(phi).permute(0, 2, 3, 1).flatten(1, 2) * phi[0].numel() ** -0.5
        return columns.mT @ columns


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


class InpaintingLoss(nn.Module):
    """The losses of an inpainting network and their weighted sum, eq. (3) to (5).

    With Y_comp = Y_gt where valid and Y_out in holes, and phi_l, l = 1 to 3, the outputs of VGG-16's first
    three pooling layers, of C_l channels::

        avail      = ||M (Y_out - Y_gt)||^2 / (C H W)
        missing    = ||(1 - M) (Y_out - Y_gt)||^2 / (C H W)
        perceptual = sum_l mean |phi_l(Y_out) - phi_l(Y_gt)| + mean |phi_l(Y_comp) - phi_l(Y_gt)|
        style      = sum_l mean |G_l(Y_out) - G_l(Y_gt)| + mean |G_l(Y_comp) - G_l(Y_gt)|
        avail_l1   = ||M (Y_out - Y_gt)||_1 / (C H W)
        missing_l1 = ||(1 - M) (Y_out - Y_gt)||_1 / (C H W)
        total      = the sum of weights[name] * name

    where G_l, [C_l, C_l], is `gram_matrix`. Every term is the mean over images of its value for one image.

    The module copies the VGG-16 and freezes the copy, which has no parameters, is never in training mode and
    is in no ``state_dict``, but moves with ``.to()``. Features are computed in its dtype or in autocast's,
    all else in float32, or in float64 where the values that enter are.

    Args:
        vgg16: ``load_vgg16()``, or the ``features`` of torchvision's; None where the weights of perceptual
            and style are 0.
        weights: those that differ from `WEIGHTS`, by name. A term of weight 0 is neither computed nor
            returned.
        per_hole: divide missing and missing_l1 of an image by the values in its holes, not by C H W: small
            holes then count as much as large ones. Ours, not the paper's.

    Raises:
        TypeError: vgg16 is no ``nn.Sequential``.
        ValueError: vgg16 is None where it is needed or has other layers; weights with unknown names, negative
            or not finite, or all 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        vgg16: nn.Sequential | None,
        weights: Mapping[str, float] | None = None,
        *,
        per_hole: bool = False,
    ) -> None:
        super().__init__()
        self.per_hole = per_hole
        merged = merged_weights("InpaintingLoss", weights or {})
        self.weights = {name: weight for name, weight in merged.items() if weight}
        self.features = _frozen(vgg16) if needs_vgg16(merged) else None
        for name, values in (("mean", _IMAGENET_MEAN), ("std", _IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> InpaintingLoss:
        """Set the training mode of this module, which nothing depends on; VGG-16 stays in eval mode."""
        super().train(mode)
        if self.features is not None:
            self.features.eval()
        return self

    def forward(self, output: Tensor, target: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Compute the losses.

        Args:
            output: [N, C, H, W], what the network returned; float64, float32, bfloat16 or float16. Where
                VGG-16 is used, C is 3 and H and W are at least 8.
            target: the true images, in [0, 1], of that shape, of any of those dtypes; gets no gradient. Where
                it is NaN, nobody knows the truth, and nothing is lost: terms have 0 there, those of VGG-16
                take the output for true.
            mask: [N or 1, 1, H, W], nonzero = valid; bool, uint8 or one of those dtypes.

        Returns:
            Scalars by the names of `WEIGHTS`, unweighted, without those of weight 0, and total.

        Raises:
            TypeError, ValueError: the arguments have other types, dtypes, shapes or devices.
        """
        _check(output, target, mask)
        if self.features is not None:
            self._check_fit(output)
        valid, target = mask != 0, target.detach()
        terms: dict[str, Tensor] = {}
        known = ~target.isnan()
        output, target = (torch.where(known, one, output.detach()) for one in (output, target))
        difference = _wide(output) - _wide(target)
        distances = (("", torch.square), ("_l1", torch.abs))
        for suffix, distance in distances:
            if f"avail{suffix}" in self.weights:
                terms[f"avail{suffix}"] = distance(torch.where(valid, difference, 0)).mean()
            if f"missing{suffix}" in self.weights:
                lost = distance(torch.where(valid, 0, difference))
                terms[f"missing{suffix}"] = self._in_holes(lost, ~valid & known)
        if self.features is not None:
            terms |= self._feature_terms(self.features, _wide(output), _wide(target), valid)
        terms["total"] = torch.stack([self.weights[name] * term for name, term in terms.items()]).sum()
        return terms

    def _in_holes(self, distance: Tensor, hole: Tensor) -> Tensor:
        """The mean over images of what is 0 outside of holes; `hole` is [N, C, H, W]."""
        if not self.per_hole:
            return distance.mean()
        return (distance.sum((1, 2, 3)) / hole.sum((1, 2, 3)).clamp(min=1)).mean()

    def _check_fit(self, output: Tensor) -> None:
        if output.device != self.mean.device:
            raise ValueError(
                f"InpaintingLoss: output must be on the device of the loss, {self.mean.device}, got "
                f"{output.device}; loss.to(device) moves it"
            )
        if output.shape[1] != 3:
            raise ValueError(
                "InpaintingLoss: perceptual and style are of pictures with 3 channels, output has "
                f"{output.shape[1]}; weights of 0 leave them out"
            )
        if min(output.shape[2:]) < SMALLEST:
            raise ValueError(
                f"InpaintingLoss: output must have H and W of at least {SMALLEST} for VGG-16, got "
                f"{list(output.shape)}"
            )

    def _feature_terms(
        self, features: nn.Sequential, output: Tensor, target: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        composite = torch.where(valid, target, output)
        with torch.no_grad():
            expected = self._phi(features, target)
        # Out and comp in one pass: [2 N, C, H, W]. A mean over both is half of the sum of their means.
        actual = [phi.unflatten(0, (2, -1)) for phi in self._phi(features, torch.cat([output, composite]))]
        terms = {}
        if "perceptual" in self.weights:
            means = [(_wide(a) - _wide(e)).abs().mean() for a, e in zip(actual, expected, strict=True)]
            terms["perceptual"] = 2 * torch.stack(means).sum()
        if "style" in self.weights:
            means = [
                (gram_matrix(a.flatten(0, 1)).unflatten(0, (2, -1)) - gram_matrix(e)).abs().mean()
                for a, e in zip(actual, expected, strict=True)
            ]
            terms["style"] = 2 * torch.stack(means).sum()
        return terms

    def _phi(self, features: nn.Sequential, image: Tensor) -> list[Tensor]:
        # Convolutions, and the pooling of bfloat16, are faster on it than on planes, on a CPU by a tenth.
        layout = torch.channels_last
        x = ((image - self.mean) / self.std).to(next(features.buffers()).dtype, memory_format=layout)
        outputs = []
        for index, layer in enumerate(features):
            x = layer(x)
            if index in POOLS:
                outputs.append(x)
        return outputs

    def extra_repr(self) -> str:
        return f"weights={self.weights}, per_hole={self.per_hole}"


def _frozen(vgg16: Any) -> nn.Sequential:
    """A copy of the layers up to phi_3, in eval mode, its parameters made buffers that are not saved."""
    if vgg16 is None:
        raise ValueError(
            "InpaintingLoss: vgg16 may be None only where the weights of perceptual and style are 0; "
            "load_vgg16() returns it"
        )
    if not isinstance(vgg16, nn.Sequential):
        raise TypeError(
            "InpaintingLoss: vgg16 must be an nn.Sequential of VGG-16's layers, as load_vgg16() and "
            f"torchvision.models.vgg16().features are, got {type(vgg16).__name__}"
        )
    layout = vgg16_features(1)
    given = list(vgg16)[: len(layout)]
    if len(given) < len(layout) or not all(
        isinstance(a, type(b)) for a, b in zip(given, layout, strict=True)
    ):
        raise ValueError(
            f"InpaintingLoss: vgg16 must begin with the {len(layout)} layers of VGG-16 up to its third "
            f"pooling, got {[type(layer).__name__ for layer in given]}"
        )
    layers = copy.deepcopy(nn.Sequential(*given)).eval()
    for layer in layers.modules():
        for name, parameter in list(layer.named_parameters(recurse=False)):
            delattr(layer, name)
            layer.register_buffer(name, parameter.detach(), persistent=False)
    return layers


def _check(output: Tensor, target: Tensor, mask: Tensor) -> None:
    user = "InpaintingLoss"
    for name, value in (("output", output), ("target", target)):
        _checks.features(user, name, value)
        if value.shape[0] < 1:
            raise ValueError(
                f"{user}: {name} must have shape [N, C, H, W] with N of at least 1, got {list(value.shape)}"
            )
    if target.shape != output.shape:
        raise ValueError(
            f"{user}: target must have the shape of output, {list(output.shape)}, got {list(target.shape)}"
        )
    if target.device != output.device:
        raise ValueError(
            f"{user}: target must be on the device of output, {output.device}, got {target.device}"
        )
    _checks.tensor(user, "mask", mask, "[N, 1, H, W]", 4)
    _checks.mask(user, "mask", mask, "output", output, per_channel=False)
