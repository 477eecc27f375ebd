"""Colours, descriptions and places stay with a picture; files of which Pillow reads a part are refused."""

import functools
import io
import struct
import warnings

import cv2
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin
from support.inpainters import expected, make_net
from support.picture_files import H, W, smooth, tiff

import pconv_ext
from pconv_ext.batch import inpaint_bytes, inpaint_files
from pconv_ext.inpainting._picture_files import UnwritablePictureError
from pconv_ext.inpainting._pictures import UnreadablePictureError

XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"/>'
PICTURE = Image.fromarray(smooth())
DEEP = smooth().astype(np.uint16) * 257
VALID = np.ones((H, W), bool)
VALID[8:20, 10:30] = False


@functools.cache  # it has the time in it
def profile(space=b"RGB "):
    """sRGB's, with the primaries of display P3 (Apple's)."""
    content = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    primaries = {
        b"rXYZ": (0.5151, 0.2412, -0.0011),
        b"gXYZ": (0.2920, 0.6922, 0.0419),
        b"bXYZ": (0.1571, 0.0666, 0.7841),
    }
    for i in range(int.from_bytes(content[128:132], "big")):
        name, place, _ = struct.unpack(">4sII", content[132 + 12 * i : 144 + 12 * i])
        if name in primaries:
            numbers = (round(65536 * one) for one in primaries[name])
            content[place + 8 : place + 20] = struct.pack(">3i", *numbers)
    content[16:20] = space
    return bytes(content)


def content_of(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.fixture(scope="module")
def net():
    return make_net()


@pytest.fixture
def fill(net):
    """The content of a file as it was and filled, both opened; no warnings."""
    inpainter = pconv_ext.Inpainter(net, device="cpu")

    def run(content, kind=None):
        opened = [
            Image.open(io.BytesIO(one))
            for one in (
                content,
                inpaint_bytes(inpainter, content, content_of(Image.fromarray(VALID), "PNG"), kind=kind),
            )
        ]
        for one in opened:
            one.load()
        return opened

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield run


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_display_p3_stays_display_p3(net, fill, kind):
    """With its profile, pixel by pixel; and its holes are filled in its own numbers, as those around them."""
    options = {"lossless": True} if kind == "WEBP" else {}
    before, after = fill(content_of(PICTURE, kind, icc_profile=profile(), **options))
    assert after.info["icc_profile"] == before.info["icc_profile"] == profile()
    assert_array_equal(np.array(after), expected(net, smooth(), VALID))
    srgb = ImageCms.createProfile("sRGB")
    seen = [
        np.array(ImageCms.profileToProfile(one, io.BytesIO(one.info["icc_profile"]), srgb))
        for one in (before, after)
    ]
    assert_array_equal(seen[0][VALID], seen[1][VALID])
    assert (seen[0] != smooth()).any()


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_profiles_of_formats_that_lose_a_little(fill, kind):
    before, after = fill(content_of(PICTURE, kind, icc_profile=profile(), quality=95))
    assert after.info["icc_profile"] == before.info["icc_profile"] == profile()
    change = np.abs(np.array(after)[VALID].astype(int) - np.array(before)[VALID])
    assert change.mean() < 2


@pytest.mark.parametrize(
    ("picture", "space", "kind", "match"),
    [
        (PICTURE, b"RGB ", "JPEG2000", "JPEG2000 has no place for the colour profile of the picture"),
        (PICTURE, b"RGB ", "BMP", "BMP has no place for the colour profile of the picture"),
        (PICTURE.convert("L"), b"GRAY", "WEBP", "WEBP has no place for the colour profile of a grey picture"),
    ],
)
def test_profiles_without_a_place_are_told(fill, picture, space, kind, match):
    with pytest.warns(UserWarning, match=match):
        _, after = fill(content_of(picture, "PNG", icc_profile=profile(space)), kind)
    assert "icc_profile" not in after.info


def test_a_grey_profile_stays_with_grey(fill):
    content = content_of(PICTURE.convert("L"), "PNG", icc_profile=profile(b"GRAY"))
    assert fill(content)[1].info["icc_profile"] == profile(b"GRAY")
    assert fill(content, "TIFF")[1].info["icc_profile"] == profile(b"GRAY")


def test_what_else_tells_the_colours_of_a_png(fill):
    chunks = PngImagePlugin.PngInfo()
    points = 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000
    chunks.add(b"gAMA", struct.pack(">I", 100000))
    chunks.add(b"cHRM", struct.pack(">8I", *points))
    before, after = fill(content_of(PICTURE, "PNG", pnginfo=chunks))
    assert before.info["gamma"] == after.info["gamma"] == 1
    assert after.info["chromaticity"] == before.info["chromaticity"]
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"sRGB", b"\1")
    assert fill(content_of(PICTURE, "PNG", pnginfo=chunks))[1].info["srgb"] == 1


