"""Where pictures come from: folders, lists, Stanford Cars, LSUN; what is said where a library is missing."""

import io
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from support import torchvision_without_ops
from support.pictures import damage, noise, save_photos
from torch.utils.data import DataLoader

from pconv_ext import data
from pconv_ext.data import PictureDataset

torchvision_without_ops.make_importable()


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "photos")


def test_folder(photos):
    source = data.folder(photos)
    names = [source.name(i).removeprefix(f"{photos}/") for i in range(len(source))]
    assert names == ["a.PNG", "b.png", "e.tiff", "sub/c.bmp", "sub/deeper/d.png"]
    pictures = PictureDataset(source, (20, 30), crop="none")
    expected = torch.from_numpy(np.array(noise(seed=1))).permute(2, 0, 1) / 255
    assert pictures[0].dtype == torch.float32
    assert pictures[0].is_contiguous()
    assert torch.equal(pictures[0], expected)
    with pytest.raises(IndexError, match=r"\[0, 5\), got 5"):
        pictures[5]
    with pytest.raises(IndexError):
        pictures[-1]


def test_folder_errors(tmp_path, photos):
    with pytest.raises(FileNotFoundError, match=r"data\.folder: there is no folder .*nowhere"):
        data.folder(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"notes\.txt must be a folder"):
        data.folder(photos / "notes.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"has no pictures \(1 other files\), expected some of \.avif \.bmp"):
        data.folder(tmp_path / "empty")


def test_helen_split(tmp_path):
    for i, name in enumerate(["train_1/11_1.jpg", "train_2/12_1.jpg", "test/13.x_1.jpg", "test/14_1.jpg"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise(seed=i).save(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"split='train' needs the list .*trainnames\.txt"):
        data.folder(tmp_path, "train")
    assert not data.has_split(tmp_path)
    (tmp_path / "trainnames.txt").write_bytes(b"11_1\r\n12_1\r\n\r\n")
    (tmp_path / "testnames.txt").write_text("13.x_1\n14_1.jpg")
    assert data.has_split(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train, test = data.folder(tmp_path, "train"), data.folder(tmp_path, "test")
    assert [train.name(i).rsplit("/", 1)[1] for i in range(len(train))] == ["11_1.jpg", "12_1.jpg"]
    assert [test.name(i).rsplit("/", 1)[1] for i in range(len(test))] == ["13.x_1.jpg", "14_1.jpg"]
    assert len(data.folder(tmp_path)) == 4
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', got 'val'"):
        data.folder(tmp_path, "val")
    (tmp_path / "testnames.txt").write_text("14_1\n15_1\n16_1")
    with pytest.warns(UserWarning, match=r"2 of the 3 pictures .* are not in .* the first is 15_1"):
        data.folder(tmp_path, "test")
    (tmp_path / "testnames.txt").write_text("15_1")
    with pytest.raises(ValueError, match="none of the 1 pictures"):
        data.folder(tmp_path, "test")
    (tmp_path / "testnames.txt").write_text("\n")
    with pytest.raises(ValueError, match="it is empty"):
        data.folder(tmp_path, "test")


def test_stanford_cars(tmp_path):
    from scipy.io import savemat

    base = tmp_path / "stanford_cars"
    with pytest.raises(FileNotFoundError, match=r"cars_train_annos\.mat is missing; it is not downloaded"):
        data.stanford_cars(tmp_path)
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit" / "cars_meta.mat", {"class_names": np.array(["a", "b"], dtype=object)})
    for split, count, labels in (
        ("train", 3, base / "devkit" / "cars_train_annos.mat"),
        ("test", 2, base / "cars_test_annos_withlabels.mat"),
    ):
        (base / f"cars_{split}").mkdir()
        rows = np.zeros(count, dtype=[("fname", object), ("class", object)])
        for i in range(count):
            noise(seed=i).save(base / f"cars_{split}" / f"0000{i}.png")
            rows[i] = (f"0000{i}.png", 1 + i % 2)
        savemat(labels, {"annotations": rows})
    train, test = data.stanford_cars(tmp_path), data.stanford_cars(tmp_path, "test")
    assert (len(train), len(test)) == (3, 2)
    pictures = PictureDataset(train, (20, 30), crop="none")
    assert torch.equal(pictures[2], data.to_tensor(noise(seed=2)))
    damage(base / "cars_train" / "00001.png")
    with pytest.warns(UserWarning, match=r"picture 1 is left out.*cars_train/00001\.png"):
        assert torch.equal(pictures[1], pictures[2])
    with pytest.raises(ValueError, match="split must be one of 'train', 'test', got 'val'"):
        data.stanford_cars(tmp_path, "val")


def write_lsun(path, count, first):
    import lmdb

    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**24) as database, database.begin(write=True) as transaction:
        for i in range(count):
            buffer = io.BytesIO()
            noise(seed=first + i).save(buffer, "PNG")
            transaction.put(f"key{i}".encode(), buffer.getvalue())


def test_lsun_church(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"church_outdoor_train_lmdb/data\.mdb is missing"):
        data.lsun_church(tmp_path)
    with pytest.raises(ValueError, match="split must be one of 'train', 'val', got 'test'"):
        data.lsun_church(tmp_path, "test")
    # Two copies of which torchvision's own list of keys could not tell one from the other.
    for number, count in ((1, 5), (2, 3)):
        write_lsun(tmp_path / f"copy{number}" / "church_outdoor_val_lmdb", count, 10 * number)
    monkeypatch.chdir(tmp_path)
    for number, count in ((1, 5), (2, 3)):
        pictures = PictureDataset(data.lsun_church(f"copy{number}", "val"), (20, 30), crop="none")
        assert len(pictures) == count
        expected = torch.stack([data.to_tensor(noise(seed=10 * number + i)) for i in range(count)])
        assert torch.equal(torch.stack(list(pictures)), expected)
        for workers in (1, 2):
            assert torch.equal(torch.cat(list(DataLoader(pictures, 2, num_workers=workers))), expected)
        assert torch.equal(pickle.loads(pickle.dumps(pictures))[1], expected[1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy1", "copy2"]
    (tmp_path / "copy1" / "church_outdoor_train_lmdb").mkdir()
    (tmp_path / "copy1" / "church_outdoor_train_lmdb" / "data.mdb").write_bytes(b"broken" * 2000)
    with pytest.raises(ValueError, match=r"cannot open .*church_outdoor_train_lmdb"):
        data.lsun_church("copy1")


BLOCKED = """
import sys
for name in ("PIL", "torchvision", "scipy", "lmdb"):
    sys.modules[name] = None
import pconv_ext, pconv_ext.data, pconv_ext.masks
pconv_ext.masks.irregular(16, 16, 0.1, 0.2, 0, 0)
for call in (
    lambda: pconv_ext.data.PictureDataset(["not read"]),
    lambda: pconv_ext.masks.load("a.png"),
    lambda: pconv_ext.data.stanford_cars("."),
    lambda: pconv_ext.data.lsun_church("."),
):
    try:
        call()
    except ImportError as error:
        print(error)
"""


def test_without_the_extra():
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for line, needs in zip(
        result,
        [
            "PictureDataset needs Pillow: ",
            "reading pictures needs Pillow: ",
            "data.stanford_cars needs scipy: ",
            "data.lsun_church needs lmdb: ",
        ],
        strict=True,
    ):
        assert line.startswith(needs + "pip install 'pconv_ext[train]'")


def test_import_loads_no_extra():
    code = "import sys, pconv_ext; print({'PIL', 'torchvision', 'scipy', 'lmdb'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "set()\n"
