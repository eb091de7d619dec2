"""`brain export` as it is typed: what goes where, in which form, and a failure that leaves nothing behind."""

import json
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from brain_service.cli import main
from brain_service.export.bundle import Bundle
from brain_service.training.checkpointing import Checkpoints
from brain_service.training.config import TrainConfig
from brain_service.training.step import TrainState, make_optimiser
from tests.export.models import CONFIG, NORMALISER, source


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with two checkpoints: step 10 is sound, step 20 diverged."""
    folder = tmp_path_factory.mktemp("checkpoints") / "run"
    meta = {
        "model": CONFIG.to_dict(),
        "normalisation": NORMALISER.to_dict(),
        "spec": source().spec.to_json(),
        "control_period_s": 0.02,
    }
    with Checkpoints(folder, keep=2) as checkpoints:
        for step, factor in ((10, 1.0), (20, jnp.nan)):
            params = dict(source().params)
            params["wave"] = {**params["wave"], "rate": params["wave"]["rate"] * factor}
            state = TrainState(jnp.asarray(step, jnp.int32), params, make_optimiser(TrainConfig()).init(params))
            checkpoints.save(state, meta)
    return folder


def test_the_path_goes_to_standard_output_and_the_table_beside_it(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    words = ["export", "--checkpoint-dir", str(run_dir), "--output-dir", str(models), "--step", "10"]
    assert main([*words, "--quantization", "fp16"]) == 0
    told = capsys.readouterr()
    bundle = Bundle.open(Path(told.out.strip()))
    assert bundle.path.parent == models and bundle.manifest.quantisation == "fp16"
    head, columns, *rows = told.err.splitlines()
    assert head == f"model {bundle.path.name}, quantisation fp16"
    assert columns.split() == ["form", "size", "parity", "bound", "drift", "step"]
    assert [row.split()[0] for row in rows] == ["parameters", "jax", "onnx", "switch"]
    assert f"{bundle.manifest.parity['onnx'].measured:.1e}" in rows[2] and "2e-02" in rows[2]

    assert main([*words, "--quantization", "fp16", "--format", "jax", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    # The same model: its bundle keeps the form that was not asked for again.
    assert document["path"] == str(bundle.path) and document["model_id"] == bundle.manifest.model_id
    assert document["forms"]["onnx"]["parity"] == bundle.manifest.parity["onnx"].measured
    assert document["forms"]["jax"]["size_bytes"] == bundle.manifest.files["step.jaxexport"].size_bytes


def test_a_diverged_checkpoint_is_one_line_with_the_next_step(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--checkpoint-dir", str(run_dir), "--output-dir", str(tmp_path / "models")]) == 2
    told = capsys.readouterr()
    assert told.out == "" and len(told.err.splitlines()) == 1
    assert told.err.startswith("brain export: parameter wave/rate holds NaN") and "--step" in told.err
    assert not list(tmp_path.iterdir())


def test_a_missing_tool_is_told_before_anything_is_made(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    words = ["export", "--checkpoint-dir", str(run_dir), "--output-dir", str(tmp_path / "models"), "--step", "10"]
    assert main([*words, "--format", "saved-model"]) == 2
    assert "pip install 'continuon-brain[tensorflow]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_hailo_form_asks_for_its_dataset_before_anything_is_made(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    words = ["export", "--checkpoint-dir", str(run_dir), "--output-dir", str(models), "--format", "hailo"]
    assert main(words) == 2
    assert "--calibration-dataset" in capsys.readouterr().err
    assert not models.exists()


@pytest.mark.parametrize(
    ("flag", "value", "known"), [("--quantization", "int4", "int8"), ("--format", "tflite", "onnx")]
)
def test_what_is_not_known_is_refused_with_what_is(
    flag: str, value: str, known: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["export", "--checkpoint-dir", "c", "--output-dir", "m", flag, value])
    told = capsys.readouterr().err
    assert left.value.code == 2 and value in told and known in told
