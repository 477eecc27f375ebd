"""What is installed here and what runs: `python -m pconv_ext info`. Needs torch alone."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from ._backends import algorithm, backends, cuda

#: Distributions whose versions decide what works.
PACKAGES = ("numpy", "triton", "torchvision", "typer")
#: Processor features that kernels here or in torch are chosen by, as Linux calls them.
FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512_vnni",
    "avx512_bf16",
    "amx_tile",
)
#: Environment variables that change which kernels run, or on how many threads.
VARIABLES = (
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PCONV_EXT_ALGORITHM",
    "TRITON_INTERPRET",
)


def report() -> str:
    """Versions, backends and why some are missing, processor, instruction set, threads: a line each."""
    rows = [*_versions(), *_processor(), *_gpus(), *_variables()]
    rows += [
        (f"backend {name}", "available" if available else f"not available: {reason}")
        for name, (available, reason) in backends().items()
    ]
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)


def _versions() -> Iterator[tuple[str, str]]:
    yield "pconv_ext", f"{version('pconv_ext')} in {Path(__file__).parent}"
    yield "Python", f"{platform.python_version()} in {sys.prefix}, {platform.platform()}"
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    yield "torch", f"{torch.__version__}, built for {built_for}"
    for package in PACKAGES:
        yield package, version(package)


def version(package: str) -> str:
    """Of an installed distribution; "not installed" without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> Iterator[tuple[str, str]]:
    told = cpuinfo()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "processor", f"{told.get('model name', platform.machine())}, {cores} cores for this process"
    present = (told.get("flags") or told.get("Features") or "").split()
    yield "features", " ".join(name for name in FEATURES if name in present) or "unknown"
    yield "instruction set", f"{_instruction_set()} (torch: {torch.backends.cpu.get_cpu_capability()})"
    yield "algorithm", f"{algorithm.current()}, of the CPU kernels"
    yield (
        "threads",
        f"{torch.get_num_threads()} in an operator, {torch.get_num_interop_threads()} between them",
    )


def cpuinfo() -> dict[str, str]:
    """What Linux tells of the last processor, by its own names; {} on other systems."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    return dict(re.findall(r"^(\S[^\t:]*?)\s*: (.*)$", file.read_text(), re.MULTILINE))


def _instruction_set() -> str:
    try:
        return str(importlib.import_module("pconv_ext._C").instruction_set)
    except ImportError:
        return "none, the CPU kernels are not there"


def _gpus() -> Iterator[tuple[str, str]]:
    for i in range(torch.cuda.device_count()):
        try:
            major, minor = torch.cuda.get_device_capability(i)
            yield f"GPU {i}", f"{torch.cuda.get_device_name(i)}, compute capability {major}.{minor}"
        except (AssertionError, RuntimeError) as error:  # a driver too old for this torch
            yield f"GPU {i}", " ".join(str(error).split())
    if not cuda.REASON:
        yield "CUDA kernels", cuda.library_build()


def _variables() -> Iterator[tuple[str, str]]:
    for name in VARIABLES:
        if name in os.environ:
            yield name, os.environ[name]
