"""Figures of the CUDA kernels' machine code, without a GPU: registers, stack, tensor core instructions.

    python tools/cuda_machine_code.py [LIBRARY] [--results PATH]

LIBRARY is the installed package's by default. Read with the disassembler in Triton's wheel.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import triton

from pconv_ext._backends.cuda import LIBRARY

TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def figures(library: Path) -> list[dict[str, Any]]:
    """For each kernel and architecture: name, architecture, registers, stack (with spills), counts."""
    found = {}
    for architecture, name, text in _functions(library, "-res-usage"):
        usage = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
        assert usage, text
        registers, stack, shared, local = map(int, usage.groups())
        found[architecture, name] = {
            "kernel": name,
            "architecture": architecture,
            "registers": registers,
            "stack": stack + local,
            "static shared": shared,
        }
    architectures = sorted({architecture for architecture, _ in found})
    with ThreadPoolExecutor(2) as pool:  # the disassembler takes its time
        parts = list(pool.map(lambda one: _functions(library, "-sass", "-arch", one), architectures))
    for architecture, name, text in itertools.chain(*parts):
        code = Counter(re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\d+\s+)?([A-Z0-9_]+)", text, re.MULTILINE))
        counts = {key: code[key] for key in ("HMMA", "LDGSTS", "LDSM", "FFMA", "STL", "LDL")}
        found[architecture, name] |= counts
    return list(found.values())


def _functions(library: Path, *options: str) -> list[tuple[str, str, str]]:
    """(architecture, demangled name, what the tool prints of it) of all kernels."""
    text = subprocess.check_output([TOOL, *options, library], text=True, stderr=subprocess.DEVNULL)
    text = subprocess.run(["c++filt"], input=text, capture_output=True, text=True, check=True).stdout
    parts = []
    for section in re.split(r"^arch = ", text, flags=re.MULTILINE)[1:]:
        architecture = section.split()[0]
        for part in re.split(r"^\s*Function\s*:?\s*", section, flags=re.MULTILINE)[1:]:
            parts.append((architecture, _short(part.partition("\n")[0]), part))
    return parts


def _short(name: str) -> str:
    """Without return type, namespaces and parameters, which begin at the first bracket outside of <>."""
    name = name.strip().rstrip(":").replace("(anonymous namespace)::", "").replace("pconv::", "")
    depth, end = 0, len(name)
    for i, c in enumerate(name):
        depth += (c == "<") - (c == ">")
        if c == "(" and depth == 0:
            end = i
            break
    return name[:end].removeprefix("void ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("library", nargs="?", type=Path, default=LIBRARY)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    rows = figures(options.library)
    for row in rows:
        print(*(f"{key} {value}" for key, value in row.items()), sep="  ")
    print(f"{len(rows)} kernels, {sum(row['stack'] > 0 for row in rows)} with a stack")
    if options.results:
        options.results.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
