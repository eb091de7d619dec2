"""`brain lora promote` and `rollback` where something is not as it should be; judged and exported by stand-ins."""

import getpass
import json
import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from brain_service.cli import main
from brain_service.datasets import dataset
from brain_service.durable import replace_symlink
from brain_service.export import jax_step
from brain_service.inference.model_store import ModelStore
from brain_service.jobs import bases
from brain_service.training import checkpointing, evaluation
from brain_service.training.torch_lora.store import AdapterStore
from tests.training.torch_lora.test_gates import locked
from tests.training.torch_lora.test_store import put

NEW, OLD = "0123456789abcdef", "fedcba9876543210"


@dataclass
class Brain:
    """A data directory, and the command on it."""

    path: Path
    capsys: pytest.CaptureFixture[str]

    @property
    def store(self) -> AdapterStore:
        return AdapterStore(self.path / "adapters")

    @property
    def active(self) -> str | None:
        return ModelStore(self.path / "models").linked("active")

    def point(self, **links: str) -> None:
        (self.path / "models").mkdir(exist_ok=True)
        for name, target in links.items():
            replace_symlink(self.path / "models" / name, target)

    def lora(self, *arguments: str, code: int = 2) -> str:
        assert main(["lora", *arguments, "--data-dir", str(self.path)]) == code
        said = self.capsys.readouterr()
        return said.err if code else said.out


@pytest.fixture
def brain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Brain:
    return Brain(tmp_path, capsys)


@pytest.fixture
def exported(brain: Brain, monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], Any]]:
    """Adapters of run `kitchen` with a checkpoint of theirs; returns what is to happen while it is exported."""
    meanwhile: list[Callable[[], Any]] = []
    sha256 = put(brain.store, "kitchen")

    def export(*_: Any, **__: Any) -> Path:
        for happen in meanwhile:
            happen()
        return brain.path / "models" / NEW

    loaded = SimpleNamespace(step=7, meta={"adapters": {"sha256": sha256}})
    monkeypatch.setattr(checkpointing, "load_checkpoint", lambda _: loaded)
    monkeypatch.setattr(dataset, "open_dataset", lambda _: None)
    monkeypatch.setattr(evaluation, "Subject", SimpleNamespace(of_checkpoint=lambda *_: None))
    monkeypatch.setattr(evaluation, "evaluate_subject", lambda *_, **__: SimpleNamespace(to_json=dict))
    monkeypatch.setattr(jax_step, "export_jax", export)
    (brain.path / "models").mkdir()
    return meanwhile


def test_adapters_that_are_merged_into_no_checkpoint_are_told_what_merges_them(brain: Brain) -> None:
    put(brain.store, "kitchen")
    assert "`brain lora merge kitchen` writes it" in brain.lora("promote", "kitchen")
    assert [line["event"] for line in brain.store.audit()] == []


@pytest.mark.parametrize("adapters", [None, {"sha256": "f" * 64}])
def test_a_checkpoint_of_something_else_is_not_promoted_under_the_runs_name(
    adapters: Any, brain: Brain, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(brain.store, "kitchen")
    loaded = SimpleNamespace(step=7, meta={"adapters": adapters})
    monkeypatch.setattr(checkpointing, "load_checkpoint", lambda _: loaded)
    assert "step 7, does not hold its adapters" in brain.lora("promote", "kitchen")
    assert brain.active is None
    assert [line["event"] for line in brain.store.audit()] == []


def test_a_dataset_that_a_daemon_would_not_look_at_is_refused(brain: Brain) -> None:
    put(brain.store, "kitchen")
    said = brain.lora("promote", "kitchen", "--data-path", "elsewhere", "--url", "http://127.0.0.1:1")
    assert "the daemon judges run kitchen on the dataset that it was trained on, episodes/1.0.0" in said


def test_a_daemon_that_starts_while_a_model_is_exported_keeps_what_it_serves(
    brain: Brain, exported: list[Callable[[], Any]]
) -> None:
    with ExitStack() as stack:
        exported.append(lambda: stack.enter_context(locked(brain.path / ".lock")))
        assert "give its address with --url" in brain.lora("promote", "kitchen")
    assert brain.active is None


def test_a_model_that_became_active_meanwhile_is_not_replaced_unjudged(
    brain: Brain, exported: list[Callable[[], Any]]
) -> None:
    exported.append(lambda: brain.point(active=OLD))
    assert "was not held against; promote it again" in brain.lora("promote", "kitchen")
    assert brain.active == OLD
    assert [line["event"] for line in brain.store.audit()] == []


def test_what_a_user_without_a_name_promotes_is_noted_and_pardoned(
    brain: Brain, exported: list[Callable[[], Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")  # as in a container

    monkeypatch.setattr(getpass, "getuser", nameless)
    models = ModelStore(brain.path / "models")
    models.reject(NEW, "it answered NaN")
    assert json.loads(brain.lora("promote", "kitchen", code=0))["model_id"] == NEW
    assert brain.active == NEW
    assert models.rejected() == {}
    (line,) = brain.store.audit()
    assert (line["event"], line["who"]) == ("promoted", f"user {os.getuid()} by brain lora")


def test_adapters_elsewhere_are_found_by_every_command(brain: Brain) -> None:
    elsewhere = brain.path / "elsewhere"
    put(AdapterStore(elsewhere), "kitchen")
    assert "kitchen" in brain.lora("ls", "--adapters-out-dir", str(elsewhere), code=0)
    assert "`brain lora merge kitchen`" in brain.lora("promote", "kitchen", "--adapters-out-dir", str(elsewhere))


@pytest.mark.parametrize("name", ["_kitchen", "-kitchen", "ki tchen", "küche", "../kitchen", "k" * 65])
def test_a_run_gets_a_name_that_the_api_takes_too(name: str, brain: Brain) -> None:
    assert "a letter or digit first" in brain.lora("train", f"--run={name}", "--rlds-dir", "nowhere")


def test_a_rollback_goes_nowhere_where_nothing_else_was_before(
    brain: Brain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bases, "active_adapters", lambda _: "a" * 64)
    # As a kill between the two links leaves them.
    brain.point(active=NEW, previous=NEW)
    assert "there is nothing to go back to" in brain.lora("rollback")
    brain.point(previous=OLD)
    ModelStore(brain.path / "models").reject(OLD, "it answered NaN")
    assert f"model {OLD}, which was active before, was rejected (it answered NaN)" in brain.lora("rollback")
    assert brain.active == NEW
