"""The CUDA kernels compiled for the processor (csrc/cuda/emulation.h): how they run where there is no GPU."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
RACES = Path(__file__).with_name("emulated_races.cpp")
# -fsanitize=thread puts the calls into the code that emulated_races.cpp defines.
FLAGS = [
    *("-x", "c++", "-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", f"-I{SOURCES}"),
    *(
        "-DPCONV_EMULATE",
        '-DPCONV_ARCHITECTURES="none"',
        "-DPCONV_RACES",
        "-fsanitize=thread",
        "-fno-threadsafe-statics",
    ),
]


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


def build(folder, files=None):
    """Compile `files`, all of the package's by default, into `folder`; return the library."""
    files = sorted(SOURCES.glob("*.cu")) if files is None else files
    objects = {file: folder / f"{file.stem}.o" for file in (*files, RACES)}

    def compile_one(file):
        flags = [flag for flag in FLAGS if file != RACES or flag != "-fsanitize=thread"]
        subprocess.run(["g++", *flags, "-c", file, "-o", objects[file]], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, objects))
    library = folder / "emulated_cuda.so"
    subprocess.run(["g++", "-shared", *objects.values(), "-ldl", "-o", library], check=True)
    return library
