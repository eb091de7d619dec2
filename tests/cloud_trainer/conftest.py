from collections.abc import Iterator

import pytest

from tests.training.conftest import compiled_once, dataset

__all__ = ["compiled_once", "dataset"]


@pytest.fixture(autouse=True)
def quiet_logging() -> Iterator[None]:
    """The job sets up logging for its process; put back what this one had."""
    import logging

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    root.handlers[:], root.level = handlers, level
