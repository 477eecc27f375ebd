"""Inpainting with a trained network: pictures, arrays and tensors."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _backends
from .._checks import FLOAT_DTYPES, MASK_DTYPES
from .._prepack import prepack
from . import _pictures, masks
from ._arguments import choice, integer
from ._canvas import Canvas
from ._device import find_device
from ._extras import require
from ._morphology import depth, dilated
from ._networks import SHIPPED
from ._ranges import bounded, from_unit, to_unit
from .checkpoint import load_net
from .large import fill_crops, fill_resized, like, unit
from .model import InpaintingNet, composite
from .smooth import smooth_fill

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["LARGE", "FillOptions", "Inpainter"]

Picture = TypeVar("Picture", "Image.Image", NDArray[Any], Tensor)
AnyPicture: TypeAlias = "Image.Image | NDArray[Any] | Tensor"

#: What is done with pictures more than twice as large as those that a network is trained with.
LARGE = ("crop", "resize", "whole")
_SMALL = 2  # times that size: what is no larger is filled as it is


@dataclass(frozen=True)
class FillOptions:
    """How holes are filled; see `Inpainter.__call__`.

    Raises:
        TypeError, ValueError: an attribute of another type or out of its range.
    """

    invert_mask: bool = False
    threshold: int = 127
    dilate: int = 0
    feather: int = 0
    large: str = "crop"
    raw: bool = False

    def __post_init__(self) -> None:
        choice("Inpainter", "large", self.large, LARGE)
        integer("Inpainter", "threshold", self.threshold, 0, 256)
        integer("Inpainter", "dilate", self.dilate, 0)
        integer("Inpainter", "feather", self.feather, 0, 32768)


class Inpainter:
    """Fills holes of pictures with a trained network.

    ``Inpainter()(image, mask)`` returns what it was given, a PIL image, a NumPy array or a
    tensor, with the holes filled.

    Args:
        checkpoint: "pconv-photos", the network that comes with the package; a ``.safetensors`` of
            `pconv_ext.checkpoint.save_net`; the folder of a training run (its best network) or of
            `InpaintingNet.save_pretrained`; or an `InpaintingNet`, of which a float32 copy is used.
        device: where the network computes, by default "cuda" if there is a GPU, else "cpu".
        backend: of its partial convolutions, as for `pconv_ext.partial_conv2d`.

    Attributes:
        net: in evaluation mode, float32, on `device`; on the CPU prepacked (`pconv_ext.prepack`).
        device: a ``torch.device``.

    Raises:
        TypeError, ValueError: an argument of another type, an unknown backend or a device that is not there.
        FileNotFoundError: there is no such file, no network in the folder.
        CheckpointError: a ValueError; a foreign, truncated or damaged file.
        ImportError: safetensors is missing.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike[str] | InpaintingNet = SHIPPED,
        device: str | torch.device | None = None,
        backend: str = "auto",
    ) -> None:
        _backends.check_name("Inpainter", backend)
        self.device = find_device("Inpainter", device)
        with torch.random.fork_rng(devices=[]):  # a new network draws weights, which are then replaced
            net = _load(checkpoint, backend)
        self.net = prepack(net.eval().to(self.device, torch.float32))

    def __call__(
        self,
        image: Picture,
        mask: AnyPicture | None = None,
        *,
        invert_mask: bool = False,
        threshold: int = 127,
        dilate: int = 0,
        feather: int = 0,
        large: str = "crop",
        raw: bool = False,
    ) -> Picture:
        """Fill the holes of an image, of any height and width.

        Args:
            image: one of

                - ``PIL.Image.Image`` of nearly any mode. The mask is that of the picture upright by its EXIF;
                - NumPy array [H, W, 3], or [H, W] grey: uint8, or floating in [0, 1];
                - tensor [3, H, W] or [N, 3, H, W], on any device: uint8, or floating in [0, 1];
                - a raster, if the network is one for those (``net.config["ranges"]``): floating array
                  [H, W, C], or [H, W] of one channel, or tensor [C, H, W] or [N, C, H, W].

                What its holes hold has no influence, NaN included.
            mask: 1, nonzero or light = valid, 0 or dark = hole; of any kind, whatever the image is. None: the
                holes are where an array or tensor is not finite, and of what is partly known there only the
                rest is filled. With a mask, a raster may have gaps outside of it, which stay as they are.

                - ``PIL.Image.Image``: see `pconv_ext.masks.load`. Resized to the image by nearest neighbour;
                - array or tensor [H, W], [1, H, W] or [N, 1, H, W] of the image's size: bool, uint8 or
                  floating. Nonzero is valid; but where uint8 has values above 1, it is a picture, and values
                  above `threshold` are valid.
            invert_mask: nonzero or light = hole instead.
            threshold: values of a mask's picture above it are light, in [0, 255]. Holes with soft edges need
                one near what is valid, such as 254.
            dilate: grow holes by so many pixels, into the valid ones around them.
            feather: so many pixels deep into each hole its filling passes over from what the image has there.
                No valid pixel changes.
            large: what is done with pictures more than twice as large as those of training, ``net.config``'s
                size: "crop": holes are cut out with their surroundings and, where they are wide, filled in a
                smaller copy, see `pconv_ext.large`; "resize": the whole picture is; "whole": nothing, which
                takes time and memory for every pixel and fills wide holes badly. But with "whole", what is
                beyond the network's reach is filled from what the network has filled.
            raw: return the network's output everywhere, not only in holes; of the whole picture at once.

        Returns:
            The same kind of picture as `image`: PIL image of its mode and size, with its palette, its
            metadata and, in holes, an alpha from their surroundings; array [H, W, 3] of its dtype; tensor of
            its shape, dtype and device. Without `raw`, valid pixels are those of the image bit for bit; the
            others are in [0, 1] or [0, 255], those of a raster in the ranges of its network or of its own
            values.

        Warns:
            UserWarning: holes cover more than half of the picture, as an inverted mask's do; there are none;
                the mask is a picture of another aspect ratio; with "whole" or `raw`, the midst of a hole is
                beyond the network's reach and filled smoothly from its surroundings, as everything is where
                nothing is known.

        Raises:
            TypeError: an image or mask of another type or dtype, no mask where nothing can be NaN.
            ValueError: a shape that does not fit, a valid pixel out of [0, 1], an option out of its range.
            ImportError: Pillow is missing, for masks that are pictures.
        """
        options = FillOptions(invert_mask, threshold, dilate, feather, large, raw)
        filled: Picture = self.fill("Inpainter", image, mask, options)
        return filled

    def fill(
        self,
        user: str,
        image: Any,
        mask: AnyPicture | None,
        options: FillOptions,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """As calling it, for others: messages are from `user`, `progress` is that of `fill_crops`."""
        channels, ranges = self.net.config["channels"], self.net.config["ranges"]
        if _is_pil(user, "image", image):
            if ranges is not None or channels != 3:
                raise TypeError(
                    f"{user}: image must be a raster of {channels} channels, as the network's are, it is "
                    "a picture"
                )
            canvas = Canvas(user, image)
            given = canvas.pixels
        else:
            canvas, given = None, _pixels(user, image, channels)
        pixels = given if ranges is None else to_unit(given, ranges)
        gaps = ~pixels.isfinite() if canvas is None and given.is_floating_point() else None
        whole = True if gaps is None else ~gaps.any(1, keepdim=True)
        if mask is not None:
            valid = _valid(user, mask, pixels, options.threshold) ^ options.invert_mask
        elif isinstance(whole, Tensor):
            valid = whole
        else:
            raise TypeError(f"{user}: mask must be given, the image has no NaN that could tell holes")
        if options.dilate:
            valid = ~dilated(~valid, options.dilate)
        if ranges is None:
            _check_range(user, pixels, valid)
        holes = masks.hole_ratio(valid)
        if holes == 0:
            warnings.warn(f"{user}: there are no holes, nothing to fill", stacklevel=3)
        elif holes == 1 and mask is not None:
            warnings.warn(
                f"{user}: holes cover all of the picture; in a mask that is a picture, values above "
                f"{options.threshold} are {'holes' if options.invert_mask else 'valid'}, see threshold=, "
                "--threshold",
                stacklevel=3,
            )
        elif holes > 0.5 and mask is not None:
            warnings.warn(
                f"{user}: holes cover {holes:.1%} of the picture; if the mask means the opposite, use "
                "invert_mask=True or --invert-mask",
                stacklevel=3,
            )
        known = valid & whole
        if canvas is not None and canvas.opaque is not None:
            known = known & canvas.opaque
        reach, size = _Reach(), self.net.config["size"]
        original = pixels.clone() if options.feather else pixels
        again = options.large != "whole" and not options.raw
        if not again or max(pixels.shape[2:]) <= _SMALL * size:
            output = like(self._run(unit(pixels), known, reach, again=again, hole=~valid), pixels)
            result = output if options.raw else composite(output, pixels, valid)
        else:
            result = pixels.clone() if isinstance(image, Tensor) or mask is None else pixels
            fill = partial(self._run, reach=reach, again=True)
            planes = (part.expand(len(pixels), -1, -1, -1).split(1) for part in (valid, known))
            for one, its_valid, its_known in zip(result.split(1), *planes, strict=True):
                if options.large == "crop":
                    fill_crops(fill, one, its_valid, size, known=its_known, progress=progress)
                else:
                    fill_resized(fill, one, its_valid, size, known=its_known)
        if options.feather and not options.raw:
            result = _feathered(result, original, ~valid, options.feather)
        if reach.missed:
            warnings.warn(
                f"{user}: {reach.missed / reach.holes:.1%} of the hole pixels are beyond the network's reach "
                "and filled smoothly from their surroundings",
                stacklevel=3,
            )
        if canvas is not None:
            return canvas.paint(result, torch.ones_like(valid) if options.raw else ~valid)
        if ranges is not None:
            result = from_unit(result, ranges).to(given.dtype)
        if not options.raw and (ranges is not None or mask is None):
            # Of a pixel that is partly known, what is known stays.
            kept = ~gaps if gaps is not None and mask is None and not options.dilate else valid
            result = torch.where(kept, given, result)
        return _like(image, result)

    def _run(
        self, image: Tensor, known: Tensor, reach: _Reach, *, again: bool, hole: Tensor | None = None
    ) -> Tensor:
        """The network's output, in [0, 1], for a float32 image on any device; what it misses is smooth.

        `again`: what it misses it fills from what it has filled, as long as that reaches further. `hole` is
        what is to be filled of that which is not `known`, by default all.
        """
        x, mask, ranges = image.to(self.device), known.to(self.device), self.net.config["ranges"]
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            output, reached = self.net.reach(x, mask)
            missed = (reached == 0) & ~mask
            further = again
            while further and missed.any():
                begun = torch.where(mask, x, bounded(output, x, mask, ranges))
                more, reached = self.net.reach(begun, ~missed)
                output = torch.where(missed, more, output)
                further = bool((missed & (reached != 0)).any())
                missed &= reached == 0
            if missed.any():
                output = torch.where(missed, smooth_fill(x, mask), output)
            if not output.isfinite().all():
                raise ValueError(
                    "Inpainter: the network must return finite values, it is damaged or diverged"
                )
        hole = ~mask if hole is None else hole.to(self.device)
        reach.holes += int(hole.sum())
        reach.missed += int((missed & hole).sum())
        # Outside of inference mode, for later gradients.
        return bounded(output, x, mask, ranges).to(image.device)


def _feathered(result: Tensor, original: Tensor, hole: Tensor, reach: int) -> Tensor:
    """Between an image and its holes' filling, which counts more with every pixel into the hole."""
    share = (depth(hole, reach + 1) / (reach + 1)).float()
    mixed = torch.lerp(original.float(), result.float(), share)
    if result.dtype == torch.uint8:
        mixed = mixed.round()
    # Where the image holds no number there is nothing to pass over from.
    return torch.where(hole & mixed.isfinite(), mixed.to(result.dtype), result)


@dataclass
class _Reach:
    """How many hole pixels a network was given, and how many of them it did not reach."""

    holes: int = 0
    missed: int = 0


def _load(checkpoint: Any, backend: str) -> InpaintingNet:
    if isinstance(checkpoint, InpaintingNet):
        net = InpaintingNet(**checkpoint.config, backend=backend)
        net.load_state_dict(checkpoint.state_dict())
        return net
    if not isinstance(checkpoint, (str, os.PathLike)):
        raise TypeError(
            f"Inpainter: checkpoint must be a path or an InpaintingNet, got {type(checkpoint).__name__}"
        )
    return load_net(checkpoint, backend)


def _is_pil(user: str, name: str, value: Any) -> bool:
    """False for arrays and tensors; TypeError for anything else that is no PIL image."""
    if isinstance(value, (np.ndarray, Tensor)):
        return False
    if not isinstance(value, require(user, "PIL.Image").Image):
        raise TypeError(
            f"{user}: {name} must be a PIL image, a NumPy array or a tensor, got {type(value).__name__}"
        )
    return True


def _tensor(value: NDArray[Any] | Tensor) -> Tensor:
    """Arrays are copied: torch takes no negative strides, and warns of arrays that cannot be written."""
    return value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.array(value))


