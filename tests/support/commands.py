"""Whether a command of the documentation is one that its program takes, without running it."""

import re
import shlex

import typer
from support.documents import ROOT

from pconv_ext.inpainting.cli import app


def check(line):
    """Raise AssertionError or click's UsageError if a program of this project does not take the command."""
    for program, *arguments in _simple_commands(line):
        if program == "torchrun":
            program, arguments = "python", arguments[arguments.index("-m") :]
        checker = _CHECKERS.get(program.removeprefix(".venv/bin/"))
        if checker:
            checker(arguments)
        else:
            assert (ROOT / program).is_file(), f"what is {program}?"


def _simple_commands(line):
    words = shlex.split(line, comments=True)
    while "&&" in words:
        end = words.index("&&")
        yield words[:end]
        words = words[end + 1 :]
    if words:
        yield words


def _pconv_ext(arguments):
    name, *options = arguments
    typer.main.get_command(app).commands[name].make_context(name, options)


def _python(arguments):
    first, *others = arguments
    if first == "-m":
        assert others[0] in ("pconv_ext", "venv")
        if others[0] == "pconv_ext":
            _pconv_ext(others[1:])
    else:
        script = ROOT / first
        if script.is_dir():
            assert f'"{others[0]}": (' in (script / "__main__.py").read_text(encoding="utf-8")
        _declared_in(script, others)


def _pytest(arguments):
    folder, *options = arguments
    _declared_in(ROOT / folder, [option for option in options if option != "--benchmark-only"])


def _declared_in(source, arguments):
    """Options are those of an argument parser in a file or folder."""
    files = source.rglob("*.py") if source.is_dir() else [source]
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    for argument in arguments:
        assert not argument.startswith("-") or f'"{argument}"' in text, argument


def _make(arguments):
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in arguments:
        assert "=" in target or re.search(rf"^{re.escape(target)}:", rules, re.MULTILINE), target


def _pip(arguments):
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = text.partition("[project.optional-dependencies]")[2].partition("\n[project.")[0]
    for extra in re.findall(r"\.\[([\w,]+)\]", " ".join(arguments)):
        for one in extra.split(","):
            assert re.search(rf"^{one} = \[", extras, re.MULTILINE), one


_CHECKERS = {
    "pconv-ext": _pconv_ext,
    "python": _python,
    "python3": _python,
    "make": _make,
    "pip": _pip,
    "pytest": _pytest,
    ".": lambda arguments: None,  # the activation of an environment
}
