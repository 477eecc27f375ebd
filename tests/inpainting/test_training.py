"""Training: its pictures and their order, what a step computes, what an epoch records."""

import itertools

import numpy as np
import pytest
import torch
from PIL import Image
from support.trainings import ON_PIXELS, SMALL, history, make_pictures

from pconv_ext import checkpoint, losses
from pconv_ext.inpainting.training.pictures import Batches, datasets
from pconv_ext.inpainting.training.processes import Processes
from pconv_ext.inpainting.training.run_folder import RunFolder
from pconv_ext.inpainting.training.trainer import Trainer
from pconv_ext.training import TrainConfig, train


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """13 pictures, two of them (0 and 10) to validate on."""
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def vgg16(tmp_path_factory):
    """A file with random weights in the place of VGG-16's."""
    file = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(losses.vgg16_features().state_dict(), file)
    return str(file)


@pytest.fixture
def settings(pictures):
    """A training on pixels alone, which takes a moment."""
    return SMALL | {"data": str(pictures), "weights": ON_PIXELS}


def trainer(settings, folder, **options):
    return Trainer(TrainConfig(**settings), RunFolder(folder), Processes(torch.device("cpu")), **options)


def flat(batches):
    return list(itertools.chain.from_iterable(batches))


class TestBatches:
    @pytest.mark.parametrize(
        ("length", "size", "processes"), [(13, 4, 1), (16, 4, 2), (19, 8, 4), (23, 6, 3)]
    )
    def test_processes_take_together_what_one_takes(self, length, size, processes):
        alone = Batches(length, size, 5)
        parts = [Batches(length, size, 5, processes, rank) for rank in range(processes)]
        for epoch in range(3):
            for batches in (alone, *parts):
                batches.epoch = epoch
            for whole, *shares in zip(alone, *parts, strict=False):
                together = flat(shares)
                assert len({len(share) for share in shares}) == 1
                assert together == whole[: len(together)]
                assert len(whole) - len(together) < processes
            assert {len(list(part)) for part in parts} == {len(parts[0])}

    def test_every_picture_once_in_an_order_of_the_epoch(self):
        batches = Batches(20, 6, 1)
        orders = []
        for epoch in range(3):
            batches.epoch = epoch
            orders.append(flat(batches))
            assert sorted(orders[-1]) == list(range(20))
        assert orders[0] != orders[1] != orders[2]
        batches.epoch = 0
        assert flat(batches) == orders[0]
        assert flat(Batches(20, 6, 2)) != orders[0]

    def test_a_last_batch_of_one_is_dropped(self):
        assert [len(batch) for batch in Batches(13, 4, 0)] == [4, 4, 4]
        assert [len(batch) for batch in Batches(14, 4, 0)] == [4, 4, 4, 2]
        assert [len(batch) for batch in Batches(11, 8, 0, 2, 1)] == [4]  # 3 left, 1 for each
        assert [len(batch) for batch in Batches(3, 1, 0)] == [1, 1, 1]  # as asked for

    def test_start(self):
        batches = Batches(20, 6, 1)
        everything = list(batches)
        batches.start = 2
        assert list(batches) == everything[2:]
        assert list(batches) == everything

    def test_errors(self):
        with pytest.raises(ValueError, match="multiple of the number of processes, got 6 for 4"):
            Batches(20, 6, 0, 4)
        with pytest.raises(ValueError, match="1 pictures make no batch"):
            Batches(1, 4, 0)


class TestDatasets:
    def names(self, dataset):
        source = dataset.pictures.collection
        return [source.name(i).rsplit("/", 1)[1] for i in range(len(source))]

    def test_every_tenth_is_held_out(self, settings):
        training, validation = datasets(TrainConfig(**settings))
        assert self.names(validation) == ["00.png", "10.png"]
        assert len(self.names(training)) == 11
        assert not set(self.names(training)) & {"00.png", "10.png"}
        image, mask = validation[1]
        again = datasets(TrainConfig(**settings))[1]
        again.set_epoch(3)
        assert torch.equal(again[1][0], image)
        assert torch.equal(again[1][1], mask)

    def test_a_folder_of_its_own(self, settings, pictures, tmp_path):
        Image.new("RGB", (20, 20)).save(tmp_path / "other.png")
        training, validation = datasets(TrainConfig(**settings, val=str(tmp_path)))
        assert self.names(validation) == ["other.png"]
        assert len(training) == 13

    def test_validation_pictures_are_not_trained_on(self, settings, tmp_path):
        """Also where their folder lies in that of all pictures."""
        make_pictures(tmp_path)
        inside = tmp_path / "inside"
        inside.mkdir()
        for name in ("01.png", "02.png"):
            (tmp_path / name).rename(inside / name)
        training, validation = datasets(TrainConfig(**settings | {"data": tmp_path}, val=inside))
        assert self.names(validation) == ["01.png", "02.png"]
        assert len(training) == 11
        assert not set(self.names(training)) & {"01.png", "02.png"}
        with pytest.raises(ValueError, match="none is left to train on"):
            datasets(TrainConfig(**settings | {"data": inside}, val=tmp_path))

    def test_helens_lists(self, settings, tmp_path):
        for name in ("a", "b", "c", "d"):
            Image.new("RGB", (20, 20)).save(tmp_path / f"{name}.png")
        (tmp_path / "trainnames.txt").write_text("a\nb\nd\n")
        (tmp_path / "testnames.txt").write_text("c\n")
        training, validation = datasets(TrainConfig(**settings | {"data": str(tmp_path)}))
        assert self.names(training) == ["a.png", "b.png", "d.png"]
        assert self.names(validation) == ["c.png"]

    @pytest.mark.parametrize("holes", ["rectangle", "irregular", "folder"])
    def test_masks(self, settings, holes, tmp_path):
        if holes == "folder":
            Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "mask.png")
            chosen = {"masks": str(tmp_path), "invert_mask": True}
        else:
            chosen = {"holes": holes}
        training, validation = datasets(TrainConfig(**settings, **chosen))
        for dataset in (training, validation):
            mask = dataset[0][1]
            assert mask.shape == (1, 16, 16)
            if holes == "folder":
                assert torch.equal(mask[0], 1 - torch.eye(16, dtype=torch.uint8))
            else:
                assert 0 < int((mask == 0).sum()) <= 128
        if holes != "folder":
            assert not all(torch.equal(training[i][1], validation[i][1]) for i in range(2))

    def test_too_few(self, settings, tmp_path):
        Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match="at least 3 pictures"):
            datasets(TrainConfig(**settings | {"data": str(tmp_path)}))


