"""The package as it was at an earlier commit, built once and kept in `build/earlier/`, which git ignores."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILDS = ROOT / "build" / "earlier"


class Unavailable(Exception):
    """There is no such commit, or it cannot be built; says why."""


def full_hash(commit: str) -> str:
    """Of anything that names a commit to git."""
    try:
        return _run(["git", "rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}"]).strip()
    except Unavailable as error:
        raise Unavailable(f"no commit {commit!r} here: {error}") from None


def built(commit: str) -> Path:
    """The folder that has the package of a commit, given as a full hash: first on the path, it is imported.

    Compiled for the CPU with this Python's torch. It is laid out as an installation is, since a checkout on
    the path would bring `kernels`, `tests` and its own `benchmarks`.
    """
    kept = BUILDS / commit
    if not kept.is_dir():
        BUILDS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILDS) as scratch:
            source, package = Path(scratch, "source"), Path(scratch, "package")
            source.mkdir()
            _run(["git", "archive", f"--output={scratch}/source.tar", commit])
            _run(["tar", "-xf", f"{scratch}/source.tar", "-C", str(source)])
            _run([sys.executable, "setup.py", "build", f"--build-lib={package}"], folder=source)
            if not [*package.glob("pconv_ext/_C*.so")]:
                raise Unavailable(f"{commit} has no CPU kernels")
            package.rename(kept)  # whole or not at all
    return kept


def _run(command: list[str], folder: Path | None = None) -> str:
    tools = str(Path(sys.executable).parent)  # ninja, where this environment has it
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([tools, os.environ.get("PATH", os.defpath)]),
        "PCONV_EXT_CUDA": "0",
    }
    try:
        done = subprocess.run(command, cwd=folder or ROOT, env=environment, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(str(error)) from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-4000:]
        raise Unavailable(f"{' '.join(command)} failed" + (f":\n{said}" if said else ""))
    return done.stdout
