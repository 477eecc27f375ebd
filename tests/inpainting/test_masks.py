import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from support.inpainters import make_net
from support.pictures import noise

from pconv_ext import Inpainter, data, masks
from pconv_ext.batch import inpaint_files
from pconv_ext.inpainter import FillOptions


def ratio_of(mask):
    return np.count_nonzero(mask.numpy() == 0) / mask.numel()


@pytest.mark.parametrize(("low", "high"), masks.BINS)
def test_thousand_masks_in_each_bin(low, high):
    sizes = [(64, 64), (32, 48), (17, 90), (10, 10), (96, 31)]
    ratios = []
    for index in range(1000):
        height, width = sizes[index % len(sizes)]
        mask = masks.irregular(height, width, low, high, 5, index)
        assert mask.dtype == torch.uint8
        assert mask.shape == (1, height, width)
        assert mask.max() <= 1
        ratios.append(ratio_of(mask))
    assert min(ratios) >= low
    assert max(ratios) < high
    # The bin is filled, not only hit: of 1000 uniform numbers the mean is within 5 sigma of the middle.
    # 10x10 and the like have few counts to choose from, none of which can be `high` itself.
    slack = 5 * (high - low) / 12**0.5 / 1000**0.5 + 0.005
    assert abs(np.mean(ratios) - (low + high) / 2) < slack


@pytest.mark.parametrize(
    ("height", "width", "low", "high"),
    [
        (1, 11, 0.01, 0.1),
        (11, 1, 0.4, 0.5),
        (1, 1, 0.0, 0.5),
        (2, 2, 0.25, 0.26),
        (3, 7, 0.9, 1.0),
        (256, 256, 0.1, 0.1001),
        (10, 10, 0.29, 0.3),  # 0.29 * 100 is below 29 in float64
        (300, 7, 0.2, 0.3),
    ],
)
def test_bins_hold_at_the_edges(height, width, low, high):
    for index in range(20):
        assert low <= ratio_of(masks.irregular(height, width, low, high, 1, index)) < high


def test_holes_are_as_likely_at_borders_as_inside():
    height, width, count = 24, 36, 1500
    total = torch.zeros(height, width)
    for index in range(count):
        total += 1 - masks.irregular(height, width, 0.2, 0.3, 2, index)[0].float()
    likely = total / count
    # Every pixel by itself: 5.5 deviations of a share of 1500 draws.
    expected = likely.mean()
    assert (likely - expected).abs().max() < 5.5 * (expected * (1 - expected) / count) ** 0.5


def test_strokes_are_connected():
    """No salt and pepper: nearly every hole pixel has a hole pixel beside it."""
    for index in range(20):
        hole = masks.irregular(128, 128, 0.1, 0.2, 0, index)[0] == 0
        beside = sum(torch.roll(hole, shift, dim).int() for shift in (1, -1) for dim in (0, 1))
        assert (beside[hole] >= 2).float().mean() > 0.98


def test_rectangle():
    shapes = set()
    for index in range(300):
        mask = masks.rectangle(80, 100, 3, index)
        assert mask.dtype == torch.uint8
        assert mask.shape == (1, 80, 100)
        rows, columns = torch.nonzero(mask[0] == 0, as_tuple=True)
        height, width = int(rows.max() - rows.min()) + 1, int(columns.max() - columns.min()) + 1
        assert len(rows) == height * width
        shapes.add((height, width))
    assert {height for height, _ in shapes} == set(range(8, 21))
    assert {width for _, width in shapes} == set(range(8, 21))


def test_rectangles():
    one, three = masks.rectangle(64, 64, 0, 0), masks.rectangle(64, 64, 0, 0, count=3)
    assert ratio_of(three) > ratio_of(one)
    assert ratio_of(masks.rectangle(10, 4, 0, 0, low=1.0, high=1.0)) == 1
    assert ratio_of(masks.rectangle(1, 1, 0, 0)) == 1


