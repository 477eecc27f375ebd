"""Inpainting with a trained network: pictures, arrays and tensors, files and folders."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .. import _backends
from .._checks import FLOAT_DTYPES, MASK_DTYPES
from .._prepack import prepack
from . import _pictures, masks
from ._arguments import about
from ._device import find_device
from ._extras import require
from ._files import check_folder, write_atomically
from .checkpoint import load_net
from .model import InpaintingNet, composite

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["Inpainter", "inpaint_files"]

Picture = TypeVar("Picture", "Image.Image", NDArray[Any], Tensor)
AnyPicture: TypeAlias = "Image.Image | NDArray[Any] | Tensor"

#: Of Pillow, by format; the others have one quality or are lossless by default.
_QUALITY: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


class Inpainter:
    """Fills holes of pictures with a trained network.

    ``Inpainter("model.safetensors")(image, mask)`` returns what it was given, a PIL image, a NumPy array or a
    tensor, with the holes filled.

    Args:
        checkpoint: a ``.safetensors`` of `pconv_ext.checkpoint.save_net`, the folder of a training run (its
            best network), or an `InpaintingNet`, of which a float32 copy is used.
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
        checkpoint: str | os.PathLike[str] | InpaintingNet,
        device: str | torch.device | None = None,
        backend: str = "auto",
    ) -> None:
        _backends.check_name("Inpainter", backend)
        self.device = find_device("Inpainter", device)
        with torch.random.fork_rng(devices=[]):  # a new network draws weights, which are then replaced
            net = _load(checkpoint, backend)
        self.net = prepack(net.eval().to(self.device, torch.float32))

    def __call__(
        self, image: Picture, mask: AnyPicture, *, invert_mask: bool = False, raw: bool = False
    ) -> Picture:
        """Fill the holes of an image, of any height and width.

        Args:
            image: one of

                - ``PIL.Image.Image`` of any mode. Taken upright by its EXIF, transparent parts over white;
                - NumPy array [H, W, 3], or [H, W] grey: uint8, or floating in [0, 1];
                - tensor [3, H, W] or [N, 3, H, W], on any device: uint8, or floating in [0, 1].

                What its holes hold has no influence, NaN included.
            mask: 1, nonzero or light = valid, 0 or dark = hole; of any kind, whatever the image is:

                - ``PIL.Image.Image``: values above 127 are valid. Resized to the image by nearest neighbour;
                - array or tensor [H, W], [1, H, W] or [N, 1, H, W] of the image's size: bool, uint8 or
                  floating. Nonzero is valid; but where uint8 has values above 1, it is a picture, and values
                  above 127 are valid.
            invert_mask: nonzero or light = hole instead.
            raw: return the network's output everywhere, not only in holes.

        Returns:
            The same kind of picture as `image`: PIL image in mode RGB of the (upright) image's size without
            its metadata; array [H, W, 3] of its dtype; tensor of its shape, dtype and device. Without `raw`,
            valid pixels are those of the image bit for bit; the others are in [0, 1] or [0, 255].

        Warns:
            UserWarning: holes cover more than half of the picture, as an inverted mask's do; there are none;
                the mask is a picture of another aspect ratio.

        Raises:
            TypeError: an image or mask of another type or dtype.
            ValueError: a shape that does not fit, a valid pixel outside of [0, 1].
            ImportError: Pillow is missing, for masks that are pictures.
        """
        return self._fill("Inpainter", image, mask, invert_mask, raw)

    def _fill(self, user: str, image: Picture, mask: AnyPicture, invert_mask: bool, raw: bool) -> Picture:
        pixels = _pixels(user, image)
        valid = _valid(user, mask, pixels)
        if invert_mask:
            valid = ~valid
        _check_range(user, pixels, valid)
        holes = masks.hole_ratio(valid)
        if holes == 0:
            warnings.warn(f"{user}: the mask has no holes, there is nothing to fill", stacklevel=3)
        elif holes > 0.5:
            warnings.warn(
                f"{user}: holes cover {holes:.1%} of the picture; if the mask means the opposite, use "
                "invert_mask=True or --invert-mask",
                stacklevel=3,
            )
        output = self._run(pixels, valid)
        return _like(image, output if raw else composite(output, pixels, valid))

    def _run(self, pixels: Tensor, valid: Tensor) -> Tensor:
        """The network's output with the dtype, device and range of `pixels`."""
        x = pixels.to(self.device, torch.float32)
        if pixels.dtype == torch.uint8:
            x = x / 255
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            output = self.net(x, valid.to(self.device))
        if not output.isfinite().all():
            raise ValueError("Inpainter: the network must return finite values, it is damaged or diverged")
        output = output.clamp(0, 1)  # a tensor of inference mode would stop a later backward pass
        if pixels.dtype == torch.uint8:
            output = (output * 255).round()
        return output.to(pixels.device, pixels.dtype)


