"""Builds ``pconv_ext._C``, the CPU kernels. Everything that does not need code is in pyproject.toml."""

import glob
import os
import shutil
import sys
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext as _build_ext
from setuptools.command.build_py import build_py as _build_py

ROOT = os.path.dirname(os.path.abspath(__file__))
os.chdir(ROOT)
sys.path.insert(0, os.path.join(ROOT, "buildtools"))  # pip has it there already; `python setup.py` has not
import cuda_build  # noqa: E402
import needs  # noqa: E402
from pconv_build import TORCH_REQUIREMENT, find_torch  # noqa: E402

# Without build isolation nothing checks [build-system] requires, and Python 3.11 comes with setuptools 65.
if tuple(map(int, setuptools.__version__.split(".")[:2])) < (77, 0):
    sys.exit(f"pconv_ext needs setuptools >= 77.0.3 to build, found {setuptools.__version__}: upgrade it")

# Only what torch 2.11 had at its stable boundary is used, so one binary runs in 2.11 and every later release.
STABLE_ABI = "-DTORCH_TARGET_VERSION=0x020b000000000000"
CXX_FLAGS = [
    STABLE_ABI,
    "-std=c++17",
    "-O3",
    "-ffp-contract=fast",  # GCC's own default, which -std=c++17 turns off
    "-fvisibility=hidden",
    "-g0",  # overrides the -g that many Pythons were built with: a tenth of the size
    "-Wall",
]


def cuda_compiler() -> str | None:
    """The nvcc that compiles the CUDA kernels, None where they are left out; prints the verdict.

    Exits where PCONV_EXT_CUDA asks for what cannot be.
    """
    request = os.environ.get("PCONV_EXT_CUDA", "auto")
    if request not in ("auto", "0", "1"):
        sys.exit(f"PCONV_EXT_CUDA must be auto, 0 or 1, got {request!r}")
    nvcc = None if request == "0" else cuda_build.find_nvcc()
    if request == "1" and nvcc is None:
        sys.exit("PCONV_EXT_CUDA=1 asks for CUDA kernels, but there is no nvcc: set CUDA_HOME")
    without = "PCONV_EXT_CUDA=0" if request == "0" else "no nvcc"
    print("pconv_ext: CUDA kernels:", f"built with {nvcc}" if nvcc else f"not built, {without}")
    return nvcc


class build_py(_build_py):
    """Empties the build folder first: setuptools reuses it, and a renamed file would ship twice."""

    def run(self):
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


class build_ext_without(_build_ext):
    """Stands in where something is missing: metadata and sdists can be made, binaries cannot."""

    reason: str

    def run(self):
        sys.exit(f"pconv_ext cannot be built: {self.reason}")


def cannot_build(reason: str) -> type[build_ext_without]:
    return type("build_ext", (build_ext_without,), {"reason": reason})


def extension():
    """The extension and the command that builds it."""
    sources = sorted(glob.glob("csrc/**/*.cpp", recursive=True))
    headers = sorted(glob.glob("csrc/**/*.h", recursive=True))
    torch_folder = find_torch()
    reason = needs.missing(torch_folder, TORCH_REQUIREMENT)
    if reason:
        return Extension("pconv_ext._C", sources, py_limited_api=True), cannot_build(reason)

    if torch_folder not in sys.path:
        sys.path.append(torch_folder)  # last, so that the build environment's setuptools stays the one in use
    import torch
    from torch.utils import cpp_extension

    print(f"pconv_ext: building with torch {torch.__version__} from {torch_folder}")
    cpp_extension.min_supported_cpython = "0x030A0000"  # 3.10, as in the wheel's tag
    return (
        cpp_extension.CppExtension(
            "pconv_ext._C",
            sources,
            include_dirs=[os.path.join(ROOT, "csrc")],
            depends=headers,
            extra_compile_args={"cxx": CXX_FLAGS},
            py_limited_api=True,
        ),
        cpp_extension.BuildExtension,
    )


def with_cuda(command, nvcc):
    """The build command that also compiles the CUDA kernels."""
    if nvcc is None:
        return command

    class build_ext(command):
        def run(self):
            super().run()
            folder = ROOT if self.inplace else self.build_lib
            target = Path(folder, "pconv_ext", "libpconv_cuda.so")
            try:
                cuda_build.build(nvcc, Path(ROOT, "csrc", "cuda"), target, Path(self.build_temp, "cuda"))
            except (RuntimeError, ValueError) as error:
                if os.environ.get("PCONV_EXT_CUDA") == "1":
                    sys.exit(f"pconv_ext: the CUDA kernels cannot be built: {error}")
                print(f"pconv_ext: the CUDA kernels are left out, they cannot be built: {error}")

    return build_ext


cpu, build_ext = extension()
build_ext = with_cuda(build_ext, cuda_compiler())
setup(
    packages=[
        *find_packages(include=["pconv_ext", "pconv_ext.*"]),
        *("pconv_ext." + name for name in find_packages(include=["kernels", "kernels.*"])),
    ],
    package_dir={"pconv_ext.kernels": "kernels"},
    ext_modules=[cpu],
    cmdclass={"build_ext": build_ext, "build_py": build_py},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