@pytest.mark.parametrize(
    "make", [lambda s, i: masks.rectangle(64, 48, s, i), lambda s, i: masks.irregular(64, 48, 0.1, 0.2, s, i)]
)
def test_depends_on_seed_and_index_alone(make):
    first = make(7, 3)
    np.random.seed(0)
    torch.manual_seed(0)
    make(1, 1)
    assert torch.equal(make(7, 3), first)
    assert not torch.equal(make(7, 4), first)
    assert not torch.equal(make(8, 3), first)
    assert not torch.equal(make(3, 7), first)
    assert not torch.equal(make(2**63, 2**40), make(2**63, 0))


def test_same_mask_in_another_process():
    code = """
import hashlib
from pconv_ext import masks
made = masks.irregular(64, 64, 0.2, 0.3, 11, 5), masks.rectangle(64, 64, 11, 5)
digest = hashlib.sha256(b"".join(mask.numpy().tobytes() for mask in made)).hexdigest()
"""
    here = {}
    exec(code, here)
    there = subprocess.run(
        [sys.executable, "-c", code + "print(digest)"], check=True, capture_output=True, text=True
    )
    assert there.stdout.strip() == here["digest"]


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: masks.rectangle(0, 5, 0, 0), ValueError, r"masks.rectangle: height .* at least 1, got 0"),
        (lambda: masks.rectangle(5, 2.5, 0, 0), TypeError, "width must be an int .* got float"),
        (lambda: masks.rectangle(5, True, 0, 0), TypeError, "width must be an int .* got True"),
        (lambda: masks.rectangle(5, 5, -1, 0), ValueError, "seed .* got -1"),
        (lambda: masks.rectangle(5, 5, 0, 2**64), ValueError, "index .* got 18446744073709551616"),
        (lambda: masks.rectangle(5, 5, 0, 0, count=0), ValueError, "count .* got 0"),
        (lambda: masks.rectangle(5, 5, 0, 0, low=0.5, high=0.2), ValueError, "low and high .* 0.5 and 0.2"),
        (lambda: masks.irregular(5, 5, 0.1, 1.5, 0, 0), ValueError, "masks.irregular: low and high .* 1.5"),
        (lambda: masks.irregular(5, 5, "a", 0.5, 0, 0), TypeError, "low and high .* got 'a' and 0.5"),
        (lambda: masks.irregular(5, 5, float("nan"), 0.5, 0, 0), ValueError, "got nan and 0.5"),
        (lambda: masks.irregular(3, 3, 0.01, 0.1, 0, 0), ValueError, r"\[0.01, 0.1\) for 3x3, .* pixels"),
        (lambda: masks.irregular(9, 9, 0.2, 0.2, 0, 0), ValueError, "whole number of hole pixels"),
        (lambda: masks.hole_ratio([1]), TypeError, "mask must be a tensor, got list"),
        (lambda: masks.hole_ratio(torch.ones(0)), ValueError, "must have elements"),
        (lambda: masks.load("x.png", holes="grey"), ValueError, "holes must be one of .* got 'grey'"),
        (lambda: masks.load("x.png", threshold=256), ValueError, r"threshold .* \[0, 256\), got 256"),
        (lambda: masks.load("x.png", 5), ValueError, "both or neither, got 5 and None"),
        (lambda: masks.load("x.png"), ValueError, "cannot read picture x.png: No such file"),
        (lambda: masks.load(5), TypeError, "path or a PIL image, got int"),
    ],
)
def test_errors(call, error, match):
    with pytest.raises(error, match=match):
        call()


def test_ratio_and_bin():
    mask = torch.ones(1, 10, 10, dtype=torch.bool)
    mask[0, 0] = False
    assert masks.hole_ratio(mask) == 0.1
    assert masks.find_bin(0.1) == 1
    assert masks.find_bin(0.0999) == 0
    assert masks.find_bin(0.5) is None


