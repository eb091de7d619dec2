"""A daemon for the tests that leave no trace on one another, and one behind a bad network."""

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fakes.proxy import Proxy, running_proxy
from tests.processes import Daemon, running_daemon


@pytest.fixture(scope="package")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests that only open episodes of their own."""
    with running_daemon(tmp_path_factory.mktemp("client") / "brain") as running:
        yield running


@dataclass(frozen=True)
class Wire:
    """A daemon, the proxy before it, and the URL through the proxy."""

    daemon: Daemon
    proxy: Proxy

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.proxy.port}"


@pytest.fixture
def wire(shared_daemon: Daemon) -> Iterator[Wire]:
    """The shared daemon behind a proxy of this test's own."""
    with running_proxy(shared_daemon.port) as proxy:
        yield Wire(shared_daemon, proxy)