def _pixels(user: str, image: NDArray[Any] | Tensor, channels: int) -> Tensor:
    """`image` as [N, C, H, W], uint8 or floating, on its device."""
    values = _tensor(image)
    if values.dtype not in (torch.uint8, *FLOAT_DTYPES):
        raise TypeError(f"{user}: image must be uint8 or floating in [0, 1], got {values.dtype}")
    shape = list(values.shape)
    if isinstance(image, Tensor):
        if len(shape) not in (3, 4) or shape[-3] != channels or 0 in shape:
            raise ValueError(
                f"{user}: image must be a tensor [{channels}, H, W] or [N, {channels}, H, W], got shape "
                f"{shape}"
            )
        return values.reshape(-1, *shape[-3:])
    if len(shape) == 2 and channels in (1, 3):
        values = values[..., None].repeat(1, 1, channels)
    if values.dim() != 3 or values.shape[2] != channels or 0 in shape:
        grey = " or [H, W]" if channels in (1, 3) else ""
        raise ValueError(f"{user}: image must be an array [H, W, {channels}]{grey}, got shape {shape}")
    return values.permute(2, 0, 1)[None]


def _valid(user: str, mask: Any, pixels: Tensor, threshold: int) -> Tensor:
    """`mask` as bool [N or 1, 1, H, W] on the device of `pixels`, True = valid."""
    n, _, h, w = pixels.shape
    if _is_pil(user, "mask", mask):
        picture = _pictures.about_file(f"{user}: the mask", _pictures.lightness, mask)
        width, height = picture.size
        if abs(width * h - height * w) > max(width + height, w + h):  # more than a pixel of rounding makes
            warnings.warn(
                f"{user}: the mask is {height}x{width} (HxW), the image {h}x{w}; resizing changes the mask's "
                "aspect ratio",
                stacklevel=4,
            )
        return masks.load(picture, h, w, threshold=threshold)[None].to(pixels.device, torch.bool)
    values = _tensor(mask)
    if values.dtype not in MASK_DTYPES:
        raise TypeError(f"{user}: mask must be bool, uint8 or floating, got {values.dtype}")
    shape = list(values.shape)
    if shape[-2:] != [h, w] or shape[:-2] not in ([], [1], [1, 1], [n, 1]):
        raise ValueError(
            f"{user}: mask must have shape [{h}, {w}], [1, {h}, {w}] or [{n} or 1, 1, {h}, {w}] to go with "
            f"the {h}x{w} image, got {shape}; only PIL masks are resized"
        )
    picture_like = values.dtype == torch.uint8 and bool((values > 1).any())
    valid = values > threshold if picture_like else values != 0
    return valid.reshape(-1, 1, h, w).to(pixels.device)


def _check_range(user: str, pixels: Tensor, valid: Tensor) -> None:
    if pixels.dtype == torch.uint8:
        return
    outside = pixels[valid & ~((pixels >= 0) & (pixels <= 1))]
    if len(outside):
        raise ValueError(f"{user}: a floating image must be in [0, 1] where it is valid, got {outside[0]:g}")


def _like(image: Any, result: Tensor) -> Any:
    """`result`, [N, 3, H, W], as a picture of the kind of `image`."""
    if isinstance(image, Tensor):
        return result.reshape(image.shape)
    array = result[0].permute(1, 2, 0).contiguous().numpy()
    return array[..., 0] if image.ndim == 2 and array.shape[2] == 1 else array
