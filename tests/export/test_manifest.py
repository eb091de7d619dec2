"""The manifest: reads back as it was, names what is wrong, and gives the id that its content deserves."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.errors import CorruptDataError
from brain_service.export.manifest import SCHEMA, FileEntry, Manifest, Parity
from brain_service.spec import EpisodeSpec, Feature
from tests.export.samples import DRAFT

FLOATS = st.floats(-1e6, 1e6, width=32)
LIMITS = st.tuples(FLOATS, FLOATS).map(sorted)
ENTRY = {"params.safetensors": FileEntry.of(b"p"), "golden.npz": FileEntry.of(b"g")}


@given(
    limits=st.lists(LIMITS, min_size=2, max_size=2),
    normalisation=st.dictionaries(st.text(min_size=1), st.lists(FLOATS, max_size=4).map(tuple), max_size=3),
    carry=st.dictionaries(st.text(min_size=1), st.integers(1, 1000), min_size=1, max_size=4),
    period_s=st.none() | st.floats(1e-4, 10.0),
)
def test_json_round_trip(
    limits: list[list[float]],
    normalisation: dict[str, tuple[float, ...]],
    carry: dict[str, int],
    period_s: float | None,
) -> None:
    manifest = dataclasses.replace(
        DRAFT,
        action_low=tuple(low for low, _ in limits),
        action_high=tuple(high for _, high in limits),
        normalisation=normalisation,
        carry=carry,
        control_period_s=period_s,
    ).with_files(ENTRY, "params.safetensors")
    again = Manifest.from_json(json.loads(json.dumps(manifest.to_json())), "m")
    assert again == manifest and list(again.carry) == list(carry)
    assert again.identity(ENTRY["params.safetensors"].sha256) == manifest.model_id


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"sizes": [1, 3], "rate": 0.1}},
        {"spec": EpisodeSpec(DRAFT.spec.observation, {"command": Feature("float32", (2, 1))})},
        {"action_low": (-1.0, -0.2)},
        {"normalisation": {}},
        {"carry": {"slow": 2, "fast": 4}},
        {"action_horizon": 1},
        {"control_period_s": None},
    ],
)
def test_the_id_follows_from_all_that_decides_actions(change: dict[str, Any]) -> None:
    assert dataclasses.replace(DRAFT, **change).identity("0") != DRAFT.identity("0")


def test_the_id_does_not_follow_from_what_was_measured() -> None:
    other = dataclasses.replace(
        DRAFT, parity={"jax": Parity(0.0, 1e-5)}, source_run="run-2", evaluation=None, created_ns=1
    )
    assert other.identity("0") == DRAFT.identity("0") != DRAFT.identity("1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "9"}, "schema '9' cannot be read here, which knows '1.0'"),
        ({"quantisation": "int3"}, "'int3' is none of none"),
        ({"action_low": [0.0]}, "1 and 2 action limits for an action of 2"),
        ({"action_low": [2.0, 0.0]}, "low exceeds high"),
        ({"action_high": [1.0, float("inf")]}, "not finite"),
        ({"action_horizon": 0}, "action_horizon 0"),
        ({"carry": {}}, "carry"),
        ({"carry": {"fast": 1.5}}, "carry"),
        ({"control_period_s": -0.1}, "control_period_s -0.1"),
        ({"control_period_s": "0.1"}, "control_period_s '0.1'"),
        ({"created_ns": "today"}, "created_ns 'today'"),
        ({"parity": {"jax": {"measured": 0.0, "bound": 0.5}}}, "above the cap"),
        ({"parity": {"jax": {"measured": 0.0, "bound": float("nan")}}}, "above the cap"),
        ({"parity": {"jax": {"measured": 0.0}}}, "bound"),
        ({"spec": {"observation": {}, "action": {}}}, "at least one feature"),
        ({"files": {"x": {"size_bytes": 1}}}, "sha256"),
        ({"files": []}, "items"),
        ({"measured": {"jax": {"drift": "much"}}}, "much"),
        ({"measured": 3}, "items"),
        ({"extra": 1}, r"unknown keys \['extra'\]"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused_with_the_reason(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptDataError, match=message) as caught:
        Manifest.from_json(DRAFT.to_json() | change, "here/manifest.json")
    assert caught.value.detail.startswith("here/manifest.json: ")


@pytest.mark.parametrize("document", [None, [], "text", {}, {"schema": SCHEMA}])
def test_what_is_no_manifest_at_all(document: Any) -> None:
    with pytest.raises(CorruptDataError):
        Manifest.from_json(document, "m")


def test_a_bundle_from_before_figures_were_kept_is_read_and_keeps_its_id() -> None:
    document = DRAFT.to_json()
    del document["measured"]
    manifest = Manifest.from_json(document, "m")
    assert manifest == DRAFT and manifest.measured == {}
    # Bundles out there have this id: whatever changes it makes them all unreadable.
    assert DRAFT.identity("0") == "895d0e748f1dae01"


def test_a_quantised_model_is_another_model() -> None:
    ids = {dataclasses.replace(DRAFT, quantisation=each).identity("0") for each in ("none", "fp16", "int8")}
    assert len(ids) == 3
