"""How well a network inpaints: L2, SSIM, PSNR, LPIPS and the PSNR in holes, for each bin of hole ratios.

torchmetrics, of ``pip install 'pconv_ext[train]'``, has SSIM and LPIPS and is imported when `evaluate` runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset

from ._arguments import choice, integer, interval
from ._extras import require
from ._lpips import LEAST_SIZE, load_lpips
from ._ranges import bounded
from .data import InpaintingDataset, PictureDataset, RasterDataset
from .masks import BINS, MaskFolder, find_bin, hole_ratio
from .model import composite

__all__ = ["BinMetrics", "Report", "evaluate", "load_lpips"]

_WINDOW = 11  # of SSIM

#: What a row of a report is about: hole ratios [low, high), or "rectangle".
Holes = str | tuple[float, float]


@dataclass(frozen=True)
class BinMetrics:
    """Metrics of the images whose hole ratio is in [low, high); None is a value that was not measured.

    With `holes` they are those of holes of that kind, whatever their ratio, and low and high are 0 and 1.
    """

    low: float
    high: float
    #: How many images; with none there are no other values.
    images: int
    #: Mean squared error over channels and pixels, of values in [0, 1].
    l2: float | None = None
    #: Of a Gaussian window 11x11 with sigma 1.5, where it lies inside the image.
    ssim: float | None = None
    #: Mean of the images' PSNR in dB; inf if an image equals the truth.
    psnr: float | None = None
    #: PSNR in dB of `l2`, the mean over all images; inf if all equal the truth.
    psnr_pooled: float | None = None
    lpips: float | None = None
    #: Mean of the images' PSNR in dB over hole pixels alone, of the images that have a hole.
    psnr_holes: float | None = None
    #: PSNR in dB of the mean squared error over the hole pixels of all images together.
    psnr_holes_pooled: float | None = None
    #: "rectangle", or empty for irregular masks and those of a folder, which are sorted by their ratio.
    holes: str = ""

    @property
    def title(self) -> str:
        """What tables call these holes: "rectangle", or such as "[0.01, 0.1)"."""
        return self.holes or f"[{self.low:g}, {self.high:g})"


@dataclass(frozen=True)
class Report:
    """What `evaluate` found."""

    bins: tuple[BinMetrics, ...]
    #: Whether the network's output was measured, else the composite.
    raw: bool = False
    #: Why there is no LPIPS; empty if there is.
    lpips_missing: str = ""
    #: Images that were left out, because the ratio of their mask is in no bin.
    outside: int = 0
    #: Pictures that were left out, because they could not be read.
    unreadable: int = 0
    #: How it was measured, of what JSON can hold.
    settings: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return the report as JSON; a number that is not finite is the string "inf" or "nan"."""
        content = {"format": 1, **asdict(self)}
        for metrics in content["bins"]:
            for name, value in metrics.items():
                if isinstance(value, float) and not math.isfinite(value):
                    metrics[name] = str(value)
        return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """Return the report that `to_json` wrote.

        Raises:
            ValueError: the text is something else, or damaged.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != 1:
                raise ValueError("it has another format, of a newer version")
            bins = tuple(BinMetrics(**_numbers(metrics)) for metrics in content.pop("bins"))
            return cls(bins, **content)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Report.from_json: text must be the JSON of a report: {type(error).__name__}: {error}"
            ) from error


def evaluate(
    net: nn.Module,
    pictures: PictureDataset,
    *,
    bins: Sequence[Holes] = BINS,
    holes: MaskFolder | None = None,
    seed: int = 0,
    raw: bool = False,
    lpips: nn.Module | str = "it was not asked for",
    batch_size: int = 16,
    workers: int = 0,
    device: torch.device | str | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    visit: Callable[[int, Tensor, Tensor, Tensor], None] | None = None,
) -> Report:
    """Inpaint pictures and measure how far the results are from the truth.

    What is measured is the composite, truth outside of the holes, clamped to [0, 1]. Values are means over
    images, each measured by itself, so the batch size has no influence but rounding. PSNR in holes is that
    of the hole pixels alone, composite or not: what is outside of them only dilutes the other metrics.

    Rasters are measured as they are scaled, with their ranges at [0, 1], and clamped to that and the range of
    their known values. A gap in the truth
    is a hole for the network; as nobody knows better, its filling counts as true for SSIM and not at all for
    the other metrics.

    Args:
        net: called with images float32 [N, C, H, W] and masks uint8 [N, 1, H, W] for its idea of the images
            [N, C, H, W]; in evaluation mode meanwhile.
        pictures: at least 11x11. One that cannot be read is left out and counted.
        bins: hole ratios [low, high) to report by. One that is "rectangle" in place of a pair stands for the
            masks of `pconv_ext.masks.rectangle`, as the paper trains with, whatever their ratio.
        holes: masks. None makes them, for every picture one in every bin, irregular but for "rectangle";
            from a folder each picture gets one, and is counted in the bin that its mask falls into, or as
            outside of them.
        seed: of the masks, in [0, 2**64): the same masks for every network.
        raw: measure the network's output instead of the composite.
        lpips: of `load_lpips`, or why there is none. Pictures smaller than 31x31 have none either, nor have
            rasters of other than 3 channels.
        batch_size: images at a time.
        workers: processes that read pictures, 0 for none.
        device: where to compute; `net` and `lpips` are moved there. None is where `net` is.
        limit: take the first so many pictures; None for all.
        progress: called with the number of images done and of all.
        visit: called with every image: the index of its bin, truth [C, H, W], mask [1, H, W], result
            [C, H, W].

    Raises:
        TypeError, ValueError: an argument of another type or out of its range, a bin that pictures of this
            size cannot have or that masks of a folder cannot be sorted into, pictures too small.
        ImportError: torchmetrics is missing.
    """
    user = "evaluate"
    height, width = pictures.height, pictures.width
    if min(height, width) < _WINDOW:
        raise ValueError(
            f"{user}: pictures must be at least {_WINDOW}x{_WINDOW}, the window of SSIM, got {height}x{width}"
        )
    if not bins:
        raise ValueError(f"{user}: bins must be pairs [low, high), got none")
    for one in bins:
        if not isinstance(one, str):
            interval(user, "bins", *one, "0 <= low < high <= 1", (0, 1))
            continue
        choice(user, "bins", one, ("rectangle",))
        if holes is not None:
            raise ValueError(f"{user}: bins must be pairs [low, high) for the masks of a folder, got {one!r}")
    integer(user, "batch_size", batch_size, 1)
    integer(user, "workers", workers, 0)
    count = len(pictures) if limit is None else min(integer(user, "limit", limit, 1), len(pictures))
    require(user, "torchmetrics")
    if min(height, width) < LEAST_SIZE and not isinstance(lpips, str):
        lpips = f"it needs at least {LEAST_SIZE}x{LEAST_SIZE} pixels, the pictures are {height}x{width}"

    ranges = pictures.ranges if isinstance(pictures, RasterDataset) else None
    channels = len(pictures[0])
    if channels != 3 and not isinstance(lpips, str):
        lpips = f"it is of pictures with 3 channels, these have {channels}"
    device = torch.device(device) if device is not None else next(net.parameters(), torch.empty(0)).device
    metric, missing = (None, lpips) if isinstance(lpips, str) else (lpips.to(device), "")
    cases = _Cases(pictures, bins, holes, seed)
    loader = DataLoader(
        Subset(cases, range(count)), batch_size, num_workers=workers, pin_memory=device.type == "cuda"
    )
    done, outside, unreadable, total = 0, 0, 0, count * cases.masks_each
    measured: list[list[list[float]]] = [[] for _ in bins]
    with _evaluating(net.to(device)), torch.inference_mode():
        for images, all_masks, all_bins, readable in loader:
            unreadable += int((~readable).sum())
            for masks, places in zip(all_masks.unbind(1), all_bins.unbind(1), strict=True):
                inside = (places >= 0) & readable
                outside += int(((places < 0) & readable).sum())
                if inside.any():
                    truth, mask = images[inside].to(device), masks[inside].to(device)
                    mask = mask & truth.isfinite().all(1, keepdim=True)
                    result = bounded(net(truth, mask), truth, mask != 0, ranges)
                    result = result if raw else composite(result, truth, mask)
                    values = _measure(result, truth, mask, metric).tolist()
                    for i, place in enumerate(places[inside].tolist()):
                        measured[place].append(values[i])
                        if visit:
                            visit(place, truth[i], mask[i], result[i])
                done += len(places)
                if progress:
                    progress(done, total)
    settings = {
        "pictures": count,
        "height": height,
        "width": width,
        "masks": _kinds(bins) if holes is None else f"one of {len(holes)} files for each picture",
        "seed": seed,
    }
    means = tuple(_mean(one, rows) for one, rows in zip(bins, measured, strict=True))
    return Report(means, raw, missing, outside, unreadable, settings)


class _Cases(Dataset[tuple[Tensor, Tensor, Tensor, bool]]):
    """Each picture [3, H, W], its M masks [M, 1, H, W], their bins [M], -1 for none, and if it was read."""

    def __init__(
        self,
        pictures: PictureDataset,
        bins: Sequence[Holes],
        holes: MaskFolder | None,
        seed: int,
    ) -> None:
        self.pictures = pictures
        self.bins = [one for one in bins if not isinstance(one, str)]  # all of them for a folder
        self.from_folder = holes is not None
        kinds: Sequence[Holes | MaskFolder] = bins if holes is None else [holes]
        self.sets = [InpaintingDataset(pictures, kind, fixed=True, seed=seed) for kind in kinds]
        self.masks_each = len(self.sets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor, bool]:
        masks = torch.stack([one.mask(index) for one in self.sets])
        places = torch.arange(self.masks_each)
        if self.from_folder:
            place = find_bin(hole_ratio(masks), self.bins)
            places = torch.tensor([-1 if place is None else place])
        return self.pictures[index], masks, places, not self.pictures.is_stand_in(index)


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode; then every module as it was, a frozen one among others in training too."""
    before = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _measure(result: Tensor, truth: Tensor, mask: Tensor, lpips: nn.Module | None) -> Tensor:
    """L2, SSIM, the squared error of all values in holes, their number and, if there is such a module, LPIPS
    of each image: float64 [N, 4 or 5].
    """
    known = truth.isfinite()
    truth = torch.where(known, truth, result)
    squares = (result.double() - truth.double()).square()
    hole = (mask == 0) & known
    inside = torch.where(hole, squares, 0).sum((1, 2, 3))
    l2 = squares.sum((1, 2, 3)) / known.sum((1, 2, 3)).clamp(min=1)
    values = [l2, _ssim(result, truth), inside, hole.sum((1, 2, 3))]
    if lpips is not None:
        values.append(lpips(2 * result - 1, 2 * truth - 1))
    return torch.stack([value.double() for value in values], 1)


