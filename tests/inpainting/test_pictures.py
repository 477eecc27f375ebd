"""`PictureDataset`: pictures of all kinds, cropped and resized; unreadable ones are left out."""

import io
import os
import struct
import warnings
import zlib

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from support import torchvision_without_ops
from support.inpainters import make_net
from support.pictures import damage, noise, save_photos
from torch.utils.data import DataLoader

from pconv_ext import Inpainter, data, masks
from pconv_ext.batch import inpaint_files
from pconv_ext.data import PictureDataset
from pconv_ext.inpainting._pictures import UnreadablePictureError
from pconv_ext.masks import MaskFolder

torchvision_without_ops.make_importable()


@pytest.fixture
def photos(tmp_path):
    return save_photos(tmp_path / "photos")


def load(path):
    """The picture in a file without resampling, float32 [3, H, W]."""
    with Image.open(path) as picture:
        size = data.to_tensor(picture).shape[1:]
    folder = path.with_suffix(f"{path.suffix} alone")
    folder.mkdir()
    alone = path.rename(folder / path.name)
    return PictureDataset(data.folder(alone.parent), tuple(size), crop="none")[0]


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
    assert "it is empty or in none of the formats" in texts[1]
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
        ({"crop": "middle"}, ValueError, "crop must be one of .*'window', 'none', got 'middle'"),
        ({"scale": (0, 1)}, ValueError, "scale must satisfy .* got 0 and 1"),
        ({"scale": 0.5}, TypeError, r"scale must be a pair .* got 0.5"),
        ({"ratio": (2.0, 1.0)}, ValueError, "ratio must satisfy .* got 2.0 and 1.0"),
        ({"seed": -1}, ValueError, "seed .* got -1"),
    ],
)
def test_picture_errors(photos, options, error, match):
    with pytest.raises(error, match=match):
        PictureDataset(data.folder(photos), **options)


@pytest.fixture
def ghostscript(tmp_path, monkeypatch):
    """A file that is there once Ghostscript was started, which Pillow does for EPS, whatever it is called."""
    programs, started = tmp_path / "bin", tmp_path / "started"
    programs.mkdir()
    (programs / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (programs / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return started


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"


def test_content_starts_no_program(tmp_path, ghostscript):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "b.png")
    (tmp_path / "photos" / "a.png").write_bytes(EPS)
    with pytest.warns(UserWarning, match=r"a.png.* in none of the formats .*BMP, .*PNG"):
        pictures = PictureDataset(data.folder(tmp_path / "photos"), 8)
    assert torch.equal(pictures[0], pictures[1])
    with pytest.raises(UnreadablePictureError, match=r"a.png: .* in none of the formats .*BMP, .*PNG"):
        MaskFolder(tmp_path / "photos")[0]
    inpainter, good = Inpainter(make_net(), device="cpu"), tmp_path / "photos" / "b.png"
    for kind in (".png", ".jpg", ".tif", ".eps", ".ps"):
        bad = (tmp_path / "bad").with_suffix(kind)
        bad.write_bytes(EPS)
        for picture, mask in ((bad, good), (good, bad)):
            with pytest.raises(ValueError, match=r"bad\..* in none of the formats .*BMP, .*PNG"):
                inpaint_files(inpainter, picture, mask, tmp_path / "out.png")
    assert not ghostscript.exists()


def test_content_of_lsun_starts_no_program(tmp_path, ghostscript):
    stream = io.BytesIO()
    noise(8, 8).save(stream, "PNG")
    database = tmp_path / "church_outdoor_val_lmdb"
    database.mkdir()
    with lmdb.open(str(database), map_size=2**24) as opened, opened.begin(write=True) as transaction:
        for key, content in ((b"a", EPS), (b"b", stream.getvalue())):
            transaction.put(key, content)
    with pytest.warns(UserWarning, match="in none of the formats"):
        pictures = PictureDataset(data.lsun_church(tmp_path, "val"), 8)
    assert torch.equal(pictures[0], data.to_tensor(noise(8, 8)))
    assert not ghostscript.exists()


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP", "AVIF"])
def test_of_several_frames_none_is_chosen(tmp_path, kind):
    noise(8, 8).save(tmp_path / "b.png")
    noise(8, 8, 1).save(tmp_path / "a.png", kind, save_all=True, append_images=[noise(8, 8, 2)])
    with pytest.warns(UserWarning, match=r"a\.png is left out.* it has 2 frames or pages"):
        assert torch.equal(PictureDataset(data.folder(tmp_path), 8)[0], data.to_tensor(noise(8, 8)))
    with pytest.raises(UnreadablePictureError, match=r"a\.png: it has 2 frames or pages"):
        masks.load(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (np.float32([0, 255]), r"mode F must be in \[0, 1\], got 255"),
        (np.float32([0, np.nan]), r"mode F must be in \[0, 1\], got nan"),
        (np.float32([-0.5, 1]), r"mode F must be in \[0, 1\], got -0.5"),
        (np.float32([1 + 2e-7, 1]), r"mode F must be in \[0, 1\], got 1.00000024"),
        (np.int32([0, 255]), r"mode I must be in \[0, 65535\], where 65535 is white, the largest is 255"),
        (np.int32([0, 65536]), r"mode I must be in \[0, 65535\], got 65536"),
        (np.int32([-1, 5]), r"mode I must be in \[0, 65535\], got -1"),
    ],
)
def test_other_ranges_become_neither_white_nor_black(tmp_path, values, match):
    """In data sets they are left out, and filled as little as those of a folder."""
    Image.fromarray(np.resize(values, (20, 30))).save(tmp_path / "a.tiff")
    noise().save(tmp_path / "b.tiff")
    with pytest.warns(UserWarning, match=r"a\.tiff is left out.*" + match):
        assert torch.equal(PictureDataset(data.folder(tmp_path), (20, 30))[0], data.to_tensor(noise()))
    mask = Image.new("L", (30, 20), 255)
    mask.paste(0, (5, 5, 9, 9))
    mask.save(tmp_path / "mask.gif")
    with pytest.warns(UserWarning, match=r"left out: .*a\.tiff.*" + match):
        done = inpaint_files(
            Inpainter(make_net(), device="cpu"), tmp_path, tmp_path / "mask.gif", tmp_path.parent / "filled"
        )
    assert [file.name for file in done.left_out] == ["a.tiff"]


