"""What keeps the source easy to find one's way in: short files, imports that go one way."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("pconv_ext", "kernels", "csrc", "benchmarks", "buildtools", "tests", "tools", "examples")
SOURCES = (".py", ".h", ".cpp", ".cu", ".sh")


def imported(file, package, modules):
    """Which of `modules`, and others, `file` of `package` imports anywhere."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            name = ".".join((*base, *(node.module.split(".") if node.module else ())))
            for alias in node.names:  # a module in a package, or what the package itself has
                yield f"{name}.{alias.name}" if f"{name}.{alias.name}" in modules else name


def graph():
    """For each module the modules that it imports."""
    files = {}
    for folder, prefix in (("pconv_ext", ()), ("kernels", ("pconv_ext",))):
        for file in (ROOT / folder).rglob("*.py"):
            parts = (*prefix, *file.relative_to(ROOT).with_suffix("").parts)
            package = parts[:-1]
            files[".".join(parts).removesuffix(".__init__")] = file, package
    for name, (file, package) in files.items():
        yield name, {module for module in imported(file, package, files) if module in files} - {name}


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
