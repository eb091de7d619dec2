"""Which feature a robot's key is: by path, by its last name where that is unambiguous, else nobody's."""

from typing import Any

import numpy as np
import pytest

from brain_service.api.openpi_names import match_observation
from brain_service.errors import InvalidError
from brain_service.spec import Feature

SPEC = {
    "arm/joints": Feature("float32", (2,)),
    "camera": Feature("image", (8, 8, 3)),
    "left/force": Feature("float32"),
    "right/force": Feature("float32"),
    "task": Feature("text"),
}
PICTURE = np.zeros((8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("message", "paths", "warned"),
    [
        ({"arm/joints": 1}, {"arm/joints"}, []),
        ({"observation/arm/joints": 1}, {"arm/joints"}, []),
        ({"arm": {"joints": 1}}, {"arm/joints"}, []),
        ({"observation": {"arm": {"joints": 1}}}, {"arm/joints"}, []),
        (
            {"joints": 1, "left/force": 2, "observation/right/force": 3},
            {"arm/joints", "left/force", "right/force"},
            [],
        ),
        ({"robot/joints": 1, "prompt": "x", "note": b"y"}, {"arm/joints"}, ["note", "prompt"]),
        ({"left/force": 1, "force": 2}, {"left/force", "right/force"}, []),  # the other one is taken
        ({"task": "lift"}, {"task"}, []),
        ({"camera": PICTURE, "wrist": PICTURE}, set(), ["camera", "wrist"]),
        ({"camera": b"\x89PNG"}, {"camera"}, []),
        ({}, set(), []),
    ],
)
def test_keys_are_matched(message: dict[str, Any], paths: set[str], warned: list[str]) -> None:
    found, warnings = match_observation(message, SPEC)
    assert found.keys() == paths
    assert [text.partition(":")[0] for text in warnings] == warned


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"force": 1}, "observation/force"),  # of two
        ({"torque": np.zeros(3)}, "observation/torque"),
        ({"a/joints": 1, "b/joints": 2}, "observation/a/joints"),
        ({"arm/joints": 1, "observation/arm/joints": 2}, "observation/arm/joints"),
        ({"x": None}, "observation/x"),
        ({"": 1}, "observation"),
        ({"x": {}}, "observation"),
    ],
)
def test_what_is_ambiguous_or_nobodys_is_refused(message: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as raised:
        match_observation(message, SPEC)
    assert raised.value.field == field
