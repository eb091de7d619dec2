"""An episode survives its stored form exactly."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.datasets.columns import PROFILES, Profile, episode_columns, step_features
from brain_service.datasets.example import decode_example
from brain_service.datasets.record import METADATA_FEATURES, decode_episode, encode_episode, episode_metadata
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.spec import Feature

from .samples import START_NS, VECTOR_SPEC, Recipe, assert_equal_columns, make_episode, recipes


@given(recipes, st.sampled_from(PROFILES))
def test_any_episode_comes_back_bit_for_bit(recipe: Recipe, profile: Profile) -> None:
    episode = recipe.build()
    columns = episode_columns(episode, profile)
    data = encode_episode(columns, episode_metadata(episode))
    found = decode_episode(data, step_features(episode.spec), len(columns["control_role"]), "here")
    assert found.keys() == columns.keys()
    for name, column in columns.items():
        assert_equal_columns(found[name], column)


def test_metadata_keeps_what_has_no_field_of_its_own() -> None:
    metadata = episode_metadata(
        make_episode(metadata={"robot_id": "arm-7", "operator": {"name": "Ada"}, "xr_mode": None})
    )
    assert metadata.keys() == METADATA_FEATURES.keys()
    assert (metadata["environment_id"], metadata["robot_id"], metadata["xr_mode"]) == ("bench", "arm-7", "")
    assert orjson.loads(str(metadata["metadata_json"])) == {
        "language_instruction": "reach the puck",
        "operator": {"name": "Ada"},
    }


def test_an_episode_without_creation_time_was_made_at_its_first_step() -> None:
    assert episode_metadata(make_episode())["created_ns"] == START_NS
    assert episode_metadata(make_episode(metadata={"created_ns": 5}))["created_ns"] == 5


def test_a_creation_time_beyond_int64_is_passed_over() -> None:
    assert episode_metadata(make_episode(metadata={"created_ns": 2**63}))["created_ns"] == START_NS


@pytest.mark.parametrize("value", [2**70, "\ud800"])
def test_metadata_without_json_form_is_refused(value: object) -> None:
    with pytest.raises(InvalidError, match="metadata has no JSON form"):
        episode_metadata(make_episode(metadata={"operator": value}))


def test_text_without_utf8_form_names_its_feature() -> None:
    columns = episode_columns(make_episode(metadata={"language_instruction": "\ud800"}), "oxe")
    with pytest.raises(InvalidError, match=r"language_instruction: .* has no UTF-8 form"):
        encode_episode(columns, {})


def test_names_are_those_of_tfds() -> None:
    episode = make_episode()
    data = encode_episode(episode_columns(episode, "oxe"), episode_metadata(episode))
    names = decode_example(data, "here").keys()
    assert {"steps/observation/state", "steps/action", "episode_metadata/episode_id"} <= names


@pytest.mark.parametrize(
    ("name", "feature", "length", "found"),
    [
        ("reward", Feature("float32"), 6, "found 5 "),
        ("observation/state", Feature("float32", (4,)), 5, "should hold 20 values of float32, found 15"),
        ("missing", Feature("float32"), 5, "found nothing"),
        ("control_role", Feature("float32"), 5, "of kind list"),
    ],
)
def test_a_record_that_does_not_fit_is_named(name: str, feature: Feature, length: int, found: str) -> None:
    episode = make_episode(spec=VECTOR_SPEC, steps=5)
    data = encode_episode(episode_columns(episode, "oxe"), episode_metadata(episode))
    with pytest.raises(CorruptDataError, match=f"shard 1, e0: steps/{name}.*{found}"):
        decode_episode(data, {name: feature}, length, "shard 1, e0")
