"""The stages of a pipeline with the PyTorch trainer, in this process; the daemon that activates is played."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from brain_service.errors import InvalidError, NotFoundError, UnavailableError
from brain_service.export.bundle import read_manifest
from brain_service.inference.model_store import ModelStore
from brain_service.jobs.context import JobContext
from brain_service.jobs.pipeline import run_stages
from brain_service.jobs.stages import train
from brain_service.jobs.table import JobTable
from brain_service.settings import GateSettings, LoraSettings, Settings
from brain_service.training.torch_lora.document import read_document
from brain_service.training.torch_lora.store import AdapterStore
from tests.hardware.sysfs import set_mains, set_temperature
from tests.jobs.recordings import write_episodes
from tests.jobs.test_learning import answering_daemon
from tests.jobs.test_stages import context_of
from tests.training.torch_lora.adapting import digest

needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None,
    reason="torch is not installed: pip install 'continuon-brain[torch]'",
)

BASE = {"trainer": "jax", "steps": 20, "batch_size": 4, "sequence_length": 8, "learning_rate": 1e-3}
TUNE = {"trainer": "pytorch", "steps": 40, "batch_size": 4, "sequence_length": 8, "learning_rate": 1e-2}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    set_temperature(tmp_path / "sys", 50)
    set_mains(tmp_path / "sys", True)
    return Settings(data_dir=tmp_path / "brain", gates=GateSettings(sysfs=tmp_path / "sys"))


@pytest.fixture
def table(settings: Settings) -> Iterator[JobTable]:
    settings.data_dir.mkdir(exist_ok=True)
    table = JobTable(settings.database)
    yield table
    table.close()


def carried_out(settings: Settings, table: JobTable, kind: str, **params: Any) -> JobContext:
    context = context_of(settings, table, kind, **params)
    run_stages(context)
    table.finish(context.job.job_id, "succeeded")
    return context


@needs_torch
@pytest.mark.slow
def test_a_pipeline_fine_tunes_the_active_model_and_notes_what_became_of_it(
    settings: Settings, table: JobTable
) -> None:
    write_episodes(settings.episodes_dir, 20, 20)
    with answering_daemon(table) as activated:
        base = carried_out(settings, table, "pipeline", **BASE)
        ModelStore(settings.models_dir).point(base.result["model_id"], None)
        before = digest(settings.models_dir / base.result["model_id"])
        tuned = carried_out(settings, table, "pipeline", **TUNE)
    run, trained = tuned.job.job_id, tuned.result["train"]
    document = read_document(settings.adapters_dir / run)
    assert trained["base"] == f"model {base.result['model_id']}"
    assert (trained["checkpoint"], trained["sha256"]) == (run, document.sha256)
    promotion = tuned.result["evaluation"]["promotion"]
    assert promotion["promoted"], promotion["reason"]
    assert promotion["candidate_error"] < promotion["active_error"]
    assert activated == [base.result["model_id"], tuned.result["model_id"]]
    assert read_manifest(settings.models_dir / tuned.result["model_id"]).adapters == document.provenance()
    assert read_manifest(settings.models_dir / base.result["model_id"]).adapters is None
    assert digest(settings.models_dir / base.result["model_id"]) == before
    events = [(line["event"], line["run"], line["who"]) for line in AdapterStore(settings.adapters_dir).audit()]
    assert events == [("trained", run, f"job {run}"), ("promoted", run, f"job {run}")]
    (report,) = (report for report in table.get(run).stages if report.name == "train")
    assert report.command is not None and report.command.startswith("brain lora train --data-dir")


@pytest.fixture
def recorded(settings: Settings) -> Settings:
    write_episodes(settings.episodes_dir, 4, 8)
    return settings


def trained(settings: Settings, table: JobTable, **params: Any) -> JobContext:
    """Convert, then run the stage that trains."""
    from brain_service.jobs.stages import convert

    context = context_of(settings, table, "train", **params)
    decided = {"trainer": params["trainer"], "reason": "it was asked for", "alternatives": []}
    context.job = table.set_trainer(context.job.job_id, decided)
    context.result.update(convert.run(context).result)
    train.run(context)
    return context


def test_without_torch_the_job_fails_with_how_to_install_it(
    recorded: Settings, table: JobTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UnavailableError, match=r"continuon-brain\[torch\]"):
        trained(recorded, table, **TUNE)
    assert not recorded.adapters_dir.exists()
    assert not recorded.checkpoints_dir.exists()


@needs_torch
def test_a_missing_sensor_fails_the_job_before_anything_is_written(
    recorded: Settings, table: JobTable, tmp_path: Path
) -> None:
    blind = recorded.model_copy(update={"gates": GateSettings(sysfs=tmp_path / "nothing")})
    with pytest.raises(UnavailableError, match=r"sensor 'battery' is missing.*sensor 'temperature' is missing"):
        trained(blind, table, **TUNE)
    assert not recorded.adapters_dir.exists()
    # Allowed by name, it gets as far as looking for a base.
    allowed = blind.model_copy(update={"lora": LoraSettings(allow_missing=("battery", "temperature"))})
    with pytest.raises(NotFoundError, match="no checkpoint yet to train adapters on; make one with trainer 'jax'"):
        trained(allowed, table, **TUNE)


@needs_torch
def test_a_base_that_is_not_there_is_told(recorded: Settings, table: JobTable) -> None:
    named = recorded.model_copy(update={"lora": LoraSettings(base_model_path="nothing")})
    with pytest.raises(NotFoundError, match="'nothing' is no folder, no run"):
        trained(named, table, **TUNE)


def test_a_mode_that_adapters_know_not_is_refused(recorded: Settings, table: JobTable) -> None:
    with pytest.raises(InvalidError, match="windows only"):
        trained(recorded, table, **TUNE, mode="streams")
