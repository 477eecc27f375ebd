"""Inpainting of picture files, and of folders of them."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _pictures
from ._arguments import about, choice
from ._extras import require
from ._files import check_folder, write_atomically
from .inpainter import LARGE, Inpainter

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["inpaint_files"]

#: Of Pillow, by format; the others have one quality or are lossless by default.
_QUALITY: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}


def inpaint_files(
    inpainter: Inpainter,
    image: str | os.PathLike[str],
    mask: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    invert_mask: bool = False,
    raw: bool = False,
    large: str = "crop",
    progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Inpaint a picture file, or all in a folder and the folders below.

    What can go wrong with paths is found out before anything is written, and each file is written whole or
    not at all. In a folder a picture or mask that cannot be read is left out with a warning that names it.

    Args:
        inpainter: does it.
        image: a file or a folder.
        mask: a file; for a folder of images also a folder, whose masks have the images' paths but for the
            extension: ``cats/1.jpg`` goes with ``cats/1.png``. Light = valid, dark = hole.
        output: a file in whose format the picture is written (valid pixels are exact in lossless ones: PNG,
            TIFF, WebP). For a folder of images a folder outside of those of the inputs, which is made if
            missing and gets a PNG at each image's path; files of that name are replaced.
        invert_mask, raw, large: as for `Inpainter`.
        progress: called with the number of images done and of all, after each; of one image with that of its
            holes.

    Returns:
        The files written.

    Raises:
        OSError: a file or folder that is not there or cannot be written.
        ValueError: an image without mask, several of one name, an unreadable file (in a folder: all images),
            an output that is an input or of no known format.
        ImportError: Pillow is missing.
    """
    choice("inpaint", "large", large, LARGE)
    source, mask_source, target = Path(image), Path(mask), Path(output)
    for name, path in (("image", source), ("mask", mask_source)):
        if not path.exists():
            raise FileNotFoundError(
                f"{about('inpaint', name)} must be a file or a folder, there is no {path}"
            )
    jobs = (_folder_jobs if source.is_dir() else _file_jobs)(source, mask_source, target)
    _check_apart((source, mask_source), target, jobs)
    written = []
    for done, (picture_file, mask_file, file) in enumerate(jobs, 1):
        try:
            picture, picture_mask = _pictures.read(picture_file), _pictures.read(mask_file)
        except _pictures.UnreadablePictureError as error:
            if not source.is_dir():
                raise
            warnings.warn(f"left out: {error}", stacklevel=2)
        else:
            user = f"{picture_file} with mask {mask_file}"
            heard = None if source.is_dir() else progress
            _save(inpainter._fill(user, picture, picture_mask, invert_mask, raw, large, heard), file)
            written.append(file)
        if progress and source.is_dir():
            progress(done, len(jobs))
    if not written:
        raise ValueError(f"inpaint: none of the {len(jobs)} pictures in {source} and their masks can be read")
    return written


def _file_jobs(image: Path, mask: Path, output: Path) -> list[tuple[Path, Path, Path]]:
    if mask.is_dir():
        raise IsADirectoryError(
            f"{about('inpaint', 'mask')} must be a file, as the image {image} is, got the folder {mask}"
        )
    if output.is_dir():
        raise IsADirectoryError(
            f"{about('inpaint', 'output')} must be a file, as the image {image} is, got the folder {output}"
        )
    _format(output)
    if not output.parent.is_dir():
        raise NotADirectoryError(
            f"{about('inpaint', 'output')} must go into an existing folder, {output.parent} is none"
        )
    check_folder("inpaint", "the folder of output", output.parent)
    return [(image, mask, output)]


def _folder_jobs(image: Path, mask: Path, output: Path) -> list[tuple[Path, Path, Path]]:
    pictures = _by_stem(image)
    if mask.is_dir():
        found = _by_stem(mask)
        missing = [str(path) for stem, path in pictures.items() if stem not in found]
        if missing:
            names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise ValueError(
                f"inpaint: the folder {mask} must have a mask for each picture in {image}, of the same path "
                f"but for the extension; {len(missing)} of {len(pictures)} have none: {names}"
            )
    else:
        _pictures.read(mask)  # if unreadable, an error now and not a warning for each picture
        found = dict.fromkeys(pictures, mask)
    check_folder("inpaint", "output", output)
    return [(path, found[stem], output / f"{stem}.png") for stem, path in pictures.items()]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The pictures in a folder by their path in it without extension."""
    found: dict[str, Path] = {}
    for path in _pictures.find("inpaint", folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if stem in found:
            raise ValueError(
                f"inpaint: pictures in a folder must differ in more than the extension, got {found[stem]} "
                f"and {path}"
            )
        found[stem] = path
    return found


def _format(file: Path) -> str:
    """Pillow's name of the format that `file` is to be written in."""
    pil = require("inpaint", "PIL.Image")
    name: str = pil.registered_extensions().get(file.suffix.lower(), "")
    if name not in pil.SAVE:
        raise ValueError(
            f"{about('inpaint', 'output')} must have the extension of a format that Pillow writes, as .png, "
            f"got {file}"
        )
    return name


def _check_apart(inputs: tuple[Path, Path], output: Path, jobs: list[tuple[Path, Path, Path]]) -> None:
    """No output may replace an input, or be one the next time."""
    places = [path.resolve() for path in inputs]
    if any(output.resolve().is_relative_to(place) for place in places):
        raise ValueError(
            f"{about('inpaint', 'output')} must be apart from the image and the mask, got {output}"
        )
    read = {path.resolve() for job in jobs for path in job[:2]}
    for _, _, file in jobs:
        if file.resolve() in read:
            raise ValueError(
                f"{about('inpaint', 'output')} must not replace an image or a mask, {file} is one"
            )


def _save(picture: Image.Image, file: Path) -> None:
    kind, stream = _format(file), io.BytesIO()
    try:
        picture.save(stream, kind, **_QUALITY.get(kind, {}))
    except (OSError, ValueError) as error:  # too large for the format
        raise OSError(f"cannot write {file}: {error}") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, stream.getvalue())
