"""Pictures from files: found, decoded, brought to 8-bit RGB. Pillow is imported when the first is read."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ._extras import require

if TYPE_CHECKING:
    from PIL import Image

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
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


class UnreadablePictureError(ValueError):
    """A file that holds no picture, half of one, or one that cannot be decoded; the text names it."""


def find(user: str, root: str | os.PathLike[str]) -> list[Path]:
    """All picture files under `root`, by their extension, sorted by their path below it.

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
        raise NotADirectoryError(f"{user}: {folder} must be a folder of pictures, it is a file")

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
    pictures = [path for path in found if path.suffix.lower() in EXTENSIONS]
    if not pictures:
        raise ValueError(
            f"{user}: {folder} has no pictures ({len(found)} other files), expected some of "
            f"{' '.join(sorted(EXTENSIONS))} there or in folders below"
        )
    return sorted(pictures, key=lambda path: path.relative_to(folder).as_posix())


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def to_rgb(picture: Image.Image) -> Image.Image:
    """The picture upright and as 8-bit RGB, whatever its mode.

    Rotated as its EXIF says; transparent parts over white; 16 bits a channel scaled to 8; float pictures
    (mode F) taken to lie in [0, 1]; greyscale repeated in three channels; CMYK and others by Pillow.
    """
    pil, ops = require("reading pictures", "PIL.Image"), require("reading pictures", "PIL.ImageOps")
    upright = ops.exif_transpose(picture)
    if upright.mode.startswith("I") or upright.mode == "F":
        # Pillow clips these to [0, 255] instead of scaling. Mode I is what older versions make of 16 bits.
        full = 1.0 if upright.mode == "F" else 65535.0
        values = np.asarray(upright).astype(np.float64) / full
        grey = np.rint(np.nan_to_num(values).clip(0, 1) * 255).astype(np.uint8)
        return pil.fromarray(grey).convert("RGB")
    if upright.mode == "La":
        upright = upright.convert("LA")  # Pillow has no direct way from premultiplied grey to RGBA
    if upright.mode in ("RGBA", "RGBa", "LA", "PA") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = pil.new("RGBA", layer.size, (255, 255, 255, 255))
        return pil.alpha_composite(white, layer).convert("RGB")
    return upright.convert("RGB")


def read(source: str | os.PathLike[str]) -> Image.Image:
    """The picture in the file `source`, see `to_rgb`.

    Raises:
        UnreadablePictureError: names the file and says why.
        ImportError: Pillow is missing.
    """
    pil = require("reading pictures", "PIL.Image")
    try:
        # Read whole, so that an unreadable file and a broken picture end in the same place, closed.
        pil.init()
        formats = [name for name in _FORMATS if name in pil.OPEN]
        with pil.open(io.BytesIO(Path(source).read_bytes()), formats=formats) as picture:
            return to_rgb(picture)
    except Exception as error:  # decoders raise anything on damaged files, SyntaxError among it
        if isinstance(error, pil.UnidentifiedImageError):
            reason = f"it is empty or in none of the formats {', '.join(formats)}"
        else:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadablePictureError(f"cannot read picture {os.fspath(source)}: {reason}") from error
