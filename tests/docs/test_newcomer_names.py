"""What docs/architecture.md and docs/contributing.md name exists: files, and the symbols in them."""

import ast
import re
from pathlib import Path

import pytest

from tests.docs.reference.pages import DOCS

PROJECT = DOCS.parent
PAGES = ("architecture.md", "contributing.md")
_NAMED = re.compile(r"^([\w/.-]+\.py|tests(?:/\w+)+)(?:: ([\w., ]+))?$")


def named(page: str) -> list[tuple[str, str]]:
    """Return the files that a page names in backticks, each with one of the symbols named there, or none."""
    found = []
    for span in re.findall(r"`([^`\n]+)`", (DOCS / page).read_text()):
        if match := _NAMED.match(span):
            found += [(match[1], symbol.strip()) for symbol in (match[2] or "").split(",")]
    return sorted(set(found))


def place(name: str) -> Path:
    """Return where a file is: below the project, or, as most are named, below the package."""
    return PROJECT / name if name.startswith(("tests", "cloud_trainer")) else PROJECT / "brain_service" / name


def defined(body: list[ast.stmt], path: list[str]) -> bool:
    """Tell whether statements define a name, or a member of a class: a method, a field, an attribute."""
    for node in body:
        names = {getattr(node, "name", "")}
        if isinstance(node, ast.Assign | ast.AnnAssign):
            names = {ast.unparse(one) for one in (node.targets if isinstance(node, ast.Assign) else [node.target])}
        if path[0] in names:
            return len(path) == 1 or (isinstance(node, ast.ClassDef) and defined(node.body, path[1:]))
    return False


@pytest.mark.parametrize(("page", "name", "symbol"), [(page, *one) for page in PAGES for one in named(page)])
def test_what_a_page_names_exists(page: str, name: str, symbol: str) -> None:
    path = place(name)
    assert path.exists(), f"docs/{page} names {name}, which is not there"
    if symbol:
        assert defined(ast.parse(path.read_text()).body, symbol.split(".")), f"docs/{page}: {name} has no {symbol}"


def test_the_ways_name_what_they_pass() -> None:
    files = {name for name, _ in named("architecture.md")}
    assert len(files) > 50
    assert {"episodes/writer.py", "inference/stepping.py", "api/capture.py", "inference/worker.py"} <= files


def test_the_rooms_are_the_packages() -> None:
    page = (DOCS / "architecture.md").read_text().partition("## Rooms")[2].partition("\n## ")[0]
    told = {
        name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)
    }
    assert told == {path.parent.name for path in (PROJECT / "brain_service").glob("*/__init__.py")}


def test_every_marker_is_explained() -> None:
    page = (DOCS / "contributing.md").read_text()
    told = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", page, re.MULTILINE)
    markers = (PROJECT / "pyproject.toml").read_text().partition("\nmarkers = [")[2].partition("\n]")[0]
    assert sorted(told) == sorted(re.findall(r'^ +"(\w+):', markers, re.MULTILINE))


def test_every_target_of_make_that_a_page_names_is_there() -> None:
    makefile = (PROJECT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    pages = [PROJECT / "README.md", *DOCS.glob("*.md")]
    asked = {name for page in pages for name in re.findall(r"`make ([a-z-]+)", page.read_text())}
    assert asked <= targets
    assert {"serve", "test", "docs", "soak"} <= asked
