"""What ``python benchmarks learn`` says of a network and its opponents; it is not trained here."""

import sys

import pytest
import torch
from support import torchvision_without_ops
from support.pictures import save_smooth
from torch import nn

from measure import learning
from pconv_ext import data, masks
from pconv_ext.opponents import OPPONENTS

torchvision_without_ops.make_importable()


class Half(nn.Module):
    def forward(self, image, mask):
        return torch.full_like(image, 0.5)


def test_rows(tmp_path, capsys):
    """PSNR in holes of every method, by its formula in float64, with the radius that it is of."""
    pictures = data.PictureDataset(data.folder(save_smooth(tmp_path)), 24)
    names, missing = learning.installed()
    assert (names, missing) == ([*OPPONENTS], {})
    rows = learning.compare(pictures, Half(), names)
    kinds = ["rectangle", *(f"irregular [{low:g}, {high:g})" for low, high in masks.BINS)]
    assert [(row["holes"], row["images"]) for row in rows] == [(kind, 5) for kind in kinds]
    for row, holes in zip(rows, ("rectangle", *masks.BINS), strict=True):
        assert list(row)[2:] == ["network", "mean fill", "telea", "navier-stokes", "biharmonic", "gain_db"]
        assert row["gain_db"] == row["network"]["pooled"] - row["mean fill"]["pooled"]
        assert {row[name]["radius"] for name in ("telea", "navier-stokes")} <= {3, 10}
        pairs = data.InpaintingDataset(pictures, holes, fixed=True, seed=learning.MASK_SEED)
        errors = [(image.double() - 0.5)[:, mask[0] == 0].square() for image, mask in pairs]
        pooled = -10 * torch.cat([one.flatten() for one in errors]).mean().log10().item()
        assert row["network"]["pooled"] == pytest.approx(pooled, rel=1e-6)
        mean = torch.stack([-10 * one.mean().log10() for one in errors]).mean().item()
        assert row["network"]["mean"] == pytest.approx(mean, rel=1e-6)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all("telea" in line and "biharmonic" in line for line in lines)


def test_what_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # importing it fails
    names, missing = learning.installed()
    assert names == ["mean", "biharmonic"]
    assert list(missing) == ["telea", "navier-stokes"]
    assert "pip install 'pconv_ext[opponents]'" in missing["telea"]


def test_the_picture():
    assert learning.picture(Half(), 24).size == (4 * 72 + 3 * 4, 6 * 72 + 5 * 4)
