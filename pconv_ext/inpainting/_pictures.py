"""Pictures from files: found, decoded, brought to 8-bit RGB. Pillow is imported when the first is read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from ._extras import require

if TYPE_CHECKING:
    from PIL import Image

_Result = TypeVar("_Result")

HEIF_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})
EXTENSIONS = HEIF_EXTENSIONS | {
    *(".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif"),
    *(".tiff", ".webp"),
}
# Of Pillow: by its content a file could choose any, and that of EPS starts another program.
_FORMATS = (
    "AVIF",
    "BMP",
    "DIB",
    "GIF",
    "ICO",
    "JPEG",
    "JPEG2000",
    "MPO",
    "PNG",
    "PPM",
    "TGA",
    "TIFF",
    "WEBP",
)


# In the first box of files that Pillow reads with another package. mif1 and msf1 stand also in those of AVIF.
_HEIF_BRANDS = {*(b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")}
_AVIF_BRANDS = {b"avif", b"avis"}

#: Of EXIF: how a picture is to be turned.
ORIENTATION = 0x0112
#: White, in modes of more than 8 bits. Mode I is what Pillow makes of some files of 16.
FULL = {"F": 1, "I": 65535, "I;16": 65535, "I;16B": 65535, "I;16L": 65535}


class UnreadablePictureError(ValueError):
    """A file that holds no picture, half of one, or one that cannot be decoded; the text names it."""


def find(
    user: str,
    root: str | os.PathLike[str],
    extensions: frozenset[str] = EXTENSIONS,
    what: str = "pictures",
) -> list[Path]:
    """All files of pictures, or of `what`, under `root`, by their extension, sorted by their path below it.

    Hidden files and folders are left out: some systems put a "._name.jpg" that is no picture beside each
    picture they copy. Links are followed, but for those to folders that hold `root`, and a folder that
    several paths lead to is searched once.

    Raises:
        FileNotFoundError, NotADirectoryError: `root` is no folder.
        OSError: a folder below it cannot be read.
        ValueError: it has no pictures; an empty path, which would be the working folder.
        ImportError: it has HEIC, and what reads that is missing.
    """
    if not os.fspath(root):
        raise ValueError(f"{user}: the folder of {what} must be a path, got an empty one")
    folder = Path(root)
    if not folder.exists():
        raise FileNotFoundError(f"{user}: there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{user}: {folder} must be a folder of {what}, it is a file")

    def refuse(error: OSError) -> NoReturn:
        raise OSError(f"{user}: the folder {error.filename} cannot be read: {error.strerror}") from error

    found: list[Path] = []
    searched = {_identity(one) for one in (folder, *folder.resolve().parents)}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        shown = sorted(name for name in folders if not name.startswith("."))
        folders.clear()
        for name in shown:
            try:
                identity = _identity(Path(parent, name))
            except OSError as error:  # of a link's target
                refuse(error)
            if identity not in searched:
                searched.add(identity)
                folders.append(name)
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    fitting = [path for path in found if path.suffix.lower() in extensions]
    if not fitting:
        raise ValueError(
            f"{user}: {folder} has no {what} ({len(found)} other files), expected some of "
            f"{' '.join(sorted(extensions))} there or in folders below"
        )
    for path in fitting:
        if path.suffix.lower() in HEIF_EXTENSIONS:
            _require_heif(str(path))  # before a training begins
            break
    return sorted(fitting, key=lambda path: path.relative_to(folder).as_posix())


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture upright and as 8-bit RGB, whatever its mode.

    Rotated as its EXIF says; transparent parts over white; 16 bits a channel scaled to 8; float pictures
    (mode F) taken to lie in [0, 1]; greyscale repeated in three channels; CMYK and others by Pillow.

    Raises:
        ValueError: a mode of more bits, with values out of its range.
    """
    pil, ops = require("reading pictures", "PIL.Image"), require("reading pictures", "PIL.ImageOps")
    upright = ops.exif_transpose(picture)
    if upright.mode in FULL:  # Pillow clips these to [0, 255] instead of scaling
        return pil.fromarray(_bytes(in_unit(upright))).convert("RGB")
    if upright.mode == "La":
        upright = upright.convert("LA")  # Pillow has no direct way from premultiplied grey to RGBA
    if upright.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = pil.new("RGBA", layer.size, (255, 255, 255, 255))
        return pil.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")


