"""Pictures in whatever mode, as a network sees them, and the way back: only their holes change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import _pictures
from ._extras import require
from ._morphology import bounds
from .smooth import smooth_fill

if TYPE_CHECKING:
    from PIL import Image

#: What undoes the turns that EXIF asks for, by Pillow's names.
_BACK = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_90",
    7: "TRANSVERSE",
    8: "ROTATE_270",
}
_MODES = {"1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", *_pictures.FULL}
_MARGIN = 8  # pixels around holes, from which their alpha comes
_LUMA = np.array([0.299, 0.587, 0.114])  # of ITU-R 601, as Pillow has it


class Canvas:
    """A PIL picture whose holes are to be filled.

    Attributes:
        pixels: [1, 3, H, W], upright by its EXIF, uint8, or float32 in [0, 1] for modes of more bits. Grey is
            repeated, a palette and CMYK are resolved.
        opaque: bool [1, 1, H, W], where `pixels` mean something; None = everywhere.

    Raises:
        UnreadablePictureError: a mode that a network's pixels cannot be put back into, values out of its
            range; begins with `user`.
    """

    def __init__(self, user: str, picture: Image.Image) -> None:
        if picture.mode not in _MODES:
            raise _pictures.UnreadablePictureError(
                f"{user}: a picture of mode {picture.mode} cannot be filled without loss, convert it to RGB"
            )
        self._picture, self._mode = picture, picture.mode
        self._turned_by = picture.getexif().get(_pictures.ORIENTATION, 1)
        self._upright = picture
        if self._turned_by in _BACK:
            self._upright = require(user, "PIL.ImageOps").exif_transpose(picture)
        self.opaque: Tensor | None = None
        if self._mode in _pictures.FULL:
            planes = _pictures.about_file(user, _pictures.in_unit, self._upright)[..., None].repeat(3, 2)
        elif picture.has_transparency_data:
            both = np.array(self._upright.convert("RGBA"))
            planes = np.ascontiguousarray(both[..., :3])
            if not both[..., 3].all():
                self.opaque = torch.from_numpy(both[..., 3] != 0)[None, None]
        else:
            rgb = self._upright if self._mode == "RGB" else self._upright.convert("RGB")
            planes = np.array(rgb)
        self.pixels = torch.from_numpy(planes).permute(2, 0, 1)[None]

    def paint(self, filled: Tensor, hole: Tensor) -> Image.Image:
        """The picture with other pixels in its holes; once, at the end.

        Args:
            filled: as `pixels`, on the CPU.
            hole: bool [1, 1, H, W], on the CPU.

        Returns:
            In the picture's mode and orientation, with all that Pillow knows of it.
        """
        pil = require("Inpainter", "PIL.Image")
        own = self._upright is not self._picture  # large pictures are copied no more than they must be
        result = self._upright if own else self._upright.copy()
        place = hole[0, 0]
        if place.any():
            (top, bottom), (left, right) = bounds(place)
            top, left = max(0, top - _MARGIN), max(0, left - _MARGIN)
            bottom, right = min(result.height, bottom + _MARGIN), min(result.width, right + _MARGIN)
            patch = result.crop((left, top, right, bottom))
            colours = filled[0, :, top:bottom, left:right].permute(1, 2, 0).numpy()
            values = self._values(patch, colours, place[top:bottom, left:right].numpy())
            if self._mode == "1":
                patch = pil.fromarray(values)
            else:
                patch.frombytes(values.tobytes())
            result.paste(patch, (left, top))  # whole: with a mask Pillow pastes some modes wrongly
        if self._turned_by not in _BACK:
            return result
        back = result.transpose(pil.Transpose[_BACK[self._turned_by]])
        back.info = dict(self._picture.info)
        return back

    def _values(self, patch: Image.Image, colours: NDArray[Any], hole: NDArray[np.bool_]) -> NDArray[Any]:
        """Those of a part of the picture, with `colours` [h, w, 3] in its holes."""
        pil = require("Inpainter", "PIL.Image")
        values, new = np.array(patch), colours[hole]
        if self._mode == "P":
            values[hole] = self._indices(new)
        elif self._mode in ("CMYK", "YCbCr"):
            values[hole] = np.array(pil.fromarray(colours).convert(self._mode))[hole]
        elif self._mode == "RGB":
            values[hole] = new
        elif self._mode == "RGBA":
            values[hole, :3] = new
        else:
            grey = new @ _LUMA
            if self._mode == "1":
                values[hole] = grey >= 128
            elif self._mode == "F":
                values[hole] = grey
            elif self._mode == "LA":
                values[hole, 0] = np.rint(grey)
            else:
                values[hole] = np.rint(grey * _pictures.FULL.get(self._mode, 1))
        if self._mode in ("LA", "RGBA"):
            values[hole, -1] = _smooth(values[..., -1], hole)
        return values

    def _indices(self, colours: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Those of the nearest colours of the palette that can be seen; `colours` is [n, 3]."""
        pil = require("Inpainter", "PIL.Image")
        kind = cast("Any", self._picture.palette).mode
        palette = self._picture.getpalette(kind) or []
        count = len(palette) // len(kind)
        every = pil.frombytes("P", (count, 1), bytes(range(count)))
        every.putpalette(palette, kind)
        every.info = dict(self._picture.info)
        table = np.array(every.convert("RGBA"))[0].astype(np.int32)
        seen = np.flatnonzero(table[:, 3]) if table[:, 3].any() else np.arange(count)
        different, place = np.unique(colours, axis=0, return_inverse=True)
        found = [
            seen[np.square(table[seen, None, :3] - part.astype(np.int32)).sum(2).argmin(0)]
            for part in np.array_split(different, 1 + len(different) // 4096)
        ]
        return np.concatenate(found).astype(np.uint8)[place.ravel()]


def _smooth(plane: NDArray[np.uint8], hole: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """An 8-bit plane's values in holes, from their surroundings."""
    if hole.all():
        return np.full(hole.sum(), 255, np.uint8)
    image = torch.from_numpy(plane.astype(np.float32))[None, None]
    filled: NDArray[np.float32] = smooth_fill(image, torch.from_numpy(~hole)[None, None]).numpy()[0, 0][hole]
    return np.rint(filled.clip(0, 255)).astype(np.uint8)
