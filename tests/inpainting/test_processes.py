"""Two processes train as one does: gradients, batches, validation, one folder."""

import socket

import pytest
import torch
import torch.multiprocessing
from support.trainings import ON_PIXELS, OPTIONS, SMALL, command, finish, history, make_pictures

from pconv_ext import InpaintingNet, losses
from pconv_ext.inpainting._device import find_device
from pconv_ext.inpainting.training.pictures import Batches, datasets
from pconv_ext.inpainting.training.processes import Processes, processes
from pconv_ext.inpainting.training.run_folder import RunFolder
from pconv_ext.inpainting.training.trainer import Trainer
from pconv_ext.training import TrainConfig, train


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    return make_pictures(tmp_path / "pictures")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def one_of(rank, size, port, root):
    """A process that saves its gradients."""
    environment = {"WORLD_SIZE": size, "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, str(value))
        with processes("cpu") as group:
            torch.save(gradients(group, root), root / f"{size}-{rank}.pt")


def gradients(group, root):
    """Those of this process's share of a batch of 4, in float64, with normalisation in eval mode."""
    torch.manual_seed(1)  # the same weights in all
    net = InpaintingNet(width=3, msfef_stages=2, depth=3).double().eval()
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    loss = losses.InpaintingLoss(losses.vgg16_features(2)).double()
    dataset = datasets(TrainConfig(str(root / "pictures"), size=16, seed=3))[0]
    share = next(iter(Batches(len(dataset), 4, 3, group.size, group.rank)))
    assert len(share) == 4 // group.size
    images, masks = (torch.stack(tensors) for tensors in zip(*[dataset[i] for i in share], strict=True))
    parallel = group.wrap(net, sync_batchnorm=False)
    loss(parallel(images.double(), masks), images.double(), masks)["total"].backward()
    return [parameter.grad for parameter in net.parameters()]


def test_two_processes_have_the_gradients_of_one(pictures, tmp_path):
    one_of(0, 1, 0, tmp_path)
    torch.multiprocessing.spawn(one_of, (2, free_port(), tmp_path), nprocs=2)
    alone = torch.load(tmp_path / "1-0.pt")
    scale = max(gradient.norm() for gradient in alone)
    assert sum(bool(gradient.norm() > 1e-6 * scale) for gradient in alone) > len(alone) / 2
    for rank in range(2):
        shared = torch.load(tmp_path / f"2-{rank}.pt")
        assert len(shared) == len(alone)
        for actual, expected in zip(shared, alone, strict=True):
            # Of the largest: that of a bias before instance normalisation is 0 but for rounding.
            assert (actual - expected).norm() <= 1e-10 * scale


def test_torchrun(pictures, tmp_path):
    """Begun by two processes, continued by one: one folder, one history over all pictures."""
    folder = tmp_path / "run"
    launch = f"torch.distributed.run --nproc-per-node 2 --master-port {free_port()} -m pconv_ext"
    finish(command("train", pictures, *OPTIONS, "-o", folder, module=launch))
    state = RunFolder(folder).load()
    # The network saved is the one that was validated, on the pictures of both processes.
    validated, _ = Trainer(
        TrainConfig(**state["config"]), RunFolder(folder), Processes(torch.device("cpu")), state=state
    )._validate()
    assert validated == pytest.approx(history(folder)[-1]["val"], rel=1e-5)
    finish(command("train", *OPTIONS, "--resume", "--epochs=3", "-o", folder))
    assert [record["epoch"] for record in history(folder)] == [1, 2, 3]


def machines(rank, size, port, root, resume):
    """A training in which only the first process sees what it wrote."""
    environment = {"WORLD_SIZE": size, "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    settings = SMALL | {"data": str(root / "pictures"), "weights": ON_PIXELS, "epochs": 2 if resume else 1}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, str(value))
        assert train(settings, root / f"machine{rank}", resume=resume, device="cpu")


@pytest.mark.deep
def test_machines_need_no_common_folder(pictures, tmp_path):
    for resume in (False, True):
        torch.multiprocessing.spawn(machines, (2, free_port(), tmp_path, resume), nprocs=2)
    assert [record["epoch"] for record in history(tmp_path / "machine0")] == [1, 2]
    assert not (tmp_path / "machine1" / "state.pt").exists()


@pytest.mark.deep
def test_an_error_of_the_first_process_is_told_once(pictures, tmp_path):
    (tmp_path / "run").write_text("a file")
    launch = f"torch.distributed.run --nproc-per-node 2 --master-port {free_port()} -m support.run_command"
    process = command("train", pictures, *OPTIONS, "-o", tmp_path / "run", module=launch)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("pconv-ext: train: --output must be a folder") == 1


def test_a_batch_must_divide(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr("pconv_ext.inpainting.training.pictures._HELD_OUT", 2)
    with pytest.raises(ValueError, match="6 pictures make no batch"):
        Batches(6, 24, 0, 4)
    with pytest.raises(ValueError, match="size has one picture of 16x16 at a time, with depth 4 that is one"):
        train(
            {"data": str(pictures), "size": 16, "depth": 4, "width": 2, "batch_size": 1}
            | {"weights": {"perceptual": 0, "style": 0}},
            tmp_path / "run",
        )


def test_find_device():
    assert find_device("train", "cpu") == torch.device("cpu")
    assert find_device("train", None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    for wrong in ("gpu", "cuda:99"):
        with pytest.raises(ValueError, match=f"train: device must be one .* got '{wrong}'"):
            find_device("train", wrong)