def inpaint_files(
    inpainter: Inpainter,
    image: str | os.PathLike[str],
    mask: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    invert_mask: bool = False,
    raw: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Inpaint a picture file, or all in a folder and the folders below.

    What can go wrong with paths is found out before anything is written, and each file is written whole or
    not at all. In a folder a picture or mask that cannot be read is left out with a warning that names it.

    Args:
        inpainter: does it.
        image: a file or a folder.
        mask: a file; for a folder of images also a folder, whose masks have the images' paths but for the
            extension: ``cats/1.jpg`` goes with ``cats/1.png``. Light = valid, dark = hole.
        output: a file in whose format the picture is written (valid pixels are exact in lossless ones: PNG,
            TIFF, WebP). For a folder of images a folder outside of those of the inputs, which is made if
            missing and gets a PNG at each image's path; files of that name are replaced.
        invert_mask, raw: as for `Inpainter`.
        progress: called with the number of images done and of all, after each.

    Returns:
        The files written.

    Raises:
        OSError: a file or folder that is not there or cannot be written.
        ValueError: an image without mask, several of one name, an unreadable file (in a folder: all images),
            an output that is an input or of no known format.
        ImportError: Pillow is missing.
    """
    source, mask_source, target = Path(image), Path(mask), Path(output)
    for name, path in (("image", source), ("mask", mask_source)):
        if not path.exists():
            raise FileNotFoundError(
                f"{about('inpaint', name)} must be a file or a folder, there is no {path}"
            )
    jobs = (_folder_jobs if source.is_dir() else _file_jobs)(source, mask_source, target)
    _check_apart((source, mask_source), target, jobs)
    written = []
    for done, (picture_file, mask_file, file) in enumerate(jobs, 1):
        try:
            picture, picture_mask = _pictures.read(picture_file), _pictures.read(mask_file)
        except _pictures.UnreadablePictureError as error:
            if not source.is_dir():
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
        else:
            user = f"{picture_file} with mask {mask_file}"
            _save(inpainter._fill(user, picture, picture_mask, invert_mask, raw), file)
            written.append(file)
        if progress:
            progress(done, len(jobs))
    if not written:
        raise ValueError(f"inpaint: none of the {len(jobs)} pictures in {source} and their masks can be read")
    return written


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


def _pixels(user: str, image: Any) -> Tensor:
    """`image` as [N, 3, H, W], uint8 or floating, on its device."""
    pil = _is_pil(user, "image", image)
    values = _tensor(np.asarray(_pictures.to_rgb(image)) if pil else image)
    if values.dtype not in (torch.uint8, *FLOAT_DTYPES):
        raise TypeError(f"{user}: image must be uint8 or floating in [0, 1], got {values.dtype}")
    shape = list(values.shape)
    if isinstance(image, Tensor):
        if len(shape) not in (3, 4) or shape[-3] != 3 or 0 in shape:
            raise ValueError(f"{user}: image must be a tensor [3, H, W] or [N, 3, H, W], got shape {shape}")
        return values.reshape(-1, *shape[-3:])
    if len(shape) == 2:
        values = values[..., None].expand(-1, -1, 3)
    if values.dim() != 3 or values.shape[2] != 3 or 0 in shape:
        raise ValueError(f"{user}: image must be an array [H, W, 3] or [H, W], got shape {shape}")
    return values.permute(2, 0, 1)[None]


def _valid(user: str, mask: Any, pixels: Tensor) -> Tensor:
    """`mask` as bool [N or 1, 1, H, W] on the device of `pixels`, True = valid."""
    n, _, h, w = pixels.shape
    if _is_pil(user, "mask", mask):
        picture = _pictures.to_rgb(mask)
        width, height = picture.size
        if abs(width * h - height * w) > max(width + height, w + h):  # more than a pixel of rounding makes
            warnings.warn(
                f"{user}: the mask is {height}x{width} (HxW), the image {h}x{w}; resizing changes the mask's "
                "aspect ratio",
                stacklevel=4,
            )
        return masks.load(picture, h, w)[None].to(pixels.device, torch.bool)
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
    valid = values > 127 if picture_like else values != 0
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
    return array if isinstance(image, np.ndarray) else require("Inpainter", "PIL.Image").fromarray(array)


def _file_jobs(image: Path, mask: Path, output: Path) -> list[tuple[Path, Path, Path]]:
    if mask.is_dir():
        raise IsADirectoryError(
            f"{about('inpaint', 'mask')} must be a file, as the image {image} is, got the folder {mask}"
        )
    if output.is_dir():
        raise IsADirectoryError(
            f"{about('inpaint', 'output')} must be a file, as the image {image} is, got the folder {output}"
        )
    _format(output)
    if not output.parent.is_dir():
        raise NotADirectoryError(
            f"{about('inpaint', 'output')} must go into an existing folder, {output.parent} is none"
        )
    check_folder("inpaint", "the folder of output", output.parent)
    return [(image, mask, output)]


def _folder_jobs(image: Path, mask: Path, output: Path) -> list[tuple[Path, Path, Path]]:
    pictures = _by_stem(image)
    if mask.is_dir():
        found = _by_stem(mask)
        missing = [str(path) for stem, path in pictures.items() if stem not in found]
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"inpaint: the folder {mask} must have a mask for each picture in {image}, of the same path "
                f"but for the extension; {len(missing)} of {len(pictures)} have none: {names}"
            )
    else:
        _pictures.read(mask)  # if unreadable, an error now and not a warning for each picture
        found = dict.fromkeys(pictures, mask)
    check_folder("inpaint", "output", output)
    return [(path, found[stem], output / f"{stem}.png") for stem, path in pictures.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their path in it without extension."""
    found: dict[str, Path] = {}
    for path in _pictures.find("inpaint", folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(
                f"inpaint: pictures in a folder must differ in more than the extension, got {found[stem]} "
                f"and {path}"
            )
        found[stem] = path
    return found


def _format(file: Path) -> str:
    """Pillow's name of the format that `file` is to be written in."""
    pil = require("inpaint", "PIL.Image")
    name: str = pil.registered_extensions().get(file.suffix.lower(), "")
    if name not in pil.SAVE:
        raise ValueError(
            f"{about('inpaint', 'output')} must have the extension of a format that Pillow writes, as .png, "
            f"got {file}"
        )
    return name


def _check_apart(inputs: tuple[Path, Path], output: Path, jobs: list[tuple[Path, Path, Path]]) -> None:
    """No output may replace an input, or be one the next time."""
    places = [path.resolve() for path in inputs]
    if any(output.resolve().is_relative_to(place) for place in places):
        raise ValueError(
            f"{about('inpaint', 'output')} must be apart from the image and the mask, got {output}"
        )
    read = {path.resolve() for job in jobs for path in job[:2]}
    for _, _, file in jobs:
        if file.resolve() in read:
            raise ValueError(
                f"{about('inpaint', 'output')} must not replace an image or a mask, {file} is one"
            )


def _save(picture: Image.Image, file: Path) -> None:
    kind, stream = _format(file), io.BytesIO()
    try:
        picture.save(stream, kind, **_QUALITY.get(kind, {}))
    except (OSError, ValueError) as error:  # too large for the format
        raise OSError(f"cannot write {file}: {error}") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, stream.getvalue())
