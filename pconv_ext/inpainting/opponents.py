"""What fills holes without a network, for nothing, and what a network must therefore be compared with.

The mean of the valid pixels, the inpainting of OpenCV and that of scikit-image. cv2 and skimage, of
``pip install 'pconv_ext[opponents]'``, are imported when they are first used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ._arguments import choice
from ._extras import require
from .data import PictureDataset
from .evaluation import BinMetrics, Holes, Report, evaluate
from .masks import BINS
from .model import composite

__all__ = ["OPPONENTS", "Opponent", "Outcome", "check_installed", "compete"]

_GREY = 0.5


class Opponent(nn.Module):
    """Fills the holes of pictures, called as a network is.

    Attributes:
        title: its name in `OPPONENTS`.
        module: the optional dependency that it imports, or empty.
        settings: what its forms differ in, by name.
    """

    title = ""
    module = ""

    def __init__(self, **settings: float) -> None:
        super().__init__()
        self.settings = settings

    def forward(self, images: Tensor, masks: Tensor) -> Tensor:
        """Inpaint.

        Args:
            images: floating [N, C, H, W], in [0, 1] where valid; what holes hold has no influence.
            masks: [N or 1, 1, H, W], nonzero = valid.

        Returns:
            As `images`, with their valid pixels. A picture without a valid pixel becomes grey, 0.5.

        Raises:
            ImportError: the optional dependency is missing.
        """
        valid = (masks != 0).expand(len(images), 1, *images.shape[2:])
        known = torch.where(valid, images, 0).detach().cpu()
        filled = torch.full_like(known, _GREY)
        for picture, hole, result in zip(known, ~valid[:, 0].cpu(), filled, strict=True):
            if hole.any() and not hole.all():
                result.copy_(self.fill(picture, hole))
        return composite(filled.to(images.device), images, masks)

    def fill(self, picture: Tensor, hole: Tensor) -> Tensor:
        """Return an idea of the whole picture.

        Args:
            picture: floating [C, H, W] on the CPU, 0 in holes.
            hole: bool [H, W], somewhere True and somewhere False.

        Returns:
            floating [C, H, W] of any dtype.
        """
        raise NotImplementedError

    def library(self) -> Any:
        """Import the optional dependency and return it, if there is one.

        Raises:
            ImportError: it is missing; one line says which and how to install it.
        """
        return require(f"the opponent {self.title}", self.module, "opponents") if self.module else None


class _Mean(Opponent):
    """The mean of the picture's valid pixels, channel by channel."""

    title = "mean"

    def fill(self, picture: Tensor, hole: Tensor) -> Tensor:
        return picture[:, ~hole].double().mean(1)[:, None, None].expand_as(picture)


class _OpenCv(Opponent):
    """``cv2.inpaint`` of 8-bit pictures; it knows no order of channels, which it computes one by one. Of
    rasters with other than 3, or values that are no picture's, in float32.
    """

    module = "cv2"
    flag = ""

    def fill(self, picture: Tensor, hole: Tensor) -> Tensor:
        cv = self.library()
        mask = hole.numpy().astype(np.uint8) * 255

        def filled(pixels: Tensor) -> Tensor:
            given = pixels.contiguous().numpy()
            return torch.from_numpy(cv.inpaint(given, mask, self.settings["radius"], getattr(cv, self.flag)))

        if len(picture) == 3 and picture.min() >= 0 and picture.max() <= 1:
            pixels = (picture * 255).round().to(torch.uint8).permute(1, 2, 0)
            return filled(pixels).permute(2, 0, 1).double() / 255
        scale = 65535  # it rounds floating point numbers too
        return torch.stack([filled(channel * scale) for channel in picture.float()]).double() / scale


class _Telea(_OpenCv):
    """Telea 2004, by fast marching."""

    title, flag = "telea", "INPAINT_TELEA"


class _NavierStokes(_OpenCv):
    """Bertalmio, Bertozzi and Sapiro 2001, by fluid dynamics."""

    title, flag = "navier-stokes", "INPAINT_NS"


