"""What the stages of `gpu.sh` share: deadlines, other programs kept to theirs, results written whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch

import pconv_ext


class TimeIsUp(BaseException):
    """Not an Exception, so that no library takes it for a failure of its own and goes on."""


class Deadline:
    """A `with` block that `TimeIsUp` ends after `seconds`, between two steps of Python code."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds until the deadline, 0 after it."""
        return max(0.0, self._until - time.monotonic())

    def __enter__(self) -> Deadline:
        signal.signal(signal.SIGALRM, self._ring)
        # Again every few seconds, because an exception raised in a destructor is lost.
        signal.setitimer(signal.ITIMER_REAL, max(self.left, 1e-3), 5.0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)

    @staticmethod
    def _ring(number: int, frame: FrameType | None) -> None:
        raise TimeIsUp


def require_gpu() -> None:
    """Exit code 2 where there is nothing to run on."""
    if not torch.cuda.is_available():
        print(f"torch {torch.__version__} sees no GPU")
        raise SystemExit(2)
    for name, (available, reason) in pconv_ext.backends().items():
        print(f"{name}: {'available' if available else reason}")


def this_command(name: str) -> list[str]:
    """What starts a command of these benchmarks in a process of its own."""
    return [sys.executable, str(Path(__file__).resolve().parents[1]), name]


def find_tool(name: str) -> str | None:
    """The path of a program of the CUDA toolkit, which need not be on the PATH."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all, whenever the process is stopped."""
    write_text(path, json.dumps(content, indent=1) + "\n")


def write_text(path: Path, text: str) -> None:
    """As `write_json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def run_limited(
    command: Sequence[str], seconds: float, environment: dict[str, str] | None = None
) -> tuple[int | None, str]:
    """Exit code, None if it was ended after `seconds`, and what the program and its children printed."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **(environment or {})},
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
        return process.returncode, output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None, process.communicate()[0]
    finally:
        if process.poll() is None:  # interrupted
            os.killpg(process.pid, signal.SIGKILL)
