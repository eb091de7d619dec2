"""One server with its proxy for all tests of this folder, and a bucket of its own for each test."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.cloud.upload_queue import UploadQueue
from brain_service.settings import CloudSettings
from tests.fakes.control_plane import ControlPlane, running_control_plane
from tests.fakes.gcs_faults import GcsFaults, faulty_gcs

from .uploads import FILES, QUICK, write

_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def running() -> Iterator[GcsFaults]:
    """The proxy before the real fake-gcs-server."""
    with faulty_gcs() as faults:
        yield faults


@pytest.fixture
def gcs(running: GcsFaults) -> GcsFaults:
    """The same without any fault."""
    running.reset()
    return running


@pytest.fixture
def bucket(gcs: GcsFaults) -> str:
    """An empty bucket."""
    name = f"bucket-{next(_NUMBERS)}"
    gcs.server.make_bucket(name)
    return name


@pytest.fixture
def cloud(gcs: GcsFaults) -> CloudSettings:
    """Settings that lead to the proxy, with the smallest chunks there are."""
    return CloudSettings(storage_endpoint=gcs.url, chunk_bytes=256 * 1024)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with small and large files and a manifest."""
    return write(tmp_path / "files", FILES)


@pytest.fixture
def queue(tmp_path: Path, cloud: CloudSettings) -> Iterator[UploadQueue]:
    """A queue that does not wait long."""
    with UploadQueue(tmp_path / "brain.db", cloud, policy=QUICK) as opened:
        yield opened


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """The control planes of Vertex AI and of TPU VMs, simulated."""
    with running_control_plane(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest.fixture
def plane(served: ControlPlane) -> ControlPlane:
    """The same without any fault."""
    served.script()
    return served
