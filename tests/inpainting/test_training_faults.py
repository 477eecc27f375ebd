"""What can go wrong around a training: it is told in one line, and nothing is lost or silently mixed up."""

import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.trainings import OPTIONS, command, history, make_pictures, one_line
from torch.utils.data import DataLoader

from pconv_ext.data import InpaintingDataset, PictureDataset, folder
from pconv_ext.inpainting.training.lock import FolderInUseError, Lock
from pconv_ext.inpainting.training.pictures import Batches, warn_of_common
from pconv_ext.inpainting.training.processes import Processes
from pconv_ext.inpainting.training.reports import Report
from pconv_ext.inpainting.training.run_folder import RunFolder
from pconv_ext.inpainting.training.trainer import Trainer
from pconv_ext.masks import MaskFolder
from pconv_ext.training import DivergedError, TrainConfig, train


class TestTwoInOneFolder:
    @pytest.mark.parametrize("resume", [False, True])
    def test_the_second_is_refused(self, pictures, tmp_path, capsys, resume):
        folder = tmp_path / "run"
        first = command("train", pictures, *OPTIONS, "--epochs=100000", "-o", folder)
        try:
            while not RunFolder(folder).begun:
                assert first.poll() is None
                time.sleep(0.01)
            again = ["--resume"] if resume else []
            message = one_line(capsys, "train", pictures, *OPTIONS, *again, "-o", folder)
            assert f"{folder} is in use by another training (process {first.pid} on " in message
        finally:
            first.kill()
            first.communicate()
        # The crash has freed it.
        epochs = RunFolder(folder).load()["progress"]["epoch"] + 1
        assert train({"epochs": epochs}, folder, resume=True)

    def test_in_one_process(self, settings, tmp_path):
        held = Lock(tmp_path / ".lock")
        with pytest.raises(FolderInUseError, match="is in use by another training"):
            train(settings, tmp_path)
        held.release()
        train(settings, tmp_path)
        assert not (tmp_path / ".lock").exists()

    def test_a_holder_that_is_killed_leaves_it_to_no_child(self, tmp_path):
        """Its processes that load pictures live on for some seconds."""
        script = (
            "import os, sys, time; from pathlib import Path\n"
            "from pconv_ext.inpainting.training.lock import Lock\n"
            "lock = Lock(Path(sys.argv[1])); child = os.fork()\n"
            "if child: print(child, flush=True)\n"
            "time.sleep(60)"
        )
        file = tmp_path / ".lock"
        holder = subprocess.Popen([sys.executable, "-c", script, file], stdout=subprocess.PIPE, text=True)
        child = int(holder.stdout.readline())
        try:
            with pytest.raises(FolderInUseError, match=f"process {holder.pid} on"):
                Lock(file)
            holder.kill()
            holder.wait()
            Lock(file).release()
        finally:
            os.kill(child, signal.SIGKILL)
            holder.kill()
            holder.communicate()


