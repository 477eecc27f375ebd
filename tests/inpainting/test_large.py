"""Large pictures: holes are found, cut out, filled at the scale of training and put back where they were."""

import subprocess
import sys
import warnings
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

import pconv_ext
from pconv_ext import InpaintingNet
from pconv_ext.inpainting.smooth import smooth_fill
from pconv_ext.large import fill_crops, fill_resized

SIZE = 32
Inpainter = partial(pconv_ext.Inpainter, device="cpu")


class Recorder:
    """Fills with a constant, or as `smooth_fill` does, and keeps what it was given."""

    def __init__(self, value=None):
        self.value, self.crops = value, []

    def __call__(self, image, valid):
        assert image.dtype == torch.float32
        assert (image[~valid.expand_as(image)] == 0).all()
        self.crops.append(valid.clone())
        return smooth_fill(image, valid) if self.value is None else torch.full_like(image, self.value)


def holes(height, width, *boxes):
    valid = torch.ones(1, 1, height, width, dtype=torch.bool)
    for top, left, rows, columns in boxes:
        valid[..., top : top + rows, left : left + columns] = False
    return valid


def filled(strategy, fill, pixels, valid, **options):
    result = pixels.clone()
    strategy(fill, result, valid, SIZE, **options)
    return result


def scattered(height, width):
    rng = np.random.default_rng()
    return holes(
        height,
        width,
        *(
            (rng.integers(height), rng.integers(width), rng.integers(1, 60), rng.integers(1, 60))
            for _ in range(rng.integers(1, 12))
        ),
    )


@pytest.mark.parametrize("strategy", [fill_crops, fill_resized])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.float16])
def test_every_hole_is_filled_and_nothing_else(strategy, dtype):
    for _ in range(10):
        height, width = np.random.default_rng().integers(1, 400, 2)
        valid = scattered(height, width)
        pixels = torch.rand(1, 3, height, width)
        pixels = (pixels * 200).to(dtype) if dtype == torch.uint8 else pixels.to(dtype)
        if dtype != torch.uint8:
            pixels = pixels.where(valid, float("nan"))
        result = filled(strategy, Recorder(1.0), pixels, valid)
        assert result.dtype == dtype
        everywhere = valid.expand_as(pixels)
        assert torch.equal(result[everywhere], pixels[everywhere])
        full = torch.full_like(pixels, 255 if dtype == torch.uint8 else 1)
        torch.testing.assert_close(result[~everywhere], full[~everywhere], rtol=0, atol=1e-5)


def test_holes_are_where_they_were():
    """A ramp, which a smooth filling continues, at every scale and in every corner."""
    height, width = 300, 420
    ramp = torch.linspace(0, 1, width).expand(1, 3, height, width) * 0.5
    ramp = ramp + torch.linspace(0, 0.5, height)[:, None]
    for box in (
        (0, 0, 90, 90),
        (200, 330, 100, 90),
        (100, 150, 20, 33),
        (120, 40, 150, 150),
        (5, 200, 1, 200),
    ):
        valid = holes(height, width, box)
        for strategy in (fill_crops, fill_resized):
            error = (filled(strategy, Recorder(), ramp, valid) - ramp)[~valid.expand_as(ramp)].abs()
            limit = 0.05 if box[0] % 200 else 0.15  # in a corner it is not continued, but ends
            assert error.mean() < limit, (box, strategy)


def test_crops_are_as_in_training():
    for width in (3, 8, 20, 50, 130, 299):
        fill = Recorder(0.5)
        fill_crops(fill, torch.zeros(1, 3, 700, 900), holes(700, 900, (350, 400, width, width)), SIZE)
        (valid,) = fill.crops
        least = SIZE if width < 200 else SIZE / 2  # there the picture has no more around it
        assert least <= min(valid.shape[2:]) <= max(valid.shape[2:]) <= 2 * SIZE
        wide = (~valid[0, 0]).any(1).sum().item()
        assert wide == width if width <= SIZE / 4 else SIZE / 8 <= wide <= 1.3 * SIZE / 4 or width > 200


