"""``pconv-ext evaluate``, from arguments to files, and what it says when something is wrong."""

import csv
import json
import os
import re
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import torchvision_without_ops
from support.pictures import mask_folder
from support.weight_files import offline, save

from pconv_ext import InpaintingNet, data, masks
from pconv_ext.checkpoint import load_net, save_net
from pconv_ext.evaluation import Report, evaluate, load_lpips
from pconv_ext.inpainting.cli import run
from pconv_ext.inpainting.figures import TITLE
from pconv_ext.opponents import OPPONENTS, compete

torchvision_without_ops.make_importable()


FIGURES = [*(f"holes-{low:g}-{high:g}.png" for low, high in masks.BINS), "holes-rectangle.png"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A folder with a checkpoint, pictures, masks and what is wrong."""
    root = tmp_path_factory.mktemp("inputs")
    net = InpaintingNet(width=2, depth=3, msfef_stages=1)
    save_net(net, root / "net.safetensors")
    whole = (root / "net.safetensors").read_bytes()
    (root / "truncated.safetensors").write_bytes(whole[: len(whole) // 2])
    save({"weight": torch.ones(2)}, root / "foreign.safetensors")
    for folder, sizes in (("pictures", [(40, 50)] * 4), ("broken", [])):
        (root / folder).mkdir()
        for i, size in enumerate(sizes):
            pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{i}.png")
    (root / "broken" / "0.png").write_bytes(b"no picture")
    mask_folder(root / "masks", (6, 14))  # of 40 rows, white
    (root / "empty").mkdir()
    return root


@pytest.fixture
def command(inputs, tmp_path, capsys, monkeypatch):
    """Run `evaluate` in a folder of its own; returns exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def call(*options, checkpoint="net.safetensors", pictures="pictures", output="out"):
        arguments = ["evaluate", str(inputs / checkpoint), str(inputs / pictures), "-o", output]
        with pytest.raises(SystemExit) as stop:
            run([*arguments, "--size", "32", "--workers", "0", *map(str, options)])
        return stop.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def random_lpips(tmp_path_factory):
    torchmetrics = pytest.importorskip("torchmetrics.functional.image.lpips")
    state = torchmetrics._LPIPS(pretrained=False, pnet_rand=True, use_dropout=False).state_dict()
    named = {"features." + key.split(".", 2)[2]: value for key, value in state.items() if "slice" in key}
    named |= {f"lin{i}": state[f"lin{i}.model.0.weight"].abs() for i in range(5)}
    return save(named, tmp_path_factory.mktemp("weights") / "lpips.pth")


def test_metrics_and_figures(command, inputs, tmp_path, random_lpips):
    code, out, err = command("--lpips", random_lpips, "--figures", 3, "--seed", 7, "--limit", 2)
    assert (code, err) == (0, "")
    assert "[0.01, 0.1)" in out
    assert out.endswith("written to out\n")
    assert sorted(os.listdir(tmp_path / "out")) == ["figures", "metrics.csv", "metrics.json", "metrics.md"]
    report = Report.from_json((tmp_path / "out" / "metrics.json").read_text())
    pictures = data.PictureDataset(data.folder(inputs / "pictures"), 32)
    net = load_net(inputs / "net.safetensors")
    metric, bins = load_lpips(random_lpips), ("rectangle", *masks.BINS)
    expected = evaluate(net, pictures, bins=bins, lpips=metric, seed=7, limit=2)
    assert report.bins == expected.bins
    names = {"checkpoint": str(inputs / "net.safetensors"), "folder": str(inputs / "pictures")}
    assert report.settings == names | expected.settings
    figures = tmp_path / "out" / "figures"
    assert sorted(os.listdir(figures)) == FIGURES
    with Image.open(figures / "holes-0.4-0.5.png") as figure:
        assert figure.size == (3 * 32 + 2 * 4, 2 * 32 + 4)
        pixels = torch.from_numpy(np.array(figure)).permute(2, 0, 1)
    hole = masks.irregular(32, 32, 0.4, 0.5, 7, 1)[0] == 0  # the second row
    truth, masked, output = (pixels[:, 36:68, left : left + 32] for left in (0, 36, 72))
    assert torch.equal(truth, (pictures[1] * 255).round().to(torch.uint8))
    assert (masked[:, hole] == 255).all()
    assert torch.equal(masked[:, ~hole], truth[:, ~hole])
    assert torch.equal(output[:, ~hole], truth[:, ~hole])
    assert not torch.equal(output, truth)


def test_raw_masks_and_no_figures(command, inputs, tmp_path):
    arguments = ("--no-lpips", "--raw", "--masks", inputs / "masks", "--invert-mask", "--figures", 0)
    code, out, err = command(*arguments)
    assert (code, err) == (0, "")
    assert "Of the network's output." in out
    report = Report.from_json((tmp_path / "out" / "metrics.json").read_text())
    assert report.raw
    assert sum(one.images for one in report.bins) == 4
    assert len(report.bins) == 5  # no row of rectangles
    assert {i for i, one in enumerate(report.bins) if one.images} <= {1, 3}  # ratios 6/40 and 14/40
    assert report.lpips_missing == "--no-lpips was given"
    assert sorted(os.listdir(tmp_path / "out")) == ["metrics.csv", "metrics.json", "metrics.md"]


def test_against(command, inputs, tmp_path):
    """The network's rows are as without, the opponents' those of `compete`, and so are the figures."""
    assert command("--no-lpips", "--seed", 3, "--limit", 3)[0] == 0
    alone = Report.from_json((tmp_path / "out" / "metrics.json").read_text())
    code, out, err = command(
        "--no-lpips", "--seed", 3, "--limit", 3, "--against", "telea, mean,telea, mean,biharmonic"
    )
    assert (code, err) == (0, "")
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(content) == ["network", "telea", "mean", "biharmonic"]
    reports = {name: Report.from_json(json.dumps(value)) for name, value in content.items()}
    assert reports["network"] == alone
    pictures = data.PictureDataset(data.folder(inputs / "pictures"), 32)
    bins = ("rectangle", *masks.BINS)
    for name in ("telea", "mean", "biharmonic"):
        outcome = compete(name, pictures, bins=bins, seed=3, limit=3)
        assert reports[name].bins == outcome.report.bins
        assert reports[name].settings == {"folder": str(inputs / "pictures")} | outcome.report.settings
        assert reports[name].lpips_missing == "--no-lpips was given"
    assert set(reports["telea"].settings["radius"]) == {one.title for one in alone.bins}
    with (tmp_path / "out" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == [*content] * 6
    assert [row["holes"] for row in rows[::4]] == [one.title for one in alone.bins]
    text = (tmp_path / "out" / "metrics.md").read_text()
    for part in (out, text):
        assert part.count("biharmonic") == 6
        assert "The better radius for each row" in part
    assert "- network: checkpoint: " in text
    assert sorted(os.listdir(tmp_path / "out" / "figures")) == FIGURES
    outcome = compete("telea", pictures, bins=bins, seed=3, limit=3)
    for place, holes in enumerate(bins):
        name = "rectangle" if place == 0 else "{:g}-{:g}".format(*holes)
        with Image.open(tmp_path / "out" / "figures" / f"holes-{name}.png") as figure:
            assert figure.size == (6 * 32 + 5 * 4, TITLE + 2 * 32 + 4)
            pixels = torch.from_numpy(np.array(figure)).permute(2, 0, 1)[:, TITLE + 36 :]  # the second row
        truth = pictures[1]
        mask = masks.rectangle(32, 32, 3, 1) if place == 0 else masks.irregular(32, 32, *holes, 3, 1)
        forms = [load_net(inputs / "net.safetensors"), outcome.forms[place]]
        forms += [OPPONENTS["mean"][0], OPPONENTS["biharmonic"][0]]
        for column, form in enumerate(forms, 2):
            with torch.inference_mode():
                filled = torch.where(mask != 0, truth, form(truth[None], mask[None])[0].clamp(0, 1))
            shown = pixels[:, :, 36 * column : 36 * column + 32].int()
            # a value in the middle between two bytes may be rounded to either, in batches of another size
            assert (shown - (filled * 255).round().int()).abs().max() <= 1
    # without opponents and rectangles again, nothing of them is left
    assert command("--no-lpips", "--masks", inputs / "masks", "--invert-mask")[0] == 0
    assert "holes-rectangle.png" not in os.listdir(tmp_path / "out" / "figures")
    assert "method" not in (tmp_path / "out" / "metrics.csv").read_text()


def test_against_masks_of_a_folder(command, inputs, tmp_path):
    options = (
        "--no-lpips",
        "--masks",
        inputs / "masks",
        "--invert-mask",
        "--against",
        "navier-stokes",
        "--raw",
    )
    assert command(*options)[::2] == (0, "")
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for name in ("network", "navier-stokes"):
        report = Report.from_json(json.dumps(content[name]))
        assert report.raw
        assert [one.low for one in report.bins] == [low for low, _ in masks.BINS]
        assert sum(one.images for one in report.bins) == 4


@pytest.mark.parametrize(
    ("blocked", "names", "package"),
    [
        ("cv2", "mean,navier-stokes", "opencv-python-headless"),
        ("skimage.restoration", "telea,biharmonic", "scikit-image"),
    ],
)
def test_a_missing_dependency_is_told_before_anything_else(
    command, tmp_path, monkeypatch, blocked, names, package
):
    monkeypatch.setitem(sys.modules, blocked, None)  # importing it fails
    code, out, err = command("--no-lpips", "--against", names, checkpoint="nowhere", pictures="nowhere")
    assert (code, out, err.count("\n")) == (1, "", 1)
    line = (
        f"pconv-ext: the opponent {names.split(',')[1]} needs {package}: pip install 'pconv_ext[opponents]'"
    )
    assert err.startswith(line)
    assert os.listdir(tmp_path) == []


def test_without_network_the_other_metrics_are_written(command, tmp_path, monkeypatch):
    offline(monkeypatch)
    code, out, err = command()
    assert code == 0
    assert err.count("\n") == 1
    assert err.startswith("pconv-ext: warning: LPIPS is left out: load_lpips: ")
    rows = list(csv.DictReader((tmp_path / "out" / "metrics.csv").open()))
    for row in rows:
        assert float(row["ssim"]) < 1
        assert "no route to host" in row["lpips"]
    for text in (out, (tmp_path / "out" / "metrics.md").read_text()):
        assert "see note" in text
        assert "no route to host" in " ".join(text.split())


def test_splits(command, inputs, tmp_path):
    for name in ("trainnames.txt", "testnames.txt"):
        (inputs / "pictures" / name).write_text("0\n1\n2\n" if "train" in name else "3\n")
    try:
        for options, count in (((), 1), (("--split", "train"), 3), (("--split", "all"), 4)):
            assert command("--no-lpips", *options)[0] == 0
            report = Report.from_json((tmp_path / "out" / "metrics.json").read_text())
            assert report.settings["pictures"] == count
    finally:
        for name in ("trainnames.txt", "testnames.txt"):
            (inputs / "pictures" / name).unlink()


@pytest.mark.parametrize(
    ("options", "places", "message"),
    [
        ([], {"checkpoint": "nowhere"}, "there is no checkpoint .*nowhere"),
        ([], {"checkpoint": "empty"}, "the folder .*empty holds no checkpoint"),
        ([], {"checkpoint": "truncated.safetensors"}, "truncated.safetensors cannot be read, it is damaged"),
        ([], {"checkpoint": "foreign.safetensors"}, "foreign.safetensors is no checkpoint of pconv_ext"),
        ([], {"pictures": "nowhere"}, "there is no folder .*nowhere"),
        ([], {"pictures": "net.safetensors"}, "net.safetensors must be a folder of pictures"),
        ([], {"pictures": "empty"}, "empty has no pictures"),
        ([], {"output": "file"}, "--output must be a folder, .*file is a file"),
        ([], {"output": "file/below"}, "--output must be a folder, .*file is a file"),
        (["--masks", "nowhere"], {}, "there is no folder nowhere"),
        (["--lpips", "nowhere.pth"], {}, "there is no file nowhere.pth. .*--lpips FILE"),
        (["--lpips", "file"], {}, "load_lpips: file cannot be read"),
        (["--lpips", "file", "--no-lpips"], {}, "--lpips and --no-lpips exclude each other"),
        (["--invert-mask"], {}, "--invert-mask is about the pictures of --masks"),
        (
            ["--against", "mean,patch"],
            {},
            "--against must be one of 'mean', 'telea', 'navier-stokes', 'biharmonic', got 'patch'",
        ),
        (["--against", ""], {}, "--against must not be empty"),
        (["--split", "val"], {}, "--split must be one of 'all', 'train', 'test', got 'val'"),
        (["--split", "train"], {}, "needs the list .*trainnames.txt, which is not there"),
        (["--size", "0"], {}, "size must be an int of at least 1, got 0"),
        (["--size", "10"], {}, "pictures must be at least 11x11, the window of SSIM, got 10x10"),
        (["--batch-size", "0"], {}, "--batch-size must be an int of at least 1, got 0"),
        (["--figures", "-1"], {}, "--figures must be an int of at least 0, got -1"),
        (["--limit", "0"], {}, "--limit must be an int of at least 1, got 0"),
        (["--seed", "-1"], {}, "--seed must be an int in"),
        (["--device", "abacus"], {}, "device must be one that torch can use here, got 'abacus'"),
    ],
)
def test_one_line_says_what_is_wrong(command, tmp_path, options, places, message):
    (tmp_path / "file").write_bytes(b"a file")
    skipped = [] if "--lpips" in options else ["--no-lpips"]
    code, out, err = command(*skipped, *options, **places)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert re.search(f"^pconv-ext: .*{message}", err), err
    assert os.listdir(tmp_path) == ["file"]


def test_broken_pictures(command, tmp_path):
    code, out, err = command("--no-lpips", pictures="broken")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("pconv-ext: none of 1 pictures can be read")
    assert os.listdir(tmp_path) == []
