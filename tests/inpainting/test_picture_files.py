"""What a picture file has beside its pixels comes through `inpaint_files`, and what would not is refused."""

import io
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageCms, JpegImagePlugin, PngImagePlugin
from support.inpainters import make_net
from support.picture_files import H, W, png16, smooth

import pconv_ext
from pconv_ext.batch import Outcome, inpaint_bytes, inpaint_files
from pconv_ext.inpainting._pictures import UnreadablePictureError

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def inpainter():
    net = make_net()
    net.decoder[-1].conv.bias.data.fill_(0.5)
    return pconv_ext.Inpainter(net, device="cpu")


@pytest.fixture
def valid():
    mask = np.ones((H, W), bool)
    mask[8:20, 10:30] = False
    return mask


def exif(orientation=1):
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010F] = "maker"
    return tags


def fill(inpainter, tmp_path, picture, valid, source, target=None, **options):
    """The picture saved as `source`, filled into `target`, and both read again."""
    first, second, mask = tmp_path / source, tmp_path / "out" / (target or source), tmp_path / "mask.png"
    picture.save(first, **options)
    Image.fromarray(valid).save(mask)
    assert inpaint_files(inpainter, first, mask, second) == Outcome([second], [], [])
    opened = [Image.open(file) for file in (first, second)]
    for one in opened:
        one.load()
    return opened


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *((f"a.{end}", "RGB") for end in ("png", "tif", "webp", "bmp", "ppm", "jp2", "tga")),
        *((f"a.{end}", "RGBA") for end in ("png", "tif", "webp", "jp2", "tga")),
        *((f"a.{end}", "L") for end in ("png", "tif", "bmp", "pgm", "gif")),
        *((f"a.{end}", "P") for end in ("png", "tif", "gif", "tga")),
        *((f"a.{end}", "1") for end in ("png", "tif", "bmp", "pbm")),
        *((f"a.{end}", "I;16") for end in ("png", "tif")),
        *(("a.tif", mode) for mode in ("CMYK", "LA", "F", "I", "I;16B")),
    ],
)
def test_lossless_formats_keep_every_valid_pixel(inpainter, tmp_path, valid, name, mode):
    if mode in ("F", "I", "I;16", "I;16B"):
        kind = {"F": np.float32, "I": np.int32, "I;16": np.dtype("<u2"), "I;16B": np.dtype(">u2")}[mode]
        values = smooth(1)[..., 0].astype(float) * (1 / 255 if mode == "F" else 257)
        picture = Image.fromarray(values.astype(kind))
    else:
        picture = Image.fromarray(smooth())
        picture = picture.quantize(30) if mode == "P" else picture.convert(mode)
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    before, after = fill(inpainter, tmp_path, picture, valid, name, **options)
    assert (after.format, after.mode, after.size) == (before.format, before.mode, before.size)
    assert_array_equal(np.array(after)[valid], np.array(before)[valid])
    assert (np.array(after)[~valid] != np.array(before)[~valid]).any()


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg"])
def test_metadata(inpainter, tmp_path, valid, name, orientation):
    options = {"exif": exif(orientation), "icc_profile": PROFILE}
    if not name.endswith("webp"):
        options["dpi"] = (200, 200)
    if name == "a.png":
        options["pnginfo"] = PngImagePlugin.PngInfo()
        options["pnginfo"].add_text("Author", "me")
        options["pnginfo"].add_itxt("Title", "Größe")
    seen = valid if orientation == 1 else np.rot90(valid, -1)
    before, after = fill(inpainter, tmp_path, Image.fromarray(smooth()), seen, name, **options)
    assert after.info["icc_profile"] == PROFILE
    turned = orientation if name != "a.tif" else 1  # Pillow turns a TIFF as it reads it
    assert after.getexif().get(0x0112, 1) == turned
    assert after.getexif()[0x010F] == "maker"
    assert after.size == before.size
    if not name.endswith("webp"):
        assert after.info["dpi"] == pytest.approx((200, 200), abs=0.01)
    if name == "a.png":
        assert after.text == {"Author": "me", "Title": "Größe"}
    if name in ("a.png", "a.tif"):
        kept = valid if turned == orientation else seen
        assert_array_equal(np.array(after)[kept], np.array(before)[kept])


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [60, 92])
def test_a_jpeg_has_its_own_tables(inpainter, tmp_path, valid, mode, subsampling, quality):
    picture = Image.fromarray(smooth()).convert(mode)
    options = {
        "quality": quality,
        "subsampling": subsampling,
        "progressive": quality == 60,
        "comment": b"mine",
    }
    before, after = fill(inpainter, tmp_path, picture, valid, "a.jpg", **options)
    assert after.mode == mode
    assert after.quantization == before.quantization
    assert mode == "L" or after.layer == before.layer
    assert JpegImagePlugin.get_sampling(after) == JpegImagePlugin.get_sampling(before)
    assert after.info["comment"] == b"mine"
    assert ("progressive" in after.info) == (quality == 60)
    far = valid.copy()
    far[:34, :34] = False  # blocks of the hole, and what their chroma reaches
    change = np.abs(np.array(after)[far].astype(int) - np.array(before)[far])
    assert change.mean() < 0.5
    assert change.max() <= 8


