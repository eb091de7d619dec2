"""What the answers can hold: every array an action may be, of any shape and layout."""

import numpy as np
import orjson
import pytest

from brain_service.api.bodies import JsonResponse, decode
from brain_service.api.episodes import EndBody
from brain_service.errors import InvalidError


def test_scalar_and_strided_arrays_are_written_like_any_other() -> None:
    content = {
        "scalar": np.array(0.1, np.float32),
        "strided": np.arange(6, dtype=np.float32)[::2],
        "columns": np.asfortranarray(np.arange(4, dtype=np.int64).reshape(2, 2)),
    }
    answer = bytes(JsonResponse(content).body)
    assert answer == b'{"scalar":0.1,"strided":[0.0,2.0,4.0],"columns":[[0,1],[2,3]]}'


def test_what_has_no_json_form_is_a_mistake_of_ours() -> None:
    with pytest.raises(orjson.JSONEncodeError):
        JsonResponse({"value": object()})


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b'{"reason":"bogus"}', "reason", ("'bogus'", "'terminated'", "'truncated'")),
        (b'{"raeson":"terminated"}', "raeson", ("`raeson`", "reason", "final_observation")),
        (b'{"final_observation":1}', "final_observation", ("object",)),
    ],
)
def test_a_wrong_body_is_told_what_would_be_right(body: bytes, field: str, words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidError) as refused:
        decode(body, EndBody)
    assert refused.value.field == field
    for word in words:
        assert word in refused.value.detail