def test_mask_pictures(tmp_path):
    grey = np.array([[0, 127, 128, 255]], np.uint8)
    Image.fromarray(grey).save(tmp_path / "b.png")
    Image.fromarray(grey).convert("1", dither=Image.Dither.NONE).save(tmp_path / "c.png")
    rgba = np.dstack([np.full((1, 4, 3), 99, np.uint8), np.array([[0, 0, 255, 255]], np.uint8)])
    Image.fromarray(rgba).save(tmp_path / "a.png")  # transparent parts are holes
    assert masks.load(tmp_path / "b.png").tolist() == [[[0, 0, 1, 1]]]
    assert masks.load(tmp_path / "b.png", holes="white").tolist() == [[[1, 1, 0, 0]]]
    assert masks.load(tmp_path / "b.png", threshold=126).tolist() == [[[0, 1, 1, 1]]]
    folder = masks.MaskFolder(tmp_path)
    assert len(folder) == 3
    assert all(folder[i].tolist() == [[[0, 0, 1, 1]]] for i in range(3))
    scaled = folder.get(1, 4, 8)
    assert scaled.dtype == torch.uint8
    assert scaled.tolist() == [[[0, 0, 0, 0, 1, 1, 1, 1]] * 4]
    assert masks.MaskFolder(tmp_path, holes="white")[0].tolist() == [[[1, 1, 0, 0]]]
    assert masks.load(Image.fromarray(grey)).tolist() == [[[0, 0, 1, 1]]]
    for values, kind in (([[0, 0, 1, 1]], np.uint8), ([[0, 0, 1, 1]], np.int32), ([[0, 0, 1, 1]], np.uint16)):
        assert masks.load(Image.fromarray(np.array(values, kind))).tolist() == [[[0, 0, 1, 1]]]
    deep = Image.fromarray(grey.astype(np.uint16) * 257)
    assert masks.load(deep).tolist() == [[[0, 0, 1, 1]]]
    every = Image.fromarray(np.dstack([grey, np.full_like(grey, 255)]), "LA")  # opaque: grey counts
    assert masks.load(every).tolist() == [[[0, 0, 1, 1]]]
    palette = Image.fromarray(grey).convert("P")
    assert masks.load(palette).tolist() == [[[0, 0, 1, 1]]]
    with pytest.raises(IndexError, match=r"\[0, 3\), got 3"):
        folder[3]
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere"):
        masks.MaskFolder(tmp_path / "nowhere")


VALID = np.ones((12, 16), bool)
VALID[3:7, 5:11] = False
NOISE = np.random.default_rng(0).integers(0, 256, (*VALID.shape, 3), np.uint8)


def through(tmp_path, picture, name="mask.png", **options):
    """What `masks.load` and a folder of masks make of a picture that is saved."""
    (tmp_path / "masks").mkdir(exist_ok=True)
    file = tmp_path / "masks" / name
    picture.save(file, **options)
    loaded = masks.load(file)
    assert torch.equal(masks.MaskFolder(tmp_path / "masks")[0], loaded)
    assert torch.equal(masks.load(file, holes="white"), 1 - loaded)
    file.unlink()
    return loaded[0].bool().numpy()


def with_alpha(colours, alpha):
    return Image.fromarray(np.dstack([colours, np.asarray(alpha, np.uint8)]))


@pytest.mark.parametrize("faint", [0, 40])
@pytest.mark.parametrize(("name", "options"), [("m.png", {}), ("m.tif", {}), ("m.webp", {"lossless": True})])
def test_transparent_parts_are_holes_whatever_the_colours(tmp_path, name, options, faint):
    alpha = np.where(VALID, 255, faint)
    for colours in (NOISE, NOISE * 0, NOISE * 0 + 255, np.where(VALID[..., None], np.uint8(0), NOISE)):
        picture = with_alpha(colours, alpha)
        assert (through(tmp_path, picture, name, **options) == VALID).all()
        if not name.endswith("webp"):
            assert (through(tmp_path, picture.convert("LA"), name) == VALID).all()


def test_transparent_parts_of_palettes_and_of_one_colour(tmp_path):
    indices = Image.fromarray(VALID.astype(np.uint8), "P")
    indices.putpalette([255, 255, 255, 0, 0, 0])
    for name in ("m.png", "m.gif"):
        assert (through(tmp_path, indices, name, transparency=0) == VALID).all()
    grey = Image.fromarray(np.where(VALID, 10, 200).astype(np.uint8))
    assert (through(tmp_path, grey, transparency=200) == VALID).all()
    black = Image.fromarray(np.where(VALID[..., None], 10, 200).astype(np.uint8).repeat(3, 2))
    assert (through(tmp_path, black, transparency=(200, 200, 200)) == VALID).all()


