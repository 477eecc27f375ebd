"""The smooth filling of holes, against Laplace's equation, and a network that corrects it."""

import numpy as np
import pytest
import torch
from support.cases import mask_of

from pconv_ext import Inpainter, InpaintingNet, checkpoint, masks
from pconv_ext.inpainting.smooth import smooth_fill


def laplace(picture, hole):
    """`picture` [H, W] with the mean of the pixels around it in every hole pixel, solved in float64."""
    height, width = picture.shape
    places = [(int(y), int(x)) for y, x in zip(*np.nonzero(hole.numpy()), strict=True)]
    number = {place: i for i, place in enumerate(places)}
    matrix, right = np.zeros((len(places), len(places))), np.zeros(len(places))
    for (y, x), i in number.items():
        around = [
            (v, u)
            for v in range(max(0, y - 1), min(height, y + 2))
            for u in range(max(0, x - 1), min(width, x + 2))
            if (v, u) != (y, x)
        ]
        matrix[i, i] = len(around)
        for place in around:
            if place in number:
                matrix[i, number[place]] -= 1
            else:
                right[i] += float(picture[place])
    filled = picture.double().clone()
    for (y, x), value in zip(places, np.linalg.solve(matrix, right), strict=True):
        filled[y, x] = value
    return filled


@pytest.mark.parametrize("size", [(24, 24), (17, 31), (5, 40)])
def test_is_nearly_harmonic(size):
    picture = torch.rand(6, 3, *size)
    for _ in range(3):  # as smooth as photographs are
        picture = torch.nn.functional.avg_pool2d(picture, 3, 1, 1, count_include_pad=False)
    mask = torch.stack([masks.rectangle(*size, 5, index, count=2) for index in range(6)])
    filled = smooth_fill(picture, mask)
    squares = torch.zeros(2, dtype=torch.float64)  # summed: one mean fill may be good by chance
    for n in range(6):
        hole = mask[n, 0] == 0
        for c in range(3):
            expected = laplace(picture[n, c], hole)
            mean = picture[n, c][~hole].mean()
            errors = torch.stack([filled[n, c] - expected, mean - expected])[:, hole]
            squares += errors.square().sum(1)
    assert squares[0] < 0.1 * squares[1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["rectangle", "few", "all valid", "all hole"])
def test_valid_pixels_stay_and_holes_have_no_influence(dtype, kind):
    picture = torch.rand(2, 3, 19, 27, dtype=dtype)
    if kind == "few":
        mask = torch.zeros(1, 1, 19, 27)
        mask[..., 3, 5] = mask[..., 18, 0] = 1
    else:
        mask = (
            mask_of("rectangle", picture)
            if kind == "rectangle"
            else torch.full((2, 1, 19, 27), kind == "all valid")
        )
    valid = (mask != 0).expand_as(picture)
    filled = smooth_fill(picture, mask)
    assert filled.dtype == dtype
    assert torch.equal(filled[valid], picture[valid])
    assert filled.min() >= 0
    assert filled.max() <= 1
    assert torch.equal(smooth_fill(picture.masked_fill(~valid, torch.nan), mask), filled)
    if kind == "all hole":
        assert (filled == 0.5).all()
    constant = smooth_fill(torch.full_like(picture, 0.25), mask)
    assert torch.equal(constant, torch.full_like(picture, 0.5 if kind == "all hole" else 0.25))


def test_one_pixel_and_no_mask():
    picture = torch.rand(1, 3, 1, 1)
    assert torch.equal(smooth_fill(picture, torch.ones(1, 1, 1, 1)), picture)
    assert (smooth_fill(picture, torch.zeros(1, 1, 1, 1)) == 0.5).all()
    assert smooth_fill(picture, None) is picture


@pytest.mark.parametrize("autocast", [False, True])
def test_a_network_corrects_it(tmp_path, autocast):
    plain = InpaintingNet(4, 2, (3, 5), 3).eval()
    net = InpaintingNet(**plain.config | {"residual": True}).eval()
    net.load_state_dict(plain.state_dict())
    image = torch.rand(2, 3, 24, 32)
    mask = mask_of("rectangle", image)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output, correction = net(image, mask), plain(image, mask)
    torch.testing.assert_close(output, smooth_fill(image, mask) + correction)
    assert output.dtype == torch.float32
    checkpoint.save_net(net, tmp_path / "net.safetensors")
    loaded = checkpoint.load_net(tmp_path / "net.safetensors")
    assert loaded.config["residual"] is True
    filled = Inpainter(tmp_path / "net.safetensors", device="cpu")(image, mask)
    with torch.no_grad():
        expected = torch.where(mask != 0, image, net(image, mask).clamp(0, 1))
    torch.testing.assert_close(filled, expected, rtol=0, atol=1e-5)
