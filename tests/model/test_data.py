import io
import pickle
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
import torchvision_without_ops
from PIL import Image
from torch.utils.data import DataLoader

from pconv_ext import data, masks
from pconv_ext.data import InpaintingDataset, PictureDataset

torchvision_without_ops.make_importable()


def noise(height=20, width=30, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


@pytest.fixture
def photos(tmp_path):
    root = tmp_path / "photos"
    (root / "sub" / "deeper").mkdir(parents=True)
    for i, name in enumerate(["b.png", "a.PNG", "sub/c.bmp", "sub/deeper/d.png", "e.tiff"]):
        noise(seed=i).save(root / name)
    (root / "notes.txt").write_text("no picture")
    (root / "._b.png").write_bytes(b"left by a file system")
    return root


def load(path):
    """The picture in a file without resampling, float32 [3, H, W]."""
    with Image.open(path) as picture:
        size = data.to_tensor(picture).shape[1:]
    folder = path.with_suffix(f"{path.suffix} alone")
    folder.mkdir()
    alone = path.rename(folder / path.name)
    return PictureDataset(data.folder(alone.parent), tuple(size), crop="none")[0]


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


@pytest.mark.parametrize("crop", ["none", "center", "random"])
@pytest.mark.parametrize("size", [16, (16, 24), (40, 8), (1, 1)])
def test_sizes(photos, crop, size):
    height, width = (size, size) if isinstance(size, int) else size
    for picture in PictureDataset(data.folder(photos), size, crop=crop):
        assert picture.shape == (3, height, width)
        assert 0 <= picture.min() <= picture.max() <= 1


def test_center_crop(tmp_path):
    values = np.zeros((10, 30, 3), np.uint8)
    values[:, 10:20] = 255
    Image.fromarray(values).save(tmp_path / "a.png")
    assert PictureDataset(data.folder(tmp_path), 10)[0].min() == 1
    assert PictureDataset(data.folder(tmp_path), (10, 30))[0].mean() == pytest.approx(1 / 3)


def test_random_crops(photos):
    def items(seed, epoch):
        pictures = PictureDataset(data.folder(photos), 12, crop="random", seed=seed)
        pictures.set_epoch(epoch)
        return torch.stack([pictures[i] for i in range(len(pictures))])

    first = items(1, 0)
    assert torch.equal(items(1, 0), first)
    for other in (items(1, 1), items(2, 0)):
        assert all(not torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_random_crop_takes_what_it_says(tmp_path):
    """A picture whose values are its coordinates tells which part was taken."""
    rows, columns = np.mgrid[0:200, 0:200]
    Image.fromarray(np.dstack([rows, columns, rows]).astype(np.uint8)).save(tmp_path / "a.png")
    pictures = PictureDataset(
        data.folder(tmp_path), (50, 100), crop="random", scale=(0.1, 0.3), ratio=(0.8, 1.25)
    )
    tops = []
    for epoch in range(60):
        pictures.set_epoch(epoch)
        red, green, _ = pictures[0] * 255
        tops.append(float(red.min()))
        # values at the centres of the first and last pixel are up to one pixel inside each border, of 1/50
        height = float(red.mean(1)[-1] - red.mean(1)[0]) * 50 / 49
        width = float(green.mean(0)[-1] - green.mean(0)[0]) * 100 / 99
        assert 0.1 * 0.9 < height * width / 200**2 < 0.3 * 1.1
        assert 0.8 * 0.93 < width / height / 2 < 1.25 * 1.07
    assert len(set(tops)) > 20


def test_modes(tmp_path):
    values = np.array(noise())
    grey = values[..., 0]
    replicated = torch.from_numpy(np.repeat(grey[None], 3, 0)) / 255
    Image.fromarray(grey).save(tmp_path / "l.png")
    assert torch.equal(load(tmp_path / "l.png"), replicated)
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "16.png")
    assert torch.equal(load(tmp_path / "16.png"), replicated)
    Image.fromarray(grey.astype(np.int32) * 257).save(tmp_path / "i.tiff")
    assert torch.equal(load(tmp_path / "i.tiff"), replicated)
    Image.fromarray((grey / 255).astype(np.float32)).save(tmp_path / "f.tiff")
    assert torch.equal(load(tmp_path / "f.tiff"), replicated)
    # CMYK of a pure red, as TIFF and as JPEG
    for name, tolerance in (("cmyk.tiff", 0), ("cmyk.jpg", 0.02)):
        Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / name)
        red = torch.tensor([1.0, 0, 0]).view(3, 1, 1).expand(3, 8, 8)
        torch.testing.assert_close(load(tmp_path / name), red, atol=tolerance, rtol=0)


