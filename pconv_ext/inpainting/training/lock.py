"""A lock on a folder: held by one process, and free when that ends, however it does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from pathlib import Path


class FolderInUseError(FileExistsError):
    """Another training is in the folder."""


_held: set[int] = set()


def _forget() -> None:
    """In a forked process, which is no holder: or the lock would live as long as it."""
    for handle in _held:
        os.close(handle)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


class Lock:
    """The lock of a folder, in `file`, which says who holds it.

    Raises:
        FolderInUseError: another process, or another training of this one, holds it.
        OSError: the file cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        while True:
            self._handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                holder = os.read(self._handle, 200).decode("utf-8", "replace").strip()
                os.close(self._handle)
                raise FolderInUseError(
                    f"{file.parent} is in use by another training ({holder or 'just begun'}): wait for "
                    "its end, or take another folder"
                ) from error
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(self._handle), os.stat(file)):
                    break
            os.close(self._handle)  # its holder has removed it meanwhile
        _held.add(self._handle)
        os.ftruncate(self._handle, 0)
        os.write(self._handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        """Let others have it."""
        with contextlib.suppress(OSError):
            self.file.unlink()
        if self._handle in _held:
            _held.remove(self._handle)
            os.close(self._handle)
