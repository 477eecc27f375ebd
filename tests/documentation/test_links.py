"""Links lead somewhere on the repository's host; those of the site `make docs` checks."""

import pytest
from support.documents import DOCUMENTS, ROOT, anchors, links


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document):
    for file, anchor in links(document):
        target = (ROOT / document).parent / file if file else ROOT / document
        assert target.exists(), file
        if anchor:
            assert anchor in anchors(target.resolve().relative_to(ROOT)), f"{file}#{anchor}"


def test_every_page_is_in_the_navigation():
    configuration = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = [file.relative_to(ROOT / "docs") for file in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if str(page) not in configuration] == []
