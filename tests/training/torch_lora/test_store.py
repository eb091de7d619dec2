"""The adapters of a robot and the audit of what became of them; written by hand, so without torch."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from brain_service.errors import ConflictError, CorruptDataError, NotFoundError, UnavailableError
from brain_service.training.torch_lora.document import read_document
from brain_service.training.torch_lora.store import AUDIT, AdapterStore


def put(store: AdapterStore, run: str, data: bytes = b"", **more: Any) -> str:
    """Write what looks like a run's adapters and return their hash."""
    folder = store.folder / run
    folder.mkdir(parents=True)
    data = data or run.encode()
    sha256 = hashlib.sha256(data).hexdigest()
    document = {
        "sha256": sha256,
        "base_sha256": "b" * 64,
        "rank": 4,
        "alpha": 8.0,
        "layers": ["heads.out"],
        "extra": {
            "base": {"name": "run a, step 9", "source": "/a"},
            "steps": 7,
            "config": {},
            "control_period_s": 0.02,
            "dataset": {"name": "episodes", "version": "1.0.0"},
        },
    }
    (folder / "adapters.safetensors").write_bytes(data)
    (folder / "adapters.json").write_text(json.dumps(document | more))
    return sha256


def places(store: AdapterStore, active: str | None) -> dict[str, str]:
    return {each.run: each.place for each in store.entries(active)}


def test_the_active_model_alone_says_which_adapters_are_current(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    first, second = put(store, "first"), put(store, "second")
    assert places(store, None) == {"first": "candidate", "second": "candidate"}
    store.note("promoted", "first", first, "a test")
    assert places(store, first) == {"first": "current", "second": "candidate"}
    store.note("promoted", "second", second, "a test")
    assert places(store, second) == {"first": "history", "second": "current"}
    # Rolled back by the daemon itself: nobody told the store.
    assert places(store, first) == {"first": "current", "second": "history"}
    assert places(store, "f" * 64) == {"first": "history", "second": "history"}


def test_the_audit_finds_out_what_it_was_not_told(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    sha256 = put(store, "first")
    store.catch_up(None)
    assert store.audit() == []
    store.catch_up(sha256)
    store.catch_up(sha256)
    (line,) = store.audit()
    assert (line["event"], line["run"], line["sha256"]) == ("found", "first", sha256)
    store.catch_up(None)
    assert [line["sha256"] for line in store.audit()] == [sha256, None]


def test_every_line_tells_when_who_what_and_on_which_figures(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "made" / "when needed")
    store.note("not promoted", "r", "a" * 64, "job 7", verdict="worse", evaluation={"growth": 0.3})
    (line,) = store.audit()
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "event": "not promoted",
        "run": "r",
        "sha256": "a" * 64,
        "who": "job 7",
        "verdict": "worse",
        "evaluation": {"growth": 0.3},
    }


def test_a_line_that_a_power_cut_tore_swallows_no_other(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    store.note("trained", "a", None, "x")
    with (tmp_path / AUDIT).open("ab") as file:
        file.write(b'{"event": "prom')
    store.note("trained", "b", None, "x")
    assert [line["run"] for line in store.audit()] == ["a", "b"]


def test_an_audit_that_cannot_be_written_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UnavailableError, match="make room"):
        AdapterStore(tmp_path / "file").note("trained", "a", None, "x")


def test_an_unknown_run_is_told_with_those_that_are(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    with pytest.raises(NotFoundError, match="none yet: brain lora train"):
        store.path("nothing")
    put(store, "kitchen")
    with pytest.raises(NotFoundError, match="there are kitchen"):
        store.path("nothing")


def test_a_flipped_bit_is_found_and_the_other_runs_are_still_listed(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    put(store, "good")
    put(store, "bad")
    (tmp_path / "bad" / "adapters.safetensors").write_bytes(b"bae")
    with pytest.raises(CorruptDataError, match="SHA-256"):
        read_document(tmp_path / "bad")
    assert places(store, None) == {"bad": "unreadable", "good": "candidate"}


def test_a_run_that_is_not_over_has_no_adapters_yet(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    with pytest.raises(NotFoundError, match="not over"):
        AdapterStore(tmp_path).document("half")
    assert places(AdapterStore(tmp_path), None) == {"half": "unfinished"}


@pytest.mark.parametrize("broken", ["{", "[]", '{"sha256": "x"}'])
def test_a_document_that_cannot_be_is_told(broken: str, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    put(store, "run")
    (tmp_path / "run" / "adapters.json").write_text(broken)
    with pytest.raises(CorruptDataError, match="train the adapters again"):
        store.document("run")


@pytest.mark.parametrize("missing", ["config", "control_period_s", "dataset", "source"])
def test_a_document_without_what_merging_needs_is_told(missing: str, tmp_path: Path) -> None:
    store = AdapterStore(tmp_path)
    put(store, "run")
    path = tmp_path / "run" / "adapters.json"
    document = json.loads(path.read_text())
    del (document["extra"]["base"] if missing == "source" else document["extra"])[missing]
    path.write_text(json.dumps(document))
    with pytest.raises(CorruptDataError, match=f"'{missing}'.*train the adapters again"):
        store.document("run")


def test_one_process_at_a_time_works_on_a_run(tmp_path: Path) -> None:
    store = AdapterStore(tmp_path / "adapters")
    with store.hold("kitchen"):
        with pytest.raises(ConflictError, match="another process works on run 'kitchen'"), store.hold("kitchen"):
            pass
        with store.hold("garden"):
            pass
    with store.hold("kitchen"):
        assert places(store, None) == {}
