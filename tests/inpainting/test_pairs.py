"""`InpaintingDataset`: pictures with masks, the same whatever the workers."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.pictures import damage, save_photos
from torch.utils.data import DataLoader

from pconv_ext import data, masks
from pconv_ext.data import InpaintingDataset, PictureDataset


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "photos")


def test_pairs_with_rectangles(photos):
    pairs = InpaintingDataset(PictureDataset(data.folder(photos), (32, 40)), seed=3)
    image, mask = pairs[2]
    assert image.shape == (3, 32, 40)
    assert mask.shape == (1, 32, 40)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask, masks.rectangle(32, 40, 3, 2))
    pairs.set_epoch(2)
    assert torch.equal(pairs[2][1], masks.rectangle(32, 40, 3, 2 * 5 + 2))
    fixed = InpaintingDataset(pairs.pictures, seed=3, fixed=True, count=2)
    assert torch.equal(fixed[2][1], masks.rectangle(32, 40, 3, 2, count=2))


def test_pairs_with_bins_keep_their_masks(photos):
    pictures = PictureDataset(data.folder(photos), 32)
    for low, high in masks.BINS:
        pairs = InpaintingDataset(pictures, (low, high), seed=4)
        before = pairs[1][1]
        pairs.set_epoch(7)
        assert torch.equal(before, pairs[1][1])
        assert torch.equal(before, masks.irregular(32, 32, low, high, 4, 1))
        assert low <= masks.hole_ratio(before) < high


def test_pairs_with_a_folder_of_masks(photos, tmp_path):
    root = tmp_path / "masks"
    root.mkdir()
    for i in range(6):
        picture = np.zeros((8, 8), np.uint8)
        picture[i] = 255
        Image.fromarray(picture).save(root / f"{i}.png")
    damage_at = root / "3.png"
    damage_at.write_bytes(b"broken")
    holes = masks.MaskFolder(root, holes="white")
    pictures = PictureDataset(data.folder(photos), 16)
    pairs = InpaintingDataset(pictures, holes, seed=1)

    def draw_all():
        for epoch in range(10):
            pairs.set_epoch(epoch)
            yield from [pairs.mask(i) for i in range(5)]

    with pytest.warns(UserWarning, match=r"a mask is left out.*3\.png") as caught:
        drawn = list(draw_all())
    assert len(caught) == 1
    assert {masks.hole_ratio(mask) for mask in drawn} == {1 / 8}
    assert {int((mask[0, :, 0] == 0).nonzero()[0]) // 2 for mask in drawn} == {0, 1, 2, 4, 5}
    pairs.set_epoch(3)
    assert torch.equal(pairs.mask(2), drawn[3 * 5 + 2])
    for path in root.iterdir():
        path.write_bytes(b"broken")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="none of 6 masks"):
        InpaintingDataset(pictures, masks.MaskFolder(root))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"holes": "circle"}, ValueError, "holes must be one of 'rectangle', 'mixed', got 'circle'"),
        ({"holes": 0.5}, TypeError, "holes must be a pair .* got 0.5"),
        ({"holes": (0.4, 0.3)}, ValueError, "low and high .* got 0.4 and 0.3"),
        ({"holes": (0.001, 0.002)}, ValueError, "whole number of hole pixels"),
        ({"count": 0}, ValueError, "InpaintingDataset: count .* got 0"),
        ({"seed": "a"}, TypeError, "seed .* got str"),
    ],
)
def test_pair_errors(photos, options, error, match):
    with pytest.raises(error, match=match):
        InpaintingDataset(PictureDataset(data.folder(photos), 8), **options)


def collect(dataset, **options):
    images, holes = zip(*DataLoader(dataset, batch_size=2, **options), strict=True)
    return torch.cat(images), torch.cat(holes)


@pytest.mark.parametrize("holes", ["rectangle", (0.1, 0.2)])
def test_same_items_whatever_the_workers(photos, holes):
    damage(photos / "b.png")

    def pairs():
        pictures = PictureDataset(data.folder(photos), 16, crop="random", seed=9)
        return InpaintingDataset(pictures, holes, seed=9)

    dataset = pairs()
    dataset.set_epoch(3)
    with pytest.warns(UserWarning, match="left out"):
        expected = collect(dataset)
    for options in ({"num_workers": 1}, {"num_workers": 2}):
        dataset = pairs()
        dataset.set_epoch(3)
        images, mask = collect(dataset, **options)
        assert torch.equal(images, expected[0])
        assert torch.equal(mask, expected[1])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_persistent_workers_see_the_epoch(photos, context):
    dataset = InpaintingDataset(PictureDataset(data.folder(photos), 16, crop="random"))
    loader = DataLoader(
        dataset, batch_size=5, num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 4, 1):
        dataset.set_epoch(epoch)
        (images, holes), *_ = loader
        expected = [dataset[i] for i in range(5)]
        assert torch.equal(images, torch.stack([image for image, _ in expected]))
        assert torch.equal(holes, torch.stack([mask for _, mask in expected]))
