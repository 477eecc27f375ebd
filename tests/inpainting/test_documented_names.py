"""Modules that live in `pconv_ext.inpainting` are documented without it: both names are of one module."""

import ast
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pconv_ext

#: In README, CHANGELOG or docstrings as `pconv_ext.X`.
DOCUMENTED = (
    "ablation",
    "batch",
    "checkpoint",
    "data",
    "evaluation",
    "inpainter",
    "large",
    "losses",
    "masks",
    "model",
    "opponents",
    "rasters",
    "training",
)


@pytest.mark.parametrize("form", ["from pconv_ext import {}", "import pconv_ext.{0}; {0} = pconv_ext.{0}"])
def test_forms_of_import(form):
    """In a process of its own, which has imported nothing else."""
    imports = "\n".join(map(form.format, DOCUMENTED))
    code = f"""
import json
{imports}
import pconv_ext.inpainting as home
found = {{name: globals()[name] for name in {DOCUMENTED}}}
print(json.dumps({{name: [one.__name__, one is getattr(home, name)] for name, one in found.items()}}))
"""
    found = json.loads(subprocess.check_output([sys.executable, "-c", code], text=True))
    assert found == {name: [f"pconv_ext.inpainting.{name}", True] for name in DOCUMENTED}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_submodules_are_not_imported_twice(name):
    home = importlib.import_module(f"pconv_ext.{name}").__name__
    for submodule in [*sys.modules]:
        if submodule.startswith(f"{home}."):
            short = submodule.replace(".inpainting", "")
            assert importlib.import_module(short) is sys.modules[submodule]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_type_checkers_see_the_names(name):
    """They read the file of the short name, which imports all that the module calls its own."""
    body = ast.parse(Path(pconv_ext.__file__).with_name(f"{name}.py").read_text()).body
    stars = [node.module for node in body if isinstance(node, ast.ImportFrom) and node.names[0].name == "*"]
    assert stars == [f"inpainting.{name}"]
    module = importlib.import_module(f"pconv_ext.inpainting.{name}")
    assert all(hasattr(module, public) for public in module.__all__)


def test_the_package_alone_has_what_it_imports():
    """Without an import of their own, as before; and nothing of the other modules is imported."""
    code = "import sys, pconv_ext; pconv_ext.masks.BINS, pconv_ext.checkpoint.load_net; print(*sys.modules)"
    imported = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert not {f"pconv_ext.inpainting.{name}" for name in ("data", "training", "evaluation")} & {*imported}
