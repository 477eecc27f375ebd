"""`evaluate` against the formulas of its metrics, written by hand in float64; LPIPS' weights."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from support import torchvision_without_ops
from support.pictures import mask_folder
from support.weight_files import DOWNLOAD, offline, save
from torch import nn

from pconv_ext import InpaintingNet, data, evaluation, masks
from pconv_ext.evaluation import Report, evaluate, load_lpips
from pconv_ext.inpainting.tables import report_markdown

torchvision_without_ops.make_importable()

#: float32 images: a mean of squared differences has a relative error of some eps (1.2e-7).
CLOSE = {"rel": 1e-6}
TWO_BINS = ((0.1, 0.2), (0.4, 0.5))


class Guess(nn.Module):
    """A network that knows the truth, in part, and leaves [0, 1]."""

    def forward(self, image, mask):
        assert image.shape[1:] == (3, *mask.shape[2:])
        assert mask.dtype == torch.uint8
        return image.flip(3) * 1.3 - 0.1


class Truth(nn.Module):
    def forward(self, image, mask):
        return image.clone()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Five smooth pictures, 48 pixels wide and 40 high."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(5)
    for i in range(5):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
        coarse.resize((48, 40), Image.Resampling.BICUBIC).save(root / f"{i}.png")
    return root


@pytest.fixture
def pictures(photos):
    return data.PictureDataset(data.folder(photos), (40, 48))


def ssim_by_hand(one, other):
    """Wang et al. 2004, with windows inside the image, channel by channel; [3, H, W] float64."""
    distance = np.arange(11) - 5
    weight = np.exp(-(distance**2) / (2 * 1.5**2))
    window = np.outer(weight, weight) / weight.sum() ** 2
    c1, c2 = 0.01**2, 0.03**2

    def mean(x):
        return (np.lib.stride_tricks.sliding_window_view(x, (11, 11)) * window).sum((-1, -2))

    values = []
    for x, y in zip(one, other, strict=True):
        mx, my = mean(x), mean(y)
        vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
        values.append((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2)))
    return np.mean(values)


def by_hand(pairs):
    """L2, SSIM, PSNR and pooled PSNR of (result, truth) pairs."""
    pairs = [(one.double().numpy(), other.double().numpy()) for one, other in pairs]
    errors = [np.mean((one - other) ** 2) for one, other in pairs]
    return {
        "l2": np.mean(errors),
        "ssim": np.mean([ssim_by_hand(one, other) for one, other in pairs]),
        "psnr": np.mean([10 * math.log10(1 / error) for error in errors]),
        "psnr_pooled": 10 * math.log10(1 / np.mean(errors)),
    }


@pytest.mark.parametrize("raw", [False, True])
def test_metrics_equal_the_formulas_written_by_hand(pictures, raw):
    report = evaluate(Guess(), pictures, raw=raw, seed=3)
    assert [(one.low, one.high) for one in report.bins] == [*masks.BINS]
    for one in report.bins:
        pairs = []
        for index in range(5):
            truth, mask = pictures[index], masks.irregular(40, 48, one.low, one.high, 3, index)
            guess = (truth.flip(2) * 1.3 - 0.1).clamp(0, 1)
            pairs.append((guess if raw else torch.where(mask == 1, truth, guess), truth))
        for name, value in by_hand(pairs).items():
            # float32 variances in SSIM, see the comment there
            assert getattr(one, name) == pytest.approx(value, **CLOSE, abs=3e-5 * (name == "ssim")), name
        assert one.images == 5
        assert one.lpips is None
    assert report.raw is raw
    assert report.lpips_missing == "it was not asked for"
    assert report.settings == {"pictures": 5, "height": 40, "width": 48, "masks": "irregular", "seed": 3}


def test_images_equal_to_the_truth(pictures):
    report = evaluate(Truth(), pictures, raw=True)
    for one in report.bins:
        assert (one.l2, one.psnr, one.psnr_pooled) == (0, math.inf, math.inf)
        assert one.ssim == pytest.approx(1, abs=1e-6)
    text = report.to_json()
    assert json.loads(text, parse_constant=pytest.fail)["bins"][0]["psnr"] == "inf"
    assert Report.from_json(text) == report


@pytest.mark.parametrize("options", [{"batch_size": 1}, {"batch_size": 3}, {"workers": 2, "batch_size": 2}])
def test_neither_batches_nor_workers_change_values(pictures, lpips_file, options):
    net = InpaintingNet(width=2, depth=3, msfef_stages=1)
    metric = load_lpips(lpips_file)
    expected = evaluate(net, pictures, bins=TWO_BINS, lpips=metric, batch_size=5)
    for one, other in zip(
        evaluate(net, pictures, bins=TWO_BINS, lpips=metric, **options).bins, expected.bins, strict=True
    ):
        for name, value in vars(other).items():
            assert getattr(one, name) == pytest.approx(value, rel=1e-5), name


def test_modes_are_restored_whatever_happens(pictures):
    net = InpaintingNet(width=2, depth=3, msfef_stages=1).train()
    net.decoder[0].norm.eval()  # frozen
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]

    def failing(done, total):
        assert not any(module.training for module in net.modules())
        raise KeyError("stop")

    evaluate(net, pictures, limit=1)
    with pytest.raises(KeyError, match="stop"):
        evaluate(net, pictures, progress=failing)
    assert [module.training for module in net.modules()] == modes
    torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_progress_and_visits(pictures):
    calls, visits = [], []
    report = evaluate(
        Guess(),
        pictures,
        bins=TWO_BINS,
        batch_size=2,
        limit=3,
        progress=lambda done, total: calls.append((done, total)),
        visit=lambda *visit: visits.append(visit),
    )
    assert calls == [(2, 6), (4, 6), (5, 6), (6, 6)]
    assert [one.images for one in report.bins] == [3, 3]
    assert [place for place, *_ in visits] == [0, 0, 1, 1, 0, 1]
    for (place, truth, mask, result), index in zip(visits, (0, 1, 0, 1, 2, 2), strict=True):
        assert torch.equal(truth, pictures[index])
        assert torch.equal(mask, masks.irregular(40, 48, *TWO_BINS[place], 0, index))
        assert masks.find_bin(masks.hole_ratio(mask), TWO_BINS) == place
        assert torch.equal(result, torch.where(mask == 1, truth, (truth.flip(2) * 1.3 - 0.1).clamp(0, 1)))


def test_masks_of_a_folder(pictures, tmp_path):
    root = mask_folder(tmp_path / "masks", (6, 20, 3, 18))  # ratios 0.15, 0.5, 0.075, 0.45
    folder = masks.MaskFolder(root, holes="white")
    own = data.InpaintingDataset(pictures, folder, fixed=True, seed=2)
    expected = [masks.find_bin(masks.hole_ratio(own.mask(i)), TWO_BINS) for i in range(5)]
    assert {*expected} > {None}  # the seed draws masks inside and outside of the bins
    places = []
    report = evaluate(
        Guess(), pictures, bins=TWO_BINS, holes=folder, seed=2, visit=lambda place, *_: places.append(place)
    )
    assert places == [place for place in expected if place is not None]
    assert [one.images for one in report.bins] == [expected.count(0), expected.count(1)]
    assert report.outside == expected.count(None)
    assert report.settings["masks"] == "one of 4 files for each picture"
    none = evaluate(Guess(), pictures, bins=((0.9, 1.0),), holes=folder)
    assert none.bins == (evaluation.BinMetrics(0.9, 1.0, 0),)
    assert none.outside == 5
    assert Report.from_json(none.to_json()) == none


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "bins": [{"low": 0, "high": 1}]}'],
)
def test_foreign_json(text):
    with pytest.raises(ValueError, match=r"^Report\.from_json: text must be the JSON of a report"):
        Report.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": ()}, "bins must be pairs"),
        ({"bins": ((0.5, 0.1),)}, "bins must satisfy 0 <= low < high <= 1, got 0.5 and 0.1"),
        ({"bins": ((0.1001, 0.1002),)}, "a whole number of hole pixels"),
        ({"batch_size": 0}, "batch_size must be an int of at least 1, got 0"),
        ({"workers": -1}, "workers must be"),
        ({"limit": 0}, "limit must be an int of at least 1, got 0"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_arguments(pictures, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate(Guess(), pictures, **change)


def test_small_pictures(photos, lpips_file):
    source = data.folder(photos)
    with pytest.raises(ValueError, match="at least 11x11, the window of SSIM, got 10x48"):
        evaluate(Guess(), data.PictureDataset(source, (10, 48)))
    metric = load_lpips(lpips_file)
    report = evaluate(Guess(), data.PictureDataset(source, (11, 30)), lpips=metric)
    assert report.lpips_missing == "it needs at least 31x31 pixels, the pictures are 11x30"
    assert all(one.lpips is None and one.ssim is not None for one in report.bins)
    assert evaluate(Guess(), data.PictureDataset(source, 31), lpips=metric).bins[0].lpips > 0


CONVOLUTIONS = {0: (64, 3, 11), 3: (192, 64, 5), 6: (384, 192, 3), 8: (256, 384, 3), 10: (256, 256, 3)}


@pytest.fixture(scope="module")
def lpips_state():
    """Random weights, under the keys of a file."""
    generator = torch.Generator().manual_seed(8)
    state = {}
    for i, (n, (c_out, c_in, k)) in enumerate(CONVOLUTIONS.items()):
        scale = (2 / (c_in * k * k)) ** 0.5
        state[f"features.{n}.weight"] = torch.randn(c_out, c_in, k, k, generator=generator) * scale
        state[f"features.{n}.bias"] = torch.randn(c_out, generator=generator) * 0.1
        state[f"lin{i}"] = torch.rand(1, c_out, 1, 1, generator=generator)
    return state


@pytest.fixture(scope="module")
def lpips_file(lpips_state, tmp_path_factory):
    return save(lpips_state, tmp_path_factory.mktemp("weights") / "lpips.safetensors")


def lpips_by_hand(state, one, other):
    def features(x):
        shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])
        x = (x.double() - shift.double()[:, None, None]) / scale.double()[:, None, None]
        for n in CONVOLUTIONS:
            weight, bias = (state[f"features.{n}.{name}"].double() for name in ("weight", "bias"))
            if n in (3, 6):
                x = F.max_pool2d(x, 3, 2)
            x = F.conv2d(x, weight, bias, 4 if n == 0 else 1, {0: 2, 3: 2}.get(n, 1)).relu()
            yield x / (1e-8 + x.square().sum(1, keepdim=True)).sqrt()

    layers = enumerate(zip(features(one), features(other), strict=True))
    return sum((state[f"lin{i}"].double() * (a - b) ** 2).sum(1).mean((1, 2)) for i, (a, b) in layers)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("size", [(31, 31), (64, 50)])
def test_lpips_equals_the_formula_written_by_hand(lpips_state, tmp_path, suffix, size):
    extra = {"classifier.1.weight": torch.ones(2, 2)}  # left out
    metric = load_lpips(save(lpips_state | extra, tmp_path / f"lpips{suffix}"))
    assert not any(module.training for module in metric.modules())
    one, other = torch.rand(2, 3, 3, *size) * 2 - 1
    with torch.no_grad():
        distances = metric(one, other)
    assert distances.shape == (3,)
    # float32 sums of up to 3456 products in five layers; another epsilon or padding shows above 1e-3
    torch.testing.assert_close(distances.double(), lpips_by_hand(lpips_state, one, other), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match=r"H and W at least 31, got \[1, 3, 30, 31\]"):
        metric(torch.zeros(1, 3, 30, 31), torch.zeros(1, 3, 30, 31))


def test_lpips_in_a_report(pictures, lpips_state, lpips_file):
    pairs = []
    report = evaluate(
        Guess(),
        pictures,
        bins=TWO_BINS[1:],
        lpips=load_lpips(lpips_file),
        visit=lambda _, truth, mask, result: pairs.append((result * 2 - 1, truth * 2 - 1)),
    )
    expected = lpips_by_hand(lpips_state, *map(torch.stack, zip(*pairs, strict=True))).mean().item()
    assert report.bins[0].lpips == pytest.approx(expected, rel=1e-4)
    assert report.lpips_missing == ""


BAD_STATES = {
    "incomplete": (lambda s: {k: s[k] for k in s if k != "lin4"}, "it lacks lin4"),
    "another network": (
        lambda s: {**s, "features.7.weight": torch.ones(2)},
        "it has features.7.weight, which",
    ),
    "another shape": (
        lambda s: {**s, "lin0": s["lin0"].flatten()},
        r"its lin0 must be floating \[1, 64, 1, 1\], got torch.float32 \[64\]",
    ),
}


@pytest.mark.parametrize("case", BAD_STATES)
def test_foreign_weights(lpips_state, tmp_path, case):
    change, message = BAD_STATES[case]
    file = save(change(lpips_state), tmp_path / "foreign.pth")
    with pytest.raises(ValueError, match=rf"^load_lpips: .*foreign.pth holds no LPIPS.*, {message}.*--lpips"):
        load_lpips(file)


def test_damaged_and_missing_weights(lpips_file, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(lpips_file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"^load_lpips: .* cannot be read \(.*--lpips FILE.*download"):
        load_lpips(damaged)
    with pytest.raises(FileNotFoundError, match=r"^load_lpips: there is no file .*--lpips FILE.*download"):
        load_lpips(tmp_path / "nowhere.pth")


def test_weights_of_the_download(monkeypatch, lpips_state):
    from torchvision.models import alexnet

    state = alexnet(weights=None).state_dict()
    state |= {key: value for key, value in lpips_state.items() if key in state}
    monkeypatch.setattr(DOWNLOAD, lambda url, **options: state if "alexnet" in url else pytest.fail(url))
    metric = load_lpips()
    # torchmetrics brings the linear layers, behind a dropout
    lins = {f"lin{i}": metric.network.state_dict()[f"lin{i}.model.1.weight"] for i in range(5)}
    one, other = torch.rand(2, 2, 3, 40, 40) * 2 - 1
    expected = lpips_by_hand(lpips_state | lins, one, other)
    torch.testing.assert_close(metric(one, other).double(), expected, rtol=1e-4, atol=0)
    offline(monkeypatch)
    with pytest.raises(
        OSError, match=r"download of AlexNet failed \(OSError: no route to host\).*--lpips FILE"
    ):
        load_lpips()


def test_importing_imports_no_optional_library():
    code = (
        "import sys, pconv_ext.evaluation, pconv_ext.inpainting.tables, pconv_ext.inpainting.figures;"
        "print({'torchmetrics', 'torchvision', 'matplotlib', 'PIL', 'rich', 'typer'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"


def test_unreadable_pictures_are_left_out(tmp_path):
    root = tmp_path / "photos"
    root.mkdir()
    for i in range(3):
        values = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(values).save(root / f"{i}.png")
    net = InpaintingNet(width=2, msfef_stages=1, depth=2)
    bins = ((0.1, 0.2),)
    whole = evaluate(net, data.PictureDataset(data.folder(root), 16), bins=bins)
    (root / "3.png").write_bytes(b"no picture")  # its place would be taken by the first
    with pytest.warns(UserWarning, match="is left out"):
        report = evaluate(net, data.PictureDataset(data.folder(root), 16), bins=bins)
    assert (report.unreadable, report.bins[0].images) == (1, 3)
    assert report.bins == whole.bins
    assert "1 pictures that could not be read" in report_markdown(report)
