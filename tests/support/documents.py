"""The documentation: its files, the code blocks and the links in them."""

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "benchmarks/NOTES.md",
    "examples/README.md",
    "pconv_ext/inpainting/networks/pconv-photos/README.md",
    *sorted(str(file.relative_to(ROOT)) for file in (ROOT / "docs").rglob("*.md")),
]

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`[^`\n]+`")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


class Block(NamedTuple):
    language: str
    code: str
    line: int


def blocks(document):
    """The code blocks of a document but for equations, in their order."""
    text = (ROOT / document).read_text(encoding="utf-8")
    found = [
        Block(match[1], match[2], text.count("\n", 0, match.start()) + 2) for match in _FENCE.finditer(text)
    ]
    return [block for block in found if block.language != "math"]


def links(document):
    """The file and the anchor of each link within the repository; "" is the document itself, or no anchor."""
    text = _INLINE.sub("", _FENCE.sub("", (ROOT / document).read_text(encoding="utf-8")))
    return [(match[1], match[2] or "") for match in _LINK.finditer(text)]


def anchors(document):
    """Those of a document's headings."""
    text = _FENCE.sub("", (ROOT / document).read_text(encoding="utf-8"))
    return {
        re.sub(r"[^\w\- ]", "", heading).strip().lower().replace(" ", "-")
        for heading in _HEADING.findall(text)
    }