def in_unit(picture: Image.Image) -> NDArray[np.float32]:
    """The values of a picture of a mode of `FULL` in [0, 1].

    Raises:
        ValueError: some are out of the mode's range, or no numbers; whole numbers of 32 bits that are all
            below 256 and so, where 65535 is white, black.
    """
    values, full = np.asarray(picture), FULL[picture.mode]
    outside = values[~((values >= 0) & (values <= full))]
    if len(outside):
        raise ValueError(
            f"the values of a picture of mode {picture.mode} must be in [0, {full}], got {outside[0]:.9g}"
        )
    if picture.mode == "I" and 0 < values.max(initial=0) < 256:
        raise ValueError(
            f"the values of a picture of mode I must be in [0, {full}], where {full} is white, the largest "
            f"is {values.max()}: save it with 8 bits"
        )
    scaled: NDArray[np.float32] = values.astype(np.float32) / np.float32(full)
    return scaled


def _bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(values * 255).astype(np.uint8)


def lightness(picture: Image.Image) -> Image.Image:
    """A mask's picture, upright and as 8 bits of grey, dark where it is transparent.

    Where the picture has transparent and other parts, its colours have no influence. Of values that are all
    0 and 1, 1 is white; of whole numbers of more than 8 bits that are all below 256, 255.

    Raises:
        ValueError: as `to_rgb`.
    """
    pil, ops = require("reading pictures", "PIL.Image"), require("reading pictures", "PIL.ImageOps")
    upright = ops.exif_transpose(picture)
    if upright.has_transparency_data:
        alpha = (upright.convert("LA") if upright.mode == "La" else upright).convert("RGBA").getchannel("A")
        low, high = alpha.getextrema()
        if low < 128 and low < high:  # some of it is rather not to be seen
            return cast("Image.Image", alpha)
        upright = upright.convert("RGB")
    values = np.asarray(upright if upright.mode in FULL else upright.convert("L"))
    low, high = values.min(initial=0), values.max(initial=0)
    if high == 1 and set(np.unique(values)) <= {0, 1}:
        values = values * 255
    elif upright.mode == "F" or low < 0 or high > 255:
        values = _bytes(in_unit(upright))
    return cast("Image.Image", pil.fromarray(values.astype(np.uint8)))


def read(source: str | os.PathLike[str]) -> Image.Image:
    """The picture in the file `source`, see `to_rgb`.

    Raises:
        UnreadablePictureError: names the file and says why.
        ImportError: Pillow is missing.
    """
    return about_file(f"cannot read picture {os.fspath(source)}", to_rgb, open_whole(source))


def about_file(subject: str, convert: Callable[[Image.Image], _Result], picture: Image.Image) -> _Result:
    """What `convert` makes of a picture; its ValueError becomes an UnreadablePictureError of `subject`."""
    try:
        return convert(picture)
    except ValueError as error:
        raise UnreadablePictureError(f"{subject}: {error}") from error


def open_whole(source: str | os.PathLike[str]) -> Image.Image:
    """The picture in the file `source` as it is, decoded; raises as `read`."""
    return decode(Path(source).read_bytes, os.fspath(source))


def decode(
    content: Callable[[], bytes], name: str, check: Callable[[Image.Image], None] = lambda picture: None
) -> Image.Image:
    """The picture that bytes hold, which messages call `name`; raises as `read`.

    An animation, or several pages, cannot be read: which of them is meant? `check` is given the picture
    before it is decoded; a ValueError of it is one of a picture that cannot be read. ImportError where
    Pillow, or for HEIF pillow_heif, is missing.
    """
    pil = require("reading pictures", "PIL.Image")
    pil.init()
    formats = [one for one in _FORMATS if one in pil.OPEN]
    try:
        # Read whole, so that an unreadable file and a broken picture end in the same place, closed.
        data = content()
        if _is_heif(data):
            _require_heif(name).register_heif_opener()
            formats.append("HEIF")
        picture: Image.Image = pil.open(io.BytesIO(data), formats=formats)
        frames = getattr(picture, "n_frames", 1)
        if frames > 1 and picture.format != "MPO":  # whose others are smaller, or other views of the first
            raise ValueError(f"it has {frames} frames or pages, save one of them as a file of its own")
        check(picture)
        picture.load()
    except ImportError:
        raise
    except Exception as error:  # decoders raise anything on damaged files, SyntaxError among it
        if isinstance(error, pil.UnidentifiedImageError):
            reason = f"it is empty or in none of the formats {', '.join(formats)}"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadablePictureError(f"cannot read picture {name}: {reason}") from error
    return picture


def _is_heif(data: bytes) -> bool:
    if data[4:8] != b"ftyp" or data[8:12] not in _HEIF_BRANDS:
        return False
    end = int.from_bytes(data[:4], "big")
    return not any(data[place : place + 4] in _AVIF_BRANDS for place in range(16, min(end, len(data)), 4))


def _require_heif(name: str) -> Any:
    return require(f"reading {name}", "pillow_heif", "heif")