class _Biharmonic(Opponent):
    """``skimage.restoration.inpaint_biharmonic`` in float64."""

    title, module = "biharmonic", "skimage.restoration"

    def fill(self, picture: Tensor, hole: Tensor) -> Tensor:
        pixels = picture.double().permute(1, 2, 0).contiguous().numpy()
        filled = self.library().inpaint_biharmonic(pixels, hole.numpy(), channel_axis=-1)
        return torch.from_numpy(filled).permute(2, 0, 1)


_RADII = (3, 10)
#: By name: the forms in which each competes, of which the best counts, holes by holes.
OPPONENTS: Mapping[str, tuple[Opponent, ...]] = MappingProxyType(
    {
        forms[0].title: forms
        for forms in (
            (_Mean(),),
            tuple(_Telea(radius=radius) for radius in _RADII),
            tuple(_NavierStokes(radius=radius) for radius in _RADII),
            (_Biharmonic(),),
        )
    }
)


class Outcome(NamedTuple):
    """What `compete` returns."""

    report: Report
    #: The form that each bin of the report is of.
    forms: tuple[Opponent, ...]


def check_installed(names: Iterable[str]) -> None:
    """Import what opponents of these names need, before anything is computed.

    Raises:
        ImportError: something is missing; one line says what and how to install it.
    """
    for name in names:
        for form in OPPONENTS[name]:
            form.library()


def compete(
    name: str,
    pictures: PictureDataset,
    *,
    bins: Sequence[Holes] = BINS,
    batch_size: int = 1,
    progress: Callable[[int, int], None] | None = None,
    visit: Callable[[Opponent, int, Tensor, Tensor, Tensor], None] | None = None,
    **options: Any,
) -> Outcome:
    """Measure an opponent, at its best.

    All of its forms are measured; in each bin the one with the highest PSNR over all hole pixels counts, by
    every metric.

    Args:
        name: in `OPPONENTS`.
        pictures, bins, progress: as for `pconv_ext.evaluation.evaluate`; progress is that of all forms.
        batch_size: pictures at a time. They are filled one by one, so progress is heard of best with 1.
        visit: as there, with the form before the other arguments.
        options: others of `pconv_ext.evaluation.evaluate`.

    Returns:
        The report, whose settings have the "opponent" and, of settings in which the forms differ, the value
        in each bin, such as {"radius": {"[0.01, 0.1)": 3, ...}}; and the form of each bin.

    Raises:
        TypeError, ValueError: no such opponent, or as `pconv_ext.evaluation.evaluate`.
        ImportError: an optional dependency is missing.
    """
    choice("opponents.compete", "name", name, tuple(OPPONENTS))
    check_installed([name])
    forms = OPPONENTS[name]
    reports = [
        evaluate(
            form,
            pictures,
            bins=bins,
            batch_size=batch_size,
            progress=progress and partial(_in_part, progress, i, len(forms)),
            visit=visit and partial(visit, form),
            **options,
        )
        for i, form in enumerate(forms)
    ]
    rows = list(zip(*(report.bins for report in reports), strict=True))
    chosen = [_first_best([_rank(one) for one in row]) for row in rows]
    kept = tuple(row[i] for row, i in zip(rows, chosen, strict=True))
    best = tuple(forms[i] for i in chosen)
    settings: dict[str, Any] = {"opponent": name}
    for key in forms[0].settings:
        settings[key] = {one.title: form.settings[key] for one, form in zip(kept, best, strict=True)}
    return Outcome(replace(reports[0], bins=kept, settings=reports[0].settings | settings), best)


def _in_part(progress: Callable[[int, int], None], part: int, parts: int, done: int, total: int) -> None:
    progress(part * total + done, parts * total)


def _first_best(ranks: Sequence[float]) -> int:
    return ranks.index(max(ranks))


def _rank(one: BinMetrics) -> float:
    """What the best form has most of; the first counts where there is nothing to compare."""
    value = one.psnr_holes_pooled
    return -math.inf if value is None or math.isnan(value) else value
