"""The short way: what it takes, the general path takes too, and the line is the same, byte for byte."""

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.episodes.codec import StepCodec
from brain_service.episodes.header import EpisodeHeader
from brain_service.episodes.log_format import decode_line, encode_line
from brain_service.episodes.schema import StepIn, StepMetadataIn, check_step
from brain_service.episodes.wire import BodyKind, parse_step
from brain_service.spec import EpisodeSpec, Feature
from brain_service.trees import unflatten

HEADER = EpisodeHeader("20260101T000000-abcdef", 0)
TIME_NS = 1_700_000_000_000_000_000


def codec_of(spec: EpisodeSpec) -> StepCodec:
    codec = StepCodec.of(HEADER, spec)
    assert codec is not None
    return codec


def by_general_path(piece: bytes, kind: BodyKind, spec: EpisodeSpec, index: int) -> bytes:
    """Return the line that the judge writes; raises what it objects to."""
    step, _ = check_step(parse_step(piece, kind), HEADER, spec, index)
    return encode_line(step.record(HEADER.episode_id))


NAMES = st.sampled_from(["state", "arm/joints", "arm/grip", "arm-2", "a.b/c d", "é", "0", "f0", "x/y/z"])
SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)
FEATURES = st.one_of(
    st.builds(Feature, st.sampled_from(["float32", "int64", "bool", "uint8"]), SHAPES), st.just(Feature("text"))
)
PARTS = st.dictionaries(NAMES, FEATURES, min_size=1, max_size=4).map(lambda found: dict(sorted(found.items())))
SPECS = st.builds(EpisodeSpec, PARTS, PARTS)

# Values that fit, values that nearly do, and values of every other kind.
NUMBERS = st.one_of(
    st.floats(-1e3, 1e3),
    st.floats(width=32, allow_nan=False),
    st.integers(-(2**70), 2**70),
    st.integers(-3, 300),
    st.sampled_from(
        [0.0, -0.0, 1e39, 3.4028236e38, 1e-46, 2.0**53, 2.0**53 + 2, 9007199254740993, 8.98e-26, True]
    ),
    st.just(float(np.uint32(0x15AE43FD).view(np.float32))),
)
FITTING = {
    "float32": st.one_of(st.floats(-1e6, 1e6), st.integers(-1000, 1000), NUMBERS),
    "int64": st.one_of(st.integers(-(2**63), 2**63 - 1), NUMBERS),
    "bool": st.one_of(st.booleans(), st.booleans(), NUMBERS),
    "uint8": st.one_of(st.integers(0, 255), st.integers(0, 255), NUMBERS),
}


@st.composite
def leaves(draw: Any, feature: Feature, typed: bool) -> Any:
    """A value for a feature: mostly right, sometimes of another shape, kind or range."""
    if feature.dtype == "text":
        return draw(st.one_of(st.text(max_size=5), st.text(max_size=5), NUMBERS))
    if typed and draw(st.booleans()):
        other = draw(st.sampled_from([feature.dtype, feature.dtype, feature.dtype, "float64", "int32"]))
        array = np.array(draw(st.integers(0, 200)), other) * np.ones(feature.shape, other)
        shape = draw(st.sampled_from([feature.shape, feature.shape, (*feature.shape, 1), (-1,)]))
        array = array.astype(other)
        return {"__ndarray__": True, "dtype": array.dtype.str, "shape": shape, "data": array.tobytes()}

    def nested(shape: Sequence[int]) -> Any:
        if not shape:
            return draw(FITTING[feature.dtype])
        return [nested(shape[1:]) for _ in range(draw(st.sampled_from([shape[0]] * 9 + [shape[0] + 1])))]

    return nested(feature.shape)