def test_other_formats(inpainter, tmp_path, valid):
    """Turned where the format has no EXIF; told where it has no place for a profile."""
    seen, turned = np.rot90(valid, -1), Image.fromarray(smooth())
    with pytest.warns(UserWarning, match="BMP has no place for the colour profile"):
        before, after = fill(
            inpainter, tmp_path, turned, seen, "a.png", "b.bmp", exif=exif(6), icc_profile=PROFILE
        )
    assert_array_equal(np.array(after)[seen], np.rot90(np.array(before), -1)[seen])
    grey = Image.fromarray(smooth()[..., 0])
    before, after = fill(inpainter, tmp_path, grey, valid, "a.png", "b.webp")
    assert_array_equal(np.array(after)[valid], np.array(before.convert("RGB"))[valid])
    _, after = fill(inpainter, tmp_path, Image.fromarray(smooth()).quantize(9), valid, "a.png", "b.jpg")
    assert after.mode == "RGB"


def animation(kind):
    stream = io.BytesIO()
    frames = [Image.fromarray(np.roll(smooth(), i, 0)) for i in range(3)]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        *(
            (png16(np.full((H, W, n), 30000), colour), "colours have more than 8 bits")
            for n, colour in ((3, 2), (2, 4), (4, 6))
        ),
        (b"P6\n56 40\n65535\n" + bytes(H * W * 6), "colours have more than 8 bits"),
        *((animation(kind), "it has 3 frames or pages") for kind in ("GIF", "WEBP", "PNG", "TIFF")),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "in none of the formats"),
    ],
)
def test_what_would_be_lost_is_refused(inpainter, valid, content, match):
    mask = io.BytesIO()
    Image.fromarray(valid).save(mask, "PNG")
    with pytest.raises(UnreadablePictureError, match=f"cannot read picture the name: .*{match}"):
        inpaint_bytes(inpainter, content, mask.getvalue(), name="the name")


@pytest.mark.parametrize(
    ("mode", "target", "match"),
    [
        ("RGBA", "b.jpg", "JPEG has no place for a picture of mode RGBA, as .*PNG, .*TIFF"),
        ("CMYK", "b.png", "PNG has no place for a picture of mode CMYK, as JPEG, TIFF have"),
        ("RGB", "b.gif", "GIF has no place for a picture of mode RGB"),
        ("I;16", "b.webp", "WEBP has no place for a picture of mode I;16"),
        ("RGB", "b.ico", "must have the extension of a format that keeps pictures, .*.png"),
        ("RGB", "b.pdf", "must have the extension of a format that keeps pictures"),
    ],
)
def test_formats_without_a_place(inpainter, tmp_path, valid, mode, target, match):
    picture = Image.new(mode, (W, H))
    with pytest.raises(ValueError, match=match):
        fill(inpainter, tmp_path, picture, valid, "a.tif", target)
    assert not (tmp_path / "out" / target).exists()


