"""Pictures from files: found, decoded, brought to 8-bit RGB. Pillow is imported when the first is read."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from ._extras import require

if TYPE_CHECKING:
    from PIL import Image

HEIF_EXTENSIONS = frozenset({".heic", ".heif", ".hif"})
EXTENSIONS = HEIF_EXTENSIONS | {
    *(".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
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


# Of HEIF files, in their first box, for which Pillow needs another package.
_HEIF_BRANDS = {b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"}

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
    picture they copy. Links are followed, and a folder that several paths lead to is searched once.

    Raises:
        FileNotFoundError, NotADirectoryError: `root` is no folder.
        OSError: a folder below it cannot be read.
        ValueError: it has no pictures.
    """
    folder = Path(root)
    if not folder.exists():
        raise FileNotFoundError(f"{user}: there is no folder {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"{user}: {folder} must be a folder of {what}, it is a file")

    def refuse(error: OSError) -> None:
        raise OSError(f"{user}: the folder {error.filename} cannot be read: {error.strerror}") from error

    found: list[Path] = []
    searched = {_identity(folder)}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refuse):
        below = {name: _identity(Path(parent, name)) for name in sorted(folders) if not name.startswith(".")}
        folders.clear()
        for name, identity in below.items():
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
        ValueError: some are out of the mode's range, or no numbers.
    """
    values, full = np.asarray(picture), FULL[picture.mode]
    outside = values[~((values >= 0) & (values <= full))]
    if len(outside):
        raise ValueError(
            f"the values of a picture of mode {picture.mode} must be in [0, {full}], got {outside[0]:g}"
        )
    scaled: NDArray[np.float32] = values.astype(np.float32) / np.float32(full)
    return scaled


def _bytes(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(values * 255).astype(np.uint8)


def lightness(picture: Image.Image) -> Image.Image:
    """A mask's picture, upright and as 8 bits of grey, dark where it is transparent.

    Where the picture has transparent and other parts, its colours have no influence. Of values that are all
    0 and 1, 1 is white.

    Raises:
        ValueError: as `to_rgb`.
    """
    pil, ops = require("reading pictures", "PIL.Image"), require("reading pictures", "PIL.ImageOps")
    upright = ops.exif_transpose(picture)
    if upright.has_transparency_data:
        alpha = (upright.convert("LA") if upright.mode == "La" else upright).convert("RGBA").getchannel("A")
        low, high = alpha.getextrema()
        if low < high:
            return cast("Image.Image", alpha)
        upright = upright.convert("RGB")
    values = np.asarray(upright if upright.mode in FULL else upright.convert("L"))
    if values.size and values.max() == 1 and set(np.unique(values)) <= {0, 1}:
        values = (values * 255).astype(np.uint8)
    elif upright.mode in FULL:
        values = _bytes(in_unit(upright))
    return cast("Image.Image", pil.fromarray(values))


def read(source: str | os.PathLike[str]) -> Image.Image:
    """The picture in the file `source`, see `to_rgb`.

    Raises:
        UnreadablePictureError: names the file and says why.
        ImportError: Pillow is missing.
    """
    picture = open_whole(source)
    try:
        return to_rgb(picture)
    except ValueError as error:
        raise UnreadablePictureError(f"cannot read picture {os.fspath(source)}: {error}") from error


def open_whole(source: str | os.PathLike[str]) -> Image.Image:
    """The picture in the file `source` as it is, decoded; raises as `read`."""
    return decode(Path(source).read_bytes, os.fspath(source))


def decode(
    content: Callable[[], bytes], name: str, check: Callable[[Image.Image], None] = lambda picture: None
) -> Image.Image:
    """The picture that bytes hold, which messages call `name`; raises as `read`.

    `check` is given the picture before it is decoded; a ValueError of it is one of a picture that cannot be
    read. ImportError where Pillow, or for HEIF pillow_heif, is missing.
    """
    pil = require("reading pictures", "PIL.Image")
    pil.init()
    formats = [one for one in _FORMATS if one in pil.OPEN]
    try:
        # Read whole, so that an unreadable file and a broken picture end in the same place, closed.
        data = content()
        if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
            require(f"reading {name}", "pillow_heif", "heif").register_heif_opener()
            formats.append("HEIF")
        picture: Image.Image = pil.open(io.BytesIO(data), formats=formats)
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