def test_crops_of_long_holes_are_small_too():
    fill = Recorder(0.5)
    valid = holes(
        1000, 1500, (0, 700, 1000, 4), (500, 0, 4, 1500), *((9, x, 5, 5) for x in range(0, 1500, 40))
    )
    result = filled(fill_crops, fill, torch.zeros(1, 3, 1000, 1500), valid)
    assert max(max(crop.shape[2:]) for crop in fill.crops) <= 3 * SIZE
    torch.testing.assert_close(result[0, 0], (~valid[0, 0]).float() / 2)
    # Parts that have been filled are valid for those beside them: more is valid than in the picture.
    assert len(fill.crops) < 150


@pytest.mark.parametrize("strategy", [fill_crops, fill_resized])
def test_holes_are_filled_from_what_is_known(strategy):
    """A picture of 0.2 with a stripe of something else, which is valid and stays, but means nothing."""
    valid, pixels = holes(200, 300, (80, 100, 60, 50)), torch.full((1, 3, 200, 300), 0.2)
    known = valid.clone()
    known[..., :80, :] = False
    pixels[..., :80, :] = 0.9
    result = filled(strategy, Recorder(), pixels, valid, known=known)
    torch.testing.assert_close(result, pixels.where(valid, 0.2))
    assert filled(strategy, Recorder(), pixels, valid)[~valid.expand_as(pixels)].mean() > 0.25


def test_progress():
    heard = []
    valid = holes(600, 600, (10, 10, 20, 20), (10, 400, 20, 20), (500, 100, 9, 9), (520, 112, 9, 9))
    fill_crops(
        Recorder(0.5), torch.zeros(1, 3, 600, 600), valid, SIZE, progress=lambda *step: heard.append(step)
    )
    assert heard == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("residual", [False, True])
def test_pixels_beyond_reach_are_filled_and_told(residual):
    net = InpaintingNet(width=4, msfef_stages=1, depth=2, size=16, residual=residual).eval()
    net.decoder[-1].conv.bias.data.fill_(0.1)
    inpainter, image = Inpainter(net), torch.rand(3, 120, 120) * 0.2 + 0.6
    valid = holes(120, 120, (30, 20, 70, 70))[0]
    with pytest.warns(UserWarning, match=r"\d+\.\d% of the hole pixels are beyond the network's reach"):
        filled = inpainter(image, valid, large="whole")
    middle = filled[:, 50:80, 40:70]
    smooth = smooth_fill(image[None].where(valid, 0), valid[None])[0, :, 50:80, 40:70]
    torch.testing.assert_close(middle, smooth)
    assert middle.mean() == pytest.approx(0.7, abs=0.05)  # before, 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        inpainter(image, valid)
        inpainter(image, valid, large="resize")
    with pytest.raises(ValueError, match="large must be one of 'crop', 'resize', 'whole', got 'tile'"):
        inpainter(image, valid, large="tile")


def flat_net(depth, size=256):
    """Fills with 0.25 what it reaches, and with 0 what it does not."""
    net = InpaintingNet(width=2, msfef_stages=1, depth=depth, size=size).eval()
    net.decoder[-1].conv.weight.data.zero_()
    net.decoder[-1].conv.bias.data.fill_(0.25)
    return net


REACHED = {
    **{f"{side} in 1200x1600": (1200, 1600, (150, 300, side, side)) for side in (300, 400, 600, 900)},
    "a band": (1200, 1600, (100, 0, 1000, 1600)),
    "half": (1200, 1600, (0, 800, 1200, 800)),
    "all but a column": (1200, 1600, (0, 1, 1200, 1599)),
    "a small picture": (512, 512, (5, 5, 490, 490)),
    "a panorama": (100, 4000, (0, 200, 100, 3600)),
    "a slit": (3000, 30, (20, 0, 2960, 30)),
}


