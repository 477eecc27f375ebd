"""`evaluate` against the formulas of its metrics, written by hand in float64; for LPIPS see test_lpips."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import torchvision_without_ops
from support.pictures import mask_folder, save_smooth
from support.weight_files import lpips_state, save
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
    return save_smooth(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="module")
def lpips_file(tmp_path_factory):
    return save(lpips_state(), tmp_path_factory.mktemp("weights") / "lpips.safetensors")


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


def by_hand(cases):
    """The metrics but for LPIPS, of (result, truth, mask)."""
    pairs = [(one.double().numpy(), other.double().numpy()) for one, other, _ in cases]
    errors = [np.mean((one - other) ** 2) for one, other in pairs]
    in_holes = [
        (one - other)[:, mask[0].numpy() == 0] ** 2
        for (one, other), (_, _, mask) in zip(pairs, cases, strict=True)
    ]
    return {
        "psnr_holes": np.mean([10 * math.log10(1 / error.mean()) for error in in_holes]),
        "psnr_holes_pooled": 10 * math.log10(1 / np.concatenate(in_holes, 1).mean()),
        "l2": np.mean(errors),
        "ssim": np.mean([ssim_by_hand(one, other) for one, other in pairs]),
        "psnr": np.mean([10 * math.log10(1 / error) for error in errors]),
        "psnr_pooled": 10 * math.log10(1 / np.mean(errors)),
    }


@pytest.mark.parametrize("raw", [False, True])
def test_metrics_equal_the_formulas_written_by_hand(pictures, raw):
    report = evaluate(Guess(), pictures, bins=(*masks.BINS, "rectangle"), raw=raw, seed=3)
    assert [(one.low, one.high, one.holes) for one in report.bins] == [
        *((*edges, "") for edges in masks.BINS),
        (0, 1, "rectangle"),
    ]
    assert [one.title for one in report.bins[-2:]] == ["[0.4, 0.5)", "rectangle"]
    for one in report.bins:
        cases = []
        for index in range(5):
            truth = pictures[index]
            if one.holes:
                mask = masks.rectangle(40, 48, 3, index)
            else:
                mask = masks.irregular(40, 48, one.low, one.high, 3, index)
            guess = (truth.flip(2) * 1.3 - 0.1).clamp(0, 1)
            cases.append((guess if raw else torch.where(mask == 1, truth, guess), truth, mask))
        for name, value in by_hand(cases).items():
            # float32 variances in SSIM, see the comment there
            assert getattr(one, name) == pytest.approx(value, **CLOSE, abs=3e-5 * (name == "ssim")), name
        assert one.images == 5
        assert one.lpips is None
    assert report.raw is raw
    assert report.lpips_missing == "it was not asked for"
    expected = {"pictures": 5, "height": 40, "width": 48, "masks": "irregular and rectangle", "seed": 3}
    assert report.settings == expected
    assert Report.from_json(report.to_json()) == report
    bins = evaluate(Guess(), pictures, limit=1)  # the default are the paper's
    assert ([(one.low, one.high) for one in bins.bins], bins.settings["masks"]) == (
        [*masks.BINS],
        "irregular",
    )


class Known(nn.Module):
    """Errs by 0.5 in every hole of the first picture it sees, by 0.1 in those of the others."""

    def __init__(self):
        super().__init__()
        self.error = 0.5

    def forward(self, image, mask):
        assert len(image) == 1
        error, self.error = self.error, 0.1
        return torch.where(image > 0.5, image - error, image + error)


def test_psnr_in_holes_of_unequal_holes(pictures):
    """In the mean every picture counts alike, pooled its hole pixels do; no hole, no part in either."""
    counts = []
    report = evaluate(
        Known(),
        pictures,
        bins=((0.0, 0.05),),
        batch_size=1,
        visit=lambda place, truth, mask, result: counts.append(int((mask == 0).sum())),
    )
    (one,) = report.bins
    assert len({*counts}) > 1
    errors = [0.5**2, *[0.1**2] * 4]
    assert one.psnr_holes == pytest.approx(np.mean([-10 * math.log10(error) for error in errors]), **CLOSE)
    pooled = np.average(errors, weights=counts)
    assert one.psnr_holes_pooled == pytest.approx(-10 * math.log10(pooled), **CLOSE)


def test_masks_without_holes_have_no_psnr_in_holes(pictures, tmp_path):
    whole = masks.MaskFolder(mask_folder(tmp_path / "masks", (0,)), holes="white")
    (one,) = evaluate(Guess(), pictures, bins=((0.0, 0.1),), holes=whole).bins
    assert (one.images, one.psnr_holes, one.psnr_holes_pooled, one.psnr) == (5, None, None, math.inf)
    mixed = masks.MaskFolder(mask_folder(tmp_path / "mixed", (0, 8)), holes="white")
    cases = []
    (one,) = evaluate(
        Guess(),
        pictures,
        bins=((0.0, 0.5),),
        holes=mixed,
        seed=1,
        visit=lambda _, truth, mask, result: cases.append((result, truth, mask)),
    ).bins
    cases = [case for case in cases if not case[2].all()]
    assert 0 < len(cases) < one.images == 5
    expected = by_hand(cases)
    for name in ("psnr_holes", "psnr_holes_pooled"):
        assert getattr(one, name) == pytest.approx(expected[name], **CLOSE)


def test_reports_of_before(pictures):
    """They have no PSNR in holes, and nothing but ratios."""
    report = evaluate(Guess(), pictures, bins=TWO_BINS, limit=1)
    content = json.loads(report.to_json())
    for one in content["bins"]:
        for name in ("psnr_holes", "psnr_holes_pooled", "holes"):
            del one[name]
    older = Report.from_json(json.dumps(content))
    assert older.bins == tuple(
        dataclasses.replace(one, psnr_holes=None, psnr_holes_pooled=None) for one in report.bins
    )


def test_images_equal_to_the_truth(pictures):
    report = evaluate(Truth(), pictures, raw=True)
    for one in report.bins:
        assert (one.l2, one.psnr, one.psnr_pooled) == (0, math.inf, math.inf)
        assert (one.psnr_holes, one.psnr_holes_pooled) == (math.inf, math.inf)
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
            expected_value = value if isinstance(value, str) else pytest.approx(value, rel=1e-5)
            assert getattr(one, name) == expected_value, name


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
    with pytest.raises(
        ValueError, match=r"bins must be pairs \[low, high\) for the masks of a folder, got 'r"
    ):
        evaluate(Guess(), pictures, bins=("rectangle", *TWO_BINS), holes=folder)
    none = evaluate(Guess(), pictures, bins=((0.9, 1.0),), holes=folder)
    assert none.bins == (evaluation.BinMetrics(0.9, 1.0, 0),)
    assert none.outside == 5
    assert Report.from_json(none.to_json()) == none


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", '{"format": 2}', '{"format": 1}', '{"format": 1, "bins": [{"low": 0, "high": 1}]}'),
        '{"format": 1, "bins": [{"low": 0, "high": 1, "images": 1, "holes": 2}]}',
    ],
)
def test_foreign_json(text):
    with pytest.raises(ValueError, match=r"^Report\.from_json: text must be the JSON of a report"):
        Report.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bins": ()}, "bins must be pairs"),
        ({"bins": ((0.5, 0.1),)}, "bins must satisfy 0 <= low < high <= 1, got 0.5 and 0.1"),
        ({"bins": ("mixed",)}, "bins must be one of 'rectangle', got 'mixed'"),
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