@st.composite
def steps(draw: Any, spec: EpisodeSpec, typed: bool) -> dict[str, Any]:
    """A step body, mostly one that fits the spec."""
    body: dict[str, Any] = {
        part: unflatten({path: draw(leaves(feature, typed)) for path, feature in getattr(spec, part).items()})
        for part in ("observation", "action")
    }
    body["timestamp_ns"] = draw(st.sampled_from([TIME_NS, TIME_NS, -1, 2**63 - 1, 2**63]))
    optional = {
        "reward": NUMBERS,
        "is_terminal": st.booleans(),
        "step_index": st.sampled_from([7, 7, 8, -1]),
        "control_role": st.sampled_from(["policy", "intervention", "human_teleop", "", "cat"]),
        "episode_id": st.sampled_from([HEADER.episode_id, "another"]),
        "executed_action": st.just({"a": 1}),
        "unknown": st.just(1),
    }
    body.update(draw(st.fixed_dictionaries({}, optional=optional)))
    return body


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_what_the_short_way_takes_the_judge_takes_with_the_same_line(data: st.DataObject) -> None:
    spec = data.draw(SPECS)
    kind: BodyKind = data.draw(st.sampled_from(["json", "msgpack"]))
    body = data.draw(steps(spec, typed=kind == "msgpack"))
    try:
        piece = msgspec.msgpack.encode(body) if kind == "msgpack" else msgspec.json.encode(body)
    except OverflowError:
        return  # msgpack has no integers beyond 64 bits
    codec = codec_of(spec)
    taken = codec.take([piece], kind)
    found = None if taken is None else codec.lines(taken, 7)
    if found is not None:
        assert found == [by_general_path(piece, kind, spec, 7)]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_what_fits_takes_the_short_way(data: st.DataObject) -> None:
    """Without it the law above would hold for a codec that gives up on everything."""
    spec = data.draw(SPECS)
    plain = {
        "float32": st.floats(-1e6, 1e6),
        "int64": st.integers(-(2**63), 2**63 - 1),
        "bool": st.booleans(),
        "uint8": st.integers(0, 255),
        "text": st.text(max_size=5),
    }

    def fill(feature: Feature, shape: Sequence[int]) -> Any:
        if not shape:
            return data.draw(plain[feature.dtype])
        return [fill(feature, shape[1:]) for _ in range(shape[0])]

    body: dict[str, Any] = {
        part: unflatten({path: fill(feature, feature.shape) for path, feature in getattr(spec, part).items()})
        for part in ("observation", "action")
    }
    body["timestamp_ns"] = TIME_NS
    codec = codec_of(spec)
    for kind, piece in (("json", orjson.dumps(body)), ("msgpack", msgspec.msgpack.encode(body))):
        taken = codec.take([piece], kind)  # type: ignore[arg-type]
        assert taken is not None
        assert codec.lines(taken, 7) == [by_general_path(piece, kind, spec, 7)]  # type: ignore[arg-type]


def test_a_batch_is_its_steps() -> None:
    spec = EpisodeSpec(
        {"image": Feature("uint8", (2, 2)), "state": Feature("float32", (3,))}, {"go": Feature("float32")}
    )
    pieces = [
        orjson.dumps(
            {
                "observation": {"state": [n, 0.1 * n, -n], "image": [[n, 1], [2, 3]]},
                "action": {"go": n / 3},
                "reward": n,
                "timestamp_ns": TIME_NS + n,
                "is_terminal": n == 4,
            }
        )
        for n in range(5)
    ]
    codec = codec_of(spec)
    taken = codec.take(pieces, "json")
    assert taken is not None
    assert (len(taken), taken.is_terminal) == (5, True)
    found = codec.lines(taken, 10)
    assert found == [by_general_path(piece, "json", spec, 10 + n) for n, piece in enumerate(pieces)]
    terminal_inside = codec.take([pieces[4], pieces[0]], "json")
    assert terminal_inside is not None
    assert codec.lines(terminal_inside, 10) is None


def test_an_omitted_time_and_role_are_filled_in() -> None:
    spec = EpisodeSpec({"x": Feature("float32")}, {"a": Feature("float32")})
    codec = codec_of(spec)
    taken = codec.take([b'{"observation": {"x": 1}, "action": {"a": 2}}'], "json")
    assert taken is not None
    lines = codec.lines(taken, 3)
    assert lines is not None
    metadata = decode_line(lines[0])["step_metadata"]
    assert (metadata["step_index"], metadata["control_role"]) == (3, "expert")
    assert metadata["timestamp_ns"] > TIME_NS


