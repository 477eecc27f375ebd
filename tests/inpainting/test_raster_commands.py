"""The commands on rasters: training, evaluation, filling, and what they refuse."""

import json

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image
from support.rasters import H, W, make_net, save_net, save_rasters, smooth
from support.trainings import OPTIONS, assert_same_training, one_line

from pconv_ext import checkpoint
from pconv_ext.inpainting.cli import run
from pconv_ext.training import TrainConfig

RANGES = [[270.0, 290.0], [280.0, 300.0]]
FIELDS = smooth(2)
GAPS = np.isnan(FIELDS[0])
HOLE = np.zeros((H, W), bool)
HOLE[14:19, 3:9] = True


def succeed(*arguments, code=0):
    with pytest.raises(SystemExit) as stop:
        run(arguments)
    assert stop.value.code == code


@pytest.fixture
def folder(tmp_path):
    return save_rasters(tmp_path / "rasters")


TRAIN = [*OPTIONS, "--dataset=rasters", "--channels=2", "--holes=irregular"]


def test_training_evaluation_and_filling_by_command(folder, tmp_path, capsys):
    succeed("train", str(folder), "-o", str(tmp_path / "run"), *TRAIN, "--crop=window", "--per-hole")
    net = checkpoint.load_net(tmp_path / "run")
    values = np.concatenate([smooth(2, seed=i).reshape(2, -1) for i in range(1, 5)], 1)
    for (low, high), known in zip(net.config["ranges"], values, strict=True):
        assert low < np.nanquantile(known, 0.1) < np.nanquantile(known, 0.9) < high
    options = ["--dataset=rasters", "--no-lpips", "--workers=0", "--device=cpu", "--crop=window"]
    measured = ["-o", str(tmp_path / "measured"), "--against=mean,telea", *options]
    succeed("evaluate", str(tmp_path / "run"), str(folder), *measured)
    report = json.loads((tmp_path / "measured" / "metrics.json").read_text())
    assert report
    assert (tmp_path / "measured" / "figures" / "holes-0.1-0.2.png").is_file()
    capsys.readouterr()
    succeed(
        "inpaint", str(folder), "-o", str(tmp_path / "filled"), "-c", str(tmp_path / "run"), "--device=cpu"
    )
    assert "7 written to" in capsys.readouterr().out
    old, new = (np.load(root / "0.npy") for root in (folder, tmp_path / "filled"))
    assert_array_equal(new[:, ~GAPS], old[:, ~GAPS])
    assert np.isfinite(new).all()
    assert np.isfinite(np.load(tmp_path / "filled" / "below" / "a.npz")["fields"]).all()


def test_resumed_training_has_the_same_bits(folder, tmp_path):
    command = ["train", str(folder), *TRAIN, "--seed=5"]
    succeed(*command, "-o", str(tmp_path / "whole"))
    succeed(*command, "-o", str(tmp_path / "parts"), "--epochs=1")
    succeed("train", "-o", str(tmp_path / "parts"), "--resume", "--epochs=2", "--workers=0", "--device=cpu")
    assert_same_training(tmp_path / "parts", tmp_path / "whole")


def test_variables_and_ranges_that_are_given(folder, tmp_path):
    np.savez(tmp_path / "rasters" / "b.npz", u=FIELDS[0], v=FIELDS[1])
    only = tmp_path / "named"
    only.mkdir()
    for i in range(4):
        np.savez(only / f"{i}.npz", t=smooth(1, seed=i)[0], other=np.zeros((3, 4)))
    ranges = ["--ranges=250,310", "--variables=t", "--channels=1"]
    succeed("train", str(only), "-o", str(tmp_path / "run"), *OPTIONS, "--dataset=rasters", *ranges)
    assert checkpoint.load_net(tmp_path / "run").config["ranges"] == [[250, 310]]
    target = ["-o", str(tmp_path / "0.npz"), "-c", str(tmp_path / "run"), "--device=cpu"]
    succeed("inpaint", str(only / "0.npz"), *target, "--variables=t")
    assert np.isfinite(np.load(tmp_path / "0.npz")["t"]).all()
    assert not np.load(tmp_path / "0.npz")["other"].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channels=5"], "train: --channels is of rasters, --dataset is folder"),
        (
            ["--dataset=rasters", "--channels=2"],
            "train: --weights of perceptual and style, which are of pictures",
        ),
        (["--dataset=rasters", "--ranges=1,2,3"], "--ranges must look like 270,310/0,50, got '1,2,3'"),
        (["--dataset=rasters", "--ranges=a"], "--ranges must look like 270,310/0,50, got 'a'"),
    ],
)
def test_wrong_settings(folder, tmp_path, capsys, options, message):
    assert message in one_line(capsys, "train", folder, "-o", tmp_path / "run", *options)


def test_features_are_refused_in_a_later_phase():
    pixels = {"perceptual": 0, "style": 0}
    later = [{"epoch": 5, "weights": {"style": 1}}]
    with pytest.raises(ValueError, match="weights of perceptual and style"):
        TrainConfig("data", "rasters", channels=2, weights=pixels, phases=later)


def test_files_by_command(tmp_path, capsys):
    net = save_net(tmp_path, make_net(2, RANGES))
    np.save(tmp_path / "a.npy", FIELDS)
    Image.fromarray(np.where(HOLE, 0, 255).astype(np.uint8)).save(tmp_path / "mask.png")
    np.save(tmp_path / "mask.npy", ~HOLE)
    common = ["-c", str(net), "--device=cpu"]
    output = ["-o", str(tmp_path / "b.npy")]
    for mask in ("mask.png", "mask.npy"):
        succeed("inpaint", str(tmp_path / "a.npy"), str(tmp_path / mask), *output, *common)
        new = np.load(tmp_path / "b.npy")
        assert_array_equal(new[:, ~HOLE], FIELDS[:, ~HOLE])
        assert (new[:, HOLE] != FIELDS[:, HOLE]).all()
    wrong = [
        (["a.npy", "-o", "b.tif"], "must have the extension of the raster, .npy, got"),
        (["a.npy", "-o", "a.npy"], "must be apart from the image and the mask"),
        (["none.npy", "-o", "b.npy"], "must be a file or a folder, there is no"),
    ]
    for (image, _, other), message in wrong:
        arguments = [tmp_path / image, "-o", tmp_path / other]
        assert message in one_line(capsys, "inpaint", *arguments, *common)


def test_a_network_for_pictures_says_what_it_is(tmp_path, capsys):
    np.save(tmp_path / "a.npy", FIELDS)
    Image.new("RGB", (W, H)).save(tmp_path / "a.png")
    for name, message in (
        ("a.npy", "is a raster, the network"),
        ("a.png", "MASK must be given for a picture"),
    ):
        assert message in one_line(capsys, "inpaint", tmp_path / name, "-o", tmp_path / f"b{name[1:]}")


def test_damaged_rasters_of_a_folder(folder, tmp_path, capsys):
    (folder / "3.npy").write_bytes(b"nothing")
    net = save_net(tmp_path, make_net(2, RANGES))
    command = ["inpaint", str(folder), "-o", str(tmp_path / "out"), "-c", str(net), "--device=cpu"]
    succeed(*command, code=3)
    assert "left out: cannot read raster" in capsys.readouterr().err
    assert len([*(tmp_path / "out").rglob("*.np?")]) == 6
    assert "cannot read raster" in one_line(capsys, *command, "--strict", "--overwrite")
