"""Which page is made by what."""

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.docs.reference.http_page import http_page
from tests.docs.reference.python_page import python_page
from tests.docs.reference.settings_page import settings_page

__all__ = ["DOCS", "PAGES"]

DOCS = Path(__file__).parent.parent.parent.parent / "docs"

PAGES: Mapping[Path, Callable[[], str]] = {
    DOCS / "api.md": http_page,
    DOCS / "python-api.md": python_page,
    DOCS / "settings.md": lambda: settings_page((DOCS / "settings.md").read_text()),
}
"""Each page and the function that returns its text. Of the settings' page only the columns that repeat the model
are made; its sentences are written by hand and kept."""