def write_png16(path, values):
    """An RGB PNG of 16 bits a channel, which Pillow reads but does not write."""
    height, width, _ = values.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def test_16_bit_rgb(tmp_path):
    values = np.array(noise())
    write_png16(tmp_path / "a.png", values.astype(np.uint16) * 257)
    assert torch.equal(load(tmp_path / "a.png"), torch.from_numpy(values).permute(2, 0, 1) / 255)


def test_transparent_parts_are_white(tmp_path):
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "rgba.png")
    Image.new("LA", (4, 4), (0, 0)).save(tmp_path / "la.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "p.png", transparency=1)
    Image.new("L", (4, 4), 7).save(tmp_path / "l.png", transparency=7)
    for name in ("rgba.png", "la.png", "p.png", "l.png"):
        assert load(tmp_path / name).min() == 1, name
    Image.new("RGBA", (4, 4), (255, 0, 0, 128)).save(tmp_path / "half.png")
    torch.testing.assert_close(load(tmp_path / "half.png")[:, 0, 0], torch.tensor([255, 127, 127]) / 255)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(tmp_path, orientation):
    values = np.zeros((24, 40, 3), np.uint8)
    values[:12, :20] = 255  # white top left, when upright
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(values)
    if orientation in undo:
        stored = stored.transpose(undo[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(load(tmp_path / "a.png"), torch.from_numpy(values).permute(2, 0, 1) / 255)


def damage(path):
    path.write_bytes(path.read_bytes()[:-400])


def test_unreadable_is_reported_once_and_replaced(photos):
    damage(photos / "b.png")
    (photos / "e.tiff").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures = PictureDataset(data.folder(photos), 8)
    with pytest.warns(UserWarning, match="left out") as caught:
        first = [pictures[i] for i in range(5)]
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 2
    assert "b.png is left out" in texts[0]
    assert "e.tiff is left out" in texts[1]
    assert "no format" not in texts[0]
    assert "it is empty or in no format that Pillow knows" in texts[1]
    assert torch.equal(first[1], first[3])  # b.png, then e.tiff, then sub/c.bmp
    assert torch.equal(first[2], first[3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(torch.equal(pictures[i], first[i]) for i in (4, 2, 1, 0, 3))


def test_unreadable_is_reported_once_by_all_workers(photos):
    """What a worker of one epoch reported, those of the next and the main process do not try again."""
    damage(photos / "b.png")
    pictures = PictureDataset(data.folder(photos), 8)
    for _ in range(2):
        for _ in DataLoader(pictures, batch_size=1, num_workers=1):
            pass
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(pictures[1], pictures[2])


def test_nothing_readable(tmp_path):
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no picture")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ValueError, match=r"none of 2 pictures can be read; the last: .*b\.jpg"),
    ):
        PictureDataset(data.folder(tmp_path), 8)


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"size": 0}, ValueError, "PictureDataset: size must be an int of at least 1, got 0"),
        ({"size": (8, 0)}, ValueError, r"size\[1\] .* got 0"),
        ({"size": (8, 8, 8)}, ValueError, r"int or \(height, width\), got \(8, 8, 8\)"),
        ({"size": 8.5}, TypeError, "size must be an int .* got float"),
        ({"crop": "middle"}, ValueError, "crop must be one of 'center', 'random', 'none', got 'middle'"),
        ({"scale": (0, 1)}, ValueError, "scale must satisfy .* got 0 and 1"),
        ({"scale": 0.5}, TypeError, r"scale must be a pair .* got 0.5"),
        ({"ratio": (2.0, 1.0)}, ValueError, "ratio must satisfy .* got 2.0 and 1.0"),
        ({"seed": -1}, ValueError, "seed .* got -1"),
    ],
)
def test_picture_errors(photos, options, error, match):
    with pytest.raises(error, match=match):
        PictureDataset(data.folder(photos), **options)


def test_folder_errors(tmp_path, photos):
    with pytest.raises(FileNotFoundError, match=r"data\.folder: there is no folder .*nowhere"):
        data.folder(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError, match=r"notes\.txt must be a folder"):
        data.folder(photos / "notes.txt")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.txt").write_text("")
    with pytest.raises(ValueError, match=r"has no pictures \(1 other files\), expected some of \.bmp"):
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


