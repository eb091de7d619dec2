"""Laws of feature specs: round trips, and refusals that name the field."""

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brain_service.errors import InvalidError
from brain_service.spec import EpisodeSpec, Feature, check_values, from_vector, infer_spec, to_vector, vector_size
from brain_service.trees import flatten, unflatten
from tests.pictures import picture

NAMES = st.text("abcxyz_09", min_size=1, max_size=4)
FLOATS = hnp.arrays(np.float32, hnp.array_shapes(max_dims=3, max_side=3), elements=st.floats(-1e6, 1e6, width=32))
LEAVES = st.one_of(
    FLOATS,
    hnp.arrays(np.bool_, hnp.array_shapes(max_dims=2, max_side=3)),
    hnp.arrays(np.uint8, hnp.array_shapes(max_dims=2, max_side=3)),
    hnp.arrays(np.int64, hnp.array_shapes(max_dims=1, max_side=3), elements=st.integers(-(2**20), 2**20)),
)
TREES = st.recursive(LEAVES, lambda children: st.dictionaries(NAMES, children, min_size=1, max_size=3))
MAPS = st.dictionaries(NAMES, TREES, min_size=1, max_size=3)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, Mapping):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(np.array_equal(left, right)) and left.dtype == right.dtype


@given(MAPS)
def test_flatten_then_unflatten_gives_the_tree_back(tree: dict[str, Any]) -> None:
    flat = flatten(tree, "observation")
    assert list(flat) == sorted(flat)
    assert same(unflatten(flat), tree)


@given(MAPS)
def test_typed_values_pass_the_spec_they_imply_and_survive_the_vector(tree: dict[str, Any]) -> None:
    flat = flatten(tree, "observation")
    spec = infer_spec(flat, "observation")
    checked = check_values(flat, spec, "observation")
    vector = to_vector(checked, spec)
    assert vector.shape == (vector_size(spec),)
    assert same(from_vector(vector, spec), checked)


@given(MAPS)
def test_spec_survives_json(tree: dict[str, Any]) -> None:
    part = infer_spec(flatten(tree, "observation"), "observation")
    spec = EpisodeSpec(part, part)
    assert EpisodeSpec.from_json(spec.to_json()) == spec


def test_json_numbers_are_float32_and_booleans_bool() -> None:
    spec = infer_spec({"a": [1, 2], "b": [True, False], "c": 3, "d": "go"}, "observation")
    assert spec == {
        "a": Feature("float32", (2,)),
        "b": Feature("bool", (2,)),
        "c": Feature("float32"),
        "d": Feature("text"),
    }


SPEC = {
    "arm/joints": Feature("float32", (3,)),
    "count": Feature("int64"),
    "grip": Feature("bool"),
    "pixel": Feature("uint8", (2,)),
    "task": Feature("text"),
}
GOOD: dict[str, Any] = {
    "arm/joints": [0.1, 0.2, 0.3],
    "count": 7,
    "grip": True,
    "pixel": [0, 255],
    "task": "reach",
}


def test_good_values_take_the_declared_dtypes() -> None:
    checked = check_values(GOOD, SPEC, "observation")
    assert {path: getattr(value, "dtype", "text") for path, value in checked.items()} == {
        "arm/joints": np.float32,
        "count": np.int64,
        "grip": np.bool_,
        "pixel": np.uint8,
        "task": "text",
    }


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("arm/joints", [0.1, 0.2], r"expected shape \[3\], got \[2\]"),
        ("arm/joints", [[0.1, 0.2, 0.3]], r"expected shape \[3\], got \[1, 3\]"),
        ("arm/joints", [0.1, float("nan"), 0.3], "NaN"),
        ("arm/joints", [0.1, float("inf"), 0.3], "infinity"),
        ("arm/joints", [0.1, 1e39, 0.3], "beyond float32"),
        ("arm/joints", [0.1, None, 0.3], "expected numbers"),
        ("arm/joints", [0.1, [0.2], 0.3], "differ in length"),
        ("arm/joints", [0.1, True, 0.3], "mixes"),
        ("arm/joints", [True, True, False], "expected float32, got booleans"),
        ("arm/joints", "0.1", "expected float32, got str"),
        ("arm/joints", 10**400, "expected numbers"),
        ("count", 7.5, "fractions"),
        ("count", 2**63, "beyond int64"),
        ("count", float("nan"), "NaN"),
        ("grip", 1, "expected bool, got numbers"),
        ("pixel", [0, 256], "beyond uint8"),
        ("pixel", [-1, 0], "beyond uint8"),
        ("task", 3, "expected text"),
    ],
)
def test_a_wrong_value_is_refused_by_name(path: str, value: Any, says: str) -> None:
    with pytest.raises(InvalidError, match=says) as refused:
        check_values({**GOOD, path: value}, SPEC, "observation")
    assert refused.value.field == f"observation/{path}"
    assert refused.value.status == 422


