"""The reference pages say what the code says, and the index names every document once."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.docs.reference.http_page import openapi_document
from tests.docs.reference.pages import DOCS, PAGES
from tests.docs.reference.settings_page import TO_WRITE, setting_rows

_LINK = re.compile(r"^- \[([^\]]+\.md)\]\(([^)]+)\): .{20,}\.$", re.MULTILINE)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_reference_page_is_what_the_code_says(path: Path) -> None:
    assert path.read_text() == PAGES[path](), f"docs/{path.name} is stale: `make docs` writes it anew"


def test_every_operation_has_one_place_on_the_page() -> None:
    headings = Counter(
        re.findall(r"^### ((?:GET|POST|PUT|PATCH|DELETE) \S+)$", (DOCS / "api.md").read_text(), re.M)
    )
    asked = {f"{method.upper()} {path}" for path, item in openapi_document()["paths"].items() for method in item}
    assert headings == Counter(asked)
    assert len(asked) > 40


def test_every_setting_is_explained_once() -> None:
    page = (DOCS / "settings.md").read_text()
    told = Counter(re.findall(r"^\| `([a-z0-9_.]+)` \|", page, re.MULTILINE))
    assert told == Counter(name for name, _, _ in setting_rows())
    assert TO_WRITE not in page, "a new setting's row has no sentence yet; write it into its last column"


def test_the_index_names_every_document_once() -> None:
    links = _LINK.findall((DOCS / "index.md").read_text())
    assert all(name == target for name, target in links)
    there = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - {"index.md"}
    told = Counter(target for _, target in links)
    assert not there - told.keys(), "docs/index.md lacks these: give each a line `- [name.md](name.md): ... .`"
    assert told == Counter(there)
