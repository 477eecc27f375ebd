"""Picture files that are written as they were read: mode, profile, EXIF, resolution, tables of a JPEG."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from . import _pictures
from ._arguments import about
from ._extras import require

if TYPE_CHECKING:
    from PIL import Image

#: What formats hold without loss, of Pillow's modes; JPEG and AVIF lose a little of any.
_MODES = {
    "AVIF": {"L", "RGB", "RGBA"},
    "BMP": {"1", "L", "P", "RGB"},
    "GIF": {"1", "L", "P"},
    "JPEG": {"CMYK", "L", "RGB", "YCbCr"},
    "JPEG2000": {"I;16", "L", "LA", "RGB", "RGBA"},
    "PNG": {"1", "I;16", "L", "LA", "P", "RGB", "RGBA"},
    "PPM": {"1", "I", "L", "RGB"},
    "TGA": {"L", "LA", "P", "RGB", "RGBA"},
    "TIFF": {"1", "CMYK", "F", "I", "I;16", "I;16B", "L", "LA", "P", "RGB", "RGBA", "YCbCr"},
    "WEBP": {"RGB", "RGBA"},
}
_SAME = {"DIB": "BMP", "MPO": "JPEG"}  # is written as
_READ_ALONE = {"HEIF", "ICO"}  # is written as PNG: the one loses a little, the other's pictures are small
#: Modes that hold all of another, in the order in which they are tried.
_WIDER = {
    "1": ("L", "RGB"),
    "I;16": ("I",),
    "I;16B": ("I;16", "I"),
    "I;16L": ("I;16", "I"),
    "L": ("RGB",),
    "LA": ("RGBA",),
}
_WITH_EXIF = {"AVIF", "JPEG", "PNG", "TIFF", "WEBP"}  # and with a colour profile and XMP
_BITS, _PHOTOMETRIC, _SAMPLES, _XMP = 258, 262, 277, 700  # tags of TIFF
_FOLDERS = {34665, 34853, 40965}  # those that lead to more tags
_PROFILE_OF_JPEG2000 = b"colr\x02"
_APP13 = b"\xff\xed"  # of JPEG, where IPTC is
_ORDINARY_PRIMARIES = {1, 2, 5, 6}  # of sRGB, unknown, and of television, which are much the same
_XMP_OF_PNG = "XML:com.adobe.xmp"
_LAYOUT = {
    *range(254, 260),
    262,
    266,
    273,
    *range(277, 280),
    284,
    317,
    320,
    *range(322, 326),
    338,
    339,
    347,
    *range(512, 533),
}
#: JPEG's subsamplings as Pillow numbers them, by how much finer the first component is than the second.
_SUBSAMPLINGS = {(1, 1): 0, (2, 1): 1, (2, 2): 2}


class UnwritablePictureError(ValueError):
    """A picture that a format has no place for; the text names the file."""


def read(content: Callable[[], bytes], name: str) -> Image.Image:
    """A picture to be filled, as it is in its file; see `_pictures.decode`.

    Raises:
        UnreadablePictureError: as there; an animation, or several pages; colours of more than 8 bits, which
            Pillow would reduce. Names the file and says what can be done.
    """
    return _pictures.decode(content, name, check_whole)


def check_whole(picture: Image.Image) -> None:
    """ValueError if a picture that is opened would be decoded in part."""
    if picture.mode not in _pictures.FULL and _is_deep(picture):
        raise ValueError(
            "its colours have more than 8 bits, which Pillow makes 8: save it with 8, or give `Inpainter` an "
            "array of floating point numbers"
        )
    if picture.format == "TIFF":
        channels, read = cast("Any", picture).tag_v2.get(_SAMPLES, 1), len(picture.getbands())
        if channels > read:
            raise ValueError(f"it has {channels} channels, of which Pillow reads {read}: save it with these")
        if picture.mode in _pictures.FULL and cast("Any", picture).tag_v2.get(_PHOTOMETRIC) == 0:
            raise ValueError("its 0 is white, which Pillow does not keep: save it with 0 for black")
    if picture.format == "JPEG2000" and _PROFILE_OF_JPEG2000 in _content(picture):
        raise ValueError("it has a colour profile, which Pillow does not read: save it in another format")


def _is_deep(picture: Any) -> bool:
    """Whether the file of a picture that is opened has more than 8 bits a channel."""
    if picture.format == "TIFF":
        return max(picture.tag_v2.get(_BITS, (1,))) > 8
    if picture.format == "HEIF":
        return bool(picture.info["bit_depth"] > 8)
    if picture.format == "AVIF":  # its box of AV1's configuration, of which this bit says so
        place = _content(picture).find(b"av1C")
        return place >= 0 and bool(_content(picture)[place + 6] & 0x40)
    if picture.format == "JPEG2000":  # of each component, in the marker of sizes, a byte that is one less
        content = _content(picture)
        sizes = content[content.find(b"\xff\x4f\xff\x51") + 40 :]
        count = int.from_bytes(sizes[:2], "big")
        return any(depth & 0x7F > 7 for depth in sizes[2 : 2 + 3 * count : 3])
    tiles = [(tile[0], tile[3]) for tile in picture.tile]
    return any(";16" in str(told) or (codec == "ppm" and told[1] > 255) for codec, told in tiles)


def _content(picture: Any) -> bytes:
    return cast("bytes", picture.fp.getbuffer().tobytes())


def kind_of(picture: Image.Image) -> str:
    """The format that a picture is from, as `format_of` would say it."""
    name = str(picture.format)
    return "PNG" if name in _READ_ALONE else _SAME.get(name, name)


def format_of(file: Path) -> str:
    """Pillow's name of the format that `file` is to be written in.

    Raises:
        ValueError: the extension is of none that keeps pictures as they are.
    """
    pil = require("inpaint", "PIL.Image")
    name: str = pil.registered_extensions().get(file.suffix.lower(), "")
    name = _SAME.get(name, name)
    if name not in _MODES or name not in pil.SAVE:
        known = sorted(end for end, kind in pil.registered_extensions().items() if kind in _MODES)
        raise ValueError(
            f"{about('inpaint', 'output')} must have the extension of a format that keeps pictures, "
            f"{' '.join(known)}, got {file}"
        )
    return name


def result_name(name: Path) -> Path:
    """What a picture of this name becomes in a folder of results: HEIC, which is not written, a PNG."""
    return name.with_suffix(".png") if name.suffix.lower() in _pictures.HEIF_EXTENSIONS else name


def encode(picture: Image.Image, original: Image.Image, kind: str, name: str, **more: Any) -> bytes:
    """A filled picture in a format, with what the file of the `original` had beside its pixels.

    A JPEG has the original's tables and subsampling, so that its valid pixels hardly change; other formats
    but AVIF are written without loss. The picture is turned as the original is in a file of its format, and
    upright in others. `more` is for Pillow's writer.

    Warns:
        UserWarning: the format has no place for the colour profile.

    Raises:
        UnwritablePictureError: the format has no place for the picture's mode, its size, or what is beside
            it; names the file.
    """
    exif, xmp = _tags(original), picture.info.get("xmp")
    if kind != kind_of(original) or kind not in _WITH_EXIF:
        picture = require("inpaint", "PIL.ImageOps").exif_transpose(picture)
        exif.pop(_pictures.ORIENTATION, None)
        xmp = picture.info.get("xmp")  # which may tell the turn too
    fitting = _in_mode_of(kind, picture, name)
    options = _options(original, kind, xmp)
    for key in ("dpi", "comment"):
        if original.info.get(key):
            options[key] = original.info[key]
    profile = _profile(original, kind, fitting.mode, name)
    if profile:
        options["icc_profile"] = profile
    if kind == "TIFF":
        if xmp:
            exif[_XMP] = xmp
        if _FOLDERS.intersection(exif):
            del options["compression"]  # libtiff, which compresses, fails where tags lead to more tags
    if kind in _WITH_EXIF and len(exif):
        options["exif"] = exif.tobytes()
    stream = io.BytesIO()
    try:
        fitting.save(stream, kind, **options, **more)
    except (OSError, RuntimeError, ValueError) as error:  # too large a picture, or EXIF, for the format
        raise UnwritablePictureError(f"{name}: it cannot be written as {kind}: {error}") from error
    return stream.getvalue()


def _profile(original: Image.Image, kind: str, mode: str, name: str) -> bytes | None:
    """The colour profile of a result; warns where there is one that it cannot have."""
    profile: bytes | None = original.info.get("icc_profile")
    if profile is None:
        primaries = (original.info.get("nclx_profile") or {}).get("color_primaries", 1)
        if primaries not in _ORDINARY_PRIMARIES:
            warnings.warn(
                f"{name}: the colours of the picture have primaries {primaries} of ITU-T H.273 and no "
                f"profile; {kind} has no place for that, they will be seen as those of sRGB",
                stacklevel=5,
            )
    elif kind not in _WITH_EXIF:
        warnings.warn(f"{name}: {kind} has no place for the colour profile of the picture", stacklevel=5)
    elif profile[16:20] == b"GRAY" and mode.startswith("RGB"):
        warnings.warn(f"{name}: {kind} has no place for the colour profile of a grey picture", stacklevel=5)
    else:
        return profile
    return None


def _tags(original: Image.Image) -> Image.Exif:
    """Its EXIF, without what a TIFF has there of the way that its pixels lie in the file."""
    tags = require("inpaint", "PIL.Image").Exif()
    tags.load(original.getexif().tobytes())
    for tag in _LAYOUT.intersection(tags):
        del tags[tag]
    return cast("Image.Exif", tags)


def _options(original: Any, kind: str, xmp: bytes | None) -> dict[str, Any]:
    """What Pillow's writer of a format is told."""
    told: dict[str, Any] = {"xmp": xmp} if xmp and kind in ("AVIF", "JPEG", "WEBP") else {}
    if kind == "JPEG":
        if not getattr(original, "quantization", None):
            return {**told, "quality": 95, "subsampling": 0}
        told |= {"qtables": original.quantization, "progressive": bool(original.info.get("progressive"))}
        if len(original.layer) > 1:
            told["subsampling"] = _subsampling(original.layer)
        iptc = [data for name, data in original.applist if name == "APP13"]
        return {**told, "extra": b"".join(_APP13 + struct.pack(">H", len(data) + 2) + data for data in iptc)}
    if kind == "PNG":
        return {"pnginfo": _chunks(original, xmp)}
    if kind == "TIFF":
        compression = original.info.get("compression", "tiff_adobe_deflate")
        lossy = compression in ("jpeg", "tiff_jpeg", "webp")
        return {"compression": "tiff_adobe_deflate" if lossy else compression}
    if kind == "AVIF":
        return {**told, "quality": 100, "subsampling": "4:4:4"}
    return {**told, "lossless": True, "exact": True} if kind == "WEBP" else told