def test_pairs_with_rectangles(photos):
    pairs = InpaintingDataset(PictureDataset(data.folder(photos), (32, 40)), seed=3)
    image, mask = pairs[2]
    assert image.shape == (3, 32, 40)
    assert mask.shape == (1, 32, 40)
    assert mask.dtype == torch.uint8
    assert torch.equal(mask, masks.rectangle(32, 40, 3, 2))
    pairs.set_epoch(2)
    assert torch.equal(pairs[2][1], masks.rectangle(32, 40, 3, 2 * 5 + 2))
    fixed = InpaintingDataset(pairs.pictures, seed=3, fixed=True, count=2)
    assert torch.equal(fixed[2][1], masks.rectangle(32, 40, 3, 2, count=2))


def test_pairs_with_bins_keep_their_masks(photos):
    pictures = PictureDataset(data.folder(photos), 32)
    for low, high in masks.BINS:
        pairs = InpaintingDataset(pictures, (low, high), seed=4)
        before = pairs[1][1]
        pairs.set_epoch(7)
        assert torch.equal(before, pairs[1][1])
        assert torch.equal(before, masks.irregular(32, 32, low, high, 4, 1))
        assert low <= masks.hole_ratio(before) < high


def test_pairs_with_a_folder_of_masks(photos, tmp_path):
    root = tmp_path / "masks"
    root.mkdir()
    for i in range(6):
        picture = np.zeros((8, 8), np.uint8)
        picture[i] = 255
        Image.fromarray(picture).save(root / f"{i}.png")
    damage_at = root / "3.png"
    damage_at.write_bytes(b"broken")
    holes = masks.MaskFolder(root, holes="white")
    pictures = PictureDataset(data.folder(photos), 16)
    pairs = InpaintingDataset(pictures, holes, seed=1)

    def draw_all():
        for epoch in range(10):
            pairs.set_epoch(epoch)
            yield from [pairs.mask(i) for i in range(5)]

    with pytest.warns(UserWarning, match=r"a mask is left out.*3\.png") as caught:
        drawn = list(draw_all())
    assert len(caught) == 1
    assert {masks.hole_ratio(mask) for mask in drawn} == {1 / 8}
    assert {int((mask[0, :, 0] == 0).nonzero()[0]) // 2 for mask in drawn} == {0, 1, 2, 4, 5}
    pairs.set_epoch(3)
    assert torch.equal(pairs.mask(2), drawn[3 * 5 + 2])
    for path in root.iterdir():
        path.write_bytes(b"broken")
    with pytest.warns(UserWarning, match="left out"), pytest.raises(ValueError, match="none of 6 masks"):
        InpaintingDataset(pictures, masks.MaskFolder(root))


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"holes": "circle"}, ValueError, "holes must be one of 'rectangle', got 'circle'"),
        ({"holes": 0.5}, TypeError, "holes must be a pair .* got 0.5"),
        ({"holes": (0.4, 0.3)}, ValueError, "low and high .* got 0.4 and 0.3"),
        ({"holes": (0.001, 0.002)}, ValueError, "whole number of hole pixels"),
        ({"count": 0}, ValueError, "InpaintingDataset: count .* got 0"),
        ({"seed": "a"}, TypeError, "seed .* got str"),
    ],
)
def test_pair_errors(photos, options, error, match):
    with pytest.raises(error, match=match):
        InpaintingDataset(PictureDataset(data.folder(photos), 8), **options)


def collect(dataset, **options):
    images, holes = zip(*DataLoader(dataset, batch_size=2, **options), strict=True)
    return torch.cat(images), torch.cat(holes)


@pytest.mark.parametrize("holes", ["rectangle", (0.1, 0.2)])
def test_same_items_whatever_the_workers(photos, holes):
    damage(photos / "b.png")

    def pairs():
        pictures = PictureDataset(data.folder(photos), 16, crop="random", seed=9)
        return InpaintingDataset(pictures, holes, seed=9)

    dataset = pairs()
    dataset.set_epoch(3)
    with pytest.warns(UserWarning, match="left out"):
        expected = collect(dataset)
    for options in ({"num_workers": 1}, {"num_workers": 2}):
        dataset = pairs()
        dataset.set_epoch(3)
        images, mask = collect(dataset, **options)
        assert torch.equal(images, expected[0])
        assert torch.equal(mask, expected[1])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_persistent_workers_see_the_epoch(photos, context):
    dataset = InpaintingDataset(PictureDataset(data.folder(photos), 16, crop="random"))
    loader = DataLoader(
        dataset, batch_size=5, num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 4, 1):
        dataset.set_epoch(epoch)
        (images, holes), *_ = loader
        expected = [dataset[i] for i in range(5)]
        assert torch.equal(images, torch.stack([image for image, _ in expected]))
        assert torch.equal(holes, torch.stack([mask for _, mask in expected]))


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
