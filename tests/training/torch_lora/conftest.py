"""Where torch is absent, the tests that need it are skipped with the reason; the others run."""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

WITHOUT_TORCH = ("test_config.py", "test_gates.py", "test_store.py")


class NeedsTorch(pytest.Module):
    """A module that cannot be imported here."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        pytest.skip("torch is not installed: pip install 'continuon-brain[torch]'", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if find_spec("torch") is None and module_path.name not in WITHOUT_TORCH:
        return NeedsTorch.from_parent(parent, path=module_path)
    return None
