"""What a measurement depends on: the device, its driver, and the versions of what computes."""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import platform
import re
from pathlib import Path

import torch

_DRIVER = Path("/proc/driver/nvidia/version")


def version(package: str) -> str:
    """Of an installed distribution; "not installed" without it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpuinfo() -> dict[str, str]:
    """What Linux tells of the last processor, by its own names; {} on other systems."""
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return {}
    return dict(re.findall(r"^(\S[^\t:]*?)\s*: (.*)$", file.read_text(), re.MULTILINE))


def processor() -> str:
    """Its name, which may be that of several generations, and what tells them apart."""
    told = cpuinfo()
    name = told.get("model name", platform.machine())
    return f"{name} (family {told['cpu family']}, model {told['model']})" if "cpu family" in told else name


def capability(device: torch.device) -> str:
    """Compute capability of a GPU, such as "9.0"; of the processor what torch calls so, such as "AVX512"."""
    if device.type == "cuda":
        return "{}.{}".format(*torch.cuda.get_device_capability(device))
    return str(torch.backends.cpu.get_cpu_capability())


def identity(device: torch.device) -> dict[str, str]:
    """Where and with what times on `device` are measured: they hold where all of this is the same."""
    found = {
        "capability": capability(device),
        "torch": torch.__version__,
        "pconv_ext": version("pconv_ext"),
    }
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return {"device": name, "driver": _driver(), "triton": version("triton"), **found}
    return {"device": processor(), **found}


def _driver() -> str:
    """The release of NVIDIA's driver, where the kernel tells it, and the newest CUDA that it knows."""
    told = re.search(r"\d+\.\d[\d.]*", _DRIVER.read_text()) if _DRIVER.exists() else None
    cuda = ctypes.c_int()
    with contextlib.suppress(AttributeError, OSError):  # where torch has it from elsewhere
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(cuda))
    return f"{told[0] if told else 'unknown'}, CUDA {cuda.value // 1000}.{cuda.value % 1000 // 10}"
