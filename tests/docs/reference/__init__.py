"""The reference pages of docs/ that are made from the code: HTTP paths, Python names, settings."""

from tests.docs.reference.pages import PAGES

__all__ = ["PAGES"]
