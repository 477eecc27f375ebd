"""The options of a training beyond the paper's: each does what it says, and resuming keeps the bits."""

import math

import numpy as np
import pytest
import torch
from support.trainings import ON_PIXELS, SMALL, assert_same_training, history, make_pictures

from pconv_ext import checkpoint, losses, masks
from pconv_ext.data import PictureDataset, folder
from pconv_ext.inpainting.cli.options import given
from pconv_ext.inpainting.training import trainer
from pconv_ext.inpainting.training.optimizing import running_mean, stalled
from pconv_ext.inpainting.training.run_folder import RunFolder
from pconv_ext.training import TrainConfig, train

PHASES = [
    {"epoch": 2, "size": [24, 17], "batch_size": [2, 3], "weights": {"missing": 1}},
    {"epoch": 4, "size": 32, "weights": {"missing_l1": 0.5}},
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def settings(pictures):
    return SMALL | {"data": str(pictures), "weights": ON_PIXELS, "seed": 3}


class Stopped(Exception):
    pass


def train_in_pieces(settings, folder, monkeypatch, steps):
    """Killed after every so many steps, and resumed."""
    step = trainer.Trainer._step
    while True:
        left = iter(range(steps))

        def counted(self, image, mask, left=left):
            if next(left, None) is None:
                raise Stopped
            return step(self, image, mask)

        with monkeypatch.context() as patch:
            patch.setattr(trainer.Trainer, "_step", counted)
            try:
                return train(settings, folder, resume=True)
            except Stopped:
                pass


@pytest.mark.parametrize(
    "options",
    [
        {"ema": 0.9},
        {"schedule": "cosine", "warmup": 2},
        {"schedule": "plateau", "patience": 0},
        {"clip": 1e-3},
        {"holes": "mixed"},
        {"per_hole": True},
        {"flip": True},
        {"weights": ON_PIXELS | {"missing_l1": 1.0, "avail_l1": 0.5}},
        {"phases": PHASES, "epochs": 5},
        {"phases": PHASES, "epochs": 5, "ema": 0.99, "schedule": "cosine", "clip": 0.1, "holes": "mixed"},
    ],
    ids=lambda options: "-".join(options),
)
def test_resumed_with_the_same_bits(options, settings, tmp_path, monkeypatch):
    settings |= {"save_every": 1} | options
    train(settings, tmp_path / "whole")
    train_in_pieces(settings, tmp_path / "pieces", monkeypatch, steps=2)
    assert_same_training(tmp_path / "pieces", tmp_path / "whole")


def test_each_changes_the_training(settings, tmp_path):
    """Else the test above would prove nothing."""
    options = (
        {},
        {"schedule": "cosine"},
        {"clip": 1e-4},
        {"per_hole": True},
        {"holes": "mixed"},
        {"flip": True},
    )
    results = []
    for number, one in enumerate(options):
        train(settings | one, tmp_path / str(number))
        results.append(history(tmp_path / str(number))[-1]["val"]["total"])
    assert len({*results}) == len(options)


def test_running_mean():
    net = torch.nn.BatchNorm1d(2)
    mean = running_mean(net, 0.5)
    expected = None
    for n in range(8):
        with torch.no_grad():
            net.weight.copy_(torch.randn(2))
            net.running_mean.copy_(torch.randn(2))
            net.num_batches_tracked += 1
        mean.update_parameters(net)
        kept = min(0.5, (1 + n) / (10 + n))
        values = torch.stack([net.weight.detach(), net.running_mean])
        expected = values.clone() if expected is None else kept * expected + (1 - kept) * values
        torch.testing.assert_close(
            torch.stack([mean.module.weight.detach(), mean.module.running_mean]), expected
        )
        assert mean.module.num_batches_tracked == net.num_batches_tracked


def test_the_running_mean_waits_for_no_gpu():
    mean = running_mean(torch.nn.Linear(1, 1), 0.5)
    value = torch.ones(1)
    mean.multi_avg_fn([value], [torch.zeros(1)], None)  # in place of a count that is on the GPU
    assert value == pytest.approx(0.1)


def test_the_mean_is_what_is_saved(settings, tmp_path):
    train(settings | {"ema": 0.9}, tmp_path)
    state = RunFolder(tmp_path).load()
    saved = checkpoint.load_net(tmp_path / "last.safetensors").state_dict()
    for name, value in saved.items():
        assert torch.equal(value, state["mean"][f"module.{name}"])
    assert any(not torch.equal(value, state["net"][name]) for name, value in saved.items())


def test_cosine_rises_and_falls_to_zero(settings, tmp_path, monkeypatch):
    rates, step = [], trainer.Trainer._step

    def recorded(self, image, mask):
        rates.append(self.optimizer.param_groups[0]["lr"])
        return step(self, image, mask)

    monkeypatch.setattr(trainer.Trainer, "_step", recorded)
    train(settings | {"schedule": "cosine", "warmup": 2, "epochs": 4}, tmp_path)
    n = len(rates)
    expected = [min(1, (i + 1) / 3) * 0.01 * (1 + math.cos(math.pi * i / n)) / 2 for i in range(n)]
    assert rates == pytest.approx(expected, rel=1e-9)


def test_clip_bounds_the_gradient(settings, tmp_path, monkeypatch):
    norms, step = [], torch.optim.Adam.step

    def recorded(self, *args, **kwargs):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.stack(torch._foreach_norm(gradients)).norm().item())
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", recorded)
    train(settings, tmp_path / "free")
    clip = min(norms) / 2
    norms.clear()
    train(settings | {"clip": clip}, tmp_path / "clipped")
    assert norms == pytest.approx([clip] * len(norms), rel=1e-3)


