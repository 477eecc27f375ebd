"""A training goes on with the same bits after whatever ended it, and never loses what it had."""

import os
import signal
import time

import numpy as np
import pytest
import torch
from support.trainings import (
    ON_PIXELS,
    OPTIONS,
    SMALL,
    assert_same_training,
    command,
    finish,
    history,
    make_pictures,
)

from pconv_ext import checkpoint
from pconv_ext.inpainting.cli import run
from pconv_ext.inpainting.training.config import resumed
from pconv_ext.inpainting.training.processes import Processes
from pconv_ext.inpainting.training.run_folder import RunFolder
from pconv_ext.inpainting.training.trainer import Trainer
from pconv_ext.training import DivergedError, TrainConfig, train


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def settings(pictures):
    return SMALL | {"data": str(pictures), "weights": ON_PIXELS}


def position(folder):
    """(epoch, step) of the checkpoint in a folder, None where there is none."""
    if not RunFolder(folder).begun:
        return None
    progress = RunFolder(folder).load()["progress"]
    return progress["epoch"], progress["step"]


@pytest.mark.deep
def test_killed_at_any_moment(pictures, tmp_path):
    """kill -9 again and again, a random moment after a new checkpoint."""
    begin = ["train", pictures, *OPTIONS, "--batch-size=3", "--save-every=1", "--patience=0"]
    finish(command(*begin, "-o", tmp_path / "whole"))
    folder, delays, kills = tmp_path / "killed", np.random.default_rng(), 0
    while True:
        before = position(folder)
        process = command(*begin, "--resume", "-o", folder)
        while process.poll() is None and position(folder) in (before, (0, 0)):
            time.sleep(0.002)
        time.sleep(delays.uniform(0, 0.05))
        if process.poll() is not None:
            break
        process.kill()
        process.communicate()
        kills += 1
    finish(process)
    assert kills >= 2
    assert_same_training(folder, tmp_path / "whole")


@pytest.mark.deep
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_save(pictures, tmp_path, number):
    """Ctrl-C and what schedulers send: a checkpoint of that very step and exit code 130."""
    begin = ["train", pictures, *OPTIONS]
    interrupted, straight = tmp_path / "interrupted", tmp_path / "straight"
    process = command(*begin, "--epochs=1000", "--workers=1", "-o", interrupted)
    while position(interrupted) in (None, (0, 0)):
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == f"stopped; {interrupted} holds a checkpoint, --resume goes on from it"
    epochs = f"--epochs={position(interrupted)[0] + 1}"
    for folder in (interrupted, straight):
        finish(command(*begin, epochs, "--resume", "-o", folder))
    assert_same_training(interrupted, straight)


def test_a_signal_to_the_whole_group_saves(pictures, tmp_path):
    """As schedulers and torchrun send it: to the processes that load pictures too."""
    folder = tmp_path / "run"
    arguments = ["train", pictures, *OPTIONS, "--epochs=1000", "--workers=2", "-o", folder]
    process = command(*arguments, start_new_session=True)
    while position(folder) in (None, (0, 0)):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


def test_the_folder_is_enough(settings, tmp_path):
    train(settings, tmp_path / "parts")
    assert train({"epochs": 3}, tmp_path / "parts", resume=True)
    train(settings | {"epochs": 3}, tmp_path / "whole")
    assert_same_training(tmp_path / "parts", tmp_path / "whole")
    assert train({}, tmp_path / "parts", resume=True)  # nothing left to do
    assert_same_training(tmp_path / "parts", tmp_path / "whole")


def test_a_start_that_failed_is_begun_anew(settings, tmp_path):
    train(settings, tmp_path / "whole")
    made = Trainer(TrainConfig(**settings | {"seed": 9}), RunFolder(tmp_path), Processes(torch.device("cpu")))
    made.save(best=False)
    train(settings, tmp_path)
    assert_same_training(tmp_path, tmp_path / "whole")


def test_workers_change_nothing(settings, tmp_path):
    train(settings, tmp_path / "none")
    train(settings, tmp_path / "two", workers=2)
    assert_same_training(tmp_path / "two", tmp_path / "none")


def test_tensorboard_shows_a_step_once(settings, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings, tmp_path / "run")
    time.sleep(1)  # TensorBoard orders files by the second of their begin, and in it by a number as text
    train(settings | {"epochs": 3}, tmp_path / "run", resume=True)
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    expected = {"step/total", "step/images_per_second", "train/total", "train/lr", "val/missing"}
    assert expected <= {*events.Tags()["scalars"]}
    shown = sorted((event.step, event.value) for event in events.Scalars("val/total"))
    assert [step for step, _ in shown] == [3, 6, 9]
    assert sorted(event.step for event in events.Scalars("step/total")) == [3, 6, 9]
    assert [value for _, value in shown] == pytest.approx(
        [record["val"]["total"] for record in history(tmp_path / "run")], rel=1e-6
    )
    picture = events.Images("val")[-1]
    assert (picture.width, picture.height) == (3 * 16 + 2 * 4, 2 * 16 + 4)  # truth | masked | output, 2 rows


def test_divergence_keeps_the_last_good_checkpoint(settings, tmp_path):
    folder = tmp_path / "run"
    train(settings | {"epochs": 1}, folder)
    good = RunFolder(folder).load()
    good["optimizer"]["param_groups"][0]["lr"] = 1e38
    config = TrainConfig(**settings | {"epochs": 5})
    made = Trainer(config, RunFolder(folder), Processes(torch.device("cpu")), state=good)
    with pytest.raises(
        DivergedError, match=r"not finite any more at epoch \d, step \d+: train anew with a smaller lr"
    ):
        made.run()
    assert position(folder)[0] >= 1
    assert all(value.isfinite().all() for value in RunFolder(folder).load()["net"].values())
    for name in ("last", "best"):
        net = checkpoint.load_net(folder / f"{name}.safetensors")
        assert all(value.isfinite().all() for value in net.state_dict().values())


