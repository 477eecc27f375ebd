"""Files and folders that are written: whole or not at all, and not where they cannot be.

Every file is written beside its place, flushed to the disk and renamed into it: whatever happens, the place
holds a whole file or the one before.
"""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import Path

from ._arguments import about

_PARTIAL = ".partial"


def write_atomically(file: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, through links, so that at any moment it is either whole or what it was before.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    target = Path(os.path.realpath(file))  # a link stays one
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=_PARTIAL, dir=target.parent)
    except OSError as error:
        raise OSError(f"cannot write {target}: {error.strerror}") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp's files are their owner's alone
        os.replace(name, target)
    except BaseException as error:
        os.unlink(name)
        if isinstance(error, OSError):
            raise OSError(f"cannot write {target}: {error.strerror or error}") from error
        raise


def remove_partial(file: Path) -> None:
    """Remove what a killed process left of `write_atomically`."""
    for leftover in file.parent.glob(f".{glob.escape(file.name)}.*{_PARTIAL}"):
        leftover.unlink()


def check_folder(user: str, name: str, folder: Path) -> None:
    """Check a folder to write into, without making it.

    Raises:
        OSError: it is a file, cannot be made, or cannot be written; names `user` and the argument `name`.
        ValueError: its name is not valid text, which some libraries cannot write to.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"{about(user, name)} must have a name in UTF-8, got {os.fsencode(folder)!r}"
        ) from None
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"{about(user, name)} must be a folder, {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{about(user, name)} must be a folder that can be written, {there} cannot")
