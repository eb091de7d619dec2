"""A medium that fails for a while: loud refusals, inference goes on, nothing durable is lost, and it heals."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.episodes.test_media import needs_mount
from tests.faults.ailing import FAULTS, Fault, crawl, serving_a_toy, suffer
from tests.faults.faulty_daemon import FaultyDaemon
from tests.faults.full import fill_up


def often(fault: Fault) -> pytest.MarkDecorator:
    """One fault of each kind is tried with every test run, all of them in the soak."""
    return (
        pytest.mark.long
        if (fault.durability == "interval" and fault.error != "EIO") or fault.lose
        else pytest.mark.soak
    )


@pytest.fixture(scope="module")
def ailing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyDaemon]:
    with serving_a_toy(tmp_path_factory.mktemp("ailing")) as daemon:
        yield daemon


@pytest.mark.parametrize("fault", [pytest.param(fault, marks=often(fault), id=fault.name) for fault in FAULTS])
def test_capture_degrades_loudly_and_recovers_by_itself(ailing: FaultyDaemon, fault: Fault) -> None:
    course = suffer(ailing, fault, f"ailing-{FAULTS.index(fault)}", fault_s=0.7)
    assert course.problems == []
    assert course.durable_lost == 0
    assert course.accepted_lost == 0 or fault.lose, "only a kernel that drops pages may lose what was accepted"
    assert course.refused > 0
    assert course.acted > 10, "inference goes on"
    assert course.slowest_livez_s < 1.0


@pytest.mark.soak
def test_a_crawling_medium_pushes_back_and_holds_up_nothing_else(ailing: FaultyDaemon) -> None:
    course, grown_bytes = crawl(ailing)
    assert course.problems == []
    assert course.accepted < 8 * 60, "the robots feel it"
    assert course.acted > 30, "inference goes on"
    assert course.slowest_livez_s < 0.5
    assert grown_bytes < 64 * 1024**2


@pytest.mark.long
@needs_mount
def test_a_really_full_file_system_is_survived_by_the_daemon(tmp_path: Path) -> None:
    """A real tmpfs, full to the last page with the database and the logs on it."""
    refused, health, others, healed = fill_up(tmp_path)
    assert refused.startswith("503 ")
    assert "disk is full" in refused
    assert "None" not in refused, "it says when to come back"
    assert health.startswith("503 ")
    assert "disk is full" in health
    assert others == "503 200"
    assert healed == "pass"