@pytest.mark.parametrize("depth", [6, 8])
@pytest.mark.parametrize("case", REACHED)
@pytest.mark.filterwarnings("error", "ignore:.*holes cover")
def test_nothing_is_beyond_reach(case, depth):
    height, width, box = REACHED[case]
    valid = holes(height, width, box)[0]
    filled = Inpainter(flat_net(depth))(torch.full((3, height, width), 0.75), valid)
    torch.testing.assert_close(filled[:, ~valid[0]], torch.tensor(0.25).expand(3, int((~valid).sum())))


@pytest.mark.filterwarnings("error", "ignore:.*holes cover")
def test_nothing_is_beyond_reach_in_transparent_parts():
    """Which tell no more than holes do: what is seen may be far away, and what is there is not counted."""
    inpainter, valid = Inpainter(flat_net(6)), holes(1200, 1600, (500, 700, 60, 60))[0, 0]
    alpha = np.full((1200, 1600), 255, np.uint8)
    alpha[100:1100, 200:1500] = 0
    picture = Image.fromarray(np.dstack([np.full((1200, 1600, 3), 190, np.uint8), alpha]))
    assert (np.array(inpainter(picture, valid.numpy()))[~valid, :3] == 64).all()
    beside = holes(1200, 1600, (40, 40, 30, 30))[0, 0]
    assert (np.array(inpainter(picture, beside.numpy(), large="whole"))[~beside, :3] == 64).all()


def test_where_nothing_is_known():
    for size in (100, 1000):
        with pytest.warns(UserWarning, match=r"100\.0% of the hole pixels are beyond the network's reach"):
            filled = Inpainter(flat_net(6))(torch.rand(3, size, size), torch.zeros(size, size))
        torch.testing.assert_close(filled, torch.full((3, size, size), 0.5))


def test_time_and_memory_follow_the_holes(tmp_path):
    """Of a picture of 24 megapixels only what is around the hole is computed with; and it shows progress."""
    width, height = 6000, 4000
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(tmp_path / "a.jpg")
    mask = Image.new("L", (width, height), 255)
    mask.paste(0, (3000, 2000, 3032, 2032))
    mask.save(tmp_path / "mask.png")
    code = """
import resource, sys
from pconv_ext import Inpainter, InpaintingNet
from pconv_ext.batch import inpaint_files
inpainter = Inpainter(InpaintingNet(width=4, msfef_stages=1, depth=6).eval(), device="cpu")
whole, seen, heard = inpainter.net.reach, [], []
inpainter.net.reach = lambda x, mask: (seen.append(x.shape[2] * x.shape[3]), whole(x, mask))[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
inpaint_files(inpainter, "a.jpg", "mask.png", "b.jpg", progress=lambda *step: heard.append(step))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, sum(seen), heard)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    memory, seen, heard = done.stdout.split(maxsplit=2)
    assert heard == "[(1, 1)]\n"
    assert int(seen) <= 256 * 256
    assert int(memory) * 1024 < 30 * width * height  # before, 290: features of every pixel


def test_small_pictures_are_filled_as_they_are():
    net = InpaintingNet(width=4, msfef_stages=1, depth=3, size=16).eval()
    inpainter, valid = Inpainter(net), holes(32, 30, (10, 10, 9, 9))[0]
    image = torch.rand(2, 3, 32, 30)
    whole = inpainter(image, valid, large="whole")
    for large in ("crop", "resize"):
        assert torch.equal(inpainter(image, valid, large=large), whole)
    wide, valid = torch.rand(2, 3, 20, 33), holes(20, 33, (5, 5, 9, 9))[0]
    one, two = (inpainter(wide[i], valid) for i in range(2))
    assert torch.equal(inpainter(wide, valid), torch.stack([one, two]))
    assert not torch.equal(inpainter(wide, valid, large="resize"), inpainter(wide, valid, large="whole"))
