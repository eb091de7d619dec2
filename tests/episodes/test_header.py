"""The body that starts an episode."""

from dataclasses import dataclass
from datetime import date
from typing import Any

import numpy as np
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
        "safety": {"pii_cleared": True, "content_rating": {"audience": "general"}, "reviewer": {"team": "lab"}},
        "share": {"public": False, "license": "CC-BY-4.0", "tags": ["demo"]},
        "features": SPEC,
        "durability": "step",
    }
    header = EpisodeHeader.parse(body)
    again = EpisodeHeader.from_record(decode_line(encode_line(header.record())))
    assert again == header
    assert again.control_role == "expert"
    metadata = again.all_metadata()
    assert metadata["operator"] == "Ann"
    assert (metadata["safety"], metadata["share"]) == (body["safety"], body["share"])


def test_an_empty_body_is_enough_and_ids_sort_by_time() -> None:
    assert is_episode_id(EpisodeHeader.parse({}).episode_id)
    assert new_episode_id(10**18) < new_episode_id(10**18 + 10**9)
    assert new_episode_id(1_795_378_500_000_000_000).startswith("20261122T201500-")


@pytest.mark.parametrize(
    ("body", "field", "hint"),
    [
        ({"enviroment_id": "x"}, "enviroment_id", "'environment_id'"),
        ({"tags": "kitchen"}, "tags", "array"),
        ({"tags": [1]}, "tags/0", "str"),
        ({"tags": ["x" * 257]}, "tags/0", "256"),
        ({"tags": ["x"] * 257}, "tags", "256"),
        ({"language_instruction": "x" * 4097}, "language_instruction", "4096"),
        ({"robot_id": "x" * 257}, "robot_id", "256"),
        ({"safety": "safe"}, "safety", "object"),
        ({"safety": {"pii_cleared": "yes"}}, "safety/pii_cleared", "bool"),
        ({"safety": {"content_rating": {"audience": 3}}}, "safety/content_rating/audience", "str"),
        ({"safety": {"pii_attestation": []}}, "safety/pii_attestation", "object"),
        ({"safety": {"note": "x" * 20_000}}, "safety", "16384"),
        ({"share": {"public": 1}}, "share/public", "bool"),
        ({"share": {"tags": ["a", None]}}, "share/tags/1", "str"),
        ({"metadata": {"serial": 2**70}}, "metadata/serial", "64 bits"),
        ({"metadata": {"gain": [1.0, float("nan")]}}, "metadata/gain/1", "nan"),
        ({"metadata": {"who": "\ud800"}}, "metadata/who", "UTF-8"),
        ({"metadata": {"key": b"raw"}}, "metadata/key", "bytes"),
        ({"metadata": {"a": {3: 1}}}, "metadata/a", "3"),
        ({"metadata": {"x": object()}}, "metadata", "object"),
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
    assert [parse_role(name, "f") for name in ("human_teleop", "human_dev_xr", "intervention", "policy")] == [
        "expert",
        "expert",
        "intervention",
        "policy",
    ]


def test_metadata_cannot_hide_a_member() -> None:
    with pytest.raises(InvalidError) as raised:
        EpisodeHeader.parse({"metadata": {"environment_id": "lost"}})
    assert raised.value.field == "metadata/environment_id"


def test_an_episode_without_records_attests_nothing_and_shows_none() -> None:
    header = EpisodeHeader.parse({})
    assert (header.safety, header.share) == (None, None)
    assert not {"safety", "share"} & header.all_metadata().keys()


def test_what_nests_too_deeply_is_refused_by_name() -> None:
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"a": deep}
    with pytest.raises(InvalidError, match="nested deeper than 16") as raised:
        EpisodeHeader.parse({"safety": deep})
    assert (raised.value.field or "").startswith("safety/a/a")


def test_numpy_values_dataclasses_and_dates_become_plain_json() -> None:
    @dataclass
    class Trial:
        number: int

    given = {"gain": np.float32(0.5), "home": np.array([1, 2]), "trial": Trial(3), "day": date(2026, 11, 22)}
    header = EpisodeHeader.parse({"metadata": given})
    assert header.metadata == {"gain": 0.5, "home": [1, 2], "trial": {"number": 3}, "day": "2026-11-22"}
    assert EpisodeHeader.from_record(decode_line(encode_line(header.record()))) == header


def test_free_metadata_of_older_logs_under_the_records_names_is_kept() -> None:
    record = EpisodeHeader.parse({}).record()
    record["metadata"]["safety"] = "gloves on"
    header = EpisodeHeader.from_record(record)
    assert header.safety is None
    assert header.all_metadata()["safety"] == "gloves on"
