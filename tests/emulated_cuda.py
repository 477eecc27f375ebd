"""The CUDA kernels compiled for the processor (csrc/cuda/emulation.h): how they run where there is no GPU."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-DPCONV_EMULATE"]


def build(folder):
    """Compile into `folder`; return the library."""
    files = sorted(SOURCES.glob("*.cu"))
    objects = [folder / f"{file.stem}.o" for file in files]

    def compile_one(file, made):
        subprocess.run(["g++", *FLAGS, "-c", file, "-o", made], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, files, objects))
    library = folder / "emulated_cuda.so"
    subprocess.run(["g++", "-shared", *objects, "-o", library], check=True)
    return library
