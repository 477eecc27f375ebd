"""Makes of ``dist/`` what is published: the sdist and the wheel, with an index's tag, in ``dist/release/``.

auditwheel chooses the tag by the newest symbols of the C library that the binaries use, which are those of
the machine that compiled them: the container of the release workflow gives manylinux_2_28. Torch stays
outside; its libraries are in the process before the module is loaded.
"""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

DIST = Path(__file__).resolve().parents[1] / "dist"
RELEASE = DIST / "release"
OF_TORCH = ("libc10.so", "libtorch.so", "libtorch_cpu.so")
CUDA = "pconv_ext/libpconv_cuda.so"
#: What the CUDA kernels may add to everybody's download, in bytes.
CUDA_LIMIT = 10_000_000


def repair(wheel: Path) -> Path:
    """The wheel with the tag that fits it."""
    excluded = [word for name in OF_TORCH for word in ("--exclude", name)]
    subprocess.run(["auditwheel", "repair", "--wheel-dir", RELEASE, *excluded, wheel], check=True)
    (repaired,) = RELEASE.glob("*.whl")
    return repaired


def problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel that is to be published; prints what it is."""
    found = []
    with zipfile.ZipFile(wheel) as content:
        files = {file.filename: file for file in content.infolist()}
    if not re.search(r"-cp310-abi3-manylinux_\d+_\d+_\w+\.whl$", wheel.name):
        found.append(f"{wheel.name} has no tag of manylinux and the stable ABI")
    if "pconv_ext/_C.abi3.so" not in files:
        found.append("the CPU kernels are missing")
    others = [name for name in files if ".so" in name and name not in ("pconv_ext/_C.abi3.so", CUDA)]
    if others:
        found.append(f"libraries of others were copied into it: {', '.join(others)}")
    print(f"release: {wheel.name}, {wheel.stat().st_size:,} bytes")
    if CUDA not in files:
        print("release: without the CUDA kernels, which were not built")
    else:
        packed = files[CUDA].compress_size
        print(f"release: with the CUDA kernels, {packed:,} bytes of it (limit {CUDA_LIMIT:,})")
        if packed > CUDA_LIMIT:
            found.append("the CUDA kernels are too large for it: build with PCONV_EXT_CUDA=0")
    return found


if __name__ == "__main__":
    (built,), (sdist,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    RELEASE.mkdir()
    shutil.copy(sdist, RELEASE)
    found = problems(repair(built))
    if found:
        sys.exit("\n".join(found))
