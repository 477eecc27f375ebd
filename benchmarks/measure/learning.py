"""Shows that the network learns: a narrow one, minutes of training on a CPU, beside what costs nothing.

Trains with the paper's losses, under irregular strokes, on the pictures in TRAIN and measures on those in
VAL, which only the learning rate and the choice of the epoch depend on. Beside it are a mean in every hole
and, where they are installed, the other opponents of `pconv_ext.opponents`. Writes learning.json, with the
loss of every epoch, and learning.png, with this repository's three photographs, which are in neither folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from measure.inputs import PHOTOS
from measure.machine import machine
from pconv_ext import composite, masks
from pconv_ext.checkpoint import load_net
from pconv_ext.data import InpaintingDataset, PictureDataset, folder
from pconv_ext.evaluation import BinMetrics, evaluate
from pconv_ext.inpainting import figures
from pconv_ext.inpainting.training.run_folder import RunFolder
from pconv_ext.opponents import OPPONENTS, check_installed, compete
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

#: What it is called in the records.
MEAN = "mean fill"


def installed() -> tuple[list[str], dict[str, str]]:
    """The names of the opponents that can run here, and why others cannot."""
    names, missing = [], {}
    for name in OPPONENTS:
        try:
            check_installed([name])
        except ImportError as error:
            missing[name] = str(error)
        else:
            names.append(name)
    return names, missing


def in_holes(one: BinMetrics) -> dict[str, Any]:
    """PSNR in dB over hole pixels alone: of all images' together, and the mean of the images'."""
    return {"pooled": one.psnr_holes_pooled, "mean": one.psnr_holes}


def compare(pictures: PictureDataset, net: nn.Module, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each kind of holes, printed as well: the network, opponents of these names, its gain."""
    options: dict[str, Any] = {"bins": ("rectangle", *masks.BINS), "seed": MASK_SEED}
    report = evaluate(net, pictures, **options)
    outcomes = {name: compete(name, pictures, **options) for name in names}
    rows = []
    for place, one in enumerate(report.bins):
        found = {"network": in_holes(one)}
        for name, outcome in outcomes.items():
            key = MEAN if name == "mean" else name
            found[key] = in_holes(outcome.report.bins[place]) | outcome.forms[place].settings
        gain = found["network"]["pooled"] - found[MEAN]["pooled"]
        title = one.title if one.holes else f"irregular {one.title}"
        rows.append({"holes": title, "images": one.images, **found, "gain_db": gain})
        numbers = "  ".join(f"{name} {values['pooled']:6.2f} dB" for name, values in found.items())
        print(f"{title:24} {numbers}  gain over the mean {gain:+.2f} dB", flush=True)
    return rows


def picture(net: nn.Module, size: int) -> Any:
    """Rows truth | masked | mean fill | network, for a rectangle and for strokes."""
    pictures = PictureDataset(folder(PHOTOS), size)
    (mean,) = OPPONENTS["mean"]
    rows = []
    for holes in ("rectangle", masks.BINS[1]):
        for image, mask in InpaintingDataset(pictures, holes, fixed=True, seed=MASK_SEED):
            images, drawn = image[None], mask[None]
            row = figures.triptych(image, mask, mean(images, drawn)[0])
            with torch.inference_mode():
                output = net(images, drawn).clamp(0, 1)
            row.append(composite(output, images, drawn)[0])
            rows.append([part.repeat_interleave(ENLARGED, 1).repeat_interleave(ENLARGED, 2) for part in row])
    return figures.grid(rows)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("train", help="folder of pictures")
    parser.add_argument("val", help="folder of pictures to measure on")
    parser.add_argument("--vgg16", help="file of VGG-16's weights")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("-o", "--output", type=Path, required=True)


def main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    names, missing = installed()
    for reason in missing.values():
        print(f"not compared with: {reason}", flush=True)
    settings = SETTINGS | {"data": options.train, "val": options.val, "epochs": options.epochs}
    with tempfile.TemporaryDirectory() as scratch:
        begun = time.perf_counter()
        train(settings | {"vgg16": options.vgg16}, scratch, device="cpu")
        seconds = time.perf_counter() - begun
        net, history = load_net(scratch), RunFolder(scratch).load()["progress"]["history"]
    size = SETTINGS["size"]
    rows = compare(PictureDataset(folder(options.val), size), net, names)
    options.output.mkdir(parents=True, exist_ok=True)
    picture(net, size).save(options.output / "learning.png", optimize=True)
    content = {
        "machine": machine("cpu"),
        "settings": SETTINGS | {"epochs": options.epochs},
        "training_seconds": seconds,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
        "psnr_in_holes": rows,
        "not_compared_with": missing,
        "history": history,
    }
    (options.output / "learning.json").write_text(json.dumps(content, indent=1) + "\n")
