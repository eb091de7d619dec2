"""What a finished run leaves: the bundle `models/<model_id>/`, and `report.json` with `report.html`."""

import importlib
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_service.datasets.places import LocalPlace, Place
from brain_service.errors import ConfigError
from brain_service.export.jax_step import PolicySource, export_policy
from brain_service.training.checkpointing import LoadedCheckpoint
from brain_service.training.evaluation import EvaluationResult, render_page

__all__ = ["MODELS", "publish_model", "publish_report", "summary"]

MODELS = "models"
MANIFEST = "manifest.json"


def publish_model(
    loaded: LoadedCheckpoint,
    evaluation: EvaluationResult | None,
    output: Place,
    run_id: str,
    sign_key: Path | None = None,
) -> str:
    """Export a checkpoint as a bundle below the output directory and return its model id.

    On a bucket its manifest is written last: without one there is no bundle.

    Raises:
        CorruptDataError: a parameter is not finite, or the step does not give the model's numbers.
        ConfigError: it cannot be signed.
        UnavailableError: it cannot be written.
    """
    period_s = loaded.control_period_s if loaded.control_period_s > 0 else None
    source = PolicySource(loaded.config, loaded.params, loaded.normaliser, loaded.spec, period_s)
    document = None if evaluation is None else evaluation.to_json()
    if isinstance(output, LocalPlace):
        folder = export_policy(source, output.path / MODELS, evaluation=document, source_run=run_id)
        _sign(folder, sign_key)
        return folder.name
    with tempfile.TemporaryDirectory(prefix="bundle-") as staging:
        folder = export_policy(source, Path(staging), evaluation=document, source_run=run_id)
        _sign(folder, sign_key)
        _upload(folder, output.child(f"{MODELS}/{folder.name}"))
        return folder.name


def _upload(folder: Path, target: Place) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path == folder / MANIFEST):
        target.write(path.relative_to(folder).as_posix(), path.read_bytes())


def _sign(folder: Path, key: Path | None) -> None:
    if key is None:
        return
    try:
        signing = importlib.import_module("brain_service.cloud.signing")
    except ImportError as error:
        raise ConfigError(
            f"--sign-key needs the package {error.name}: pip install 'continuon-brain[cloud]'"
        ) from error
    signing.sign_bundle(folder, key)


def publish_report(output: Place, evaluation: EvaluationResult | None, run: Mapping[str, Any]) -> None:
    """Write the report: what was measured on held-out episodes, and how the run went.

    Raises:
        UnavailableError: it cannot be written.
    """
    document = {"run": run, "evaluation": None if evaluation is None else evaluation.to_json()}
    if evaluation is not None:
        output.write("report.html", render_page(evaluation).encode())
    output.write("report.json", json.dumps(document, indent=1).encode() + b"\n")


def summary(evaluation: EvaluationResult) -> dict[str, Any]:
    """Return an evaluation's single figures, for the heartbeat."""
    return {name: value for name, value in evaluation.to_json().items() if isinstance(value, int | float | str)}
