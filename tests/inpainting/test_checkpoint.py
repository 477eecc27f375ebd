"""Networks in files."""

import os

import pytest
import torch
from numpy.testing import assert_array_equal
from support.files import fail, tree
from support.inpainters import PIXELS, VALID, expected, make_net

from pconv_ext import Inpainter, InpaintingNet, checkpoint


def test_networks_in_files(tmp_path, monkeypatch):
    net = make_net()
    with pytest.raises(
        FileNotFoundError, match=r"no checkpoint \(best.safetensors, last.safetensors or model"
    ):
        checkpoint.load_net(tmp_path)
    other = InpaintingNet(width=2, msfef_stages=2, kernel_sizes=((3, 7), (1, 5)), depth=2)
    checkpoint.save_net(other, tmp_path / "last.safetensors", {"step": 7})
    assert checkpoint.load_net(tmp_path).config == other.config
    assert checkpoint.load_training(tmp_path) == {"step": 7}
    best = tmp_path / "best.safetensors"
    checkpoint.save_net(net, best)
    loaded, state = checkpoint.load_net(tmp_path, backend="reference"), net.state_dict()
    assert (loaded.training, loaded.config) == (False, net.config)
    assert loaded.encoder[1].conv.backend == "reference"
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    assert_array_equal(Inpainter(tmp_path, device="cpu")(PIXELS, VALID), expected(net, PIXELS))
    before = tree(tmp_path)
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, fail)
            with pytest.raises(OSError, match="disk full"):
                checkpoint.save_net(other, best)
        assert tree(tmp_path) == before