def test_an_mpo_is_a_jpeg(inpainter, tmp_path, valid):
    """As telephones write them: a second picture for depth or another view."""
    stream, mask = io.BytesIO(), io.BytesIO()
    first = Image.fromarray(smooth())
    first.save(stream, "MPO", save_all=True, append_images=[first.resize((20, 10))])
    Image.fromarray(valid).save(mask, "PNG")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        filled = Image.open(io.BytesIO(inpaint_bytes(inpainter, stream.getvalue(), mask.getvalue())))
    assert (filled.format, filled.size) == ("JPEG", (W, H))


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_stays_one(inpainter, tmp_path, valid):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere.png").write_bytes(b"")
    (tmp_path / "out" / "link.png").symlink_to(tmp_path / "elsewhere.png")
    fill(inpainter, tmp_path, Image.fromarray(smooth()), valid, "a.png", "link.png")
    assert (tmp_path / "out" / "link.png").is_symlink()
    assert Image.open(tmp_path / "elsewhere.png").size == (W, H)


class TestFolders:
    @pytest.fixture
    def folder(self, tmp_path, valid):
        for name in ("pictures", "masks"):
            (tmp_path / name).mkdir()
        for name in ("a.png", "b.jpg", "c.png", "d.bmp"):
            Image.fromarray(smooth()).save(tmp_path / "pictures" / name)
        for name in ("a.png", "b_mask.png", "c_mask001.png", "c_mask002.gif"):
            Image.fromarray(valid).save(tmp_path / "masks" / name)
        return tmp_path

    def test_names_of_masks(self, inpainter, folder):
        with pytest.warns(UserWarning, match=r"left out: .*pictures.d.bmp has no mask in .*masks"):
            done = inpaint_files(inpainter, folder / "pictures", folder / "masks", folder / "out")
        names = ["a.png", "b.jpg", "c_mask001.png", "c_mask002.png"]
        assert done == Outcome([folder / "out" / name for name in names], [folder / "pictures/d.bmp"], [])
        with pytest.raises(ValueError, match=r"1 of 4 have none: .*d.bmp"):
            inpaint_files(inpainter, folder / "pictures", folder / "masks", folder / "strict", strict=True)
        assert not (folder / "strict").exists()

    @pytest.mark.parametrize(
        "mask",
        ["a.tif", "a_mask.png", "a_mask001.png", "a_mask_1.png", "a-mask.png", "a_Mask.PNG", "a_MASK12.gif"],
    )
    def test_a_mask_is_named_as(self, inpainter, tmp_path, valid, mask):
        """Beside its picture and in a folder of masks, and below both."""
        for below, beside in (("in/sub", "masks/sub"), ("both", "both")):
            for name in {below, beside}:
                (tmp_path / name).mkdir(parents=True)
            Image.fromarray(smooth()).save(tmp_path / below / "a.png")
            Image.fromarray(valid).save(tmp_path / beside / mask)
            top = [tmp_path / name.split("/")[0] for name in (below, beside)]
            if mask == "a.tif" and below == beside:
                continue  # which of the two is the mask?
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                done = inpaint_files(inpainter, *top, tmp_path / f"out of {top[0].name}")
            assert [file.name for file in done.written] == ["a.png"]
            assert done.left_out == []

    @pytest.mark.parametrize("missing", [["a"], ["c"], ["a", "b"]])
    def test_one_missing_mask_stops_nothing(self, inpainter, tmp_path, valid, missing):
        for name in ("in", "masks"):
            (tmp_path / name).mkdir()
        for name in "abc":
            Image.fromarray(smooth()).save(tmp_path / "in" / f"{name}.png")
            if name not in missing:
                Image.fromarray(valid).save(tmp_path / "masks" / f"{name}_mask.png")
        with pytest.warns(UserWarning, match=r"left out: .* has no mask in") as caught:
            done = inpaint_files(inpainter, tmp_path / "in", tmp_path / "masks", tmp_path / "out")
        assert len(caught) == len(missing)
        assert [file.stem for file in done.left_out] == missing
        assert {file.stem for file in done.written} == set("abc") - set(missing)

    def test_one_folder_of_both(self, inpainter, folder):
        for mask in (folder / "masks").iterdir():
            mask.rename(folder / "pictures" / mask.name.replace("a.png", "a_mask.png"))
        (folder / "pictures" / "d.bmp").unlink()
        done = inpaint_files(inpainter, folder / "pictures", folder / "pictures", folder / "out")
        names = ["a.png", "b.jpg", "c_mask001.png", "c_mask002.png"]
        assert done == Outcome([folder / "out" / name for name in names], [], [])

    def test_results_of_one_name(self, inpainter, folder):
        (folder / "masks" / "a.png").rename(folder / "masks" / "a_mask1.png")
        Image.fromarray(smooth()).save(folder / "masks" / "a_mask1.gif")
        with pytest.raises(ValueError, match=r"a_mask1.png would be the result for .*a_mask1.gif and for"):
            inpaint_files(inpainter, folder / "pictures", folder / "masks", folder / "out")

    def test_what_is_done_is_not_done_again(self, inpainter, folder):
        (folder / "pictures" / "d.bmp").unlink()
        sources = folder / "pictures", folder / "masks", folder / "out"
        first = inpaint_files(inpainter, *sources)
        first.written[0].unlink()
        times = {file: file.stat().st_mtime_ns for file in first.written[1:]}
        assert inpaint_files(inpainter, *sources) == Outcome(first.written[:1], [], first.written[1:])
        assert {file: file.stat().st_mtime_ns for file in times} == times
        assert inpaint_files(inpainter, *sources, overwrite=True) == first
        assert all(file.stat().st_mtime_ns > time for file, time in times.items())

    def test_an_interruption_leaves_whole_files(self, inpainter, folder, monkeypatch):
        done = []

        def interrupted(*arguments):
            if len(done) == 2:
                raise KeyboardInterrupt
            done.append(arguments)

        (folder / "pictures" / "d.bmp").unlink()
        with pytest.raises(KeyboardInterrupt):
            inpaint_files(
                inpainter, folder / "pictures", folder / "masks", folder / "out", progress=interrupted
            )
        left = sorted(path.name for path in (folder / "out").iterdir())
        assert left == ["a.png", "b.jpg", "c_mask001.png"]
        for file in (folder / "out").iterdir():
            Image.open(file).load()


def test_names_are_printed_without_their_escapes(inpainter, tmp_path, valid, capsys, monkeypatch):
    from pconv_ext import checkpoint
    from pconv_ext.inpainting.cli import run

    checkpoint.save_net(inpainter.net, tmp_path / "net.safetensors")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(smooth()).save("a.png")
    Image.fromarray(valid).save("mask.png")
    options = ["-c", "net.safetensors", "--device", "cpu", "-o"]
    for arguments, code in (
        (["a.png", "mask.png", *options, "\x1b[31mo.png"], 0),
        (["\x1b]0;x.png", "m", *options, "o"], 1),
    ):
        with pytest.raises(SystemExit) as stop:
            run(["inpaint", *arguments])
        assert (stop.value.code or 0) == code
    out, err = capsys.readouterr()
    assert out == "\\x1b[31mo.png\n"
    assert "\x1b" not in err
    assert "\\x1b]0;x.png" in err
    assert Path("\x1b[31mo.png").is_file()
