"""The CUDA kernels compiled for the processor (csrc/cuda/emulation.h): how they run where there is no GPU."""

import ctypes
import fcntl
import hashlib
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SOURCES = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
CHECKS = Path(__file__).with_name("emulated_checks.cpp")
FLAGS = [
    *("-x", "c++", "-std=c++17", "-O2", "-g1", "-fPIC", "-fvisibility=hidden", f"-I{SOURCES}"),
    *("-DPCONV_EMULATE", '-DPCONV_ARCHITECTURES="none"', "-fno-threadsafe-statics", "-U_FORTIFY_SOURCE"),
]
# An instruction is known by its place in the code, so that none may be doubled or merged with another.
FLAGS += [
    f"-fno-{how}"
    for how in ("thread-jumps", "crossjumping", "tree-tail-merge", "unswitch-loops", "split-paths")
]
# They put the calls into the kernels that CHECKS defines.
CHECKED = ["-fsanitize=thread", "-fsanitize=alignment"]

_one_launch = threading.Lock()  # at a time: the emulator has one block


class Counted:
    """A kernel that counts its launches."""

    def __init__(self, kernel):
        self.kernel, self.launches = kernel, 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


class Bounded:
    """A kernel in the emulator, which is told the tensors of each launch and so finds accesses outside."""

    def __init__(self, kernel):
        self.kernel, self.library = kernel, kernel.library

    def __getitem__(self, grid):
        launch = self.kernel[grid]

        def bounded(*arguments, **constants):
            with _one_launch:
                tell_extents(self.library, map(extent, filter(torch.is_tensor, arguments)))
                launch(*arguments, **constants)

        return bounded


def extent(tensor):
    """The address of its first byte, and the one after its last."""
    first = tensor.data_ptr()
    if not tensor.numel():
        return first, first
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first, first + (last + 1) * tensor.element_size()


def tell_extents(library, extents):
    """What the next launches may touch."""
    words = [address for pair in extents for address in pair]
    library.pconv_emulate_tensors(len(words) // 2, (ctypes.c_int64 * len(words))(*words))


def load(library):
    """The kernels of the package in this library of the emulator."""
    from pconv_ext.kernels import cuda

    return type(kernels := cuda.load(library))(*map(Bounded, kernels))


def cached(folder):
    """The library of all kernels in `folder`, compiled unless a process has done so for these sources."""
    sources = [*SOURCES.parent.glob("*.h"), *SOURCES.glob("*"), CHECKS, Path(__file__)]
    digest = hashlib.sha256(subprocess.check_output(["g++", "--version"]))
    for file in sorted(sources):
        digest.update(file.read_bytes())
    library = folder / f"{digest.hexdigest()[:16]}.so"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not library.exists():
            for other in folder.glob("*.so"):
                other.unlink()
            build(folder).rename(library)
    return library


def build(folder, files=None):
    """Compile `files`, all of the package's by default, into `folder`; return the library."""
    files = sorted(SOURCES.glob("*.cu")) if files is None else files
    objects = {file: folder / f"{file.stem}.o" for file in (*files, CHECKS)}

    def compile_one(file):
        flags = FLAGS if file == CHECKS else FLAGS + CHECKED
        subprocess.run(["g++", *flags, "-c", file, "-o", objects[file]], check=True)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(compile_one, objects))
    library = folder / "emulated_cuda.so"
    subprocess.run(["g++", "-shared", *objects.values(), "-ldl", "-o", library], check=True)
    for object_file in objects.values():
        object_file.unlink()
    return library
