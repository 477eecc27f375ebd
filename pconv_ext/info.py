"""What is installed here and what runs: `python -m pconv_ext info`. Needs torch alone."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from . import _machine
from ._backends import algorithm, backends, cuda, tables
from ._machine import cpuinfo, version

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
    "PCONV_EXT_CACHE",
    "TRITON_INTERPRET",
)


def report() -> str:
    """Versions, backends and why some are missing, processor, instruction set, threads: a line each."""
    rows = [*_versions(), *_processor(), *_gpus(), *_variables()]
    rows += [
        (f"backend {name}", "available" if available else f"not available: {reason}")
        for name, (available, reason) in backends().items()
    ]
    rows += _tables()
    width = max(len(name) for name, _ in rows) + 2
    return "\n".join(f"{name:<{width}}{value}" for name, value in rows)


def _versions() -> Iterator[tuple[str, str]]:
    yield "pconv_ext", f"{version('pconv_ext')} in {Path(__file__).parent}"
    yield "Python", f"{platform.python_version()} in {sys.prefix}, {platform.platform()}"
    built_for = f"CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU"
    yield "torch", f"{torch.__version__}, built for {built_for}"
    for package in PACKAGES:
        yield package, version(package)


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


def _tables() -> Iterator[tuple[str, str]]:
    """What "auto" follows on each device, what it does not take, and the tables that are not used here."""
    machines, used = [], set()
    for device in devices():
        try:
            machines.append(machine := _machine.identity(device))
        except (AssertionError, RuntimeError):
            continue  # `_gpus` has said it
        tuned, complaint = tables.find(machine)
        if tuned is None:
            yield f"table {device}", complaint or "none, a rule chooses; `pconv-ext tune` measures"
            continue
        used.add(tables.path_of(machine))
        yield f"table {device}", f"{tables.path_of(machine)}, {len(tuned.rows)} rows"
        for ban in tuned.bans:
            yield f"banned {device}", f"{ban.backend} in {ban.operator} {ban.dtype}: {ban.reason}"
    for file in tables.files():
        if file not in used:
            reasons = [tables.survey(file, machine) for machine in machines]
            yield "ignored table", f"{file}: {min(reasons, key=len)}"  # of the most similar device


def devices() -> list[torch.device]:
    """The processor and all GPUs."""
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]


def _variables() -> Iterator[tuple[str, str]]:
    for name in VARIABLES:
        if name in os.environ:
            yield name, os.environ[name]
