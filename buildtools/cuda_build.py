"""Compiles ``csrc/cuda/*.cu`` with nvcc into a plain shared library: no torch, no Python, no GPU needed."""

import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

DEFAULT_ARCHITECTURES = "8.0+PTX;9.0a"  # PTX: newer GPUs compile it when they load the library
FLAGS = ["-std=c++17", "-O3", "--expt-relaxed-constexpr", "-Xcompiler=-fPIC,-fvisibility=hidden"]


def find_nvcc() -> str | None:
    """The compiler of CUDA_HOME, of /usr/local/cuda or on the PATH; None where there is none."""
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home and Path(home, "bin", "nvcc").is_file():
            return str(Path(home, "bin", "nvcc"))
    return shutil.which("nvcc")


def architecture_flags(architectures: str) -> list[str]:
    """nvcc's flags for a TORCH_CUDA_ARCH_LIST such as "8.0+PTX;9.0a".

    Architectures older than 8.0, for which there are no kernels, are left out.

    Raises:
        ValueError: an architecture is none, or all of them are older.
    """
    flags = []
    for one in filter(None, re.split(r"[;\s]+", architectures)):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", one)
        if not match:
            raise ValueError(f"TORCH_CUDA_ARCH_LIST must have numbers such as 8.0+PTX;9.0a, got {one!r}")
        if int(match[1]) < 8:
            continue
        number = f"{match[1]}{match[2]}{match[3]}"
        flags += ["-gencode", f"arch=compute_{number},code=sm_{number}"]
        if match[4]:
            flags += ["-gencode", f"arch=compute_{number},code=compute_{number}"]
    if not flags:
        raise ValueError(f"TORCH_CUDA_ARCH_LIST must have a number of at least 8.0, got {architectures!r}")
    return flags


def build(nvcc: str, sources: Path, target: Path, scratch: Path) -> None:
    """Compile and link.

    Raises:
        RuntimeError: nvcc fails; what it printed.
    """
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST") or DEFAULT_ARCHITECTURES
    architectures = architecture_flags(asked)
    told = f'-DPCONV_ARCHITECTURES="{asked}"'
    scratch.mkdir(parents=True, exist_ok=True)
    files = sorted(sources.glob("*.cu"))
    objects = [scratch / f"{file.stem}.o" for file in files]
    jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)

    newest = max(file.stat().st_mtime for file in (*sources.iterdir(), *sources.parent.glob("*.h")))

    def compile_one(file: Path, made: Path) -> None:
        command = [nvcc, *FLAGS, *architectures, told, "-c", str(file), "-o", str(made)]
        # pip builds a checkout in place, so an installation soon after another finds its objects.
        how = made.with_suffix(".command")
        same = made.is_file() and how.is_file() and how.read_text() == " ".join(command)
        if not (same and made.stat().st_mtime > newest):
            _run(command)
            how.write_text(" ".join(command))

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compile_one, files, objects))
    target.parent.mkdir(parents=True, exist_ok=True)
    # A toolkit from a package index has its libraries in lib, where nvcc does not look.
    options = ["-shared", "-cudart=static", f"-L{Path(nvcc).resolve().parents[1] / 'lib'}", *architectures]
    _run([nvcc, *options, *map(str, objects), "-o", str(target)])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