def test_unknown_and_missing_names_are_both_told() -> None:
    values = {**GOOD, "tusk": "reach"}
    del values["task"]
    with pytest.raises(InvalidError, match="unknown tusk; missing task") as refused:
        check_values(values, SPEC, "observation")
    assert refused.value.field == "observation/tusk"


@pytest.mark.parametrize(
    "tree", [[0.1], 3, None, {}, {"": 1}, {"a": {}}, {"a/b": 1, "a": {"b": 2}}, {"/a": 1}, {3: 1}]
)
def test_what_is_no_map_of_names_is_refused(tree: Any) -> None:
    with pytest.raises(InvalidError):
        flatten(tree, "observation")


@pytest.mark.parametrize(
    "document",
    [
        {"observation": {"a": {"dtype": "float64", "shape": [3]}}},
        {"observation": {"a": {"dtype": "float32", "shape": [0]}}},
        {"observation": {"a": {"dtype": "float32", "shape": "3"}}},
        {"observation": {"a": {"dtype": "text", "shape": [2]}}},
        {"observation": {"a": {"dtype": "float32", "shape": [10**30]}}},
        {"observation": {"a": {"dtype": "uint8", "shape": [2048, 2049]}}},
        {"observation": {"a": {"dtype": "float32", "shape": [1] * 9}}},
        {"observation": {name: {"dtype": "float32", "shape": [2**21]} for name in "abc"}},
        {"observation": {"a": {"dtype": "float32", "size": 3}}},
        {"observation": {}},
        {"observation": {"arm": {}}},
        {"observation": {"a": {"dtype": "float32"}, "arm": {"left": {}}}},
        {},
    ],
)
def test_a_wrong_declaration_is_refused(document: dict[str, Any]) -> None:
    whole = {"action": {"command": {"dtype": "float32", "shape": [2]}}, **document}
    with pytest.raises(InvalidError):
        EpisodeSpec.from_json(whole)


def test_a_nested_declaration_is_read_as_paths() -> None:
    feature = {"dtype": "float32", "shape": [2]}
    spec = EpisodeSpec.from_json({"observation": {"arm": {"joints": feature}}, "action": {"command": feature}})
    assert list(spec.observation) == ["arm/joints"]


def test_a_declared_feature_is_no_folder_of_others_and_stands_once() -> None:
    leaf = {"dtype": "float32"}
    for observation in ({"a": leaf, "a/b": leaf}, {"a/b": leaf, "a": {"b": leaf}}):
        with pytest.raises(InvalidError) as raised:
            EpisodeSpec.from_json({"observation": observation, "action": {"c": leaf}})
        assert raised.value.field == "features/observation/a/b"


CAMERA = {"camera": Feature("image", (6, 8, 3)), "state": Feature("float32", (2,))}
REFERENCE = f"images/{'0a' * 32}.png"