class TestOtherPictures:
    def test_as_many(self, settings, pictures, tmp_path):
        train(settings, tmp_path / "run")
        before = (tmp_path / "run" / "state.pt").read_bytes()
        (pictures / "00.png").rename(pictures / "000.png")
        with pytest.raises(
            ValueError, match="was begun with other pictures: as many, with other names or sizes"
        ):
            train({"epochs": 3}, tmp_path / "run", resume=True)
        assert (tmp_path / "run" / "state.pt").read_bytes() == before
        (pictures / "000.png").rename(pictures / "00.png")
        with (pictures / "00.png").open("ab") as file:
            file.write(b"more")
        with pytest.raises(ValueError, match="was begun with other pictures"):
            train({"epochs": 3}, tmp_path / "run", resume=True)

    def test_in_another_spelling(self, settings, pictures, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        train(settings | {"data": f"{pictures.name}/"}, "run")
        for epochs, data in enumerate((f"./{pictures.name}", pictures, f"{pictures}//"), 3):
            assert train({"epochs": epochs, "data": data}, "run", resume=True)

    def test_other_masks(self, settings, tmp_path):
        (tmp_path / "masks").mkdir()
        make_pictures(tmp_path / "masks", 3)
        settings["masks"] = str(tmp_path / "masks")
        train(settings, tmp_path / "run")
        assert train({"epochs": 3}, tmp_path / "run", resume=True)
        (tmp_path / "masks" / "00.png").rename(tmp_path / "masks" / "3.png")
        with pytest.raises(ValueError, match=r"other pictures: .* than those in .*pictures or .*masks$"):
            train({"epochs": 4}, tmp_path / "run", resume=True)

    def test_a_moved_folder_is_the_same(self, settings, pictures, tmp_path):
        train(settings, tmp_path / "run")
        pictures.rename(tmp_path / "moved")
        assert train({"epochs": 3, "data": str(tmp_path / "moved")}, tmp_path / "run", resume=True)


class TestDivergence:
    def test_is_more_than_nan(self, settings, tmp_path):
        with pytest.raises(
            DivergedError, match=r"loss is .*, at first it was .*, at epoch \d, step \d+: train anew"
        ):
            train(settings | {"lr": 1e3, "epochs": 6}, tmp_path)

    def test_not_where_the_first_masks_had_no_holes(self, settings, tmp_path):
        config = TrainConfig(**settings)
        trainer = Trainer(config, RunFolder(tmp_path), Processes(torch.device("cpu")))
        for first in (0.0, 1e-9):
            trainer.progress.first = first
            trainer._check_growth("the loss", 0.3)
            with pytest.raises(DivergedError, match=r"the loss is 1e.04"):
                trainer._check_growth("the loss", 1e4)

    def test_rates_that_are_no_float32(self, pictures, tmp_path, capsys):
        message = one_line(capsys, "train", pictures, *OPTIONS, "--lr=1e300", "-o", tmp_path / "run")
        assert "--lr must be above 0 and at most 1e30, got 1e+300" in message

    def test_not_of_an_ordinary_training(self, settings, tmp_path):
        train(settings | {"epochs": 8}, tmp_path)
        assert len(history(tmp_path)) == 8


class TestAround:
    def test_the_users_files_stay(self, settings, tmp_path):
        kept = [
            tmp_path / name for name in (".state.pt.backup", ".state.pt.20250101", ".best.safetensors.mine")
        ]
        for file in kept:
            file.write_text("mine")
        (tmp_path / ".state.pt.abcdefgh.partial").write_text("half")
        train(settings, tmp_path)
        assert all(file.read_text() == "mine" for file in kept)
        assert not [*tmp_path.glob("*.partial"), *tmp_path.glob(".*.partial")]

    def test_pictures_of_partial_batches(self):
        for length, size, processes in ((13, 4, 1), (13, 4, 2), (13, 6, 3), (12, 4, 1), (9, 4, 2)):
            parts = [Batches(length, size, 0, processes, rank) for rank in range(processes)]
            taken = [[len(batch) for batch in part] for part in parts]
            for steps in range(len(parts[0]) + 1):
                assert parts[0].pictures(steps) == sum(sum(part[:steps]) for part in taken)

    def test_hangup_saves(self, pictures, tmp_path):
        folder = tmp_path / "run"
        process = command("train", pictures, *OPTIONS, "--epochs=100000", "-o", folder)
        while not RunFolder(folder).begun or RunFolder(folder).load()["progress"]["epoch"] == 0:
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 130, errors
        assert re.search("stopped; .* holds a checkpoint", errors)

    def test_an_ignored_hangup_stays_ignored(self, pictures, tmp_path):
        """As nohup has it."""
        folder = tmp_path / "run"
        ignoring = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
        process = command("train", pictures, *OPTIONS, "--epochs=100000", "-o", folder, **ignoring)

        def epochs():
            assert process.poll() is None
            return RunFolder(folder).load()["progress"]["epoch"] if RunFolder(folder).begun else 0

        while epochs() < 1:
            time.sleep(0.01)
        process.send_signal(signal.SIGHUP)
        reached = epochs()
        while epochs() < reached + 3:
            time.sleep(0.01)
        process.kill()
        process.communicate()

    def test_validation_where_a_process_could_read_nothing(self, settings, tmp_path):
        with Report(TrainConfig(**settings), tmp_path, 0, finished=False, first=True) as report:
            report.begin(0, 0, 0, Batches(8, 4, 0))
            losses = {"train": {"total": 1.0}, "val": {"total": 1.0}}
            report.end({"epoch": 1, "lr": 0.1, **losses}, [])

    @pytest.mark.parametrize("resume", [[], ["--resume"]])
    def test_a_disk_that_takes_nothing(self, pictures, tmp_path, resume):
        """One line, and no traceback of the thread that TensorBoard writes in."""
        folder = tmp_path / "run"
        full = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))}
        process = command("train", pictures, *OPTIONS, *resume, "-o", folder, **full)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 1
        assert len(errors.splitlines()) == 1, errors
        assert "cannot write" in errors or "File too large" in errors

    def test_validation_on_what_is_trained_on(self, settings, pictures, tmp_path):
        (tmp_path / "val").mkdir()
        make_pictures(tmp_path / "val", 15)  # thirteen of them are those of `pictures`
        for file in (tmp_path / "val").iterdir():
            file.rename(file.with_name(f"other-{file.name}"))
        with pytest.warns(UserWarning, match=r"13 of 15 pictures .* are trained on too.*other-00"):
            train(settings | {"val": str(tmp_path / "val")}, tmp_path / "run")
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            train(settings, tmp_path / "apart")

    def test_pictures_that_cannot_be_read_are_not_compared(self, settings, pictures, tmp_path, monkeypatch):
        whole = Path.read_bytes

        def read(file):
            if file.suffix == ".png":
                raise PermissionError(13, "Permission denied", str(file))
            return whole(file)

        shutil.copytree(pictures, tmp_path / "val")
        pairs = [InpaintingDataset(PictureDataset(folder(root), 16)) for root in (pictures, tmp_path / "val")]
        monkeypatch.setattr(Path, "read_bytes", read)
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            warn_of_common(*pairs)

    def test_masks_that_teach_nothing(self, settings, tmp_path):
        (tmp_path / "masks").mkdir()
        for name, value in (("none", 255), ("all", 0)):
            Image.new("L", (16, 16), value).save(tmp_path / "masks" / f"{name}.png")
        half = Image.new("L", (16, 16), 255)
        half.paste(0, (0, 0, 8, 16))
        half.save(tmp_path / "masks" / "half.png")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            pairs = InpaintingDataset(
                PictureDataset(folder(settings["data"]), 16), MaskFolder(tmp_path / "masks")
            )
            for _ in range(3):
                list(DataLoader(pairs, 4))
        texts = [str(warning.message) for warning in caught if "the mask" in str(warning.message)]
        assert len(texts) == 2
        assert any("none.png has no holes" in text for text in texts)
        assert any("all.png is all hole" in text for text in texts)