@pytest.mark.parametrize("alpha", [255, 254, 0])
def test_where_nothing_or_all_is_transparent_colours_count(tmp_path, alpha):
    colours = np.where(VALID[..., None], 255, 0).repeat(3, 2).astype(np.uint8)
    soft = np.full(VALID.shape, alpha, np.uint8)
    soft[0, 0] = min(255, alpha + (alpha > 0))  # no part of it is rather transparent
    assert (through(tmp_path, with_alpha(colours, soft)) == VALID).all()


@pytest.mark.parametrize("name", ["m.png", "m.bmp", "m.tif", "m.webp", "m.jp2"])
def test_of_zeros_and_ones_ones_are_valid(tmp_path, name):
    options = {"lossless": True} if name == "m.webp" else {}
    ones = VALID.astype(np.uint8)
    for values in (ones, ones[..., None].repeat(3, 2)):
        assert (through(tmp_path, Image.fromarray(values), name, **options) == VALID).all()
    every = Image.fromarray(ones * 0 + 1)
    assert through(tmp_path, every, name, **options).all()  # of a set of such masks
    assert not through(tmp_path, Image.fromarray(ones * 0), name, **options).any()


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("full", [1, 255, 65535])
def test_more_bits(tmp_path, kind, full):
    """Whatever is white: files of 16 and 32 bits hold masks of 0 and 1, or 255, as often."""
    values = (VALID * full).astype(kind)
    if kind == np.float32 and full > 1:
        with pytest.raises(ValueError, match=rf"mode F must be in \[0, 1\], got {full}"):
            masks.load(Image.fromarray(values))
        return
    assert (through(tmp_path, Image.fromarray(values), "m.tif") == VALID).all()


def test_zeros_and_ones_in_a_data_set(tmp_path):
    noise(12, 16).save(tmp_path / "a.png")
    (tmp_path / "masks").mkdir()
    Image.fromarray(VALID.astype(np.uint8)).save(tmp_path / "masks" / "m.png")
    pictures = data.PictureDataset(data.folder(tmp_path), (12, 16))
    pairs = data.InpaintingDataset(pictures, masks.MaskFolder(tmp_path / "masks"))
    assert (pairs[0][1][0].numpy() == VALID).all()


def test_all_hole_is_told_with_what_can_help(tmp_path):
    """Values of 0 and 100, say: the opposite of the mask would be all hole too."""
    inpainter, dark = Inpainter(make_net(), device="cpu"), Image.fromarray((VALID * 100).astype(np.uint8))
    with pytest.warns(UserWarning, match="holes cover all of the picture; .* above 127 are valid.* --thres"):
        inpainter(NOISE, dark)
    filled = inpainter(NOISE, dark, threshold=0)
    assert (filled[VALID] == NOISE[VALID]).all()


def test_blurred_masks_leave_no_rim(tmp_path):
    """With a threshold near white, or grown, holes have all that was covered at all."""
    sharp = np.full((60, 60), 255, np.uint8)
    sharp[20:40, 20:40] = 0
    mask = Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(3))
    covered = np.array(mask) < 255
    assert covered.sum() > 1.5 * (sharp == 0).sum()
    mask.save(tmp_path / "mask.png")
    picture = np.zeros((60, 60, 3), np.uint8)
    picture[covered] = 255, 0, 0
    Image.fromarray(picture).save(tmp_path / "a.png")
    net = make_net()
    net.decoder[-1].conv.weight.data.zero_()  # it fills with grey
    inpainter = Inpainter(net, device="cpu")
    for options, rim in (
        (FillOptions(), True),
        (FillOptions(threshold=254), False),
        (FillOptions(dilate=9), False),
        (FillOptions(threshold=254, feather=2), False),
    ):
        inpaint_files(inpainter, tmp_path / "a.png", tmp_path / "mask.png", tmp_path / "b.png", options)
        filled = np.array(Image.open(tmp_path / "b.png"))
        assert (filled[covered] == (255, 0, 0)).all(1).any() == rim
        if not options.dilate:
            assert (filled[~covered] == 0).all()
