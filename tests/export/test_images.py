"""Bundles of models that see: the image in manifest, golden vectors and every form, or why a form holds none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest

from brain_service.errors import CorruptDataError, InvalidError
from brain_service.export.bundle import GOLDEN, ONNX_MODEL, PARAMS, Bundle, Golden
from brain_service.export.hailo import HailoOptions, export_hailo
from brain_service.export.jax_step import PolicySource, export_policy
from brain_service.export.manifest import Manifest
from brain_service.export.onnx_form import load_step
from brain_service.export.parity import Inputs, difference, drive
from brain_service.export.saved_model import export_saved_model
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import init_params
from brain_service.pixels import ImageInput
from brain_service.spec import EpisodeSpec, Feature
from tests.export.models import CONFIG, NORMALISER, SPEC
from tests.export.test_onnx_graph import COMPILED

LIMITS = NORMALISER.action_low, NORMALISER.action_high
IMAGE = ImageInput("camera", (18, 16, 3), (9, 8, 3))
SEEING = CoreModelConfig.from_dict(CONFIG.to_dict() | {"image_shape": IMAGE.shape, "image_channels": (4, 8)})
SEEING_SPEC = EpisodeSpec({**SPEC.observation, "camera": Feature("image", IMAGE.source)}, SPEC.action)


def seeing(seed: int = 0) -> PolicySource:
    params = init_params(SEEING, jax.random.key(seed + 20))
    return PolicySource(SEEING, params, NORMALISER, SEEING_SPEC, 0.02, image=IMAGE)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    """Each form of a model that sees. Read only."""
    return Bundle.open(export_policy(seeing(), models, forms=("jax", "onnx")))


def test_manifest_and_golden_vectors_hold_the_image(bundle: Bundle) -> None:
    assert bundle.manifest.image == IMAGE
    golden = bundle.golden()
    assert golden.image is not None and golden.image.dtype == np.uint8 and golden.image.shape == (16, *IMAGE.shape)
    for form in ("jax", "onnx", "switch"):
        parity = bundle.manifest.parity[form]
        assert parity.measured <= parity.bound == 1e-4


def test_the_golden_actions_depend_on_the_image(bundle: Bundle) -> None:
    golden, manifest = bundle.golden(), bundle.manifest
    assert golden.image is not None
    step = load_step(bundle.read(ONNX_MODEL), {}, manifest.carry)
    assert difference(drive(step, manifest.carry, Inputs.of(golden)).action, golden.action, *LIMITS) <= 1e-4
    blind = Inputs.of(replace(golden, image=np.zeros_like(golden.image)))
    assert difference(drive(step, manifest.carry, blind).action, golden.action, *LIMITS) > 1e-3


def test_the_graph_has_static_shapes_and_only_operators_that_compile(bundle: Bundle) -> None:
    graph = onnx.load_model_from_string(bundle.read(ONNX_MODEL))
    onnx.checker.check_model(graph, full_check=True)
    assert [(entry.domain, entry.version) for entry in graph.opset_import] == [("", 17)]
    kinds = [node.op_type for node in graph.graph.node]
    assert set(kinds) <= COMPILED and kinds.count("Conv") == 2
    shapes = {
        each.name: tuple(size.dim_value for size in each.type.tensor_type.shape.dim) for each in graph.graph.input
    }
    assert shapes["image"] == (1, *IMAGE.shape)


def test_the_image_is_part_of_what_a_model_is(bundle: Bundle) -> None:
    other = replace(bundle.manifest, image=replace(IMAGE, source=(9, 8, 3)))
    assert other.identity(bundle.manifest.files[PARAMS].sha256) != bundle.manifest.model_id


@pytest.mark.parametrize(
    "image",
    [
        None,
        {"path": "camera", "source": [18, 16, 3], "shape": [18, 16, 3]},
        {"path": "wrist", "source": [18, 16, 3], "shape": [9, 8, 3]},
        {"path": "camera", "source": [27, 24, 3], "shape": [9, 8, 3]},
        {"path": "camera", "source": [18, 17, 3], "shape": [9, 8, 3]},
        {"path": "camera"},
        "camera",
    ],
)
def test_an_image_that_does_not_fit_the_model_is_no_manifest(bundle: Bundle, image: Any) -> None:
    document = bundle.manifest.to_json() | {"image": image}
    with pytest.raises(CorruptDataError, match="image"):
        Manifest.from_json(document, "manifest.json")


def test_golden_images_of_another_form_are_refused(bundle: Bundle) -> None:
    golden = bundle.golden()
    assert golden.image is not None
    for image in (None, golden.image[:0], golden.image[:, :4], golden.image.astype(np.float32)):
        data = Golden(**vars(golden) | {"image": image}).to_bytes()
        with pytest.raises(CorruptDataError, match=f"{GOLDEN}: image is"):
            Golden.from_bytes(data, bundle.manifest)


def test_int8_holds_the_convolutions_too(models: Path, bundle: Bundle) -> None:
    small = Bundle.open(export_policy(seeing(), models, quantisation="int8", forms=("jax", "onnx")))
    assert small.manifest.files[PARAMS].size_bytes < bundle.manifest.files[PARAMS].size_bytes
    assert 1e-6 < small.manifest.parity["onnx"].measured <= 2e-2


def test_a_form_that_cannot_hold_an_image_says_why(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="sees the image 'camera'; calibration set"):
        export_hailo(bundle.path, HailoOptions(arch="hailo8l"))
    with pytest.raises(InvalidError, match="signature of a SavedModel holds numbers only"):
        export_saved_model(bundle, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []
