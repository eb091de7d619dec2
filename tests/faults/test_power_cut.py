"""After a power cut at any instant nothing is lost that was called durable, and the judge notices if it were."""

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from brain_service.episodes import log, page_cache, recovery
from brain_service.episodes.log import EpisodeFile
from brain_service.episodes.writer import EpisodeWriter
from tests.fakes.disk import Call
from tests.faults.power_cut import (
    Scenario,
    cut_everywhere,
    judged_apart,
    record,
    record_failing,
    record_failing_killed,
    record_killed,
)
from tests.faults.scenarios import (
    archive_life,
    failing_death,
    failing_life,
    image_life,
    logger_life,
    retention_life,
    store_life,
)

SCENARIOS: list[Scenario] = [store_life, logger_life, image_life, archive_life, retention_life]


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_durable_step_is_lost_to_a_power_cut(tmp_path: Path, scenario: Scenario) -> None:
    verdict = judged_apart(record(scenario, tmp_path, seed=1), every=24)
    assert verdict.violations == []
    assert verdict.recoveries > 8


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_durable_step_is_lost_at_any_instant(tmp_path: Path, scenario: Scenario, seed: int) -> None:
    verdict = judged_apart(record(scenario, tmp_path, seed), seed, draws=2)
    assert verdict.violations == []
    assert verdict.recoveries > 80


@pytest.mark.parametrize(("scenario", "kill_at"), [(store_life, 20), (store_life, 36), (retention_life, 33)])
def test_a_kill_and_then_a_power_cut_lose_no_durable_step(
    tmp_path: Path, scenario: Scenario, kill_at: int
) -> None:
    """What the killed process had not flushed, the next one must not call durable before it has."""
    verdict = judged_apart(record_killed(scenario, tmp_path, kill_at, kill_at), every=12)
    assert verdict.violations == []


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(4, marks=pytest.mark.long),
        *(pytest.param(first, marks=pytest.mark.soak) for first in (2, 3, 6, 7)),
    ],
)
def test_what_a_failed_flush_may_have_dropped_is_not_called_durable(tmp_path: Path, first: int) -> None:
    recording = record_failing(failing_life, tmp_path, seed=first, fails=range(first, first + 3))
    assert judged_apart(recording, every=3).violations == []


@pytest.mark.parametrize("first", [3, 6, *(pytest.param(first, marks=pytest.mark.soak) for first in (2, 4, 9))])
def test_what_a_failed_flush_dropped_before_a_kill_is_not_called_durable(tmp_path: Path, first: int) -> None:
    """The next process reads it all from the cache, where a flush finds nothing to do."""
    recording = record_failing_killed(failing_death, tmp_path, seed=first, fails=range(first, 10**6))
    verdict = judged_apart(recording, every=12)
    assert verdict.violations == []
    assert verdict.durable > 0


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_kills_and_then_power_cuts_lose_no_durable_step(tmp_path: Path, scenario: Scenario, seed: int) -> None:
    recording = record_killed(scenario, tmp_path, seed, kill_at=random.Random(seed).randrange(3, 110))
    assert judged_apart(recording, seed, every=4).violations == []


def violations(tmp_path: Path, scenario: Scenario, skips: Callable[[Call], bool] = lambda call: False) -> str:
    """Return what the judge finds wrong with a writer that was broken on purpose."""
    return "\n".join(judged_apart(record(scenario, tmp_path, seed=1, skips=skips), every=8).violations)


def is_file_flush(call: Call) -> bool:
    return call.kind == "sync" and not call.is_folder


def is_folder_flush(call: Call) -> bool:
    return call.kind == "sync" and call.is_folder


@pytest.mark.parametrize("scenario", [pytest.param(store_life, marks=pytest.mark.soak), logger_life])
def test_flushes_of_files_left_out_are_caught(tmp_path: Path, scenario: Scenario) -> None:
    assert "was durable" in violations(tmp_path, scenario, is_file_flush)


