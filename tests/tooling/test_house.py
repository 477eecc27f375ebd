"""What keeps the source easy to find one's way in: short files, imports that go one way."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("pconv_ext", "kernels", "csrc", "benchmarks", "buildtools", "tests", "tools")
SOURCES = (".py", ".h", ".cpp", ".cu", ".sh")


def imported(file, package):
    """Names of the modules that `file` of `package` imports anywhere, as absolute names."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *(node.module.split(".") if node.module else ())))
            yield from (name, *(f"{name}.{alias.name}" for alias in node.names))


def graph():
    """For each module the modules that it imports, a package's own __init__ aside."""
    files = {}
    for folder, prefix in (("pconv_ext", ()), ("kernels", ("pconv_ext",))):
        for file in (ROOT / folder).rglob("*.py"):
            parts = (*prefix, *file.relative_to(ROOT).with_suffix("").parts)
            package = parts[:-1]
            files[".".join(parts).removesuffix(".__init__")] = file, package
    for name, (file, package) in files.items():
        found = {module for module in imported(file, package) if module in files and module != name}
        # A package is not what its module needs of it: `from . import x` needs x.
        yield name, {module for module in found if not f"{name}.".startswith(f"{module}.")}


def test_imports_go_one_way():
    """Also those inside of functions and under TYPE_CHECKING, which hide a circle and do not open it."""
    edges = dict(graph())
    assert "pconv_ext.ops.call" in edges["pconv_ext.kernels.operators"], "what is tested sees imports"
    list(TopologicalSorter(edges).static_order())  # raises CycleError, with the circle


@pytest.mark.parametrize("folder", FOLDERS)
def test_files_fit_in_the_head(folder):
    files = [file for file in (ROOT / folder).rglob("*") if file.suffix in SOURCES]
    assert files
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in files}
    assert {name: length for name, length in lengths.items() if length > 400} == {}
