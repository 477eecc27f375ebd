"""`pconv_ext.Inpainter` on pictures, arrays and tensors.

Comparisons are exact unless they say otherwise: the same network on the same numbers gives the same bits on
the CPU, and valid pixels are selected, not computed.
"""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from support.inpainters import PIXELS, VALID, H, W, expected, make_net, output_of

import pconv_ext

GREY = PIXELS[..., [0, 0, 0]]
TWO = torch.zeros(2, 3, H, W)
Inpainter = partial(pconv_ext.Inpainter, device="cpu")


@pytest.fixture
def net():
    return make_net()


@pytest.fixture
def white(net):
    """Fills holes with white: in a black picture that shows where they were."""
    net.decoder[-1].conv.weight.data.zero_()
    net.decoder[-1].conv.bias.data.fill_(2.0)  # clamped
    return Inpainter(net)


@pytest.mark.parametrize("raw", [False, True])
def test_bytes(net, raw):
    truth = expected(net, PIXELS, raw=raw)
    assert (truth[~VALID] != PIXELS[~VALID]).mean() > 0.9
    assert len(np.unique(truth[~VALID])) > 10  # not all clamped
    fill = partial(Inpainter(net), mask=Image.fromarray(VALID), raw=raw)
    picture = fill(Image.fromarray(PIXELS))
    assert (type(picture), picture.mode) == (Image.Image, "RGB")
    assert_array_equal(picture, truth)
    backwards = np.ascontiguousarray(PIXELS[:, ::-1])[:, ::-1]
    backwards.flags.writeable = False
    for array in (PIXELS, backwards):
        result = fill(array)
        assert result.dtype == np.uint8
        assert_array_equal(result, truth)
    assert_array_equal(fill(PIXELS[..., 0]), expected(net, GREY, raw=raw))
    tensor = torch.tensor(PIXELS).permute(2, 0, 1)
    assert torch.equal(fill(tensor), torch.tensor(truth).permute(2, 0, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_floats(net, dtype):
    inpainter, valid = Inpainter(net), torch.tensor(VALID)
    image = torch.rand(2, 3, H, W).to(dtype)
    holed = image.where(valid, torch.full_like(image, float("nan"))).requires_grad_()
    one, two = output_of(net, image[:1], VALID)[0], output_of(net, image, VALID)
    for result, truth in (
        (inpainter(holed, valid), image.where(valid, two)),
        (inpainter(holed, valid, raw=True), two),
        (inpainter(holed[0], valid), image[0].where(valid, one)),
    ):
        assert result.dtype == dtype
        assert not result.requires_grad
        assert torch.equal(result, truth)
    if dtype != torch.bfloat16:  # NumPy has none
        array = inpainter(holed[0].detach().permute(1, 2, 0).numpy(), VALID)
        assert array.dtype == str(dtype).removeprefix("torch.")
        assert_array_equal(array, image[0].where(valid, one).permute(1, 2, 0))


def test_kinds_of_masks(net):
    inpainter = Inpainter(net)
    image = torch.rand(2, 3, H, W)
    truth = inpainter(image, VALID)
    grey = np.where(VALID, 128, 127).astype(np.uint8)
    alike = [VALID.astype(np.uint8), grey, VALID[None], VALID * np.float32(0.2), torch.tensor(VALID)]
    alike += [torch.tensor(VALID).double()[None, None], torch.tensor(grey).expand(2, 1, H, W)]
    alike += [Image.fromarray(grey), Image.fromarray(VALID), Image.fromarray(grey).convert("RGB")]
    for mask in alike:
        assert torch.equal(inpainter(image, mask), truth)
    for mask in (~VALID, Image.fromarray(~VALID)):
        assert torch.equal(inpainter(image, mask, invert_mask=True), truth)
    two = torch.tensor(np.stack((VALID, VALID[::-1]))[:, None])
    each = torch.stack([inpainter(image[i], two[i]) for i in range(2)])
    # One image and two may be summed in another order: 1e-5 is some eps of float32.
    torch.testing.assert_close(inpainter(image, two), each, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 12), (6, 9), (3, 4), (40, 60)], ids=str)
@pytest.mark.filterwarnings("error")  # 3:4 differs from 8:12 no more than rounding does
def test_masks_are_resized_by_nearest_neighbour(white, size):
    h, w = 8, 12
    light = np.random.default_rng(1).random(size) < 0.7
    rows = ((np.arange(h) + 0.5) * size[0] / h).astype(int)
    columns = ((np.arange(w) + 0.5) * size[1] / w).astype(int)
    result = white(np.zeros((h, w), np.uint8), Image.fromarray(light))
    assert_array_equal(result == 0, light[rows][:, columns, None].repeat(3, 2))


