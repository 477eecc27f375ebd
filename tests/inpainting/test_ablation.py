"""The ablation study: six trainings, one table; stopped anywhere, it goes on without doing anything twice."""

import json
import re
import time

import pytest
import torch
from support import torchvision_without_ops
from support.trainings import SMALL, command, finish, make_pictures

import pconv_ext.ablation
from pconv_ext import checkpoint, losses
from pconv_ext.ablation import CONFIGURATIONS, ablate
from pconv_ext.evaluation import Report
from pconv_ext.inpainting.cli import run
from pconv_ext.training import DivergedError, TrainConfig

torchvision_without_ops.make_importable()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def settings(pictures, tmp_path_factory):
    file = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(losses.vgg16_features().state_dict(), file)
    return SMALL | {"data": str(pictures), "vgg16": str(file), "epochs": 1}


def quietly(settings, output, **options):
    return ablate(settings, output, announce=lambda line: None, **options)


def test_the_papers_table(settings, tmp_path):
    reports = quietly(settings, tmp_path)
    assert list(reports) == [
        "All loss + MSFEF",
        "No MSE + MSFEF",
        "No Perceptual + MSFEF",
        "No Style + MSFEF",
        "No perceptual, no style + MSFEF",
        "All loss + No MSFEF",
    ]
    trained = [checkpoint.load_training(tmp_path / one.folder)["config"] for one in CONFIGURATIONS]
    off = [
        {name for name, weight in config["weights"].items() if weight == 0 != losses.WEIGHTS[name]}
        for config in trained
    ]
    both = {"perceptual", "style"}
    assert off == [set(), {"avail", "missing"}, {"perceptual"}, {"style"}, both, set()]
    assert [config["msfef_stages"] for config in trained] == [1, 1, 1, 1, 1, 0]
    text = (tmp_path / "ablation.md").read_text()
    for metric in ("L2", "SSIM", "PSNR", "LPIPS", "Pooled hole PSNR"):
        for one in CONFIGURATIONS:
            assert f"| {metric} ({one.title}) |" in text
    assert text.count("**") >= 2 * 4 * 5  # one for each of four metrics and five bins, and ties
    assert set(json.loads((tmp_path / "ablation.json").read_text())) >= set(reports)
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")
    for one in CONFIGURATIONS:
        report = Report.from_json((tmp_path / one.folder / "metrics.json").read_text())
        assert report == reports[one.title]
        assert [one.images for one in report.bins] == [2] * 5


@pytest.mark.deep
def test_nothing_is_done_twice(settings, tmp_path, monkeypatch):
    first = quietly(settings, tmp_path)
    states = {one.folder: (tmp_path / one.folder / "state.pt").stat().st_mtime_ns for one in CONFIGURATIONS}
    with monkeypatch.context() as patch:
        patch.setattr(pconv_ext.ablation, "evaluate", None)
        assert quietly(settings, tmp_path) == first
    for folder, written in states.items():
        assert (tmp_path / folder / "state.pt").stat().st_mtime_ns == written
    longer = quietly(settings | {"epochs": 2}, tmp_path)
    assert longer.keys() == first.keys()
    assert all(report.settings["epochs"] == 2 for report in longer.values())
    (tmp_path / "all" / "metrics.json").write_text("damaged")
    older = tmp_path / "no-mse" / "metrics.json"  # of before there was a PSNR in holes
    older.write_text(re.sub(r'"psnr_holes_pooled": [-.\w]+', '"psnr_holes_pooled": null', older.read_text()))
    assert quietly(settings | {"epochs": 2}, tmp_path) == longer
    fewer = quietly(settings | {"epochs": 2}, tmp_path, limit=1)
    assert all(one.images == 1 for report in fewer.values() for one in report.bins)


def test_another_network_is_measured_again(settings, tmp_path):
    first = quietly(settings, tmp_path, only=["all"])
    folder = tmp_path / CONFIGURATIONS[0].folder
    with torch.no_grad():
        net = checkpoint.load_net(folder)
        net.decoder[-1].conv.bias.add_(0.3)
    checkpoint.save_net(net, folder / "best.safetensors")
    (again,) = quietly(settings, tmp_path, only=["all"]).values()
    (before,) = first.values()
    assert [one.l2 for one in again.bins] != [one.l2 for one in before.bins]


def test_some_of_the_rows(settings, tmp_path):
    assert [*quietly(settings, tmp_path, only=["no-msfef", "no-mse"])] == [
        "No MSE + MSFEF",
        "All loss + No MSFEF",
    ]
    assert not (tmp_path / "all").exists()


def test_losses_stay_off_in_every_phase(settings, tmp_path, monkeypatch):
    found = []

    def record(group, chosen, folder, **options):
        found.append(TrainConfig(**chosen))
        raise DivergedError("enough")

    monkeypatch.setattr(pconv_ext.ablation, "train_in", record)
    given = {"weights": {"style": 60}, "phases": [{"epoch": 2, "weights": {"style": 2, "missing": 3}}]}
    with pytest.raises(DivergedError, match="all trainings"), pytest.warns(UserWarning, match="left out"):
        quietly(settings | given, tmp_path)
    losses_ = [[config.phase(epoch).weights for config in found] for epoch in (0, 1)]
    for weights, (style, missing) in zip(losses_, ((60, 6), (2, 3)), strict=True):
        assert [one["style"] for one in weights] == [style, style, style, 0, 0, style]
        assert [one["missing"] for one in weights] == [missing, 0, missing, missing, missing, missing]


@pytest.mark.deep
def test_killed_and_given_again(settings, pictures, tmp_path):
    arguments = ["ablate", pictures, "--vgg16", settings["vgg16"], "--epochs=1", "--no-lpips", "--workers=0"]
    arguments += ["--size=16", "--width=2", "--depth=3", "--msfef-stages=1", "--batch-size=4", "--lr=0.01"]
    process = command(*arguments, "-o", tmp_path)
    while process.poll() is None and not (tmp_path / "no-perceptual" / "state.pt").is_file():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert not (tmp_path / "no-msfef").exists()
    finish(command(*arguments, "-o", tmp_path))
    assert "| L2 (All loss + No MSFEF) |" in (tmp_path / "ablation.md").read_text()


@pytest.mark.deep
def test_a_diverging_row_is_left_out(settings, tmp_path, monkeypatch):
    whole = pconv_ext.ablation.train_in

    def diverging(group, chosen, folder, **options):
        if "no-style" in str(folder):
            raise DivergedError("the loss is not finite any more")
        return whole(group, chosen, folder, **options)

    monkeypatch.setattr(pconv_ext.ablation, "train_in", diverging)
    with pytest.warns(UserWarning, match="No Style . MSFEF is left out: the loss is not finite any more"):
        reports = quietly(settings, tmp_path)
    assert len(reports) == 5
    assert "No Style" not in (tmp_path / "ablation.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent", "--no-lpips"], "no folder absent"),
        (["{pictures}", "--lpips", "absent.pth"], "no file absent.pth"),
        (["{pictures}", "--lpips", "absent.pth", "--no-lpips"], "exclude each other"),
        (["{pictures}", "--no-lpips", "--lr=-1"], "lr must be above 0"),
        (["{pictures}", "--no-lpips", "--only=all,none"], "--only must be one of 'all', 'no-mse', "),
    ],
)
def test_errors(pictures, tmp_path, capsys, arguments, expected):
    with pytest.raises(SystemExit) as stop:
        run(["ablate", *(text.format(pictures=pictures) for text in arguments), "-o", str(tmp_path / "out")])
    assert stop.value.code == 1
    assert expected in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
