"""The encoder-decoder of the paper: MSFEF and partial convolutions down, decoder stages with skips up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from .._prepack import Prepackable
from ..functional import upcat_partial_conv2d
from ..modules import MSFEF, PartialConv2d
from ..ops import upcat_partial_conv2d as _upcat_partial_conv2d
from ._arguments import about, named
from ._ranges import checked_ranges
from .pretrained import Pretrained
from .smooth import smooth_fill

__all__ = ["InpaintingNet", "composite"]


class InstanceNorm2d(nn.InstanceNorm2d):
    """Instance normalisation that leaves a 1x1 map as it is: its variance says nothing."""

    def forward(self, input: Tensor) -> Tensor:
        return input if input.shape[2] * input.shape[3] == 1 else super().forward(input)


class BatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that says what to do where it cannot train."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] * input.shape[2] * input.shape[3] == 1:
            raise ValueError(
                "InpaintingNet: batch normalisation cannot train on one value per channel, a 1x1 map in a "
                f"batch of 1 ({list(input.shape)}): use a larger batch or image, a smaller depth, or .eval()"
            )
        return super().forward(input)


class _EncoderStage(nn.Module):
    """Partial convolution(s) of stride 2, normalisation, ReLU."""

    def __init__(self, conv: MSFEF | PartialConv2d, norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x, mask = self.conv(x, mask)
        return self.activation(self.norm(x)), mask


class _DecoderStage(Prepackable):
    """Up-sample, concatenate with the skip, partial convolution; but for the last, batch norm, LeakyReLU."""

    _operator = _upcat_partial_conv2d

    def __init__(self, c_low: int, c_skip: int, c_out: int, backend: str, *, last: bool) -> None:
        super().__init__()
        self.channels = c_low, c_skip
        self.conv = PartialConv2d(c_low + c_skip, c_out, 3, padding=1, backend=backend)
        self.norm = nn.Identity() if last else BatchNorm2d(c_out)
        self.activation = nn.Identity() if last else nn.LeakyReLU(0.2, inplace=True)

    def forward(
        self, low: Tensor, mask_low: Tensor | None, skip: Tensor, mask_skip: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        arguments = self._arguments(low, mask_low, skip, mask_skip)
        result = self._packed and self._from_packed(arguments)
        x, mask = result or upcat_partial_conv2d(*arguments, backend=self.backend)
        return self.activation(self.norm(x)), mask

    @property
    def backend(self) -> str:  # type: ignore[override]
        return str(self.conv.backend)

    def _arguments(self, *features_and_masks: Tensor | None) -> tuple[Any, ...]:
        return *features_and_masks, self.conv.weight, self.conv.bias

    def _example(self) -> tuple[Any, ...]:
        c_low, c_skip = self.channels
        empty = self.conv.weight.new_empty
        return self._arguments(empty(1, c_low, 16, 16), None, empty(1, c_skip, 32, 32), None)


class InpaintingNet(Pretrained):
    """Encoder-decoder of MSFEF and partial convolutions (table 2 of the paper, with the default arguments).

    Each of `depth` encoder stages halves the size: stage i has min(2^i, 8) * width channels, the first
    `msfef_stages` are MSFEF blocks, the others single 3x3 partial convolutions; instance normalisation and
    ReLU follow, batch normalisation in the last. Each decoder stage doubles it: nearest up-sampling,
    concatenation with the encoder's map of that size (in the last stage with image and mask), partial
    convolution 3x3, batch normalisation and LeakyReLU(0.2), but for the last. No up-sampled, concatenated or
    C-channel mask is built.

    Args:
        width: channels of the first stage.
        msfef_stages: how many encoder stages are MSFEF blocks; 0 for the ablation without.
        kernel_sizes: of every MSFEF block, or a sequence of such for each of them. Smaller images need
            smaller kernels, larger ones larger: the paper's 3, 5, 7 are for 256x256.
        depth: encoder stages, at least 2; also decoder stages.
        residual: add what the layers return to `smooth_fill` of the image, so that they only have to correct
            it. Ours, not the paper's.
        mirrored: in evaluation mode, return the mean of what the layers make of the image and of its mirror
            image: twice the time, some 0.1 dB (a geometric self-ensemble, Timofte et al., CVPR 2016). Ours,
            not the paper's.
        size: height and width of the pictures it is trained with. No layer depends on it; `Inpainter` brings
            larger pictures near it.
        channels: of an image; 3 for pictures.
        ranges: for rasters, [low, high] of each channel: what they hold is brought from there to [0, 1] and
            back by `Inpainter` and the data sets, not by `forward`. None = pictures, whose values are in
            [0, 1] and are kept there.
        backend: of the partial convolutions, as for `pconv_ext.partial_conv2d`.

    Attributes:
        config: the arguments but for the backend, as JSON can hold them: ``InpaintingNet(**net.config)`` has
            the same layers.

    Raises:
        ValueError: sizes out of range, kernel sizes for another number of stages.
    """

    def __init__(
        self,
        width: int = 64,
        msfef_stages: int = 4,
        kernel_sizes: Sequence[int] | Sequence[Sequence[int]] = (3, 5, 7),
        depth: int = 8,
        residual: bool = False,
        mirrored: bool = False,
        size: int = 256,
        channels: int = 3,
        ranges: Sequence[Sequence[float]] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        user = "InpaintingNet"
        for name, value in (("width", width), ("size", size), ("channels", channels)):
            if value < 1:
                raise ValueError(f"{about(user, name)} must be at least 1, got {value}")
        if depth < 2 or not 0 <= msfef_stages <= depth:
            raise ValueError(
                f"{about(user, 'depth')} must be at least 2 and {named('msfef_stages')} from 0 to depth, "
                f"got depth {depth}, msfef_stages {msfef_stages}"
            )
        sizes = _per_stage(kernel_sizes, msfef_stages)
        self.config: dict[str, Any] = {
            "width": width,
            "msfef_stages": msfef_stages,
            "kernel_sizes": [list(stage) for stage in sizes],
            "depth": depth,
            "residual": bool(residual),
            "mirrored": bool(mirrored),
            "size": size,
            "channels": channels,
            "ranges": checked_ranges(user, ranges, channels),
        }
        widths = [width * min(2**i, 8) for i in range(depth)]
        encoder, c_in = [], channels
        for i, c_out in enumerate(widths):
            conv: MSFEF | PartialConv2d
            if i < msfef_stages:
                conv = MSFEF(c_in, c_out, sizes[i], backend=backend)
            else:
                conv = PartialConv2d(c_in, c_out, 3, 2, 1, return_mask=True, backend=backend)
            last = i == depth - 1
            norm = BatchNorm2d(c_out) if last else InstanceNorm2d(c_out, affine=True)
            encoder.append(_EncoderStage(conv, norm))
            c_in = c_out
        skips = [channels, *widths[:-1]]
        decoder = []
        for i, c_skip in enumerate(reversed(skips)):
            last = i == depth - 1
            decoder.append(_DecoderStage(c_in, c_skip, c_skip, backend, last=last))
            c_in = c_skip
        self.encoder = nn.ModuleList(encoder)
        self.decoder = nn.ModuleList(decoder)

    def forward(self, image: Tensor, mask: Tensor | None) -> Tensor:
        """Inpaint.

        Args:
            image: [N, C, H, W] of C `channels`, any size; what its holes hold has no influence.
            mask: [N or 1, 1, H, W], nonzero = valid; None = all valid.

        Returns:
            [N, C, H, W]: the network's idea of the whole image; see `composite`.

        Raises:
            ValueError: shapes that do not fit; training where batch normalisation has one value per channel.
        """
        return self.reach(image, mask)[0]

    def reach(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inpaint as `forward` does, and tell which pixels are reached.

        Returns:
            What `forward` does, and [N or 1, 1, H, W], 0 in the midst of holes so large that no layer sees a
            valid pixel from there: the output has there what it begins with, `smooth_fill` or 0.
        """
        channels = self.config["channels"]
        if image.dim() != 4 or image.shape[1] != channels:
            raise ValueError(
                f"InpaintingNet: image must have shape [N, {channels}, H, W], got {list(image.shape)}"
            )
        output, reached = self._once(image, mask)
        if self.config["mirrored"] and not self.training:
            mirror, its_reach = self._once(image.flip(-1), None if mask is None else mask.flip(-1))
            output, reached = (output + mirror.flip(-1)) / 2, reached * its_reach.flip(-1)
        return output, reached

    def _once(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        base = smooth_fill(image, mask) if self.config["residual"] else None
        x, skips = image, []
        for stage in cast("list[_EncoderStage]", self.encoder):
            skips.append((x, mask))
            x, mask = stage(x, mask)
        for decoder_stage in cast("list[_DecoderStage]", self.decoder):
            x, mask = decoder_stage(x, mask, *skips.pop())
        reached = x.new_ones(1, 1, *x.shape[2:]) if mask is None else mask
        return x if base is None else base + x, reached


def _per_stage(kernel_sizes: Sequence[int] | Sequence[Sequence[int]], stages: int) -> list[tuple[int, ...]]:
    subject = about("InpaintingNet", "kernel_sizes")
    nested = [isinstance(sizes, Sequence) for sizes in kernel_sizes]
    if any(nested) and (not all(nested) or len(nested) != stages):
        raise ValueError(
            f"{subject} must be ints, or one sequence of ints for each of the {stages} "
            f"{named('msfef_stages')}, got {kernel_sizes!r}"
        )
    every = kernel_sizes if any(nested) else [kernel_sizes] * stages
    found = [tuple(sizes) for sizes in cast("Sequence[Sequence[int]]", every)]
    for sizes in found:
        if not sizes or len({*sizes}) < len(sizes) or any(k < 1 or k % 2 == 0 for k in sizes):
            raise ValueError(f"{subject} must be distinct odd ints, at least one, got {kernel_sizes!r}")
    return found


def composite(output: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """The image where it is valid, the network's output in holes.

    Args:
        output, image: [N, C, H, W].
        mask: [N or 1, 1, H, W], nonzero = valid.

    Returns:
        [N, C, H, W]; a selection, so NaN in a hole of `image` does not show.
    """
    return torch.where(mask != 0, image, output)