class TestErrors:
    def fails(self, capsys, *arguments):
        """The one line on standard error of a training that fails."""
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            run(["train", *map(str, arguments)])
        assert stop.value.code == 1
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    def test_divergence(self, pictures, tmp_path, capsys):
        message = self.fails(capsys, pictures, *OPTIONS, "--lr=1e30", "-o", tmp_path / "run")
        assert "not finite any more at epoch 1" in message
        assert f"{tmp_path / 'run'} holds the last good checkpoint" in message

    def test_nothing_is_written(self, pictures, tmp_path, capsys):
        folder = tmp_path / "run"
        (tmp_path / "empty").mkdir()
        (tmp_path / "text.txt").write_text("no weights")
        for arguments, expected in (
            ([], "data must be given"),
            (["--resume"], f"there is no training in {folder} to resume; data must be given"),
            ([pictures, "--backend", "none"], "--backend must be 'auto' or one of"),
            ([pictures, "--backend", "cuda"], "--backend 'cuda' is not available"),
            ([tmp_path / "absent"], f"no folder {tmp_path / 'absent'}"),
            ([tmp_path / "empty"], "has no pictures"),
            ([pictures, "--weights=style=1", "--vgg16", tmp_path / "absent"], "no file"),
            ([pictures, "--weights=style=1", "--vgg16", tmp_path / "text.txt"], "text.txt cannot be read"),
            ([pictures, "--masks", tmp_path / "empty"], "has no pictures"),
            ([pictures, "--lr", "-1"], "lr must be above 0 and at most 1e30, got -1"),
            ([pictures, "--factor", "1"], "factor must be between 0 and 1"),
            ([pictures, "--size", "0"], "size must be an int of at least 1, got 0"),
            (
                [pictures, "--weights", "stile=0"],
                "weights may have the names avail, missing, perceptual, style",
            ),
            ([pictures, "--weights", "style"], "must look like style=120, got 'style'"),
            ([pictures, "--kernel-sizes", "3;5"], "must look like 3,5,7 or 3,5,7/3,5, got '3;5'"),
            (
                [pictures, "--holes", "round"],
                "holes must be one of 'rectangle', 'irregular', 'mixed', got 'round'",
            ),
            ([pictures, "--device", "gpu7"], "device must be one that torch can use here"),
            ([pictures, "--sync-batchnorm"], "--sync-batchnorm needs GPUs"),
            ([pictures, "--invert-mask"], "--invert-mask is about the pictures of --masks"),
            ([pictures, "--weights=style=nan"], "weights must be finite"),
        ):
            assert expected in self.fails(capsys, *OPTIONS, *arguments, "-o", folder), arguments
            assert not folder.exists()

    def test_a_training_is_not_overwritten(self, settings, pictures, tmp_path, capsys):
        folder, fewer = tmp_path / "run", tmp_path / "fewer"
        fewer.mkdir()
        make_pictures(fewer, 4)
        train(settings, folder)
        before = {file.name: file.read_bytes() for file in folder.glob("*.*")}
        for arguments, expected in (
            ([pictures], "holds a training already"),
            (["--resume", "--lr", "0.5"], "--lr was 0.01, got 0.5"),
            ([fewer, "--resume"], "11 pictures to train and 2 to validate on, got 3 and 1"),
        ):
            assert expected in self.fails(capsys, *arguments, "-o", folder)
        assert before == {file.name: file.read_bytes() for file in folder.glob("*.*")}
        assert "lr must be above 0" in self.fails(capsys, pictures, "--lr=-1", "-o", folder)
        (folder / "state.pt").unlink()  # what is left is somebody's network
        assert "holds a training already" in self.fails(capsys, pictures, "-o", folder)
        assert "must be a folder" in self.fails(capsys, pictures, "-o", folder / "last.safetensors")

    def test_damaged_state(self, settings, tmp_path, capsys):
        train(settings, tmp_path / "run")
        state = tmp_path / "run" / "state.pt"
        whole = state.read_bytes()
        for content in (whole[: len(whole) // 2], b"", b"text"):
            state.write_bytes(content)
            assert f"{state} cannot be read" in self.fails(capsys, "-o", tmp_path / "run", "--resume")
        torch.save({"model": torch.zeros(1)}, state)
        assert f"{state} is no training state" in self.fails(capsys, "-o", tmp_path / "run", "--resume")
        torch.save({"pconv_ext": 1, "config": {}}, state)
        assert f"{state} is damaged, it lacks mean, net" in self.fails(
            capsys, "-o", tmp_path / "run", "--resume"
        )


def test_resumed_config():
    stored = TrainConfig("photos", weights={"style": 0}, kernel_sizes=[[3, 5], [3]], msfef_stages=2).to_dict()
    assert resumed(stored, {}).to_dict() == stored
    assert resumed(stored, {"data": "elsewhere", "epochs": 7}).epochs == 7
    assert resumed(stored, {"weights": {"style": 0.0}}).weights["style"] == 0
    for other in ({"weights": {}}, {"kernel_sizes": (3, 5, 7)}, {"seed": 1}, {"size": 128}):
        with pytest.raises(ValueError, match=f"{next(iter(other))} was"):
            resumed(stored, other)