@pytest.mark.parametrize(
    "body",
    [
        b'{"observation": {"x": 1, "x": "text"}, "action": {"a": 2}}',
        b'{"observation": {"x": 1e400}, "action": {"a": 2}}',
        b'{"observation": {"x": NaN}, "action": {"a": 2}}',
        b'{"observation": {"x": 1}, "action": {"a": 2}} ]',
        b'{"observation": {"\xff": 1}, "action": {"a": 2}}',
        b'{"observation":' + b'{"x":' * 100_000,
        b"[]",
        b"",
    ],
)
def test_what_is_damaged_is_left_to_the_judge(body: bytes) -> None:
    codec = codec_of(EpisodeSpec({"x": Feature("float32")}, {"a": Feature("float32")}))
    assert codec.take([body], "json") is None
    assert codec.take([body], "msgpack") is None


def test_a_spec_with_images_has_no_short_way() -> None:
    spec = EpisodeSpec({"camera": Feature("image", (8, 8, 3))}, {"a": Feature("float32")})
    assert StepCodec.of(HEADER, spec) is None


@st.composite
def given_arrays(draw: Any, spec: EpisodeSpec) -> StepIn:
    """A step as a recorder in its own process gives it: mostly the arrays of the spec, some a little off."""

    def leaf(feature: Feature) -> Any:
        numbers = draw(st.lists(NUMBERS, min_size=1, max_size=3))
        dtype = draw(st.sampled_from(["float32"] * 8 + ["float64", ">f4", "int64"]))
        with np.errstate(over="ignore", invalid="ignore"):
            array = np.resize(np.array([float(number) for number in numbers]), feature.shape).astype(dtype)
        if array.ndim and draw(st.integers(0, 7)) == 0:
            array = np.asfortranarray(array)[..., ::-1]
        return array.tolist() if draw(st.integers(0, 9)) == 0 else array

    parts = {
        part: unflatten({path: leaf(feature) for path, feature in getattr(spec, part).items()})
        for part in ("observation", "action")
    }
    if draw(st.integers(0, 9)) == 0:
        parts["action"]["another"] = np.zeros(1, np.float32)
    return StepIn(
        **parts,
        step_index=draw(st.sampled_from([None, 7, 8])),
        reward=draw(st.floats()),
        is_terminal=draw(st.booleans()),
        timestamp_ns=draw(st.sampled_from([TIME_NS, -1, 2**63 - 1, 2**63])),
        control_role=draw(st.sampled_from([None, "policy", "human_teleop", "cat"])),
        executed_action=draw(st.sampled_from([None, None, parts["action"]])),
        policy=draw(st.sampled_from([None, None, {"model": "m"}])),
        step_metadata=draw(st.sampled_from([None, None, StepMetadataIn(control_role="policy")])),
        episode_id=draw(st.sampled_from([None, HEADER.episode_id, "another"])),
    )


FLOAT_PARTS = st.dictionaries(NAMES, st.builds(Feature, st.just("float32"), SHAPES), min_size=1, max_size=4).map(
    lambda found: dict(sorted(found.items()))
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_given_arrays_are_written_as_the_judge_writes_them(data: st.DataObject) -> None:
    spec = data.draw(st.one_of(st.builds(EpisodeSpec, FLOAT_PARTS, FLOAT_PARTS), SPECS))
    codec = codec_of(spec)
    step = data.draw(given_arrays(spec))
    taken = codec.take_arrays(step)
    found = None if taken is None else codec.lines(taken, 7)
    if found is not None:
        checked, _ = check_step(step, HEADER, spec, 7)
        assert found == [encode_line(checked.record(HEADER.episode_id))]


def test_the_arrays_of_a_spec_take_the_short_way() -> None:
    spec = EpisodeSpec(
        {"arm/grip": Feature("float32"), "arm/joints": Feature("float32", (2, 3))},
        {"go": Feature("float32", (4,))},
    )
    joints, go = np.arange(6, dtype=np.float32).reshape(3, 2).T, np.linspace(0, 1, 4, dtype=np.float32)
    codec = codec_of(spec)
    taken = codec.take_arrays(
        StepIn({"arm": {"joints": joints, "grip": np.array(0.1, np.float32)}}, {"go": go}, reward=0.25)
    )
    assert taken is not None
    lines = codec.lines(taken, 3)
    assert lines is not None
    record = decode_line(lines[0])
    assert record["observation"] == {"arm": {"grip": 0.1, "joints": joints.tolist()}}
    assert (np.float32(record["action"]["go"]) == go).all()
    assert record["reward"] == 0.25
