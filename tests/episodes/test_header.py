"""The body that starts an episode."""

from typing import Any

import pytest

from brain_service.episodes.header import EpisodeHeader, is_episode_id, new_episode_id, parse_role
from brain_service.episodes.log_format import decode_line, encode_line
from brain_service.errors import InvalidError
from tests.episodes.bodies import SPEC


def test_the_header_survives_its_line() -> None:
    body = {
        "environment_id": "pi5-dev",
        "xr_mode": "observer",
        "control_role": "human_teleop",
        "tags": ["kitchen", "grün"],
        "robot_id": "r1",
        "language_instruction": "pick the cup",
        "metadata": {"operator": "Ann", "trial": 3},
        "features": SPEC,
        "durability": "step",
    }
    header = EpisodeHeader.parse(body)
    again = EpisodeHeader.from_record(decode_line(encode_line(header.record())))
    assert again == header
    assert again.control_role == "expert"
    assert again.all_metadata()["operator"] == "Ann"


def test_an_empty_body_is_enough_and_ids_sort_by_time() -> None:
    assert is_episode_id(EpisodeHeader.parse({}).episode_id)
    assert new_episode_id(10**18) < new_episode_id(10**18 + 10**9)
    assert new_episode_id(1_795_378_500_000_000_000).startswith("20261122T201500-")


@pytest.mark.parametrize(
    ("body", "field", "hint"),
    [
        ({"enviroment_id": "x"}, "enviroment_id", "'environment_id'"),
        ({"tags": "kitchen"}, "tags", "array"),
        ({"tags": [1]}, "tags", "str"),
        ({"control_role": "robot"}, "control_role", "intervention"),
        ({"durability": "never"}, "durability", "never"),
        ({"episode_id": "../../etc/passwd"}, "episode_id", "letters"),
        ({"episode_id": ".hidden"}, "episode_id", "letters"),
        ({"features": {"observation": {}}}, "features", "action"),
    ],
)
def test_a_wrong_member_is_named(body: dict[str, Any], field: str, hint: str) -> None:
    with pytest.raises(InvalidError) as raised:
        EpisodeHeader.parse(body)
    assert raised.value.field is not None
    assert raised.value.field.startswith(field)
    assert hint in raised.value.detail


@pytest.mark.parametrize("missing", ["episode_id", "created_ns", "metadata", "features"])
def test_a_header_line_that_lacks_a_member_is_no_header(missing: str) -> None:
    record = EpisodeHeader.parse({}).record()
    del record[missing]
    with pytest.raises(InvalidError, match=missing):
        EpisodeHeader.from_record(record)


def test_another_major_schema_is_refused_and_a_minor_one_read() -> None:
    record = EpisodeHeader.parse({}).record()
    assert EpisodeHeader.from_record(record | {"schema_version": "1.9"}).schema_version == "1.9"
    with pytest.raises(InvalidError, match=r"version 2\.0"):
        EpisodeHeader.from_record(record | {"schema_version": "2.0"})


def test_the_seeds_roles_are_people() -> None:
    assert [parse_role(name, "f") for name in ("human_teleop", "human_supervisor", "intervention", "policy")] == [
        "expert",
        "expert",
        "intervention",
        "policy",
    ]


def test_metadata_cannot_hide_a_member() -> None:
    with pytest.raises(InvalidError) as raised:
        EpisodeHeader.parse({"metadata": {"environment_id": "lost"}})
    assert raised.value.field == "metadata/environment_id"
