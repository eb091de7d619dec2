"""The pipeline's definition, read back as YAML: order, images, parameters, and commands that exist."""

import argparse
import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from cloud_trainer.pipeline import register_parser
from cloud_trainer.train import _parser as train_parser

from .fleet_venv import needs_fleet, run_there

pytestmark = [pytest.mark.slow, needs_fleet]

IMAGE = "europe-docker.pkg.dev/p/brain/job:1"
VALUES = {"batch_size": "8", "num_steps": "20", "learning_rate": "0.001", "topology": "v5e:2x2"}


@pytest.fixture(scope="module")
def document(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The compiled pipeline."""
    path = tmp_path_factory.mktemp("pipeline") / "pipeline.yaml"
    run_there("pipeline", "--output", str(path), "--image", IMAGE)
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def _container(document: dict[str, Any], step: str) -> dict[str, Any]:
    found: dict[str, Any] = document["deploymentSpec"]["executors"][f"exec-{step}"]["container"]
    return found


def _arguments(document: dict[str, Any], step: str) -> list[str]:
    """Return a step's command line, as Vertex AI fills it in."""

    def fill(text: str) -> str:
        name = re.fullmatch(r"\{\{\$\.inputs\.parameters\['(\w+)'\]\}\}", text)
        if name:
            return VALUES.get(name[1], f"my-{name[1]}")
        if text.startswith('{"Concat"'):
            return "".join(map(fill, json.loads(text)["Concat"]))
        assert "{" not in text, text
        return text

    return [fill(argument) for argument in _container(document, step)["args"]]


def test_each_step_waits_for_the_one_before(document: dict[str, Any]) -> None:
    tasks = document["root"]["dag"]["tasks"]
    assert {name: task.get("dependentTasks", []) for name, task in tasks.items()} == {
        "upload": [],
        "plan": ["upload"],
        "train": ["plan"],
        "evaluate": ["train"],
        "register": ["evaluate"],
    }
    assert tasks["train"]["retryPolicy"]["maxRetryCount"] == 10
    assert all(not task["cachingOptions"].get("enableCache") for task in tasks.values())


def test_images_and_parameters_are_those_of_the_command(document: dict[str, Any]) -> None:
    for step in document["root"]["dag"]["tasks"]:
        container = _container(document, step)
        assert container["image"] == IMAGE
        assert container["command"][:2] == ["python", "-m"]
    parameters = document["root"]["inputDefinitions"]["parameters"]
    assert {name for name, its in parameters.items() if "defaultValue" not in its} == {
        "project",
        "location",
        "bucket",
        "local_dir",
        "run_id",
    }
    assert parameters["num_steps"]["parameterType"] == "NUMBER_INTEGER"
    assert document["schemaVersion"].startswith("2.")


def _parse(module: str, arguments: list[str]) -> argparse.Namespace:
    if module == "brain_service":
        pytest.importorskip(f"brain_service.cli_{arguments[0]}")
        return importlib.import_module("brain_service.cli")._parser().parse_args(arguments)  # type: ignore[no-any-return]
    if arguments[0] == "train":
        return train_parser().parse_args(arguments[1:])
    if arguments[:2] == ["pipeline", "register"]:
        return register_parser().parse_args(arguments[2:])
    return pytest.importorskip("cloud_trainer.plan").parser().parse_args(arguments[1:])  # type: ignore[no-any-return]


@pytest.mark.parametrize("step", ["upload", "plan", "train", "evaluate", "register"])
def test_every_command_is_one_that_exists(document: dict[str, Any], step: str) -> None:
    module = _container(document, step)["command"][2]
    parsed = vars(_parse(module, _arguments(document, step)))
    commands: dict[str, dict[str, object]] = {
        "upload": {"gcs_bucket": "my-bucket", "gcs_prefix": "my-prefix"},
        "plan": {"topology": "v5e:2x2", "num_steps": 20, "data_path": "gs://my-bucket/my-prefix"},
        "train": {"data_path": "gs://my-bucket/my-prefix", "output_dir": "gs://my-bucket/runs/my-run_id"},
        "evaluate": {"checkpoint_dir": Path("/gcs/my-bucket/runs/my-run_id/checkpoints")},
        "register": {"run_dir": "gs://my-bucket/runs/my-run_id", "serving_image": IMAGE},
    }
    expected = commands[step]
    assert {name: parsed[name] for name in expected} == expected


def test_options_of_the_pipeline_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    run_there(
        *("pipeline", "--output", str(path), "--image", IMAGE),
        *("--accelerator", "NVIDIA_L4", "--accelerator-count", "1", "--name", "arm"),
    )
    document = yaml.safe_load(path.read_text())
    assert document["pipelineInfo"]["name"] == "arm"
    assert _container(document, "train")["resources"]["accelerator"]["resourceType"] == "NVIDIA_L4"
    said = run_there("pipeline", "--output", str(tmp_path / "p.json"), "--image", IMAGE, code=78)
    assert "p.json: a pipeline is written to a .yaml file" in said
