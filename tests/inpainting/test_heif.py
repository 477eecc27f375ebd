"""HEIC, the pictures of telephones, which Pillow reads with pillow-heif."""

import io
import subprocess
import sys
import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageCms
from support.inpainters import PIXELS, VALID, H, W, make_net
from support.servers import ask, content_of, detail, form, served

import pconv_ext
from pconv_ext.batch import inpaint_bytes, inpaint_files
from pconv_ext.data import PictureDataset, folder
from pconv_ext.inpainting import _pictures
from pconv_ext.inpainting.cli import run
from pconv_ext.masks import MaskFolder

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


@pytest.mark.parametrize(
    ("orientation", "upright"), [(3, PIXELS[::-1, ::-1]), (6, np.rot90(PIXELS, -1)), (8, np.rot90(PIXELS))]
)
def test_is_not_turned_again(inpainter, tmp_path, orientation, upright):
    """libheif turns a picture as HEIF has it; what EXIF says of that is of no more meaning."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.heic", exif=exif.tobytes())
    assert_array_equal(np.array(_pictures.read(tmp_path / "a.heic")), upright)
    valid = np.ones(upright.shape[:2], bool)
    valid[4:8, 4:8] = False
    Image.fromarray(valid).save(tmp_path / "mask.png")
    inpaint_files(inpainter, tmp_path / "a.heic", tmp_path / "mask.png", tmp_path / "b.png")
    with served(inpainter) as address:
        mask = content_of(Image.fromarray(valid))
        status, _, content = ask(address, body=form(image=(tmp_path / "a.heic").read_bytes(), mask=mask))
        assert status == 200
    for result in (Image.open(tmp_path / "b.png"), Image.open(io.BytesIO(content))):
        assert result.getexif().get(0x0112, 1) == 1
        assert_array_equal(np.array(result)[valid], upright[valid])


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


@pytest.fixture
def missing(monkeypatch):
    """pillow_heif cannot be imported."""
    monkeypatch.setitem(sys.modules, "pillow_heif", None)


@pytest.mark.usefixtures("missing")
def test_without_pillow_heif(inpainter, files, capsys):
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


@pytest.mark.usefixtures("missing")
def test_folders_without_pillow_heif(inpainter, files):
    """Nothing is begun, whatever comes first in a folder; and nothing is asked for where there is none."""
    folder_of_both = files / "pictures"
    folder_of_both.mkdir()
    for name in ("0.png", "1.png", "2.png"):
        Image.fromarray(PIXELS).save(folder_of_both / name)
    assert len(PictureDataset(folder(folder_of_both), 8)) == 3
    (files / "a.heic").rename(folder_of_both / "b.HIF")
    match = r"reading .*b\.HIF needs pillow-heif: pip install 'pconv_ext\[heif\]'"
    with pytest.raises(ImportError, match=match):
        folder(folder_of_both)
    with pytest.raises(ImportError, match=match):
        MaskFolder(folder_of_both)
    with pytest.raises(ImportError, match=match):
        inpaint_files(inpainter, folder_of_both, files / "mask.png", files / "out")
    assert not (files / "out").exists()


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"heim", b"hevc", b"mif1", b"msf1"])
def test_is_known_by_its_content(files, monkeypatch, brand):
    content = bytearray((files / "a.heic").read_bytes())
    content[8:12] = brand
    (files / "a.png").write_bytes(content)
    assert_array_equal(np.array(_pictures.read(files / "a.png")), PIXELS)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(ImportError, match=r"reading .*a\.png needs pillow-heif"):
        _pictures.read(files / "a.png")


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize("brand", [b"avif", b"mif1"])
def test_avif_needs_none(tmp_path, brand):
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, "AVIF")
    content = bytearray(stream.getvalue())
    content[8:12] = brand
    (tmp_path / "a.avif").write_bytes(content)
    assert _pictures.read(tmp_path / "a.avif").size == (W, H)


def test_is_imported_when_one_is_read():
    code = """
import io, sys
from PIL import Image
from pconv_ext.inpainting import _pictures
stream = io.BytesIO()
Image.new("RGB", (8, 8)).save(stream, "PNG")
_pictures.decode(stream.getvalue, "a picture")
print("pillow_heif" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_of_several_pictures_none_is_chosen(inpainter, files):
    both = heif.from_pillow(Image.fromarray(PIXELS))
    both.add_from_pillow(Image.fromarray(PIXELS[::-1].copy()))
    both.save(files / "a.heic", quality=-1)
    with pytest.raises(ValueError, match=r"a\.heic: it has 2 frames or pages"):
        inpaint_files(inpainter, files / "a.heic", files / "mask.png", files / "b.png")


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_modes(inpainter, files, mode):
    picture = Image.fromarray(PIXELS).convert(mode)
    heif.from_pillow(picture).save(files / "a.heic", quality=-1, chroma=444, matrix_coefficients=0)
    inpaint_files(inpainter, files / "a.heic", files / "mask.png", files / "b.png")
    result = Image.open(files / "b.png")
    assert result.mode == mode
    assert_array_equal(np.array(result)[VALID], np.array(picture)[VALID])


def test_grey_of_10_bits_stays(inpainter, files):
    values = PIXELS[..., 0].astype(np.uint16) << 8
    heif.from_bytes("I;16", (W, H), values.tobytes()).save(files / "a.heic", quality=-1)
    inpaint_files(inpainter, files / "a.heic", files / "mask.png", files / "b.png")
    result = Image.open(files / "b.png")
    assert result.mode == "I;16"
    assert_array_equal(np.array(result)[VALID], values[VALID])


def test_masks(inpainter, files):
    save(files / "mask.heic", np.where(VALID, 255, 0).astype(np.uint8)[..., None].repeat(3, 2))
    for mask in ("mask.png", "mask.heic"):
        inpaint_files(inpainter, files / "a.heic", files / mask, files / f"{mask}.png")
    assert (files / "mask.png.png").read_bytes() == (files / "mask.heic.png").read_bytes()


def test_what_a_jpeg_gets(inpainter, files):
    save(files / "a.heic", xmp=b"<x/>", icc_profile=PROFILE)
    inpaint_files(inpainter, files / "a.heic", files / "mask.png", files / "b.jpg")
    result = Image.open(files / "b.jpg")
    assert (result.info["xmp"], result.info["icc_profile"]) == (b"<x/>", PROFILE)


@pytest.mark.parametrize("primaries", [1, 12])
def test_colours_without_a_profile(inpainter, files, primaries):
    """Of display P3, say, which no PNG of Pillow tells."""
    save(files / "a.heic", color_primaries=primaries)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        inpaint_files(inpainter, files / "a.heic", files / "mask.png", files / "b.png")
    texts = [str(one.message) for one in caught]
    assert len(texts) == (primaries != 1)
    assert all("b.png: the colours of the picture have primaries 12 of ITU-T H.273" in one for one in texts)


def test_damaged(inpainter, files):
    content = (files / "a.heic").read_bytes()
    (files / "a.heic").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"cannot read picture .*a\.heic"):
        inpaint_files(inpainter, files / "a.heic", files / "mask.png", files / "b.png")
