"""The opponents of `evaluate --against` against direct calls of the libraries, and at their best."""

import math
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from skimage.restoration import inpaint_biharmonic
from support import torchvision_without_ops
from support.pictures import save_smooth

from pconv_ext import data, masks, opponents
from pconv_ext.evaluation import Report, evaluate
from pconv_ext.opponents import OPPONENTS, Opponent, check_installed, compete

torchvision_without_ops.make_importable()

FLAGS = {"telea": cv2.INPAINT_TELEA, "navier-stokes": cv2.INPAINT_NS}
FORMS = [(name, form) for name, forms in OPPONENTS.items() for form in forms]
every_form = pytest.mark.parametrize(
    ("name", "form"), FORMS, ids=[f"{name}{form.settings.get('radius', '')}" for name, form in FORMS]
)


def batch(count=3, height=24, width=31):
    """Fresh 8-bit pictures, smooth enough that the forms differ, and masks of three kinds."""
    coarse = torch.rand(count, 3, 6, 7)
    images = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)
    seed = int(torch.randint(2**31, ()))
    drawn = [
        masks.irregular(height, width, *masks.BINS[4], seed, 0),
        masks.rectangle(height, width, seed, 1, count=3),
        masks.irregular(height, width, *masks.BINS[1], seed, 2),
    ]
    return (images * 255).round() / 255, torch.stack(drawn[:count])


def by_library(name, form, image, mask):
    """float64 [3, H, W] as the library fills it."""
    valid = mask[0].numpy() != 0
    picture = image.double().numpy().transpose(1, 2, 0) * valid[..., None]
    if name == "mean":
        filled = np.broadcast_to([picture[..., c][valid].mean() for c in range(3)], picture.shape)
    elif name == "biharmonic":
        filled = inpaint_biharmonic(picture, ~valid, channel_axis=-1)
    else:
        pixels = np.rint(picture * 255).astype(np.uint8)
        holes = np.where(valid, 0, 255).astype(np.uint8)
        filled = cv2.inpaint(pixels, holes, form.settings["radius"], FLAGS[name]) / 255
    return np.where(valid[..., None], image.double().numpy().transpose(1, 2, 0), filled).transpose(2, 0, 1)


def test_names_and_forms():
    assert list(OPPONENTS) == ["mean", "telea", "navier-stokes", "biharmonic"]
    radii = {name: [form.settings.get("radius") for form in forms] for name, forms in OPPONENTS.items()}
    assert radii == {"mean": [None], "telea": [3, 10], "navier-stokes": [3, 10], "biharmonic": [None]}
    for name, form in FORMS:
        assert isinstance(form, Opponent)
        assert form.title == name


@every_form
def test_results_are_those_of_the_library(name, form):
    images, drawn = batch()
    result = form(images, drawn)
    assert (result.dtype, result.shape) == (torch.float32, images.shape)
    expected = np.stack([by_library(name, form, *case) for case in zip(images, drawn, strict=True)])
    # rounded once to float32: half an ulp of numbers up to 1
    np.testing.assert_allclose(result.double(), expected, rtol=0, atol=6.1e-8)
    assert torch.equal(result.where(drawn != 0, 0), images.where(drawn != 0, 0))
    assert not torch.equal(result, images)
    one_mask = form(images, drawn[:1])  # for all pictures
    assert torch.equal(one_mask[2:], form(images[2:], drawn[:1]))


@every_form
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -7.0])
def test_what_holes_hold_does_not_matter(name, form, garbage):
    images, drawn = batch()
    expected = form(images, drawn)
    assert torch.equal(form(images.where(drawn != 0, garbage), drawn), expected)
    assert expected.isfinite().all()


@every_form
def test_channels_are_filled_alike(name, form):
    """So RGB and BGR are the same to them."""
    images, drawn = batch()
    swapped = form(images.flip(1), drawn).flip(1)
    # biharmonic solves for all channels at once, in float64; the others are equal to the bit
    torch.testing.assert_close(swapped, form(images, drawn), rtol=0, atol=1e-6 * (name == "biharmonic"))
    grey = form(images[:, :1].expand(-1, 3, -1, -1), drawn)
    torch.testing.assert_close(grey[:, 0], grey[:, 2], rtol=0, atol=1e-6 * (name == "biharmonic"))


@every_form
def test_masks_without_hole_and_without_picture(name, form):
    images, drawn = batch()
    drawn[0], drawn[2] = 1, 0
    result = form(images, drawn)
    assert torch.equal(result[0], images[0])
    assert (result[2] == 0.5).all()
    assert torch.equal(result[1:2], form(images[1:2], drawn[1:2]))
    drawn[2, 0, 3, 4] = 1  # a single valid pixel
    assert form(images, drawn).isfinite().all()
    assert form(images[:0], drawn[:0]).shape == (0, 3, 24, 31)


def test_a_gradient_is_none_of_theirs():
    images, drawn = batch()
    for _, form in FORMS:
        assert form(images.clone().requires_grad_(), drawn).isfinite().all()


@pytest.fixture
def pictures(tmp_path):
    return data.PictureDataset(data.folder(save_smooth(tmp_path)), (40, 48))


