"""Picture files that are written as they were read: mode, profile, EXIF, resolution, tables of a JPEG."""

from __future__ import annotations

import io
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
_WITH_EXIF = {"AVIF", "JPEG", "PNG", "TIFF", "WEBP"}
_WITH_PROFILE = _WITH_EXIF | {"JPEG2000"}
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


def read(content: Callable[[], bytes], name: str) -> Image.Image:
    """A picture to be filled, as it is in its file; see `_pictures.decode`.

    Raises:
        UnreadablePictureError: as there; an animation, or several pages; colours of more than 8 bits, which
            Pillow would reduce. Names the file and says what can be done.
    """
    return _pictures.decode(content, name, check_whole)


def check_whole(picture: Image.Image) -> None:
    """ValueError if a picture that is opened would be decoded in part."""
    frames = getattr(picture, "n_frames", 1)
    if frames > 1 and picture.format != "MPO":  # whose others are smaller, or other views of the first
        raise ValueError(f"it has {frames} frames or pages, save one of them as a file of its own")
    tiles = [(tile[0], tile[3]) for tile in cast("Any", picture).tile]
    deep = any(";16" in str(told) or (codec == "ppm" and told[1] > 255) for codec, told in tiles)
    deep |= picture.info.get("bit_depth", 8) > 8  # of HEIF
    if picture.mode not in _pictures.FULL and deep:
        raise ValueError(
            "its colours have more than 8 bits, which Pillow makes 8: save it with 8, or give `Inpainter` an "
            "array of floating point numbers"
        )


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
        ValueError: the format has no place for the picture's mode; names the file.
    """
    info, options = original.info, _options(original, kind)
    for key in ("dpi", "comment") + (("icc_profile",) if kind in _WITH_PROFILE else ()):
        if info.get(key):
            options[key] = info[key]
    exif = _tags(original)
    if kind != kind_of(original) or kind not in _WITH_EXIF:
        picture = require("inpaint", "PIL.ImageOps").exif_transpose(picture)
        exif.pop(_pictures.ORIENTATION, None)
    if kind in _WITH_EXIF and len(exif):
        options["exif"] = exif.tobytes()
    if info.get("icc_profile") and kind not in _WITH_PROFILE:
        warnings.warn(f"{name}: {kind} has no place for the colour profile of the picture", stacklevel=4)
    stream = io.BytesIO()
    _in_mode_of(kind, picture, name).save(stream, kind, **options, **more)
    return stream.getvalue()


def _tags(original: Image.Image) -> Image.Exif:
    """Its EXIF, without what a TIFF has there of the way that its pixels lie in the file."""
    tags = require("inpaint", "PIL.Image").Exif()
    tags.load(original.getexif().tobytes())
    for tag in _LAYOUT.intersection(tags):
        del tags[tag]
    return cast("Image.Exif", tags)


def _options(original: Any, kind: str) -> dict[str, Any]:
    """What Pillow's writer of a format is told."""
    info = original.info
    if kind == "JPEG":
        if not getattr(original, "quantization", None):
            return {"quality": 95, "subsampling": 0}
        tables = {"qtables": original.quantization, "progressive": bool(info.get("progressive"))}
        sampling = _subsampling(original)
        return tables if sampling is None else {**tables, "subsampling": sampling}
    if kind == "PNG" and getattr(original, "text", None):
        chunks = require("inpaint", "PIL.PngImagePlugin").PngInfo()
        for key, value in original.text.items():
            chunks.add_itxt(key, str(value))
        return {"pnginfo": chunks}
    if kind == "TIFF":
        compression = info.get("compression", "tiff_adobe_deflate")
        lossy = compression in ("jpeg", "tiff_jpeg", "webp")
        return {"compression": "tiff_adobe_deflate" if lossy else compression}
    if kind == "AVIF":
        return {"quality": 100, "subsampling": "4:4:4"}
    return {"lossless": True, "exact": True} if kind == "WEBP" else {}


def _subsampling(original: Any) -> int | None:
    layers: list[tuple[int, ...]] = getattr(original, "layer", [])
    if len(layers) < 2:
        return None
    first, second = layers[0][1:3], layers[1][1:3]
    return _SUBSAMPLINGS.get((first[0] // second[0], first[1] // second[1]))


def _in_mode_of(kind: str, picture: Image.Image, name: str) -> Image.Image:
    """The picture in a mode that a format holds, without loss."""
    wider = _WIDER.get(picture.mode, ())
    if picture.mode == "P":
        wider = ("RGBA",) if picture.has_transparency_data else ("RGB",)
    for mode in (picture.mode, *wider):
        if mode in _MODES[kind]:
            return picture if mode == picture.mode else picture.convert(mode)
    fitting = sorted(one for one, modes in _MODES.items() if {picture.mode, *wider} & modes)
    raise ValueError(
        f"{name}: {kind} has no place for a picture of mode {picture.mode}, as {', '.join(fitting)} have"
    )
