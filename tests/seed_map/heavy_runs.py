"""Rows that train, or need what was trained: the cloud's job, export, Hailo, the loop on the robot, and after."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import httpx
import jax
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from brain_service.cloud.run_status import RunStatus
from brain_service.episodes import read_episode
from brain_service.export import Bundle
from brain_service.export.bundle import HEF
from brain_service.model import init_carry
from brain_service.training import load_checkpoint
from tests.cloud_trainer.fleet_venv import PYTHON, run_there
from tests.export.hailo_toy import FAKES
from tests.processes import Daemon, running_daemon
from tests.seed_map.chain import ACTION, BUCKET, RUN, SMALL, TRAINED_STEPS, Chain
from tests.seed_map.registry import slow_run
from tests.seed_map.table import ROOT

# Orbax by itself, and our reader, on one checkpoint in the bucket.
READ_BY_ORBAX = """
import sys
from pathlib import Path
from brain_service.datasets.gcs_libraries import prepare_gcs_libraries
prepare_gcs_libraries()
import jax, numpy as np
import orbax.checkpoint as ocp
from brain_service.training import load_checkpoint
run, step = sys.argv[1:]
plain = ocp.PyTreeCheckpointer().restore(f"{run}/checkpoints/{step}/params")
ours = load_checkpoint(run)
pairs = zip(jax.tree.leaves(plain), jax.tree.leaves(ours.params), strict=True)
print(ours.step, all(np.array_equal(one, other) for one, other in pairs))
"""


def act(daemon: Daemon, chain: Chain, model_id: str, steps: int = 5) -> list[dict[str, Any]]:
    """Have a model serve, and ask it for actions on recorded observations."""
    seen = np.asarray(read_episode(chain.recorded[0]).observation["command"])
    with httpx.Client(base_url=daemon.url, timeout=120) as http:
        http.post(f"/models/{model_id}/activate").raise_for_status()
        session = http.post("/sessions", json={}).json()["session_id"]
        answers = []
        for number in range(steps):
            body = {"session_id": session, "step": number, "observation": {"command": seen[number].tolist()}}
            answer = http.post("/infer", json=body | {"reward": 0.5, "deadline_ms": 20_000})
            assert answer.status_code == 200, answer.text
            answers.append(answer.json())
    return answers


@slow_run
def train_in_the_bucket(chain: Chain) -> None:
    assert f"step {TRAINED_STEPS}/{TRAINED_STEPS} loss" in chain.cloud_run
    prefix = RUN.removeprefix(f"gs://{BUCKET}/")
    found = chain.bucket.objects(BUCKET, f"{prefix}/")
    status = RunStatus.from_json(found[f"{prefix}/status.json"], RUN)
    assert (status.phase, status.step) == ("done", TRAINED_STEPS)
    assert f"{prefix}/models/{status.model_id}/manifest.json" in found and f"{prefix}/report.json" in found
    assert "is done" in chain.run(*chain.train_command), "the same command again only says so"


@slow_run
def checkpoint(chain: Chain) -> None:
    assert chain.cloud_run
    assert chain.run("-c", READ_BY_ORBAX, RUN, str(TRAINED_STEPS)) == f"{TRAINED_STEPS} True\n"


@slow_run
def export(chain: Chain) -> None:
    assert chain.exported.parent == chain.root / "models" / "core_model_inference"
    manifest = Bundle.open(chain.exported).manifest
    assert manifest.quantisation == "fp16" and manifest.model_id == chain.exported.name
    assert all(parity.measured <= 2e-2 for parity in manifest.parity.values())
    (chain.root / "damaged").mkdir()
    for path in chain.exported.iterdir():
        (chain.root / "damaged" / path.name).write_bytes(path.read_bytes())
    with (chain.root / "damaged" / "params.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    with pytest.raises(Exception, match=r"params\.safetensors.*SHA-256"):
        Bundle.open(chain.root / "damaged")


@slow_run
def export_hailo(chain: Chain) -> None:
    assert chain.compiled == chain.root / "models" / "core_model_hailo" / chain.exported.name
    bundle = Bundle.open(chain.compiled)
    assert HEF in bundle.manifest.files and bundle.manifest.parity["hailo"].measured <= 2e-2
    assert HEF not in Bundle.open(chain.exported).manifest.files, "the bundle that was copied stays as it was"


@slow_run
def hailo_runtime(chain: Chain) -> None:
    data_dir = chain.root / "with-hailo"
    (data_dir / "models").mkdir(parents=True)
    (data_dir / "models" / chain.compiled.name).symlink_to(chain.compiled)
    (data_dir / "chip").mkdir()
    environment = {
        "PYTHONPATH": f"{FAKES}{os.pathsep}{ROOT}",
        "HAILO_FAKE_PROFILE": "4.23",
        "HAILO_FAKE_DIR": str(data_dir / "chip"),
        "BRAIN_INFERENCE__BACKENDS": "hailo",
        "BRAIN_INFERENCE__HAILO_PYTHON": sys.executable,
        "BRAIN_INFERENCE__CANARY_STEPS": "0",
    }
    with running_daemon(data_dir, env=environment) as daemon:
        answers = act(daemon, chain, chain.compiled.name)
    assert {answer["backend"] for answer in answers} == {"hailo (simulated)"}
    assert not (data_dir / "chip" / "crimes").exists()


@slow_run
def pipeline(chain: Chain) -> None:
    assert [(report["name"], report["status"]) for report in chain.pipeline] == [
        (name, "done") for name in ("health", "convert_tfrecord", "train_local", "export")
    ]
    assert Bundle.open(chain.local_model).manifest.model_id == chain.local_model.name


@slow_run
def serve(chain: Chain) -> None:
    model_id = chain.local_model.name
    with running_daemon(chain.brain) as daemon:
        answers = act(daemon, chain, model_id)
        (model,) = httpx.get(f"{daemon.url}/models").json()["models"]
    assert all(len(answer["action"]["command"]) == ACTION for answer in answers)
    assert np.isfinite([answer["action"]["command"] for answer in answers]).all()
    assert {answer["model_id"] for answer in answers} == {model_id}
    why = {each["backend"]: each for each in model["serving"]["why"]}
    assert {answer["backend"] for answer in answers} <= {name for name, each in why.items() if each["used"]}
    assert all(each["used"] or each["reason"] for each in why.values())


@slow_run
def evaluate(chain: Chain) -> None:
    report = chain.root / "report"
    told = json.loads(
        chain.brain_command(
            *("evaluate", "--data-path", chain.tfrecord, "--checkpoint-dir", chain.local_run),
            *("--report-dir", report),
        )
    )
    assert told["split"] == "val" and told["step"] == TRAINED_STEPS
    assert json.loads((report / "evaluation.json").read_text()) == told
    assert (report / "evaluation.html").read_text().startswith("<!doctype html>")


@slow_run
def tune(chain: Chain) -> None:
    from google.cloud.aiplatform_v1.types import HyperparameterTuningJob
    from google.protobuf import json_format

    space = chain.root / "space.toml"
    space.write_text('[learning_rate]\ntype = "double"\nmin = 1e-4\nmax = 1e-2\nscale = "log"\n')
    words = ("-m", "cloud_trainer", "tune", "--search", "random", "--trials", "2", "--space", space)
    folder = chain.root / "search"
    chain.run(
        *(*words, "--data-path", chain.converted.dataset_dir, "--output-dir", folder, "--num-steps", "2"),
        *("--", "--preset", "development", "--batch-size", "4", "--sequence-length", "8"),
        *("--set", f"model={SMALL}", "--set", "warmup_steps=1"),
    )
    assert "the best one:" in (folder / "results.txt").read_text()
    sent = chain.run(
        *(*words, "--data-path", "gs://b/d", "--output-dir", "gs://b/o"),
        *("--launcher", "vertex-spec", "--image", "eu/image:1"),
    )
    job = HyperparameterTuningJob.pb(HyperparameterTuningJob())
    json_format.ParseDict(json.loads(sent), job, ignore_unknown_fields=False)
    assert [parameter.parameter_id for parameter in job.study_spec.parameters] == ["learning_rate"]


@slow_run
def vertex_pipeline(chain: Chain) -> None:
    if not PYTHON.exists():
        pytest.skip(f"no KFP at {PYTHON}: make fleet")
    import yaml

    path = chain.root / "pipeline.yaml"
    run_there("pipeline", "--output", str(path), "--image", "eu/image:1")
    tasks = yaml.safe_load(path.read_text())["root"]["dag"]["tasks"]
    assert set(tasks) == {"upload", "plan", "train", "evaluate", "register"}


@slow_run
def monitor(chain: Chain) -> None:
    logs = chain.local_run / "logs"
    lines = [json.loads(line) for line in (logs / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == TRAINED_STEPS and np.isfinite(lines[-1]["loss"])
    assert list(logs.glob("events.out.tfevents.*"))
    with running_daemon(chain.root / "watched") as daemon:
        page = httpx.get(f"{daemon.url}/metrics").text
        healthy = chain.brain_command("health", "--url", daemon.url, "--json", code=health_code(daemon))
    assert any(family.name.startswith("brain_") for family in text_string_to_metric_families(page))
    assert json.loads(healthy)["status"] in ("pass", "warn")


def health_code(daemon: Daemon) -> int:
    """Return what `brain health` is to end with: 0 pass, 1 warn, 2 fail."""
    return ("pass", "warn", "fail").index(httpx.get(f"{daemon.url}/health").json()["status"])


@slow_run
def both_frameworks(chain: Chain) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'continuon-brain[torch]'")
    from brain_service.training.torch_lora import (
        AdapterSpec,
        attach,
        default_layers,
        merged_params,
        to_jax,
        to_torch,
    )
    from brain_service.training.torch_lora.signals import fresh_carry
    from tests.model.models import jit_unroll, random_inputs
    from tests.training.torch_lora.tensors import as_tensors

    loaded = load_checkpoint(chain.local_run)
    model = to_torch(loaded.params, loaded.config)
    inputs = random_inputs(loaded.config, 2, 32, seed=0)
    _, expected = jit_unroll(loaded.params, loaded.config, init_carry(loaded.config, 2), inputs)
    with torch.no_grad():
        _, found = model.unroll(fresh_carry(loaded.config, 2), as_tensors(inputs))
    np.testing.assert_allclose(found.action_mean.numpy(), expected.action_mean, atol=1e-5)
    back = to_jax(model)
    attach(model, AdapterSpec(rank=4, alpha=8.0, layers=default_layers(loaded.config)))
    # Adapters that have learned nothing change nothing.
    for params in (back, merged_params(model)):
        pairs = zip(jax.tree.leaves(params), jax.tree.leaves(loaded.params), strict=True)
        assert all(np.array_equal(one, other) for one, other in pairs)


@slow_run
def lora(chain: Chain) -> None:
    pytest.importorskip("torch", reason="PyTorch is an extra: pip install 'continuon-brain[torch]'")
    told = chain.brain_command(
        *("lora", "train", "--run", "kitchen", "--rlds-dir", chain.tfrecord, "--base-model-path", chain.local_run),
        *("--min-episodes", "8", "--max-steps", "4", "--batch-size", "4", "--sequence-length", "8"),
        # What this machine has no sensor for; a robot's gates stay closed without them.
        BRAIN_LORA__ALLOW_MISSING="battery,temperature,sessions,episodes",
    )
    assert json.loads(told)
    listed = json.loads(chain.brain_command("lora", "ls", "--json"))
    assert [each["run"] for each in listed] == ["kitchen"]
    path = chain.brain_command(
        *("export", "--checkpoint-dir", chain.brain / "checkpoints" / "kitchen", "--format", "jax"),
        *("--output-dir", chain.root / "models" / "kitchen"),
    )
    assert Bundle.open(Path(path.strip())).manifest.model_id != chain.local_model.name