def test_links_that_go_round(photos):
    names = [data.folder(photos).name(i) for i in range(len(data.folder(photos)))]
    (photos / "below").mkdir()
    for i in range(2):
        (photos / "below" / f"up{i}").symlink_to(photos, target_is_directory=True)
    found = data.folder(photos)
    assert [found.name(i) for i in range(len(found))] == names


def test_links_out_of_a_folder_and_back(photos, tmp_path):
    """By them the pictures to validate on, and results, would be among those of the folder."""
    (tmp_path / "val").mkdir()
    noise().save(tmp_path / "val" / "v.png")
    before = len(data.folder(photos))
    (photos / "sub" / "out").symlink_to(tmp_path, target_is_directory=True)
    (photos / "further").symlink_to(tmp_path.parent, target_is_directory=True)
    (photos / "itself").symlink_to("itself", target_is_directory=True)
    (photos / "nowhere").symlink_to("nothing", target_is_directory=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "back").symlink_to(photos, target_is_directory=True)
    (photos / "round").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(data.folder(photos)) == before
    (tmp_path / "entry").symlink_to(photos, target_is_directory=True)
    assert len(data.folder(tmp_path / "entry")) == before


def test_a_link_to_another_folder_is_followed(photos, tmp_path):
    save_photos(tmp_path / "elsewhere")
    before = len(data.folder(photos))
    (photos / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (photos / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert len(data.folder(photos)) == 2 * before


def test_a_folder_that_cannot_be_read(photos, monkeypatch):
    (photos / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):  # root, who runs many a test, may read anything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(OSError, match=r"the folder .*closed cannot be read: Permission denied"):
        data.folder(photos)


def test_a_link_to_what_cannot_be_read(photos, monkeypatch):
    (photos / "closed").symlink_to(photos / "sub")
    stat = os.stat

    def refuse(path, **options):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **options)

    monkeypatch.setattr(os, "stat", refuse)
    with pytest.raises(OSError, match=r"data\.folder: the folder .*closed cannot be read: Permission denied"):
        data.folder(photos)


@pytest.mark.parametrize("find", [data.folder, MaskFolder])
def test_an_empty_path_is_not_the_working_folder(photos, monkeypatch, find):
    monkeypatch.chdir(photos)
    with pytest.raises(ValueError, match="the folder of pictures must be a path, got an empty one"):
        find("")
    assert len(find(".")) == 5