def test_bytes_imply_an_image_and_pass_as_they_are() -> None:
    values = {"camera": bytearray(picture(1)), "state": np.zeros(2)}
    spec = infer_spec(values, "observation")
    assert spec == CAMERA
    checked = check_values(values, spec, "observation")
    assert checked["camera"] == picture(1)
    assert check_values({**values, "camera": REFERENCE}, spec, "observation")["camera"] == REFERENCE


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_json_may_hold_an_image_as_base64(kind: str) -> None:
    text = base64.b64encode(picture(1, kind)).decode()
    assert check_values({"camera": text, "state": [0, 0]}, CAMERA, "observation")["camera"] == picture(1, kind)
    assert infer_spec({"camera": text}, "observation") == {"camera": CAMERA["camera"]}


def test_text_that_only_begins_like_an_image_is_text_or_refused() -> None:
    assert infer_spec({"path": "/9j/x y"}, "observation") == {"path": Feature("text")}
    with pytest.raises(InvalidError) as refused:
        infer_spec({"camera": base64.b64encode(picture(1)[:-3]).decode()}, "observation")
    assert refused.value.field == "observation/camera"


def test_an_image_is_no_part_of_the_vector() -> None:
    checked = check_values({"camera": picture(1), "state": [3.0, 4.0]}, CAMERA, "observation")
    assert vector_size(CAMERA) == 2
    assert to_vector(checked, CAMERA).tolist() == [3.0, 4.0]
    assert list(from_vector(np.zeros(2, np.float32), CAMERA)) == ["state"]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (picture(1, height=7), r"expected an image of shape \[6, 8, 3\], got \[7, 8, 3\]"),
        (picture(1, channels=1), r"got \[6, 8, 1\]"),
        (picture(1)[:-1], "not a whole PNG"),
        (b"", "neither a PNG"),
        ("images/x.png", "reference .images"),
        (base64.b64encode(picture(1)).decode()[:-1], "no base64"),
        (base64.b64encode(picture(1, height=7)).decode(), r"got \[7, 8, 3\]"),
        ([[0, 0, 0]], "got list"),
        (None, "got NoneType"),
        (np.zeros((6, 8, 3), np.uint8), "got ndarray"),
    ],
)
def test_a_wrong_image_is_refused_by_name(value: Any, says: str) -> None:
    with pytest.raises(InvalidError, match=says) as refused:
        check_values({"camera": value, "state": [0, 0]}, CAMERA, "observation")
    assert refused.value.field == "observation/camera"


@pytest.mark.parametrize("shape", [[], [6, 8], [6, 8, 2], [6, 8, 3, 1], [20_000, 8, 3]])
def test_a_wrong_image_shape_is_refused(shape: list[int]) -> None:
    with pytest.raises(InvalidError, match="an image has shape"):
        Feature.from_json({"dtype": "image", "shape": shape}, "camera")


def test_an_action_holds_no_image() -> None:
    image = {"dtype": "image", "shape": [6, 8, 3]}
    with pytest.raises(InvalidError, match="images belong into the observation") as refused:
        EpisodeSpec.from_json({"observation": {"camera": image}, "action": {"picture": image}})
    assert refused.value.field == "action/picture"


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_what_is_inferred_can_be_declared(data: st.DataObject) -> None:
    """A log whose first step fixes features that no reader accepts would be lost at the next start."""
    shapes = st.lists(st.integers(1, 2), max_size=10)
    values = {
        name: np.zeros(data.draw(shapes), data.draw(st.sampled_from(["float32", "int64", "bool", "uint8"])))
        for name in data.draw(st.sets(st.sampled_from(["a", "b/c", "d"]), min_size=1))
    }
    try:
        spec = EpisodeSpec(infer_spec(values, "observation"), {"x": Feature("float32")})
    except InvalidError as error:
        assert any(value.ndim > 8 for value in values.values()), error
    else:
        assert EpisodeSpec.from_json(spec.to_json()) == spec


def test_more_numbers_than_may_be_declared_are_not_inferred() -> None:
    half = np.zeros(2**21, np.uint8)
    infer_spec({"a": half, "b": half}, "observation")
    with pytest.raises(InvalidError, match="observation: 4194305 numbers"):
        infer_spec({"a": half, "b": half, "c": half[:1]}, "observation")