def test_first_step_is_adam_on_the_paper_loss(pictures, vgg16, tmp_path):
    """One step equals Adam's formula on gradients computed here, with weight decay."""
    settings = SMALL | {"data": str(pictures), "vgg16": vgg16, "weight_decay": 0.1}
    ours = trainer(settings, tmp_path)
    net = trainer(settings, tmp_path).net.train()  # the same seed
    image, mask = next(iter(ours.loader))
    loss = losses.InpaintingLoss(losses.load_vgg16(vgg16))
    loss(net(image, mask), image, mask)["total"].backward()
    ours._step(image, mask)
    for stepped, p in zip(ours.net.parameters(), net.parameters(), strict=True):
        gradient = p.grad + 0.1 * p.detach()
        expected = p.detach() - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(stepped.detach(), expected, rtol=0, atol=1e-6)


def test_training_learns_and_records(pictures, vgg16, tmp_path):
    settings = SMALL | {"data": str(pictures), "vgg16": vgg16, "epochs": 4}
    assert train(settings, tmp_path / "run")
    records = history(tmp_path / "run")
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert records[-1]["train"]["total"] < records[0]["train"]["total"]
    for record in records:
        for part in ("train", "val"):
            terms = dict(record[part])
            total = terms.pop("total")
            assert total == pytest.approx(sum(losses.WEIGHTS[name] * terms[name] for name in terms), rel=1e-5)
    summary = checkpoint.load_training(tmp_path / "run" / "last.safetensors")
    assert summary["config"]["weight_decay"] == 1e-5
    assert summary["config"]["patience"] == 5
    best = min(records, key=lambda record: record["val"]["total"])["epoch"]
    assert checkpoint.load_training(tmp_path / "run")["epoch"] == best


def test_validation_is_the_mean_over_pictures(settings, tmp_path):
    """Whatever the batches: 2 pictures in batches of 4 and of 1."""
    results = []
    for batch_size in (4, 1):
        made = trainer(settings | {"batch_size": batch_size}, tmp_path)
        results.append(made._validate()[0])
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    validation = datasets(TrainConfig(**settings))[1]
    made.net.eval()
    values = []
    for image, mask in validation:
        output = made.net(image[None], mask[None]).detach()[0]
        values.append((((output - image) * mask) ** 2).mean().item())
    assert results[0]["avail"] == pytest.approx(sum(values) / 2, rel=1e-5)


def test_unreadable_pictures_are_not_validated_on(settings, tmp_path):
    make_pictures(tmp_path, 3)
    expected = trainer(settings | {"val": tmp_path}, tmp_path)._validate()[0]
    for name in ("000.png", "02a.png", "09.png"):
        (tmp_path / name).write_bytes(b"no picture")
    made = trainer(settings | {"val": tmp_path}, tmp_path)
    # A mask is that of an index: give the readable pictures those that they had.
    pairs = made.val_loader.dataset.pairs
    before, draw = {0: 0, 2: 1, 3: 2}, pairs.mask
    names = [pairs.pictures.collection.name(i).rsplit("/", 1)[1] for i in range(6)]
    assert names == ["00.png", "000.png", "01.png", "02.png", "02a.png", "09.png"]
    pairs.mask = lambda index: draw(before.get(index, 0))
    with pytest.warns(UserWarning, match="is left out"):
        found = made._validate()[0]
    assert found == pytest.approx(expected, rel=1e-6)


def test_schedule_follows_the_validation_loss(settings, tmp_path, monkeypatch):
    shown = [torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4), torch.zeros(1, 3, 4, 4)]
    monkeypatch.setattr(Trainer, "_validate", lambda self: ({"total": 1.0}, shown))
    train(settings | {"epochs": 6, "patience": 1, "factor": 0.25}, tmp_path / "run")
    # Epoch 1 is the best; 2 and 3 are not better, one more than the patience; so again with 4 and 5.
    rates = [record["lr"] for record in history(tmp_path / "run")]
    assert rates == pytest.approx([0.01, 0.01, 0.01, 0.0025, 0.0025, 0.000625])
