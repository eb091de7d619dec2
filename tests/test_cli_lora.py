"""`brain lora` on the files alone: train, merge, promote, refuse, go back."""

import importlib.util
import json
import os
from pathlib import Path
from typing import Any

import pytest

from brain_service.cli import main
from brain_service.training.loop import train
from tests.training.tasks import make_dataset, tiny
from tests.training.torch_lora.test_gates import locked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torch") is None,
        reason="torch is not installed: pip install 'continuon-brain[torch]'",
    ),
]

SMALL = [
    "--max-steps",
    "80",
    "--batch-size",
    "4",
    "--sequence-length",
    "8",
    "--lora-layers",
    "heads",
    "--rank",
    "2",
    "--learning-rate",
    "0.01",
]


def test_adapters_are_trained_promoted_and_taken_back_without_a_daemon(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRAIN_LORA__ALLOW_MISSING", "battery,temperature")
    brain = tmp_path / "brain"
    dataset = make_dataset(tmp_path, count=20)
    train(dataset, brain / "checkpoints" / "base", tiny())

    def lora(*arguments: str, code: int = 0) -> Any:
        assert main(["lora", *arguments, "--data-dir", str(brain)]) == code
        said = capsys.readouterr()
        return json.loads(said.out) if code == 0 else said.err

    def active() -> str:
        return os.readlink(brain / "models" / "active")

    for run, base, seed in (("first", "base", "0"), ("second", "first", "1")):
        flags = ["--run", run, "--rlds-dir", str(dataset), "--base-model-path", base, "--seed", seed]
        assert lora("train", *flags, *SMALL)["completed"] is True
    first = lora("promote", "first", "--data-path", str(dataset))
    assert first["verdict"] == "no model was active"
    assert active() == first["model_id"]
    second = lora("promote", "second", "--data-path", str(dataset))
    assert second["verdict"].startswith("it is not worse")
    assert active() == second["model_id"] != first["model_id"]
    places = {each["run"]: each["place"] for each in lora("ls", "--json")}
    assert places == {"first": "history", "second": "current"}

    with locked(brain / ".lock"):  # as a daemon holds it
        assert "give its address with --url" in lora("rollback", code=2)
    assert active() == second["model_id"]
    assert lora("rollback")["model_id"] == first["model_id"] == active()
    places = {each["run"]: each["place"] for each in lora("ls", "--json")}
    assert places == {"first": "current", "second": "history"}

    # The base itself is worse than what was made of it.
    flags = [
        "--run",
        "none",
        "--rlds-dir",
        str(dataset),
        "--base-model-path",
        "base",
        *SMALL[2:],
        "--max-steps",
        "0",
    ]
    assert lora("train", *flags)["steps"] == 0
    assert "is not promoted: it" in lora("promote", "none", "--data-path", str(dataset), code=2)
    assert active() == first["model_id"]
    events = [json.loads(line)["event"] for line in (brain / "adapters" / "audit.jsonl").read_text().splitlines()]
    assert events.count("promoted") == 2
    assert events[-1] == "not promoted"

    assert "no adapters of run 'nothing'; there are first, none, second" in lora("merge", "nothing", code=2)
    merged = lora("merge", "second", "--checkpoint-dir", str(tmp_path / "again"))
    assert merged["adapters"]["sha256"] == second["sha256"]
