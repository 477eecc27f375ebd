"""Inpainting of files of pictures and of rasters, and of folders of them."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from . import _picture_files, _pictures
from ._arguments import about
from ._files import check_folder, write_atomically
from .inpainter import FillOptions, Inpainter
from .rasters import EXTENSIONS, Raster, open_raster

__all__ = ["Outcome", "inpaint_bytes", "inpaint_files", "inpaint_rasters"]

_MASK = re.compile(r"(.*)[_-]mask[_-]?\d*", re.IGNORECASE)  # of a picture, which it stands beside
_DEFAULT = FillOptions()


class Outcome(NamedTuple):
    """What `inpaint_files` or `inpaint_rasters` has done.

    Attributes:
        written: files.
        left_out: pictures that have no mask or cannot be read, each told in a warning.
        there: files that were there before, and stayed.
    """

    written: list[Path]
    left_out: list[Path]
    there: list[Path]


class _Job(NamedTuple):
    picture: Path
    mask: Path
    output: Path


def inpaint_bytes(
    inpainter: Inpainter,
    image: bytes,
    mask: bytes,
    options: FillOptions = _DEFAULT,
    *,
    kind: str | None = None,
    name: str = "the picture",
    progress: Callable[[int, int], None] | None = None,
) -> bytes:
    """Inpaint a picture file that is in memory.

    Args:
        inpainter: does it.
        image, mask: the contents of two files. Light = valid, dark or transparent = hole.
        options: see `Inpainter.__call__`.
        kind: Pillow's name of the format to return, by default the image's own.
        name: what messages call the image.
        progress: called with the number of its holes that are done and of all, after each.

    Returns:
        The content of a file, with the profile, EXIF and resolution of the image. Valid pixels are exact, but
        in a JPEG, which has the tables of the image if that is one, and in AVIF.

    Raises:
        ValueError: a file that cannot be read or has several frames or colours of 16 bits, a format without a
            place for the picture's mode.
        ImportError: Pillow is missing.
    """
    original = _picture_files.read(lambda: image, name)
    mask_name = f"the mask of {name}"
    filled = inpainter.fill(name, original, _pictures.decode(lambda: mask, mask_name), options, progress)
    return _picture_files.encode(filled, original, kind or _picture_files.kind_of(original), name)


def inpaint_files(
    inpainter: Inpainter,
    image: str | os.PathLike[str],
    mask: str | os.PathLike[str],
    output: str | os.PathLike[str],
    options: FillOptions = _DEFAULT,
    *,
    overwrite: bool = False,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Inpaint a picture file, or all in a folder and the folders below.

    What can go wrong with paths is found out before anything is written, and each file is written whole or
    not at all. What a file has beside its pixels stays, see `inpaint_bytes`. In a folder what has no mask or
    cannot be read is left out with a warning that names it.

    Args:
        inpainter: does it.
        image: a file or a folder.
        mask: a file; for a folder of images also a folder, which may be the same. A mask has its image's path
            but for the extension, or with "_mask" and digits before it: ``cats/1.jpg`` goes with
            ``cats/1.png``, ``cats/1_mask.png``, or ``cats/1_mask001.png`` and others, one result for each,
            which has the mask's name. Light = valid, dark or transparent = hole.
        output: a file in whose format the picture is written. For a folder of images a folder outside of
            those of the inputs, which gets a file of each image's name and format. Missing folders are made.
        options: see `Inpainter.__call__`.
        overwrite: do again what is there already in an output folder, as after an interruption.
        strict: leave nothing out.
        progress: called with the number of images done and of all, after each; of one image with that of its
            holes.

    Raises:
        OSError: a file or folder that is not there or cannot be written.
        ValueError: an unreadable file (in a folder: all images), an image without mask (in a folder: all, or
            any if `strict`), an output that is an input or of no known format.
        ImportError: Pillow is missing.
    """
    _check_named(image=image, mask=mask, output=output)
    source, mask_source, target = Path(image), Path(mask), Path(output)
    for name, path in (("image", source), ("mask", mask_source)):
        if not path.exists():
            raise FileNotFoundError(
                f"{about('inpaint', name)} must be a file or a folder, there is no {path}"
            )
    jobs, left_out = (_folder_jobs if source.is_dir() else _file_jobs)(source, mask_source, target, strict)
    _check_apart((source, mask_source), target, jobs)
    done = Outcome([], left_out, [])
    for number, job in enumerate(jobs, 1):
        if source.is_dir() and not overwrite and job.output.exists():
            done.there.append(job.output)
        else:
            try:
                _fill_file(inpainter, job, options, None if source.is_dir() else progress)
                done.written.append(job.output)
            except (_pictures.UnreadablePictureError, _picture_files.UnwritablePictureError) as error:
                if strict or not source.is_dir():
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
                done.left_out.append(job.picture)
        if progress is not None and source.is_dir():
            progress(number, len(jobs))
    if not done.written and not done.there:
        raise ValueError(f"inpaint: none of the {len(jobs)} pictures in {source} and their masks can be read")
    return done


