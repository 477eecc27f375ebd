"""Photographs and masks, the same in every run."""

from __future__ import annotations

import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

PHOTOS = Path(__file__).resolve().parents[1] / "photos"
IMAGE_SIZE = 256


def read_png(path: Path) -> np.ndarray:
    """An 8-bit RGB PNG with row filters none, sub and up, as uint8 [H, W, 3]."""
    data, chunks, at = path.read_bytes(), {b"IDAT": b""}, 8
    while at < len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        chunks[kind] = chunks.get(kind, b"") + body
        at += length + 12
    width, height, *form = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    if form != [8, 2, 0, 0, 0]:
        raise ValueError(f"{path.name}: expected a plain 8-bit RGB PNG, got header fields {form}")
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    image = np.zeros((height, width, 3), np.uint8)
    for y, row in enumerate(rows):
        pixels = row[1:].reshape(width, 3)
        if row[0] == 0:
            image[y] = pixels
        elif row[0] == 1:
            image[y] = np.cumsum(pixels, axis=0, dtype=np.uint8)
        elif row[0] == 2:
            image[y] = image[y - 1] + pixels if y else pixels
        else:
            raise ValueError(f"{path.name}: row {y} has filter {row[0]}, expected 0, 1 or 2")
    return image


def photographs(batch: int, size: int) -> Tensor:
    """[batch, 3, size, size] in [-1, 1]; after the last photograph the first again, flipped or shifted."""
    files = sorted(PHOTOS.glob("*.png"))
    images = []
    for i in range(batch):
        image = torch.from_numpy(read_png(files[i % len(files)])).permute(2, 0, 1).float() / 127.5 - 1
        turn = i // len(files)
        image = image.flip(-1) if turn % 2 else image
        images.append(image.roll((turn // 2 * 37, turn // 2 * 53), dims=(-2, -1)))
    stacked = torch.stack(images)
    if size != stacked.shape[-1]:
        stacked = F.interpolate(stacked, size=(size, size), mode="bilinear", antialias=True)
    return stacked.contiguous()


def irregular_hole(size: int, ratio: float, generator: np.random.Generator) -> np.ndarray:
    """Strokes of a round brush that wanders over the image until `ratio` of it is hole; bool [size, size]."""
    y, x = np.mgrid[:size, :size]
    hole = np.zeros((size, size), bool)
    left = 0
    while hole.mean() < ratio:
        if left == 0:
            left = int(generator.integers(8, 24))
            centre, angle = generator.uniform(0, size, 2), generator.uniform(0, 2 * math.pi)
            radius = generator.uniform(0.015, 0.05) * size
        hole |= (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2
        angle += generator.uniform(-0.6, 0.6)
        centre = (centre + radius * np.array([math.sin(angle), math.cos(angle)])) % size
        left -= 1
    return hole


def make_mask(kind: str, batch: int, size: int) -> Tensor | None:
    """[batch, 1, size, size] float, 1 = valid, or None.

    `kind`: "none"; "rectangle" (the paper's training masks: each side 0.1 to 0.25 of the height); "irregular"
    (hole ratio 0.3 to 0.4) or "irregular:R" (hole ratio R); "quarter" (a hole of a quarter of each side).
    """
    name, _, wanted = kind.partition(":")
    if name == "none":
        return None
    mask = torch.ones(batch, 1, size, size)
    for i in range(batch):
        generator = np.random.default_rng([i, size])
        if name == "rectangle":
            height, width = (generator.uniform(0.1, 0.25, 2) * size).astype(int)
            top, left = generator.integers(0, size - height), generator.integers(0, size - width)
            mask[i, :, top : top + height, left : left + width] = 0
        elif name == "quarter":
            side = size // 4
            mask[i, :, side : 2 * side, side : 2 * side] = 0
        elif name == "irregular":
            ratio = float(wanted) if wanted else generator.uniform(0.31, 0.39)
            mask[i, 0][torch.from_numpy(irregular_hole(size, ratio, generator))] = 0
        else:
            raise ValueError(f"unknown mask {kind!r}")
    return mask
