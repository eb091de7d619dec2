"""Bodies of the job requests: what is accepted, and how a wrong one is named."""

import re
from typing import get_args

import pytest

from brain_service.errors import InvalidError
from brain_service.export.manifest import PARITY_CAP
from brain_service.jobs.kinds import KINDS, parse_params, require_target
from brain_service.jobs.params import ExportParams, PipelineParams, TrainParams
from brain_service.jobs.stages import STAGES
from brain_service.model.config import PRESETS
from brain_service.settings import CloudSettings


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_empty_body_is_enough_for_every_kind(kind: str) -> None:
    assert parse_params(kind, {}) == KINDS[kind].params()


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_an_unknown_key_is_refused_with_the_known_ones(kind: str) -> None:
    with pytest.raises(InvalidError, match="known: ") as caught:
        parse_params(kind, {"presett": "development"})
    assert caught.value.field == "presett"
    assert all(name in caught.value.detail for name in KINDS[kind].params.model_fields)


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("preset", "huge", "pi5_optimized"),
        ("steps", -1, "greater than or equal to 0"),
        ("steps", "many", "integer"),
        ("learning_rate", 0, "greater than 0"),
        ("dataset", "../../etc", "pattern"),
        ("dataset", "episodes/1.0", "pattern"),
        ("trainer", "tensorflow", "jax"),
        ("target", "moon", "local"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_do(field: str, value: object, told: str) -> None:
    with pytest.raises(InvalidError) as caught:
        parse_params("pipeline", {field: value})
    assert caught.value.field == field
    assert told in caught.value.detail
    assert repr(value) in caught.value.detail


@pytest.mark.parametrize(
    ("kind", "body", "missing"),
    [
        ("train", {"target": "vertex"}, {"cloud.bucket", "cloud.project", "cloud.image"}),
        ("pipeline", {"target": "queued_resource"}, {"cloud.bucket", "cloud.project"}),
        ("upload", {}, {"cloud.bucket"}),
    ],
)
def test_a_target_is_refused_with_the_settings_that_it_lacks(
    kind: str, body: dict[str, str], missing: set[str]
) -> None:
    with pytest.raises(InvalidError) as caught:
        require_target(parse_params(kind, body), CloudSettings())
    assert set(re.findall(r"cloud\.[a-z]+", caught.value.detail)) - {"cloud.md"} == missing
    require_target(
        parse_params(kind, body), CloudSettings(bucket="robots", project="lab-robots", image="example/trainer:1")
    )


def test_the_presets_are_those_of_the_model() -> None:
    assert set(get_args(TrainParams.model_fields["preset"].annotation)) == set(PRESETS)


def test_every_stage_of_every_kind_exists_and_offers_what_the_pipeline_calls() -> None:
    for name in {name for kind in KINDS.values() for name in (*kind.stages, *kind.away)}:
        module = STAGES[name].load()
        assert callable(module.run)
        assert callable(module.command)


def test_a_job_starts_in_the_lane_of_its_first_stage() -> None:
    for kind in KINDS.values():
        assert {STAGES[stages[0]].lane for stages in (kind.stages, kind.away) if stages} == {kind.lane}


def test_every_field_is_documented() -> None:
    for kind in KINDS.values():
        properties = kind.params.model_json_schema()["properties"]
        assert all(schema.get("description") for schema in properties.values())


def test_a_pipeline_takes_what_a_training_takes() -> None:
    assert set(TrainParams.model_fields) < set(PipelineParams.model_fields)


@pytest.mark.parametrize("params", [ExportParams, PipelineParams])
def test_the_quantisations_are_those_that_a_bundle_may_have(params: type[ExportParams | PipelineParams]) -> None:
    field = params.model_fields["quantization"]
    assert set(get_args(field.annotation)) == set(PARITY_CAP) and field.default == "none"
