"""The SavedModel: named tensors that cover the vectors, TensorFlow's own run of it, and nothing half-written."""

import dataclasses
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from brain_service.errors import UnavailableError
from brain_service.export.bundle import Bundle
from brain_service.export.saved_model import (
    SCHEMA,
    export_saved_model,
    require_tensorflow,
    signature_inputs,
    signature_outputs,
)
from brain_service.spec import EpisodeSpec, Feature
from tests.export.samples import DRAFT

WITH_TENSORFLOW = pytest.mark.skipif(find_spec("tensorflow") is None, reason="tensorflow is not installed")

LOADED = """
import sys
import numpy, tensorflow
serve = tensorflow.saved_model.load(sys.argv[1]).signatures["serving_default"]
takes = {name: spec.shape.as_list() for name, spec in serve.structured_input_signature[1].items()}
answer = serve(**{name: tensorflow.zeros(shape) for name, shape in takes.items()})
import json
print(json.dumps([takes, {name: value.shape.as_list() for name, value in answer.items()}]))
"""


def test_the_signature_names_every_number_of_the_vectors_once() -> None:
    inputs, outputs = signature_inputs(DRAFT), signature_outputs(DRAFT)
    assert {tensor.name: tensor.shape for tensor in inputs} == {
        "carry_fast": (1, 4), "carry_slow": (1, 2),
        "observation_camera_level": (1, 2), "observation_state": (1, 3),
        "previous_action_command": (1, 2), "previous_reward": (1,), "is_first": (1,),
    }  # fmt: skip
    assert {tensor.name: tensor.shape for tensor in outputs} == {
        "carry_fast": (1, 4), "carry_slow": (1, 2), "action_command": (1, 2, 2),
    }  # fmt: skip
    for part, size in (("observation", DRAFT.observation_size), ("previous_action", DRAFT.action_size)):
        assert sum(tensor.size for tensor in inputs if tensor.part == part) == size


def test_two_paths_never_share_a_name() -> None:
    scalar = Feature("float32", ())
    spec = EpisodeSpec({"a/b": scalar, "a_b": scalar, "ä b": scalar}, {"command": Feature("float32", (2,))})
    found = [
        tensor
        for tensor in signature_inputs(dataclasses.replace(DRAFT, spec=spec))
        if tensor.part == "observation"
    ]
    assert [tensor.path for tensor in found] == sorted(spec.observation)
    assert len({tensor.name for tensor in found}) == 3
    assert all(tensor.name.isidentifier() and tensor.name.isascii() for tensor in found)


def test_without_tensorflow_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(UnavailableError, match=r"pip install 'continuon-brain\[tensorflow\]'"):
        require_tensorflow()


@pytest.mark.parametrize("content", [None, "not JSON", "[]", '{"schema": "another"}'])
def test_a_folder_of_something_else_is_left_alone(content: str | None, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    if content is not None:
        (folder / "manifest.json").write_text(content)
    with pytest.raises(UnavailableError, match="something else than a SavedModel of ours"):
        export_saved_model(Bundle(tmp_path, DRAFT), folder)
    assert folder.is_dir() and [item.name for item in tmp_path.iterdir()] == ["mine"]


@pytest.mark.slow
@WITH_TENSORFLOW
def test_tensorflow_gives_the_models_numbers_by_the_signature_alone(int8: Bundle, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    manifest = export_saved_model(int8, folder)
    assert json.loads((folder / "manifest.json").read_text()) == manifest
    assert (manifest["schema"], manifest["model_id"]) == (SCHEMA, int8.manifest.model_id)
    # What int8 costs, and no more: the same figure as the bundle's own.
    expected = int8.manifest.parity["jax"].measured
    assert manifest["parity"]["measured"] == pytest.approx(expected, rel=0.05)
    done = subprocess.run([sys.executable, "-c", LOADED, str(folder)], capture_output=True, text=True, check=True)
    takes, gives = json.loads(done.stdout.splitlines()[-1])
    assert takes == {tensor["name"]: tensor["shape"] for tensor in manifest["inputs"]}
    assert gives == {tensor["name"]: tensor["shape"] for tensor in manifest["outputs"]}
    assert [item.name for item in tmp_path.iterdir()] == ["saved"]


@pytest.mark.slow
@WITH_TENSORFLOW
def test_a_conversion_that_fails_leaves_nothing_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"saved_model_convert failed: .*NotFoundError: no bundle at"):
        export_saved_model(Bundle(tmp_path / "none", DRAFT), tmp_path / "saved")
    assert not list(tmp_path.iterdir())