def inpaint_rasters(
    inpainter: Inpainter,
    raster: str | os.PathLike[str],
    output: str | os.PathLike[str],
    mask: str | os.PathLike[str] | None = None,
    options: FillOptions = _DEFAULT,
    *,
    variables: Sequence[str] = (),
    overwrite: bool = False,
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Fill the gaps of the rasters in a file, or in all files of a folder and the folders below.

    Of a file no other bit changes but those of the values that are filled, and of TIFF and NetCDF files what
    tells where and how they are stored. Files are written as `inpaint_files` does.

    Args:
        inpainter: does it, with a network for rasters of their channels.
        raster: a file or a folder; see `pconv_ext.rasters`.
        output: a file of the same format; for a folder one outside of it. Missing folders are made.
        mask: of the holes to fill in each raster: a picture, or a ``.npy`` of [H, W]; light or nonzero =
            valid. Gaps outside of them stay. None: all gaps are filled.
        options: see `Inpainter.__call__`.
        variables: see `pconv_ext.rasters.open_raster`.
        overwrite, strict: as for `inpaint_files`.
        progress: called with the number of rasters of a file, or of files of a folder, done and of all.

    Raises:
        OSError, ValueError: as for `inpaint_files`; a file without rasters of so many channels.
        ImportError: what reads the format is missing.
    """
    _check_named(image=raster, output=output)
    source, target = Path(raster), Path(output)
    if not source.exists():
        raise FileNotFoundError(
            f"{about('inpaint', 'image')} must be a file or a folder, there is no {source}"
        )
    folder = source.is_dir()
    if folder:
        found = _pictures.find("inpaint", source, EXTENSIONS, "rasters")
        jobs = [_Job(path, path, target / path.relative_to(source)) for path in found]  # NaN is the mask
        check_folder("inpaint", "output", target)
    else:
        jobs = [_Job(source, source, target)]
        if target.suffix.lower() != source.suffix.lower():
            raise ValueError(
                f"{about('inpaint', 'output')} must have the extension of the raster, {source.suffix}, got "
                f"{target}"
            )
        check_folder("inpaint", "the folder of output", target.parent)
    _check_apart((source, source), target, jobs)
    holes = None if mask is None else _raster_mask(Path(mask))
    done = Outcome([], [], [])
    for number, job in enumerate(jobs, 1):
        if folder and not overwrite and job.output.exists():
            done.there.append(job.output)
        else:
            try:
                file = open_raster(job.picture, inpainter.net.config["channels"], variables)
                content = _fill_raster(inpainter, file, holes, options, None if folder else progress)
                job.output.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(job.output, content)
                done.written.append(job.output)
            except ValueError as error:
                if strict or not folder:
                    raise
                warnings.warn(f"left out: {error}", stacklevel=2)
                done.left_out.append(job.picture)
        if progress is not None and folder:
            progress(number, len(jobs))
    if not done.written and not done.there:
        raise ValueError(f"inpaint: none of the {len(jobs)} rasters in {source} can be filled")
    return done


def _check_named(**paths: str | os.PathLike[str]) -> None:
    """None may be empty, which would be the working folder."""
    for name, path in paths.items():
        if not os.fspath(path):
            raise ValueError(f"{about('inpaint', name)} must be a path, got an empty one")


def _raster_mask(file: Path) -> Any:
    if file.suffix.lower() != ".npy":
        return _pictures.open_whole(file)
    return np.load(file, allow_pickle=False)


def _fill_raster(
    inpainter: Inpainter,
    file: Raster,
    mask: Any,
    options: FillOptions,
    progress: Callable[[int, int], None] | None,
) -> bytes:
    """The content of a file like this one, filled."""
    done = 0

    def fill(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        nonlocal done
        new = values
        if mask is not None or not np.isfinite(values).all():
            new = inpainter.fill(str(file.path), torch.from_numpy(values), mask, options).numpy()
        done += 1
        if progress is not None:
            progress(done, len(file))
        return new, (new != values) & np.isfinite(new)

    return file.filled(fill)


def _fill_file(
    inpainter: Inpainter, job: _Job, options: FillOptions, progress: Callable[[int, int], None] | None
) -> None:
    kind = _picture_files.format_of(job.output)
    original = _picture_files.read(job.picture.read_bytes, str(job.picture))
    user = f"{job.picture} with mask {job.mask}"
    filled = inpainter.fill(user, original, _pictures.open_whole(job.mask), options, progress)
    content = _picture_files.encode(filled, original, kind, str(job.output))
    job.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(job.output, content)


def _file_jobs(image: Path, mask: Path, output: Path, strict: bool) -> tuple[list[_Job], list[Path]]:
    for name, path in (("mask", mask), ("output", output)):
        if path.is_dir():
            raise IsADirectoryError(
                f"{about('inpaint', name)} must be a file, as the image {image} is, got the folder {path}"
            )
    _picture_files.format_of(output)
    check_folder("inpaint", "the folder of output", output.parent)
    return [_Job(image, mask, output)], []


def _folder_jobs(image: Path, mask: Path, output: Path, strict: bool) -> tuple[list[_Job], list[Path]]:
    """What is to be done in a folder, and the pictures that have no mask."""
    pictures = _below(image)
    check_folder("inpaint", "output", output)
    if not mask.is_dir():
        _pictures.open_whole(mask)  # if unreadable, an error now and not a warning for each picture
        results = {name: _picture_files.result_name(name) for name in pictures}
        jobs = [_Job(path, mask, output / results[name]) for name, path in pictures.items()]
        _check_results(jobs)
        return jobs, []
    together = mask.resolve() == image.resolve()
    masks = _by_owner(pictures if together else _below(mask))
    stems = {_stem(name) for name in pictures} if together else set()
    jobs, without = [], []
    for name, path in pictures.items():
        if _owner(name) in stems:
            continue  # a mask
        found = [one for one in masks.get(_stem(name), ()) if one != path]
        for one in found:
            result = _picture_files.result_name(
                name if len(found) == 1 else name.with_name(one.stem + name.suffix)
            )
            jobs.append(_Job(path, one, output / result))
        if not found:
            without.append(path)
    if without and (strict or not jobs):
        names = ", ".join(map(str, without[:5])) + (", ..." if len(without) > 5 else "")
        raise ValueError(
            f"inpaint: the folder {mask} must have a mask for each picture in {image}, of the same path but "
            f"for the extension or with _mask before it; {len(without)} of {len(pictures)} have none: {names}"
        )
    for path in without:
        warnings.warn(f"left out: {path} has no mask in {mask}", stacklevel=3)
    _check_results(jobs)
    return jobs, without


def _below(folder: Path) -> dict[Path, Path]:
    """The pictures in a folder by their path in it."""
    return {path.relative_to(folder): path for path in _pictures.find("inpaint", folder)}


def _stem(name: Path) -> str:
    return name.with_suffix("").as_posix()


def _owner(name: Path) -> str | None:
    """The stem of the picture that a mask of this name stands beside, if it is named so."""
    match = _MASK.fullmatch(_stem(name))
    return match and match[1]


def _by_owner(masks: Mapping[Path, Path]) -> dict[str, list[Path]]:
    """Masks by the stems of the pictures that they may be of."""
    found: dict[str, list[Path]] = {}
    for name, path in masks.items():
        for stem in (_stem(name), _owner(name)):
            if stem is not None:
                found.setdefault(stem, []).append(path)
    return found


def _check_results(jobs: list[_Job]) -> None:
    """No two results may have one name."""
    made: dict[Path, _Job] = {}
    for job in jobs:
        other = made.setdefault(job.output, job)
        if other is not job:
            raise ValueError(
                f"inpaint: {job.output} would be the result for {other.picture} with {other.mask} and for "
                f"{job.picture} with {job.mask}"
            )


def _check_apart(inputs: tuple[Path, Path], output: Path, jobs: list[_Job]) -> None:
    """No output may replace an input, or be one the next time."""
    places = [path.resolve() for path in inputs]
    if any(output.resolve().is_relative_to(place) for place in places):
        raise ValueError(
            f"{about('inpaint', 'output')} must be apart from the image and the mask, got {output}"
        )
    read = {path.resolve() for job in jobs for path in (job.picture, job.mask)}
    for job in jobs:
        if job.output.resolve() in read:
            raise ValueError(
                f"{about('inpaint', 'output')} must not replace an image or a mask, {job.output} is one"
            )
