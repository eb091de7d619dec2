"""A running store on an empty directory."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.episodes.store import EpisodeStore
from tests.episodes.bodies import open_store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EpisodeStore]:
    """The store, closed after the test."""
    with open_store(tmp_path) as running:
        yield running
