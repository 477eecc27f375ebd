"""Networks for rasters: filling, losses, data sets, training and evaluation, with gaps in the truth."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image
from support.rasters import H, W, make_net, save_net, save_rasters, smooth

from pconv_ext import Inpainter, InpaintingNet, checkpoint
from pconv_ext.data import InpaintingDataset, RasterDataset, rasters
from pconv_ext.evaluation import evaluate
from pconv_ext.losses import InpaintingLoss
from pconv_ext.opponents import OPPONENTS

RANGES = [[270.0, 290.0], [280.0, 300.0]]
FIELDS = smooth(2)
GAPS = np.isnan(FIELDS[0])
HOLE = np.zeros((H, W), bool)
HOLE[14:19, 3:9] = True


def unit(fields):
    low, high = np.array(RANGES).T[..., None, None]
    return (fields.astype(np.float64) - low) / (high - low)


def expected(net, fields, hole):
    """What a network makes of fields with holes, in their own values."""
    image = torch.tensor(unit(fields), dtype=torch.float32)[None]
    known = torch.tensor(~hole)[None, None]
    with torch.no_grad():
        output = net(image.nan_to_num(9), known)[0].double().numpy()
    low, high = np.array(RANGES).T[..., None, None]
    return output * (high - low) + low


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_network_of_any_channels(channels):
    net = make_net(channels)
    image, mask = torch.randn(2, channels, 16, 24), torch.ones(1, 1, 16, 24)
    assert net(image, mask).shape == image.shape
    assert InpaintingNet(**net.config).config == net.config
    with pytest.raises(
        ValueError, match=rf"image must have shape \[N, {channels}, H, W\], got \[2, 7, 16, 24\]"
    ):
        net(torch.zeros(2, 7, 16, 24), mask)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([[0, 1]], "one for each of 2 channels"),
        ([[0, 1], [1, 1]], "low below high"),
        ([[0, 1], [0, math.inf]], "finite pairs"),
        ([0, 1], "must be pairs"),
    ],
)
def test_wrong_ranges(ranges, message):
    with pytest.raises((TypeError, ValueError), match=f"InpaintingNet: ranges .*{message}"):
        InpaintingNet(width=2, depth=2, msfef_stages=0, channels=2, ranges=ranges)


def test_checkpoint_keeps_channels_and_ranges(tmp_path):
    net = make_net(2, RANGES)
    assert checkpoint.load_net(save_net(tmp_path, net)).config == net.config
    net.save_pretrained(tmp_path / "net")
    assert InpaintingNet.from_pretrained(tmp_path / "net").config == net.config


@pytest.mark.parametrize("kind", ["array", "tensor", "batch", "float64"])
def test_gaps_are_filled_and_nothing_else(kind):
    net = make_net(2, RANGES)
    dtype = np.float64 if kind == "float64" else np.float32
    fields = FIELDS.astype(dtype)
    given = fields.transpose(1, 2, 0) if kind in ("array", "float64") else torch.tensor(fields)
    filled = Inpainter(net, "cpu")(given[None] if kind == "batch" else given)
    if kind in ("array", "float64"):
        assert filled.dtype == dtype
        filled = filled.transpose(2, 0, 1)
    else:
        filled = filled.numpy().reshape(fields.shape)
    assert_array_equal(filled[:, ~GAPS], fields[:, ~GAPS])
    assert_allclose(filled[:, GAPS], expected(net, fields, GAPS)[:, GAPS], rtol=1e-5)


def test_what_is_known_of_a_pixel_stays():
    fields = FIELDS.copy()
    fields[1, 5:12, 8:17] = 285
    filled = Inpainter(make_net(2, RANGES), "cpu")(fields.transpose(1, 2, 0)).transpose(2, 0, 1)
    assert_array_equal(filled[1], fields[1])
    assert np.isfinite(filled).all()


def test_gaps_outside_of_a_mask_stay():
    net = make_net(2, RANGES)
    filled = Inpainter(net, "cpu")(FIELDS.transpose(1, 2, 0), ~HOLE).transpose(2, 0, 1)
    assert_array_equal(filled[:, ~HOLE], FIELDS[:, ~HOLE])
    assert_allclose(filled[:, HOLE], expected(net, FIELDS, HOLE | GAPS)[:, HOLE], rtol=1e-5)


@pytest.mark.parametrize("large", ["crop", "resize"])
def test_large_rasters(large):
    """Filled with values in and around their ranges, by crops that see gaps as gaps."""
    fields = smooth(2, height=120, width=140)
    fields[:, 60:90, 50:100] = np.nan
    given = fields.transpose(1, 2, 0)
    filled = Inpainter(make_net(2, RANGES), "cpu")(given, large=large)
    assert np.isfinite(filled).all()
    assert_array_equal(filled[~np.isnan(given)], given[~np.isnan(given)])
    assert (np.abs(filled[60:90, 50:100] - [280, 290]) < 100).all()


def test_values_beyond_their_ranges_are_taken_and_given():
    net = make_net(1, [[0.0, 1.0]])
    net.decoder[-1].conv.bias.data.fill_(3.0)
    field = np.full((H, W), 2.5, np.float32)
    field[5:9, 5:9] = np.nan
    filled = Inpainter(net, "cpu")(field)
    assert filled.shape == field.shape
    assert (filled[5:9, 5:9] > 1).all()


@pytest.mark.parametrize(("bias", "end"), [(99.0, max), (-99.0, min)])
def test_no_value_is_beyond_all_that_is_known(bias, end):
    """Of the ranges and of the raster, in each channel."""
    net = make_net(2, [[250.0, 300.0], [285.0, 286.0]])
    net.decoder[-1].conv.bias.data.fill_(bias)
    filled = Inpainter(net, "cpu")(FIELDS.transpose(1, 2, 0))
    known = [getattr(np, f"nan{end.__name__}")(channel) for channel in FIELDS]
    limits = [end(known[0], end(250.0, 300.0)), end(known[1], end(285.0, 286.0))]
    assert_allclose(filled[GAPS], np.broadcast_to(limits, filled[GAPS].shape), rtol=1e-6)


@pytest.mark.parametrize("name", ["telea", "navier-stokes"])
def test_opponents_fill_rasters(name):
    pytest.importorskip("cv2")
    plane = np.add.outer(np.arange(H), np.arange(W)) / 20 - 0.5
    image = torch.tensor(np.stack([plane, 2 * plane]), dtype=torch.float32)[None]
    for form in OPPONENTS[name]:
        filled = form(image, torch.tensor(~HOLE)[None, None])
        assert (filled - image).abs().max() < 0.3


def test_pictures_with_nan_need_no_mask():
    net = make_net(3)
    plain = InpaintingNet(**{**net.config, "ranges": None})
    plain.load_state_dict(net.state_dict())
    picture = np.random.default_rng(0).random((H, W, 3), np.float32)
    holed = np.where(HOLE[..., None], np.float32(np.nan), picture)
    inpainter = Inpainter(plain, "cpu")
    assert_array_equal(inpainter(holed), inpainter(picture, ~HOLE))
    holed[..., 1] = picture[..., 1]
    assert_array_equal(inpainter(holed)[..., 1], picture[..., 1])


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (Image.new("RGB", (W, H)), None, "image must be a raster of 2 channels.* it is a picture"),
        (np.zeros((H, W, 3), np.float32), None, r"must be an array \[H, W, 2\], got shape \[21, 30, 3\]"),
        (torch.zeros(3, H, W), None, r"must be a tensor \[2, H, W\] or \[N, 2, H, W\], got shape"),
        (np.zeros((H, W, 2), np.uint8), None, "mask must be given, the image has no NaN"),
    ],
)
def test_wrong_images(image, mask, message):
    with pytest.raises((TypeError, ValueError), match=f"Inpainter: .*{message}"):
        Inpainter(make_net(2, RANGES), "cpu")(image, mask)


@pytest.mark.parametrize("per_hole", [False, True])
def test_gaps_carry_no_loss(per_hole):
    generator = torch.Generator().manual_seed(3)
    output = torch.randn(2, 3, 8, 9, generator=generator, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 3, 8, 9, generator=generator, dtype=torch.float64)
    mask = torch.rand(2, 1, 8, 9, generator=generator) > 0.4
    gap = torch.rand(2, 3, 8, 9, generator=generator) > 0.7
    weights = {"avail": 1, "missing": 6, "avail_l1": 0.5, "missing_l1": 2, "perceptual": 0, "style": 0}
    terms = InpaintingLoss(None, weights, per_hole=per_hole)(output, target.masked_fill(gap, math.nan), mask)
    errors = (output - target).detach()
    for name, power in (("", 2), ("_l1", 1)):
        for part, place in (("avail", mask & ~gap), ("missing", ~mask & ~gap)):
            lost = (errors.abs() ** power * place).sum((1, 2, 3))
            count = place.sum((1, 2, 3)) if per_hole and part == "missing" else gap[0].numel()
            assert_allclose(terms[part + name].item(), (lost / count).mean(), rtol=1e-12)
    terms["total"].backward()
    assert not output.grad[gap].any()
    assert output.grad[~gap].all()


def test_gaps_carry_no_loss_of_features():
    from pconv_ext.losses import vgg16_features

    torch.manual_seed(0)
    loss = InpaintingLoss(vgg16_features(4))
    output = torch.rand(1, 3, 16, 16, requires_grad=True)
    target, mask = torch.rand(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    mask[..., 4:9, 4:9] = 0
    target[..., 10:13, 2:9] = math.nan
    terms = loss(output, target, mask)
    terms["total"].backward()
    assert all(math.isfinite(value) and value > 0 for value in map(torch.Tensor.item, terms.values()))
    assert not output.grad[..., 10:13, 2:9].any()
    assert output.grad.isfinite().all()
    with pytest.raises(
        ValueError, match="perceptual and style are of pictures with 3 channels, output has 2"
    ):
        loss(output[:, :2], target[:, :2], mask)


@pytest.fixture
def folder(tmp_path):
    return save_rasters(tmp_path / "rasters")


def test_collection(folder):
    collection = rasters(folder, 2)
    assert len(collection) == 8
    assert collection.name(5) == str(folder / "b.npz")
    assert collection.name(7) == f"{folder / 'below' / 'a.npz'}: 1"
    assert_array_equal(collection.load(7), smooth(2, (2,), seed=5)[1])
    with pytest.raises(ValueError, match="must hold rasters of 3 channels"):
        rasters(folder, 3)


def test_items_are_scaled_and_gaps_are_holes(folder):
    data = RasterDataset(rasters(folder, 2), (H, W), RANGES, crop="none")
    item = data[0]
    assert item.dtype == torch.float32
    assert_allclose(item, unit(FIELDS), atol=1e-6)
    pairs = InpaintingDataset(data, "rectangle", seed=3)
    picture, mask = pairs[0]
    assert_array_equal(mask[0], pairs.mask(0)[0].numpy() * ~GAPS)
    assert picture[:, mask[0] == 1].isfinite().all()


@pytest.mark.parametrize("crop", ["center", "random", "window", "none"])
@pytest.mark.parametrize("flip", [False, True])
def test_crops(folder, crop, flip):
    data = RasterDataset(rasters(folder, 2), 16, RANGES, crop=crop, flip=flip)
    seen = []
    for epoch in range(6):
        data.set_epoch(epoch)
        item = data[0]
        assert item.shape == (2, 16, 16)
        known = item.isfinite()
        assert 0 < known.sum() < known.numel()
        low, high = np.nanmin(unit(FIELDS)), np.nanmax(unit(FIELDS))
        assert low - 1e-5 <= item[known].min() <= item[known].max() <= high + 1e-5
        seen.append(item.nan_to_num(9))
    moves = crop in ("random", "window") or flip
    assert any((one != seen[0]).any() for one in seen) == moves
    if crop == "window" and not flip:  # values as they are
        assert np.isin(item[known], unit(FIELDS).astype(np.float32)).all()


def test_a_window_larger_than_the_raster(folder):
    data = RasterDataset(rasters(folder, 2), 40, RANGES, crop="window")
    assert data[0].shape == (2, 40, 40)


def test_evaluation_measures_what_is_known(folder):
    data = RasterDataset(rasters(folder, 2), (H, W), RANGES, crop="none")
    holes = [InpaintingDataset(data, (0.1, 0.4), fixed=True, seed=4).mask(i)[0] == 0 for i in range(8)]

    class Off(torch.nn.Module):
        def forward(self, images, masks):
            assert (masks[images.isnan().any(1, keepdim=True)] == 0).all()
            known = images.nan_to_num(5)
            return known - 0.1 * (known - 0.5).sign()

    row = evaluate(Off(), data, bins=[(0.1, 0.4)], seed=4, lpips=torch.nn.Identity()).bins[0]
    assert_allclose(row.psnr_holes, 20, atol=1e-4)
    shares = []
    for index, hole in enumerate(holes):
        known = data[index].isfinite()[0]
        shares.append((hole & known).sum() / known.sum())
    assert_allclose(row.l2, 0.01 * np.mean(shares), rtol=1e-4)
    assert row.lpips is None
    assert 0 < row.ssim < 1
