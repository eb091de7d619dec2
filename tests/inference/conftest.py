"""Toy bundles, built once and copied for each test that may harm them."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.export.hailo_toy import CompiledToys, compile_toys
from tests.inference.toy import build_toy


@dataclass(frozen=True)
class Toys:
    """Three bundles of the toy model in one folder; `scales` maps model ids to their scale."""

    models_dir: Path
    cache_dir: Path
    first: str
    second: str
    third: str

    @property
    def scales(self) -> dict[str, float]:
        return {self.first: 1.0, self.second: 2.0, self.third: 3.0}


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    root = tmp_path_factory.mktemp("toys")
    first, second, third = (build_toy(root / "models", scale) for scale in (1.0, 2.0, 3.0))
    return Toys(root / "models", root / "cache", first, second, third)


@pytest.fixture
def toys(built: Toys, tmp_path: Path) -> Toys:
    shutil.copytree(built.models_dir, tmp_path / "models")
    return Toys(tmp_path / "models", built.cache_dir, built.first, built.second, built.third)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledToys:
    """The toy compiled for Hailo devices, by a stand-in for the compiler."""
    return compile_toys(tmp_path_factory.mktemp("compiled"))