def test_phases(settings, tmp_path, monkeypatch):
    seen, step = [], trainer.Trainer._step

    def recorded(self, image, mask):
        seen.append((self.progress.epoch + 1, *image.shape[::2], {*self.loss.weights}))
        return step(self, image, mask)

    monkeypatch.setattr(trainer.Trainer, "_step", recorded)
    train(settings | {"phases": PHASES, "epochs": 5}, tmp_path)
    found = {epoch: (batch, height, names) for epoch, batch, height, names in reversed(seen)}
    pixels = {"avail", "missing"}
    assert found == {
        1: (4, 16, pixels),
        2: (2, 24, pixels),
        3: (3, 17, pixels),
        4: (2, 32, pixels | {"missing_l1"}),
        5: (3, 32, pixels | {"missing_l1"}),
    }
    assert [record["epoch"] for record in history(tmp_path)] == [1, 2, 3, 4, 5]
    # Losses of phases are not compared: the best network is of the last one.
    records = history(tmp_path)
    lowest = min(record["val"]["total"] for record in records[3:])
    assert RunFolder(tmp_path).load()["progress"]["best"] == lowest


def test_start(settings, tmp_path):
    train(settings, tmp_path / "first")
    train(settings | {"start": tmp_path / "first", "epochs": 1, "lr": 1e-12}, tmp_path / "second")
    nets = [checkpoint.load_net(tmp_path / name).state_dict() for name in ("first", "second")]
    best = checkpoint.load_net(tmp_path / "first").state_dict()
    for name, value in nets[1].items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(value, best[name], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="start must be a network of"):
        train(settings | {"start": tmp_path / "first", "width": 3}, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_mixed_masks_are_of_every_kind():
    kinds = {"rectangle": 0} | dict.fromkeys(masks.BINS, 0)
    for index in range(400):
        mask = masks.mixed(40, 40, 7, index, count=1)
        assert torch.equal(mask, masks.mixed(40, 40, 7, index, count=1))
        if torch.equal(mask, masks.rectangle(40, 40, 7, index)):
            kinds["rectangle"] += 1
        else:
            kinds[masks.BINS[masks.find_bin(masks.hole_ratio(mask))]] += 1
    shares = [count / 400 for count in kinds.values()]
    assert shares == pytest.approx([0.3, 0.2, 0.2, 0.1, 0.1, 0.1], abs=0.075)


def test_phases_of_a_command():
    text = "epoch=41 size=128,256 batch_size=8,2 style=120 missing_l1=0.05"
    assert given({"phases": [text], "size": None}) == {
        "phases": [
            {
                "epoch": 41,
                "size": [128, 256],
                "batch_size": [8, 2],
                "weights": {"style": 120, "missing_l1": 0.05},
            }
        ]
    }
    with pytest.raises(ValueError, match="--phases must look like"):
        given({"phases": ["epoch=x"]})


def test_refused(settings, tmp_path):
    for options, error, expected in (
        ({"phases": {"epoch": 2}}, TypeError, "phases must be a sequence of dicts"),
        ({"phases": [{"size": 3}]}, ValueError, "phases must be dicts with an epoch"),
        ({"phases": [{"epoch": 2, "lr": 3}]}, ValueError, "phases must be dicts with an epoch"),
        ({"phases": [{"epoch": 1}]}, ValueError, "phases must be an int of at least 2, got 1"),
        ({"phases": [{"epoch": 3}, {"epoch": 3}]}, ValueError, "in the order of their epochs, got 3 after 3"),
        ({"phases": [{"epoch": 2, "size": []}]}, ValueError, "phases must have a size"),
        ({"phases": [{"epoch": 2, "size": [8, 9], "batch_size": [1, 2, 3]}]}, ValueError, "as many of size"),
        ({"phases": [{"epoch": 2, "weights": {"stile": 1}}]}, ValueError, "may have the names"),
        ({"ema": 1.0}, ValueError, "ema must be at least 0 and below 1, got 1.0"),
        ({"clip": 0.0}, ValueError, "clip must be above 0, got 0.0"),
        ({"schedule": "step"}, ValueError, "schedule must be one of 'plateau', 'cosine', got 'step'"),
        ({"warmup": 5}, ValueError, "warmup is of the schedule cosine, which is plateau"),
        ({"patience": 3, "schedule": "cosine"}, ValueError, "patience is of the schedule plateau, which is"),
        ({"factor": 0.1, "schedule": "cosine"}, ValueError, "factor is of the schedule plateau, which is"),
        ({"min_epochs": 3}, ValueError, "min_epochs is about stop_after, which is None"),
        (
            {"phases": [{"epoch": 2, "size": [16, 8], "batch_size": 1}]},
            ValueError,
            "needs more than one value: phases, from epoch 2 on, has one picture of 8x8 at a time",
        ),
        (
            {"phases": [{"epoch": 2, "size": 7, "weights": {"style": 1}}], "vgg16": "absent"},
            ValueError,
            "need at least 8x8 pixels, phases, from epoch 2 on, has 7x7",
        ),
    ):
        with pytest.raises(error, match=expected):
            train(settings | options, tmp_path / "run")
        assert not (tmp_path / "run").exists(), options


def test_phases_in_another_spelling(settings, tmp_path):
    train(settings | {"phases": [{"epoch": 2, "size": (16,), "weights": {"missing": 2}}]}, tmp_path)
    same = [{"epoch": np.int64(2), "size": np.int64(16), "weights": {"missing": 2.0}}]
    assert train({"phases": same, "epochs": 3}, tmp_path, resume=True)
    with pytest.raises(ValueError, match=r"phases was .*'size': .16.*, got .*'size': .24.*"):
        train({"phases": [{**same[0], "size": 24}]}, tmp_path, resume=True)


def test_a_phase_after_the_last_epoch(settings, tmp_path):
    vgg16 = tmp_path / "vgg16.pth"
    torch.save(losses.vgg16_features().state_dict(), vgg16)
    later = {"phases": [{"epoch": 3, "weights": {"style": 1}}], "vgg16": str(vgg16)}
    assert train(settings | later, tmp_path / "run")
    assert train({"epochs": 3}, tmp_path / "run", resume=True)
    assert "style" in history(tmp_path / "run")[-1]["val"]


def test_phase_of_keeps_what_is_not_said():
    config = TrainConfig("photos", batch_size=6, phases=PHASES, weights=ON_PIXELS)
    found = [config.phase(epoch) for epoch in range(5)]
    assert [(one.number, one.size, one.val_size, one.batch_size) for one in found] == [
        (0, 256, 256, 6),
        (1, 24, 24, 2),
        (1, 17, 24, 3),
        (2, 32, 32, 2),
        (2, 32, 32, 3),
    ]
    assert [one.weights["missing"] for one in found] == [6, 1, 1, 1, 1]


def test_flip_mirrors_every_other_picture(pictures):
    plain, flipped = (PictureDataset(folder(pictures), 16, flip=flip, seed=5) for flip in (False, True))
    mirrored = 0
    for epoch in range(10):
        flipped.set_epoch(epoch)
        for index in range(len(plain)):
            same, mirror = torch.equal(flipped[index], plain[index]), plain[index].flip(-1)
            assert same or torch.equal(flipped[index], mirror)
            mirrored += not same
    assert 0.3 < mirrored / (10 * len(plain)) < 0.7


def test_stop_after(settings, tmp_path):
    options = {"epochs": 50, "lr": 1e-30, "stop_after": 3, "min_epochs": 2}
    assert train(settings | options, tmp_path)
    assert len(history(tmp_path)) == 1 + 3  # nothing gets better than the first
    assert train({}, tmp_path, resume=True)
    assert len(history(tmp_path)) == 4
    assert train({"min_epochs": 7}, tmp_path, resume=True)
    assert len(history(tmp_path)) == 7


def test_stalled():
    def after(*losses, **options):
        config = TrainConfig("photos", epochs=99, **{"stop_after": 2} | options)
        return stalled(config, [{"val": {"total": loss}} for loss in losses])

    assert not after()
    assert not after(5, 5)
    assert after(5, 5, 5)
    assert after(5, 4.96, 4.951)  # never 1 % better than the best
    assert not after(5, 4.96, 4.94)
    assert after(5, 4, 4, 4)
    assert not after(5, 4, 4, 4, min_epochs=5)
    assert not after(5, 4, 4, 4, stop_after=None)
    assert not after(5, 4, 9, 9, phases=[{"epoch": 3}])
    assert not after(5, 5, 5, 5, phases=[{"epoch": 9}])  # before the phase that is to come
    assert after(5, 4, 9, 9, 9, phases=[{"epoch": 3}])
