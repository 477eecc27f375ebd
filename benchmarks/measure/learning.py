"""Shows that the network learns: a narrow one, minutes of training on a CPU, against a mean in every hole.

Trains with the paper's losses, under irregular strokes, on the pictures in TRAIN and measures on those in
VAL, which only the learning rate and the choice of the epoch depend on. Writes learning.json, with the loss
of every epoch, and learning.png, with this repository's three photographs, which are in neither folder.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from measure.inputs import PHOTOS
from measure.machine import machine
from pconv_ext import InpaintingNet, composite, masks
from pconv_ext.checkpoint import load_net
from pconv_ext.data import InpaintingDataset, PictureDataset, folder
from pconv_ext.inpainting import figures
from pconv_ext.inpainting.training.run_folder import RunFolder
from pconv_ext.training import train

SETTINGS: dict[str, Any] = {
    "size": 64,
    "width": 32,
    "depth": 6,
    "msfef_stages": 4,
    "batch_size": 16,
    "patience": 3,
    "holes": "irregular",
    "precision": "bfloat16",
}
MASK_SEED = 7
ENLARGED = 3  # times, in the picture

Fill = Callable[[Tensor, Tensor], Tensor]


def mean_fill(image: Tensor, mask: Tensor) -> Tensor:
    """Every hole filled with the mean of its image's valid pixels, channel by channel."""
    valid = mask != 0
    mean = torch.where(valid, image, 0).sum((2, 3), keepdim=True) / valid.sum((2, 3), keepdim=True)
    return torch.where(valid, image, mean)


def net_fill(net: InpaintingNet) -> Fill:
    def fill(image: Tensor, mask: Tensor) -> Tensor:
        with torch.inference_mode():
            return composite(net(image, mask).clamp(0, 1), image, mask)

    return fill


def psnr_in_holes(dataset: InpaintingDataset, fill: Fill) -> dict[str, float]:
    """PSNR in dB over hole pixels alone: of all images' together, and the mean of the images'."""
    errors, counts = [], []
    for image, mask in dataset:
        squares = (fill(image[None], mask[None])[0].double() - image.double()).square()
        errors.append(squares[:, mask[0] == 0].sum().item())
        counts.append(3 * int((mask == 0).sum()))
    each = [-10 * math.log10(max(error, 1e-10) / count) for error, count in zip(errors, counts, strict=True)]
    return {
        "pooled": -10 * math.log10(math.fsum(errors) / math.fsum(counts)),
        "mean": math.fsum(each) / len(each),
    }


def compare(pictures: PictureDataset, fills: dict[str, Fill]) -> list[dict[str, Any]]:
    rows = []
    kinds: list[tuple[str, Any]] = [("rectangle", "rectangle")]
    kinds += [(f"irregular [{low:g}, {high:g})", (low, high)) for low, high in masks.BINS]
    for name, holes in kinds:
        dataset = InpaintingDataset(pictures, holes, fixed=True, seed=MASK_SEED)
        found = {key: psnr_in_holes(dataset, fill) for key, fill in fills.items()}
        gain = found["network"]["pooled"] - found["mean fill"]["pooled"]
        rows.append({"holes": name, "images": len(dataset), **found, "gain_db": gain})
        print(f"{name:24} network {found['network']['pooled']:6.2f} dB  gain {gain:+.2f} dB", flush=True)
    return rows


def picture(fills: dict[str, Fill], size: int) -> Any:
    """Rows truth | masked | mean fill | network, for a rectangle and for strokes."""
    pictures = PictureDataset(folder(PHOTOS), size)
    rows = []
    for holes in ("rectangle", masks.BINS[1]):
        for image, mask in InpaintingDataset(pictures, holes, fixed=True, seed=MASK_SEED):
            row = figures.triptych(image, mask, fills["mean fill"](image[None], mask[None])[0])
            row.append(fills["network"](image[None], mask[None])[0])
            rows.append([part.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2) for part in row])
    return figures.grid(rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("train", help="folder of pictures")
    parser.add_argument("val", help="folder of pictures to measure on")
    parser.add_argument("--vgg16", help="file of VGG-16's weights")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("-o", "--output", type=Path, required=True)


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    settings = SETTINGS | {"data": options.train, "val": options.val, "epochs": options.epochs}
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        train(settings | {"vgg16": options.vgg16}, scratch, device="cpu")
        seconds = time.perf_counter() - begun
        net, history = load_net(scratch), RunFolder(scratch).load()["progress"]["history"]
    fills = {"network": net_fill(net), "mean fill": mean_fill}
    size = SETTINGS["size"]
    rows = compare(PictureDataset(folder(options.val), size), fills)
    options.output.mkdir(parents=True, exist_ok=True)
    picture(fills, size).save(options.output / "learning.png", optimize=True)
    content = {
        "machine": machine("cpu"),
        "settings": SETTINGS | {"epochs": options.epochs},
        "training_seconds": seconds,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "psnr_in_holes": rows,
        "history": history,
    }
    (options.output / "learning.json").write_text(json.dumps(content, indent=1) + "\n")
