"""What was measured on: versions, processor or GPU, threads and commit."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import pconv_ext
from names import DIRTY, UNKNOWN
from pconv_ext._machine import capability, processor, version

ROOT = Path(__file__).resolve().parents[2]
#: What figures depend on, as patterns of git.
MEASURED = (
    *("csrc", "kernels", "pconv_ext", "buildtools", "setup.py", "pyproject.toml", "benchmarks"),
    *(":!*.md", ":!benchmarks/results"),
)


def machine(device: str) -> dict[str, Any]:
    """Versions, processor or GPU, threads and commit; nothing that names the machine itself."""
    result: dict[str, Any] = {
        "pconv_ext": version("pconv_ext"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if device == "cuda" else None,
        "cuda": torch.version.cuda if device == "cuda" else None,
        "commit": _commit(),
        "backends": {
            name: reason.replace(f"{ROOT}{os.sep}", "") or "available"
            for name, (_, reason) in pconv_ext.backends().items()
        },
    }
    if device == "cuda":
        result |= {
            "capability": capability(torch.device("cuda")),
            "triton": version("triton"),
            "cudnn": torch.backends.cudnn.version(),
            "float32 convolutions": torch.backends.cudnn.conv.fp32_precision,
        }
    return result


def _commit() -> str:
    """Of the checkout, "-dirty" where it has changed since. Without history what COMMIT says."""
    try:
        if Path(_git("rev-parse", "--show-toplevel")) != ROOT:  # inside of another's checkout
            return os.environ.get("COMMIT", UNKNOWN)
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", *MEASURED)
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("COMMIT", UNKNOWN)
    return f"{commit}{DIRTY}" if changed else commit


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