def _subsampling(layers: list[tuple[int, ...]]) -> int:
    """Pillow's number; where it has none, that of not making colours coarser than they are."""
    first, second = layers[0][1:3], layers[1][1:3]
    return _SUBSAMPLINGS.get((first[0] // second[0], first[1] // second[1]), 0)


def _chunks(original: Any, xmp: bytes | None) -> Any:
    """Of a PNG: text, and what says which colours it has beside, or in place of, a profile."""
    chunks, info = require("inpaint", "PIL.PngImagePlugin").PngInfo(), original.info
    text = dict(getattr(original, "text", {}))
    if xmp:
        text.setdefault(_XMP_OF_PNG, xmp.decode(errors="replace"))
    for key, value in text.items():
        chunks.add_itxt(key, str(value))
    if "gamma" in info:
        chunks.add(b"gAMA", struct.pack(">I", round(info["gamma"] * 1e5)))
    if "chromaticity" in info:
        chunks.add(b"cHRM", struct.pack(">8I", *(round(part * 1e5) for part in info["chromaticity"])))
    if "srgb" in info:
        chunks.add(b"sRGB", bytes([info["srgb"]]))
    return chunks


def _in_mode_of(kind: str, picture: Image.Image, name: str) -> Image.Image:
    """The picture in a mode that a format holds, without loss."""
    wider = _WIDER.get(picture.mode, ())
    if picture.mode == "P":
        wider = ("RGBA",) if picture.has_transparency_data else ("RGB",)
    for mode in (picture.mode, *wider):
        if mode in _MODES[kind]:
            return picture if mode == picture.mode else picture.convert(mode)
    fitting = sorted(one for one, modes in _MODES.items() if {picture.mode, *wider} & modes)
    raise UnwritablePictureError(
        f"{name}: {kind} has no place for a picture of mode {picture.mode}, as {', '.join(fitting)} have"
    )
