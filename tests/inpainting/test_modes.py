"""Pictures of every mode come back in it: holes filled, all else as it was."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from support.inpainters import PIXELS, VALID, H, W, expected, make_net

import pconv_ext
from pconv_ext.inpainting._morphology import dilated

Inpainter = partial(pconv_ext.Inpainter, device="cpu")
DEEP = {"I": np.int32, "I;16": np.dtype("<u2"), "I;16B": np.dtype(">u2")}
#: How a picture is turned to be upright, by the EXIF orientation, as operations of NumPy on [H, W, C].
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}


def picture_of(mode, pixels=PIXELS):
    if mode in DEEP:
        return Image.fromarray((pixels[..., 0] * 257.0).astype(DEEP[mode]))
    if mode == "F":
        return Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    picture = Image.fromarray(pixels)
    return picture.quantize(40) if mode == "P" else picture.convert(mode)


@pytest.fixture
def half():
    """Fills holes with 0.5."""
    net = make_net()
    net.decoder[-1].conv.weight.data.zero_()
    net.decoder[-1].conv.bias.data.fill_(0.5)
    return Inpainter(net)


@pytest.mark.parametrize("orientation", [None, *UPRIGHT])
@pytest.mark.parametrize(
    "mode", ["1", "L", "P", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "F", "I", "I;16", "I;16B"]
)
def test_only_holes_change(half, mode, orientation):
    picture = picture_of(mode)
    assert picture.mode == mode
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture.info["exif"] = exif.tobytes()
    picture.info |= {"dpi": (72, 72), "icc_profile": b"profile"}
    before, stored = np.array(picture), dict(picture.info)
    turn = UPRIGHT[orientation or 1]
    upright = turn(np.arange(H * W).reshape(H, W))  # the numbers of the stored pixels, where they are seen
    valid = np.resize(VALID, upright.shape)
    filled = half(picture, valid)
    assert (filled.mode, filled.size, filled.info) == (mode, picture.size, stored)
    hole = np.zeros(H * W, bool)
    hole[upright[~valid]] = True
    hole = hole.reshape(H, W)
    after = np.array(filled)
    assert_array_equal(after[~hole], before[~hole])
    grey = {"F": 0.5, "I": 32768, "I;16": 32768, "I;16B": 32768, "1": True}.get(mode)
    if grey is not None:
        np.testing.assert_allclose(after[hole], grey, atol=1)
    else:
        seen = np.array(filled.convert("RGB"))[hole].astype(int)
        assert np.abs(seen - 128).max() <= (60 if mode == "P" else 2)
    if mode in ("LA", "RGBA"):
        assert (after[hole][:, -1] == 255).all()
    assert_array_equal(np.array(picture), before)


def test_transparent_parts_have_no_influence(half):
    net = make_net()
    alpha = np.full((H, W), 255, np.uint8)
    alpha[:3], alpha[12:15, 5:25] = 0, 0
    garbage = np.where(alpha[..., None] == 0, np.random.default_rng().integers(0, 256, (H, W, 3)), PIXELS)
    picture = Image.fromarray(np.dstack([garbage, alpha]).astype(np.uint8))
    filled = np.array(Inpainter(net)(picture, VALID))
    known = VALID & (alpha != 0)
    assert_array_equal(filled[~VALID, :3], expected(net, PIXELS, known)[~VALID])
    assert_array_equal(filled[VALID], np.array(picture)[VALID])
    assert filled[4:12, 7:20, 3].min() < filled[4:12, 7:20, 3].max()  # as it is beside the hole


def test_palettes_take_the_nearest_colour_that_is_seen(half):
    picture = Image.new("P", (20, 20), 1)
    picture.putpalette([128, 128, 128, 0, 0, 0, 120, 120, 120, 255, 0, 0])
    valid = np.ones((20, 20), bool)
    valid[5:9, 5:9] = False
    assert (np.array(half(picture, valid))[~valid] == 0).all()
    picture.info["transparency"] = 0
    filled = half(picture, valid)
    assert (np.array(filled)[~valid] == 2).all()
    assert filled.info["transparency"] == 0


@pytest.mark.parametrize(
    ("picture", "match"),
    [
        (Image.fromarray(np.full((9, 9), 200, np.float32)), r"mode F must be in \[0, 1\], got 200"),
        (Image.fromarray(np.full((9, 9), 70000, np.int32)), r"mode I must be in \[0, 65535\], got 70000"),
        (Image.new("LAB", (9, 9)), "a picture of mode LAB cannot be filled without loss"),
    ],
)
def test_errors(half, picture, match):
    with pytest.raises(ValueError, match=match):
        half(picture, np.ones((9, 9), bool))


class TestHoles:
    """Grown, softened, thresholded."""

    def test_dilate(self, half):
        valid = torch.ones(20, 30, dtype=torch.bool)
        valid[5:7, 0:3] = valid[19, 29] = False
        filled = half(torch.zeros(3, 20, 30), valid, dilate=2)[0] == 0.5
        assert torch.equal(filled, dilated(~valid, 2))
        for reach in (0, 1, 2, 5, 6, 40):
            rows, columns = torch.arange(20)[:, None], torch.arange(30)
            near = torch.zeros(20, 30, dtype=torch.bool)
            for row, column in (~valid).nonzero().tolist():
                near |= ((rows - row).abs() <= reach) & ((columns - column).abs() <= reach)
            assert torch.equal(dilated(~valid, reach), near)

    @pytest.mark.parametrize("kind", ["float", "bytes"])
    def test_feather(self, half, kind):
        image = torch.zeros(3, 21, 21, dtype=torch.uint8 if kind == "bytes" else torch.float32)
        valid = torch.ones(21, 21, dtype=torch.bool)
        valid[3:18, 3:18] = False
        row = half(image, valid, feather=3)[0, 10].double() / (255 if kind == "bytes" else 1)
        expected = torch.zeros(21).double()
        expected[3:18] = 0.5
        for i in range(3):
            expected[3 + i] = expected[17 - i] = 0.5 * (i + 1) / 4
        torch.testing.assert_close(row, expected, rtol=0, atol=0.003)
        holed = image.float().where(valid, float("nan"))
        assert (half(holed, valid, feather=3)[0][~valid] == 0.5).all()

    def test_threshold(self, half):
        picture = Image.fromarray(np.zeros((20, 20), np.uint8))
        soft = np.full((20, 20), 255, np.uint8)
        soft[5:15, 5:15], soft[6:14, 6:14] = 200, 0
        for threshold, count in ((127, 64), (199, 64), (200, 100), (254, 100)):
            for mask in (soft, Image.fromarray(soft)):
                assert (np.array(half(picture, mask, threshold=threshold)) > 0).sum() == count

    def test_large_and_feathered(self, half):
        half.net.config["size"] = 8
        image = torch.zeros(1, 3, 40, 60)
        valid = torch.ones(1, 1, 40, 60, dtype=torch.bool)
        valid[..., 10:22, 20:40] = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            filled = half(image, valid, feather=2)
        assert (image == 0).all()
        torch.testing.assert_close(filled[0, 0, 16, 18:24], torch.tensor([0, 0, 1, 2, 3, 3]) / 6)
