"""Checks the contents of ``dist/``: the wheel holds the package alone, the sdist all sources."""

import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "buildtools"))
import cuda_build  # noqa: E402


def tree(folder: str, pattern: str = "*") -> set[str]:
    """Files under ``folder``, relative to the repository, less what is built or cached."""
    files = (p for p in (ROOT / folder).rglob(pattern) if p.is_file())
    return {str(p.relative_to(ROOT)) for p in files if p.suffix not in (".pyc", ".so")}


def difference(what: str, found: set[str], expected: set[str]) -> list[str]:
    return [f"{what} lacks {name}" for name in sorted(expected - found)] + [
        f"{what} should not hold {name}" for name in sorted(found - expected)
    ]


def check_wheel(path: Path) -> list[str]:
    problems = [] if "-cp310-abi3-" in path.name else [f"{path.name} is not tagged cp310-abi3"]
    with zipfile.ZipFile(path) as wheel, tempfile.TemporaryDirectory() as scratch:
        names = {name for name in wheel.namelist() if not name.endswith("/")}
        info = {name for name in names if ".dist-info/" in name}
        if not any(name.endswith("/licenses/LICENSE") for name in info):
            problems.append("the wheel lacks the licence")
        modules = {re.sub("^kernels/", "pconv_ext/kernels/", name) for name in tree("kernels", "*.py")}
        expected = tree("pconv_ext", "*.py") | modules
        expected |= {"pconv_ext/py.typed", "pconv_ext/_backends/measured.json", "pconv_ext/_C.abi3.so"}
        expected |= tree("pconv_ext/inpainting/serve/page")
        networks = tree("pconv_ext/inpainting/networks")
        if "pconv_ext/inpainting/networks/pconv-photos/model.safetensors" not in networks:
            problems.append("the network pconv-photos is not there")
        expected |= networks
        if cuda_build.find_nvcc():
            expected.add("pconv_ext/libpconv_cuda.so")
        problems += difference("the wheel", names - info, expected)
        library = wheel.extract("pconv_ext/_C.abi3.so", scratch)
        symbols = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
        # at::, c10:: and torch:: C++ symbols change from release to release; the stable boundary is plain C.
        for name in re.findall(r"\b_Z\w*?N(?:2at|3c10|5torch)\w*", symbols):
            problems.append(f"_C uses {name}, which is not part of torch's stable ABI")
    return problems


def check_sdist(path: Path) -> list[str]:
    with tarfile.open(path) as sdist:
        names = {member.name.split("/", 1)[1] for member in sdist if member.isfile()}
    generated = {"PKG-INFO", "setup.cfg"} | {name for name in names if ".egg-info/" in name}
    expected = {
        "setup.py",
        "pyproject.toml",
        "MANIFEST.in",
        "README.md",
        "LICENSE",
        "Makefile",
        ".clang-format",
        ".pre-commit-config.yaml",
        "mkdocs.yml",
    }
    expected |= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", ".ci/run"}
    packages = ("buildtools", "csrc", "kernels", "pconv_ext")
    for folder in (*packages, "tests", "benchmarks", "tools", "docs", "examples", ".github"):
        expected |= tree(folder)
    return difference("the sdist", names - generated, expected)


if __name__ == "__main__":
    (wheel_path,), (sdist_path,) = (ROOT / "dist").glob("*.whl"), (ROOT / "dist").glob("*.tar.gz")
    found = check_wheel(wheel_path) + check_sdist(sdist_path)
    if found:
        sys.exit("\n".join(found))
    print(
        f"{wheel_path.name} ({wheel_path.stat().st_size:,} bytes) and {sdist_path.name} hold what they should"
    )
