"""What MkDocs cannot: pages from outside of ``docs/``, equations without a script, docstrings with "::".

Documents link to each other, to sources and to pictures as they lie in the repository, where its host shows
them too. On the site README is the home page, ``docs/`` its root, and the rest keeps its place; whatever a
page links to is on the site.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
START = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/NOTES.md", "examples/README.md")
SHOWN_BY_BROWSERS = (".json", ".png", ".svg")  # other files become pages

_CODE = re.compile(r"(^```.*?^```$|(?<!\$)`[^`\n]+`(?!\$))", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
_EQUATION = re.compile(r"\$`(.+?)`\$")


def on_files(files: Any, config: Any) -> Any:
    """Add the documents of the repository, and what they and those in ``docs/`` link to."""
    todo = [*START, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    known: set[str] = set()
    while todo:
        path = todo.pop()
        if path in known or not (ROOT / path).is_file():  # a link to what is not there: MkDocs says so
            continue
        known.add(path)
        if not path.startswith("docs/"):
            files.append(_file(path, config))
        if path.endswith(".md"):
            text = (ROOT / path).read_text(encoding="utf-8")
            todo += [_target(path, found) for found in _LINK.findall(_CODE.sub("", text))]
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links and equations into those of the site; other code stays."""
    place = page.file.src_uri
    path = getattr(page.file, "repository_path", f"docs/{place}")

    def link(found: re.Match[str]) -> str:
        return "](" + os.path.relpath(_place(_target(path, found[1])), Path(place).parent)

    parts = _CODE.split(markdown)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = _EQUATION.sub(lambda found: f"<span>{convert(found[1])}</span>", _LINK.sub(link, part))
        elif part.startswith("```math\n"):
            equation = convert(part.removeprefix("```math").removesuffix("```"), display="block")
            parts[i] = f'<div class="equation">{equation}</div>'
    return "".join(parts)


def _target(path: str, link: str) -> str:
    """What a link in the file of this path leads to, as a path in the repository."""
    return os.path.normpath(Path(path).parent / link)


def _place(path: str) -> str:
    """Where a file of the repository is on the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return path if path.endswith((".md", *SHOWN_BY_BROWSERS)) else f"{path}.md"


def _file(path: str, config: Any) -> File:
    source = ROOT / path
    if path.endswith((".md", *SHOWN_BY_BROWSERS)):
        file = File.generated(config, _place(path), abs_src_path=str(source))
    else:
        file = File.generated(config, _place(path), content=_as_page(source))
    file.repository_path = path
    return file


def _as_page(source: Path) -> str:
    text = source.read_text(encoding="utf-8")
    if source.suffix == ".ipynb":
        return "\n\n".join(map(_cell, json.loads(text)["cells"]))
    return f"# {source.name}\n\n```{source.suffix.removeprefix('.')}\n{text}```\n"


def _cell(cell: dict[str, Any]) -> str:
    text = "".join(cell["source"])
    return text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"


class Docstrings(griffe.Extension):
    """Docstrings as Markdown, and signatures without what is for the commands alone."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = _one_name_each(re.sub(r"::$", ":", obj.docstring.value, flags=re.MULTILINE))

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        annotation = attr.annotation
        if isinstance(annotation, griffe.ExprSubscript) and annotation.canonical_name == "Annotated":
            attr.annotation = annotation.slice.elements[0]

    def on_class_instance(self, *, cls: griffe.Class, **_: Any) -> None:
        if cls.name == "TrainConfig":  # made of its settings when it is imported
            from pconv_ext.training import TrainConfig

            cls.docstring.value = _one_name_each(inspect.cleandoc(TrainConfig.__doc__))


_SECTION = re.compile(r"^(Args|Attributes|Raises):\n((?:    .*\n|\n)+)", re.MULTILINE)
_ITEM = re.compile(r"^    (\S+(?:, \S+)+): (.*\n(?:     +.*\n|\n)*)", re.MULTILINE)


def _one_name_each(docstring: str) -> str:
    """Of "height, width: ..." two items, as tables of types and defaults have them."""

    def items(found: re.Match[str]) -> str:
        return "".join(f"    {name}: {found[2]}" for name in found[1].split(", "))

    return _SECTION.sub(lambda found: f"{found[1]}:\n{_ITEM.sub(items, found[2])}", f"{docstring}\n")
