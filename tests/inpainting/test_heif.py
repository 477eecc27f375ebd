"""HEIC, the pictures of telephones, which Pillow reads with pillow-heif."""

import builtins
import io

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageCms
from support.inpainters import PIXELS, VALID, H, W, make_net
from support.servers import ask, content_of, detail, form, served

import pconv_ext
from pconv_ext.batch import inpaint_bytes, inpaint_files
from pconv_ext.data import PictureDataset, folder
from pconv_ext.inpainting.cli import run

heif = pytest.importorskip("pillow_heif")
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def inpainter():
    return pconv_ext.Inpainter(make_net(), device="cpu")


def save(file, pixels=PIXELS, **options):
    """Without loss."""
    picture = heif.from_pillow(Image.fromarray(pixels))
    picture.save(file, quality=-1, chroma=444, matrix_coefficients=0, **options)
    return file


def last_line(capsys, *arguments):
    """On standard error, of a command that fails."""
    with pytest.raises(SystemExit) as stop:
        run([*map(str, arguments)])
    assert stop.value.code == 1
    return capsys.readouterr().err.splitlines()[-1]


@pytest.fixture
def files(tmp_path):
    exif = Image.Exif()
    exif[0x010F] = "telephone"
    save(tmp_path / "a.heic", exif=exif.tobytes(), icc_profile=PROFILE)
    Image.fromarray(VALID).save(tmp_path / "mask.png")
    return tmp_path


def test_becomes_a_png(inpainter, files):
    inpaint_files(inpainter, files / "a.heic", files / "mask.png", files / "b.png")
    result = Image.open(files / "b.png")
    assert_array_equal(np.array(result)[VALID], PIXELS[VALID])
    assert (np.array(result)[~VALID] != PIXELS[~VALID]).any(1).mean() > 0.9
    assert result.info["icc_profile"] == PROFILE
    assert result.getexif()[0x010F] == "telephone"
    content = inpaint_bytes(inpainter, (files / "a.heic").read_bytes(), (files / "mask.png").read_bytes())
    assert_array_equal(np.array(Image.open(io.BytesIO(content))), np.array(result))


@pytest.mark.parametrize("orientation", [3, 6])
def test_is_not_turned_again(inpainter, tmp_path, orientation):
    """libheif turns a picture as HEIF has it; what EXIF says of that is of no more meaning."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.heic", exif=exif.tobytes())
    read = np.array(heif.read_heif(tmp_path / "a.heic").to_pillow())
    valid = np.ones(read.shape[:2], bool)
    valid[4:8, 4:8] = False
    Image.fromarray(valid).save(tmp_path / "mask.png")
    inpaint_files(inpainter, tmp_path / "a.heic", tmp_path / "mask.png", tmp_path / "b.png")
    result = Image.open(tmp_path / "b.png")
    assert result.getexif().get(0x0112, 1) == 1
    assert_array_equal(np.array(result)[valid], read[valid])


def test_folders_and_data_sets(inpainter, files):
    pictures, masks = files / "pictures", files / "masks"
    pictures.mkdir()
    masks.mkdir()
    for i in range(3):
        save(pictures / f"{i}.HEIC")
        Image.fromarray(VALID).save(masks / f"{i}.png")
    done = inpaint_files(inpainter, pictures, masks, files / "out")
    assert [file.name for file in done.written] == ["0.png", "1.png", "2.png"]
    one = PictureDataset(folder(pictures), (H, W), crop="none")
    assert len(one) == 3
    assert_array_equal((one[0] * 255).round().byte().permute(1, 2, 0), PIXELS)
    save(pictures / "0.jpg.heic")
    Image.fromarray(PIXELS).save(pictures / "0.png")
    with pytest.raises(ValueError, match="would be the result for"):
        inpaint_files(inpainter, pictures, files / "mask.png", files / "other")


def test_is_not_written(files, capsys):
    arguments = [files / "a.heic", files / "mask.png", "-o", files / "b.heic"]
    message = last_line(capsys, "inpaint", *arguments)
    assert "must have the extension of a format that keeps pictures" in message


def test_more_than_8_bits_are_not_reduced(inpainter, tmp_path):
    deep = heif.from_bytes("RGB;16", (W, H), (PIXELS.astype(np.uint16) * 257).tobytes())
    deep.save(tmp_path / "a.heic", quality=-1)
    Image.fromarray(VALID).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match=r"a\.heic.*its colours have more than 8 bits"):
        inpaint_files(inpainter, tmp_path / "a.heic", tmp_path / "mask.png", tmp_path / "b.png")


def test_without_pillow_heif(inpainter, files, monkeypatch, capsys):
    whole = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("pillow_heif"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return whole(name, *args, **kwargs)

    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    monkeypatch.setattr(builtins, "__import__", missing)
    arguments = [files / "a.heic", files / "mask.png", "-o", files / "b.png"]
    line = last_line(capsys, "inpaint", *arguments).removeprefix("pconv-ext: ")
    assert line.startswith(f"reading {files / 'a.heic'} needs pillow-heif: pip install 'pconv_ext[heif]'")
    with pytest.raises(ImportError, match="needs pillow-heif"):
        PictureDataset(folder(files), 8)
    with served(inpainter) as address:
        body = form(image=(files / "a.heic").read_bytes(), mask=content_of(Image.fromarray(VALID)))
        answer = ask(address, body=body)
        assert answer[0] == 415
        assert "needs pillow-heif" in detail(answer)


def test_damaged(inpainter, files):
    content = (files / "a.heic").read_bytes()
    (files / "a.heic").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot read picture .*a\.heic"):
        inpaint_files(inpainter, files / "a.heic", files / "mask.png", files / "b.png")