@pytest.mark.parametrize("scenario", [pytest.param(store_life, marks=pytest.mark.soak), logger_life])
def test_flushes_of_folders_left_out_are_caught(tmp_path: Path, scenario: Scenario) -> None:
    assert "was created and is gone" in violations(tmp_path, scenario, is_folder_flush)


@pytest.mark.soak
def test_flushing_only_the_folder_that_holds_the_logs_is_caught(tmp_path: Path) -> None:
    found = violations(tmp_path, store_life, lambda c: is_folder_flush(c) and not c.path.endswith("/episodes"))
    assert "was created and is gone" in found


def test_a_document_that_is_not_flushed_before_its_rename_is_caught(tmp_path: Path) -> None:
    found = violations(tmp_path, logger_life, lambda c: is_file_flush(c) and ".json." in c.path)
    assert found


@pytest.mark.long
def test_an_end_that_is_answered_before_its_flush_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending, end = threading.local(), EpisodeWriter.end

    def careless(writer: EpisodeWriter, *arguments: object) -> object:
        ending.now = True
        try:
            return end(writer, *arguments)  # type: ignore[arg-type]
        finally:
            ending.now = False

    monkeypatch.setattr(EpisodeWriter, "end", careless)
    found = violations(tmp_path, store_life, lambda c: is_file_flush(c) and getattr(ending, "now", False))
    assert "ended as" in found


@pytest.mark.soak
def test_an_end_line_that_vouches_for_unflushed_steps_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flush for the last steps and the end line together: the line may arrive on the medium without them."""
    sync, flushes = EpisodeFile.sync, threading.local()

    def end(writer: EpisodeWriter, *arguments: object) -> object:
        flushes.skip = 1
        return whole_end(writer, *arguments)  # type: ignore[arg-type]

    def lazy(file: EpisodeFile) -> None:
        if getattr(flushes, "skip", 0):
            flushes.skip -= 1
            return
        sync(file)

    whole_end = EpisodeWriter.end
    monkeypatch.setattr(EpisodeWriter, "end", end)
    monkeypatch.setattr(EpisodeFile, "sync", lazy)
    found = "\n".join(
        text
        for seed in (1, 8)
        for text in judged_apart(record(logger_life, tmp_path / str(seed), seed), seed, draws=3).violations
    )
    assert "CorruptDataError" in found


@pytest.mark.soak
def test_a_failed_flush_that_is_only_tried_again_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second fdatasync succeeds and saves nothing: the kernel thinks the pages are clean."""
    monkeypatch.setattr(EpisodeFile, "_rewrite", lambda file, start, is_whole: file.size_bytes)
    recording = record_failing(failing_life, tmp_path, seed=4, fails=range(4, 7))
    assert "was durable" in "\n".join(judged_apart(recording, every=2).violations)


def test_a_recovery_that_believes_the_cache_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It flushes, is told that all went well, and the medium still lacks what a flush before it had dropped."""
    for place in (log, page_cache):
        monkeypatch.setattr(place, "bring_to_medium", lambda fd, _=0: os.fsync(fd))
    recording = record_failing_killed(failing_death, tmp_path, seed=3, fails=range(3, 10**6))
    found = judged_apart(recording, every=4).violations
    for name in ("robot", "camera"):
        assert any(name in text and "was durable" in text for text in found), name


@pytest.mark.soak
def test_a_recovery_that_believes_every_line_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros and torn lines are cut because they fail their checksums; one that counts newlines keeps them."""
    recording = record(store_life, tmp_path, seed=1)

    def believe(file: EpisodeFile, found: recovery.LogScan) -> recovery.RecoveryReport:
        return recovery.RecoveryReport(found.header.episode_id, len(found.offsets))

    monkeypatch.setattr(recovery, "_cut", believe)
    assert cut_everywhere(recording, every=60).violations