def test_the_better_radius_counts_in_every_row(pictures):
    bins = ("rectangle", *masks.BINS)
    calls, visits = [], []
    outcome = compete(
        "telea",
        pictures,
        bins=bins,
        seed=4,
        progress=lambda *call: calls.append(call),
        visit=lambda *visit: visits.append(visit),
    )
    forms = OPPONENTS["telea"]
    singly = [evaluate(form, pictures, bins=bins, seed=4) for form in forms]
    assert calls == [(done, 60) for done in range(1, 61)]
    pooled = np.array([[one.psnr_holes_pooled for one in report.bins] for report in singly])
    assert (pooled[0] != pooled[1]).all()
    for place, one in enumerate(outcome.report.bins):
        best = int(pooled[:, place].argmax())
        assert outcome.forms[place] is forms[best]
        for metric, value in vars(singly[best].bins[place]).items():  # here pictures were filled 16 at a time
            same = value if isinstance(value, str | None) else pytest.approx(value, rel=1e-6)
            assert getattr(one, metric) == same
    radii = {
        one.title: form.settings["radius"]
        for one, form in zip(outcome.report.bins, outcome.forms, strict=True)
    }
    assert list(radii) == ["rectangle", *("[{:g}, {:g})".format(*edges) for edges in masks.BINS)]
    assert outcome.report.settings == singly[0].settings | {"opponent": "telea", "radius": radii}
    assert Report.from_json(outcome.report.to_json()) == outcome.report
    assert len(visits) == 60
    form, place, truth, mask, result = visits[-1]
    assert (form, place) == (forms[1], 5)
    assert torch.equal(result, forms[1](truth[None], mask[None])[0])


class Off(Opponent):
    """Errs by `by` in small holes and by 0.3 - `by` in others."""

    title = "off"

    def fill(self, picture, hole):
        small = hole.sum() < 0.15 * hole.numel()
        return torch.full_like(picture, 0.5 + (self.settings["by"] if small else 0.3 - self.settings["by"]))


@pytest.fixture
def flat(tmp_path):
    from PIL import Image

    Image.new("RGB", (48, 40), (127, 128, 127)).save(tmp_path / "flat.png")
    return data.PictureDataset(data.folder(tmp_path), (40, 48))


def test_the_report_says_which_form_it_is_of(flat, monkeypatch):
    monkeypatch.setattr(opponents, "OPPONENTS", {"off": (Off(by=0.1), Off(by=0.2))})
    outcome = compete("off", flat, bins=masks.BINS[::2])
    assert outcome.report.settings["by"] == {"[0.01, 0.1)": 0.1, "[0.2, 0.3)": 0.2, "[0.4, 0.5)": 0.2}
    assert [form.settings["by"] for form in outcome.forms] == [0.1, 0.2, 0.2]
    assert all(one.psnr_holes_pooled == pytest.approx(20, abs=0.3) for one in outcome.report.bins)


def test_the_first_form_where_nothing_can_be_compared(flat, monkeypatch, tmp_path):
    broken = Off(by=math.nan)
    monkeypatch.setattr(opponents, "OPPONENTS", {"off": (broken, Off(by=0.2))})
    assert compete("off", flat, bins=masks.BINS[:1]).forms[0].settings["by"] == 0.2
    monkeypatch.setattr(opponents, "OPPONENTS", {"off": (broken, broken)})
    assert compete("off", flat, bins=masks.BINS[:1]).forms == (broken,)


def test_unknown_names(pictures):
    with pytest.raises(
        ValueError, match="one of 'mean', 'telea', 'navier-stokes', 'biharmonic', got 'patch'"
    ):
        compete("patch", pictures)


BLOCKED = """
import sys
sys.modules["cv2"] = sys.modules["skimage"] = None  # as if they were not installed
import torch
from pconv_ext.opponents import OPPONENTS, check_installed
check_installed(["mean"])
image, mask = torch.rand(1, 3, 8, 8), torch.ones(1, 1, 8, 8)
mask[..., 2:5, 2:5] = 0
OPPONENTS["mean"][0](image, mask)
for name in ("telea", "navier-stokes", "biharmonic"):
    for call in (lambda: check_installed(["mean", name]), lambda: OPPONENTS[name][0](image, mask)):
        try:
            call()
        except ImportError as error:
            print(error)
"""


def test_without_the_extra():
    lines = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert len(lines) == 6
    packages = [("telea", "opencv-python-headless"), ("navier-stokes", "opencv-python-headless")]
    packages.append(("biharmonic", "scikit-image"))
    for i, (name, package) in enumerate(packages):
        for line in lines[2 * i : 2 * i + 2]:
            begins = f"the opponent {name} needs {package}: pip install 'pconv_ext[opponents]' (importing "
            assert line.startswith(begins)


def test_nothing_is_imported_before_it_is_needed():
    code = (
        "import sys, pconv_ext.opponents, pconv_ext.inpainting.cli;print({'cv2', 'skimage'} & {*sys.modules})"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "set()"
    check_installed(OPPONENTS)