def _ssim(result: Tensor, truth: Tensor) -> Tensor:
    # The variances are differences of convolutions, which on GPUs may be in TF32, where they would be lost.
    # On CPUs float64 takes ten times as long and changes SSIM by 3e-5 at most, in flat pictures.
    if result.is_cuda:
        result, truth = result.double(), truth.double()
    similarity = require("evaluate", "torchmetrics.functional.image").structural_similarity_index_measure
    _, full = similarity(result, truth, data_range=1.0, reduction="none", return_full_image=True)
    # The mean is taken here, since versions of torchmetrics differ in whether theirs has the padded border.
    border = _WINDOW // 2
    inside: Tensor = full[:, :, border:-border, border:-border]
    return inside.mean((1, 2, 3))


def _mean(holes: Holes, rows: list[list[float]]) -> BinMetrics:
    edges, kind = ((0.0, 1.0), holes) if isinstance(holes, str) else (holes, "")
    if not rows:
        return BinMetrics(*edges, 0, holes=kind)
    errors, ssim, squares, counts, *lpips = zip(*rows, strict=True)
    l2 = _average(errors)
    in_holes = [(square, count) for square, count in zip(squares, counts, strict=True) if count]
    return BinMetrics(
        *edges,
        len(rows),
        l2,
        _average(ssim),
        _average(map(_decibels, errors)),
        _decibels(l2),
        _average(lpips[0]) if lpips else None,
        psnr_holes=_average(_decibels(square / count) for square, count in in_holes) if in_holes else None,
        psnr_holes_pooled=_decibels(math.fsum(squares) / math.fsum(counts)) if in_holes else None,
        holes=kind,
    )


def _average(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


def _decibels(mean_square: float) -> float:
    """PSNR of values in [0, 1]; inf of no error."""
    return -10 * math.log10(mean_square) if mean_square else math.inf


def _kinds(bins: Sequence[Holes]) -> str:
    return " and ".join(dict.fromkeys(one if isinstance(one, str) else "irregular" for one in bins))


def _numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Check the types of a bin's values in JSON, strings being "inf" and "nan"."""
    kind = metrics.pop("holes", "")
    if not isinstance(kind, str):
        raise TypeError(f"holes must be a string, got {kind!r}")
    values = {name: float(value) if isinstance(value, str) else value for name, value in metrics.items()}
    for one in fields(BinMetrics):
        if one.name == "holes":
            continue
        # Reports of before there was a PSNR in holes have none.
        value = values.get(one.name) if one.name.startswith("psnr_holes") else values[one.name]
        if not isinstance(value, (int, float)) and not (value is None and one.default is None):
            raise TypeError(f"{one.name} must be a number, got {value!r}")
    return {**values, "holes": kind}