def test_warnings(white):
    black, mask, fifth = np.zeros((20, 30), np.uint8), np.ones((20, 30), bool), np.ones((30, 20), bool)
    mask[:, :15] = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* beyond the network's reach")  # it is a tiny one
        white(black, mask)  # no more than one half
        white(black[:3, :4], Image.fromarray(mask))  # 20x30 rounds to 3x4
    mask[0, 15], fifth[:6] = False, False
    for kind, match in (
        (np.ones_like(mask), "no holes"),
        (mask, r"50\.2% of .* invert_mask=True or --invert-mask"),
        (Image.fromarray(fifth), "is 30x20 .*, the image 20x30"),
    ):
        with pytest.warns(UserWarning, match=match) as caught:
            white(black, kind)
        others = [one.filename for one in caught if "beyond the network's reach" not in str(one.message)]
        assert others == [__file__]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (8, 8), (37, 50)], ids=str)
@pytest.mark.filterwarnings("ignore:.*no holes")
def test_sizes(net, size):
    pixels = np.random.default_rng(2).integers(0, 256, (*size, 3), np.uint8)
    valid = np.random.default_rng(3).random(size) < 0.8
    valid[0, 0] = True
    assert_array_equal(Inpainter(net)(pixels, valid), expected(net, pixels, valid))


def test_leaves_everything_as_it_was(net):
    truth = expected(net, PIXELS)
    net.train()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    inpainter = Inpainter(net, backend="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        assert_array_equal(inpainter(PIXELS, VALID), truth)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in net.modules())
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert not any(module.training for module in inpainter.net.modules())
    assert {module.backend for module in inpainter.net.modules() if hasattr(module, "backend")} == {"cpu"}
    net.decoder[-1].conv.bias.data.zero_()
    assert_array_equal(inpainter(PIXELS, VALID), truth)  # a copy
    weight = torch.ones((), requires_grad=True)
    for raw in (False, True):  # fails for tensors of inference mode
        (inpainter(torch.rand(3, H, W), VALID, raw=raw) * weight).sum().backward()


@pytest.mark.parametrize(
    ("image", "mask", "error", "match"),
    [
        (PIXELS, VALID[:, 1:], ValueError, r"\[21, 30\].* 21x30 image, got \[21, 29\]"),
        (TWO, np.ones((3, 1, H, W)), ValueError, r"\[2 or 1, 1, 21, 30\] .*, got \[3, 1, 21, 30\]"),
        (TWO, np.ones((2, H, W)), ValueError, r"mask must have shape .*, got \[2, 21, 30\]"),
        (PIXELS, VALID.astype(np.int64), TypeError, "mask must be bool, uint8 or floating, got torch.int64"),
        (PIXELS, VALID.tolist(), TypeError, "mask must be a PIL image, .* got list"),
        ("a.png", VALID, TypeError, "image must be a PIL image, .* got str"),
        (PIXELS.astype(np.int32), VALID, TypeError, "image must be uint8 or floating .*int32"),
        (PIXELS.transpose(2, 0, 1), VALID, ValueError, r"\[H, W, 3\] or \[H, W\], got shape \[3, 21, 30\]"),
        (torch.rand(H, W, 3), VALID, ValueError, r"tensor \[3, H, W\] or .* got shape \[21, 30, 3\]"),
        (torch.rand(3, 0, W), VALID[:0], ValueError, r"got shape \[3, 0, 30\]"),
        (np.full((H, W), 200.0), VALID, ValueError, r"in \[0, 1\] where it is valid, got 200"),
        (np.full((H, W), np.nan), VALID, ValueError, r"in \[0, 1\] where it is valid, got nan"),
    ],
)
def test_errors(net, image, mask, error, match):
    with pytest.raises(error, match=match):
        Inpainter(net)(image, mask)


def test_errors_at_the_start(net):
    for device in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"device must be one .*got '{device}'"):
            Inpainter(net, device=device)
    with pytest.raises(ValueError, match=r"Inpainter: backend must be .* got 'fast'"):
        Inpainter(net, backend="fast")
    with pytest.raises(TypeError, match="checkpoint must be a path or an InpaintingNet, got Linear"):
        Inpainter(torch.nn.Linear(1, 1))