@pytest.mark.parametrize("target", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
@pytest.mark.parametrize("source", ["JPEG", "PNG", "TIFF", "WEBP", "AVIF"])
def test_xmp(fill, source, target):
    if source == "PNG":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", XMP.decode())
    else:
        options = {"tiffinfo": {700: XMP}} if source == "TIFF" else {"xmp": XMP}
    before, after = fill(content_of(PICTURE, source, **options), target)
    assert before.info["xmp"].rstrip(b"\0") == after.info["xmp"].rstrip(b"\0") == XMP


def test_iptc(fill):
    data = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\6\x1c\2\x50\0\1x"
    before, after = fill(content_of(PICTURE, "JPEG", extra=struct.pack(">HH", 0xFFED, len(data) + 2) + data))
    assert ("APP13", data) in before.applist
    assert after.applist.count(("APP13", data)) == 1


@pytest.mark.parametrize("source", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("target", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_of_a_camera(fill, source, target):
    """When and where: tags that lead to more tags, which libtiff cannot write."""
    exif = Image.Exif()
    exif[0x010F] = "maker"
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    exif.get_ifd(0x8825)[1] = "N"
    _, after = fill(content_of(PICTURE, source, exif=exif.tobytes()), target)
    found = after.getexif()
    assert found[0x010F] == "maker"
    assert found.get_ifd(0x8769)[0x9003] == "2020:01:01 00:00:00"
    assert found.get_ifd(0x8825)[1] == "N"


@pytest.mark.parametrize("compression", [None, "tiff_adobe_deflate"])
def test_tags_of_a_tiff(fill, compression):
    """Where on earth it is, and what its producer wrote."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, kind, value in (
        (270, 2, "a description"),
        (33550, 12, (1.0, 1.0, 0.0)),
        (34735, 3, (1, 1, 0, 1)),
        (42113, 2, "-9999"),
        (50000, 3, 7),
    ):
        tags.tagtype[tag] = kind
        tags[tag] = value
    before, after = fill(content_of(PICTURE, "TIFF", tiffinfo=tags, compression=compression))
    for tag in (270, 33550, 34735, 42113, 50000):
        assert after.tag_v2[tag] == before.tag_v2[tag]
    assert after.info["compression"] == before.info["compression"]


def opencv(end, values, *options):
    return cv2.imencode(end, values, options)[1].tobytes()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (tiff(DEEP), "more than 8 bits"),
        (tiff(DEEP, packed=True), "more than 8 bits"),
        (tiff(DEEP, planar=True), "more than 8 bits"),
        (tiff(DEEP, planar=True, packed=True), "more than 8 bits"),
        (tiff(np.dstack([DEEP, DEEP[..., :1]]), extra=[2]), "more than 8 bits"),
        (tiff(np.dstack([DEEP, DEEP[..., :1]]), 5), "more than 8 bits"),
        (opencv(".jp2", DEEP), "more than 8 bits"),
        (opencv(".avif", DEEP >> 6, cv2.IMWRITE_AVIF_DEPTH, 10), "more than 8 bits"),
        (opencv(".avif", DEEP >> 4, cv2.IMWRITE_AVIF_DEPTH, 12), "more than 8 bits"),
        (tiff(smooth(4), extra=[0]), "it has 4 channels, of which Pillow reads 3"),
        (tiff(smooth(5), extra=[0, 0]), "it has 5 channels, of which Pillow reads 3"),
        (tiff(smooth(5), extra=[2, 0]), "it has 5 channels, of which Pillow reads 4"),
        (tiff(smooth(2), 1, extra=[0]), "it has 2 channels, of which Pillow reads 1"),
        (tiff(DEEP[..., :1], 0), "its 0 is white"),
        (tiff(smooth().astype(np.float32) / 255), "in none of the formats"),
        (opencv(".jp2", smooth()).replace(b"colr\1", b"colr\2"), "a colour profile, which Pillow does not"),
    ],
)
def test_what_pillow_reads_in_part_is_refused(fill, content, match):
    with pytest.raises(UnreadablePictureError, match=match):
        fill(content)


@pytest.mark.parametrize(
    "content",
    [
        tiff(smooth()),
        tiff(smooth(), planar=True, packed=True),
        tiff(smooth(4), extra=[2]),
        tiff(smooth(1), 0),
        tiff(DEEP[..., :1], 1),
        tiff(DEEP[..., :1].astype(np.int32), 1),
        opencv(".jp2", smooth()),
        opencv(".jp2", DEEP[..., 0]),
    ],
)
def test_what_pillow_reads_whole_is_filled(fill, content):
    before, after = fill(content)
    assert (after.format, after.mode) == (before.format, before.mode)
    assert_array_equal(np.array(after)[VALID], np.array(before)[VALID])


@pytest.mark.parametrize("sampling", ["411", "420", "422", "440", "444"])
def test_colours_of_a_jpeg_become_no_coarser(fill, sampling):
    options = cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
    before, after = fill(opencv(".jpg", smooth(), *options))
    assert after.quantization == before.quantization
    far = VALID.copy()
    far[:36, :46] = False  # blocks of the hole, and what their colours reach
    assert np.abs(np.array(after)[far].astype(int) - np.array(before)[far]).mean() < 0.5


def test_what_a_format_cannot_hold_is_left_out_of_a_folder(net, tmp_path):
    """A picture of one format that is named as of another, which has no alpha."""
    (tmp_path / "in").mkdir()
    Image.fromarray(smooth(4), "RGBA").save(tmp_path / "in" / "a.jpg", "PNG")
    PICTURE.save(tmp_path / "in" / "b.png")
    Image.new("LAB", (W, H)).save(tmp_path / "in" / "c.tif")
    Image.fromarray(VALID).save(tmp_path / "mask.png")
    inpainter = pconv_ext.Inpainter(net, device="cpu")
    with pytest.warns(UserWarning, match="left out") as caught:
        done = inpaint_files(inpainter, tmp_path / "in", tmp_path / "mask.png", tmp_path / "out")
    assert [file.name for file in done.written] == ["b.png"]
    assert [file.name for file in done.left_out] == ["a.jpg", "c.tif"]
    texts = [str(one.message) for one in caught]
    assert "a.jpg: JPEG has no place for a picture of mode RGBA" in texts[0]
    assert "c.tif with mask" in texts[1]
    assert "a picture of mode LAB cannot be filled" in texts[1]


def test_a_picture_too_large_for_its_format_is_told(net, tmp_path):
    Image.new("L", (16400, 4)).save(tmp_path / "a.png")
    mask = Image.new("L", (16400, 4), 255)
    mask.paste(0, (9, 0, 12, 2))
    mask.save(tmp_path / "mask.png")
    inpainter = pconv_ext.Inpainter(net, device="cpu")
    with pytest.raises(UnwritablePictureError, match=r"b\.webp: it cannot be written as WEBP: "):
        inpaint_files(inpainter, tmp_path / "a.png", tmp_path / "mask.png", tmp_path / "b.webp")
    assert not (tmp_path / "b.webp").exists()
