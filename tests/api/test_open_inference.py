"""`/v2` over real HTTP, on the toy model: sequences, tensors, and everything that can be wrong with a request."""

import json
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.api.conftest import Driven, bearer
from tests.api.test_infer_stream import LINGER, observations
from tests.api.wire import connect, request_bytes
from tests.inference.toy import NONFINITE, Floats, Reference

INFER = "/v2/models/brain/infer"


@pytest.fixture
def http(driven: Driven) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=driven.url, headers=bearer("robot"), timeout=60) as client:
        yield client


@pytest.fixture
def sequence(http: httpx.Client, request: pytest.FixtureRequest) -> Iterator[str]:
    """A sequence id of the test's own, whose session is ended if the test did not."""
    before = {one["session_id"] for one in http.get("/sessions").json()["sessions"]}
    yield request.node.name
    for one in http.get("/sessions").json()["sessions"]:
        if one["session_id"] not in before:
            http.delete(f"/sessions/{one['session_id']}")


def tensors(seen: Floats, **changes: Any) -> list[dict[str, Any]]:
    found = {
        "observation/arm/joints": {"datatype": "FP32", "shape": [2], "data": seen[:2].tolist()},
        "observation/load": {"datatype": "FP32", "shape": [1], "data": seen[2:].tolist()},
    }
    found |= changes
    return [{"name": name, **document} for name, document in found.items() if document]


def body(
    seen: Floats, sequence: Any, *, inputs: Any = None, outputs: Any = None, **parameters: Any
) -> dict[str, Any]:
    document = {"inputs": tensors(seen) if inputs is None else inputs}
    document |= {} if outputs is None else {"outputs": outputs}
    return document | {"parameters": {"sequence_id": sequence, **parameters}}


def step(http: httpx.Client, seen: Floats, sequence: Any, **parameters: Any) -> list[float]:
    """Ask for one step and return its action [gripper, velocity]."""
    answer = http.post(INFER, json=body(seen, sequence, **parameters))
    assert answer.status_code == 200, answer.text
    outputs = {one["name"]: one for one in answer.json()["outputs"]}
    assert (outputs["action/gripper"]["shape"], outputs["chunk"]["shape"]) == ([1], [2, 2])
    return [*outputs["action/gripper"]["data"], *outputs["action/velocity"]["data"]]


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    problem: dict[str, Any] = answer.json()
    assert problem["error"] == problem["detail"] != ""
    assert problem["status"] == status
    assert "Traceback" not in answer.text
    return problem


def test_a_sequence_is_a_session(http: httpx.Client, sequence: str) -> None:
    reference = Reference()
    first, *rest = observations(5)
    assert step(http, first, sequence, sequence_start=True) == pytest.approx(reference.step(first)[0], abs=1e-6)
    for seen in rest:
        assert step(http, seen, sequence) == pytest.approx(reference.step(seen)[0], abs=1e-6)
    reference = Reference()
    assert step(http, first, sequence, sequence_start=True) == pytest.approx(reference.step(first)[0], abs=1e-6)
    last = reference.step(rest[0])[0]
    assert step(http, rest[0], sequence, sequence_end=True) == pytest.approx(last, abs=1e-6)
    assert "sequence_start" in refused(http.post(INFER, json=body(first, sequence)), 409)["detail"]


def test_ids_of_one_client_are_not_anothers(driven: Driven, http: httpx.Client, sequence: str) -> None:
    mine, theirs = Reference(), Reference()
    seen = observations(6)
    with httpx.Client(base_url=driven.url, headers=bearer("twin"), timeout=60) as twin:
        for number, one in enumerate(seen):
            start = {"sequence_start": number == 0}
            assert step(http, one, 7, **start) == pytest.approx(mine.step(one)[0], abs=1e-6)
            if number:
                one = seen[-number]
            assert step(twin, one, 7, **start) == pytest.approx(theirs.step(one)[0], abs=1e-6)
        # A number and the same as text are two sequences, too.
        refused(twin.post(INFER, json=body(seen[0], "7")), 409)
        assert step(twin, seen[0], 7, sequence_end=True) == pytest.approx(theirs.step(seen[0])[0], abs=1e-6)
    assert step(http, seen[0], 7, sequence_end=True) == pytest.approx(mine.step(seen[0])[0], abs=1e-6)


def test_a_numbered_step_may_be_sent_again(http: httpx.Client, sequence: str) -> None:
    first, second = observations(2)
    step(http, first, sequence, sequence_start=True, step=0)
    answers = [step(http, second, sequence, step=1) for _ in range(3)]
    assert answers[0] == answers[1] == answers[2]
    assert refused(http.post(INFER, json=body(second, sequence, step=5)), 409)["next_step"] == 2
    assert refused(http.post(INFER, json=body(second, sequence, step=0)), 409)["next_step"] == 2


@pytest.mark.parametrize("outputs", [None, [{"name": "chunk"}, {"name": "action/velocity"}]])
@pytest.mark.parametrize("binary", [True, False])
def test_outputs_come_as_they_are_asked_for(
    http: httpx.Client, sequence: str, outputs: list[dict[str, Any]] | None, binary: bool
) -> None:
    (seen,) = observations(1)
    asked = body(seen, sequence, outputs=outputs, sequence_start=True, binary_data_output=binary)
    if outputs:
        asked["outputs"][1]["parameters"] = {"binary_data": not binary}
    answer = http.post(INFER, json=asked)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers.get("inference-header-content-length", len(answer.content)))
    document = json.loads(answer.content[:length])
    names = ["chunk", "action/velocity"] if outputs else ["action/gripper", "action/velocity", "chunk"]
    assert [one["name"] for one in document["outputs"]] == names
    found, offset = {}, length
    for one in document["outputs"]:
        in_bytes = binary != bool(outputs and one["name"] == "action/velocity")
        assert ("data" in one) != in_bytes
        if in_bytes:
            size = one["parameters"]["binary_data_size"]
            found[one["name"]] = np.frombuffer(answer.content[offset : offset + size], np.float32)
            offset += size
        else:
            found[one["name"]] = np.array(one["data"], np.float32)
    assert offset == len(answer.content)
    plan = Reference().step(seen)
    assert np.allclose(found["chunk"], plan.ravel(), atol=1e-6)
    assert np.allclose(found["action/velocity"], plan[0, 1:], atol=1e-6)


FP32 = {"datatype": "FP32", "shape": [1]}
BAD_INPUTS: list[tuple[dict[str, Any], str]] = [
    ({"load": FP32 | {"data": [1.0]}}, "'load' is none of"),
    ({"observation/torque": FP32 | {"data": [1.0]}}, "torque"),
    ({"observation/load": None}, "missing load"),
    ({"observation/load": {"datatype": "FP64", "shape": [1], "data": [1.0]}}, "expected FP32"),
    ({"observation/load": {"datatype": "INT64", "shape": [1], "data": [1]}}, "expected FP32"),
    ({"observation/load": {"datatype": "FP32", "shape": [1, 1], "data": [1.0]}}, r"got FP32 [1, 1]"),
    ({"observation/load": FP32 | {"data": [1e39]}}, "float32"),
    ({"observation/load": FP32 | {"data": [True]}}, "not FP32"),
    ({"observation/load": FP32 | {"data": []}}, "0 elements"),
    ({"reward": {"datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}}, "reward"),
    ({"reward": FP32 | {"data": [1e39]}}, "reward"),
    ({"observation/load": FP32 | {"parameters": {"shared_memory_region": "x"}}}, "shared_memory_region"),
]
BAD_OUTPUTS: list[list[dict[str, Any]]] = [
    [{"name": "actions"}],
    [{"name": "chunk"}, {"name": "chunk"}],
    [{"parameters": {}}],
    [{"name": "chunk", "parameters": {"binary_data": 1}}],
    [{"name": "chunk", "parameters": {"classification": 2}}],
]
BAD_PARAMETERS: list[tuple[dict[str, Any], int]] = [
    ({"sequence_id": 0}, 400),
    ({"sequence_id": ""}, 400),
    ({"sequence_id": -1}, 400),
    ({"sequence_id": 2**64}, 400),
    ({"sequence_id": 1.5}, 400),
    ({"sequence_id": True}, 400),
    ({"sequence_id": "x" * 300}, 400),
    ({"sequence_id": [1]}, 400),
    ({"sequence_strat": True}, 400),
    ({"sequence_start": 1}, 400),
    ({"timeout": -1}, 400),
    ({"timeout": 10**9}, 400),  # 1000 s, over the bound on deadlines
    ({"step": "1"}, 400),
    ({"step": 9}, 409),
    ({"record": 7}, 400),
    ({"timeout": 1}, 504),
]


def test_whatever_is_wrong_is_named_and_the_sequence_goes_on(http: httpx.Client, sequence: str) -> None:
    first, second, third = observations(3)
    reference = Reference()
    assert step(http, first, sequence, sequence_start=True) == pytest.approx(reference.step(first)[0], abs=1e-6)
    for starting in (False, True):  # not even a start gives the old state up for a request that is wrong
        for changes, says in BAD_INPUTS:
            asked = body(second, sequence, inputs=tensors(second, **changes), sequence_start=starting)
            assert says in refused(http.post(INFER, json=asked), 400)["detail"], changes
        refused(http.post(INFER, json=body(second, sequence, inputs=[], sequence_start=starting)), 400)
        for outputs in BAD_OUTPUTS:
            refused(http.post(INFER, json=body(second, sequence, outputs=outputs, sequence_start=starting)), 400)
        for parameters, status in BAD_PARAMETERS:
            if starting and status == 504:
                continue  # it has begun, and came too late
            asked = body(second, sequence, sequence_start=starting)
            asked["parameters"] |= parameters
            refused(http.post(INFER, json=asked), 400 if starting else status)
    too_much = np.array([0, 0, 2 * NONFINITE], np.float32)
    assert refused(http.post(INFER, json=body(too_much, sequence)), 503)["next_step"] == 1
    for seen in (second, third):
        assert step(http, seen, sequence) == pytest.approx(reference.step(seen)[0], abs=1e-6)


def test_lies_about_lengths_are_refused(driven: Driven, http: httpx.Client, sequence: str) -> None:
    (seen,) = observations(1)
    sizes = {"observation/arm/joints": 2, "observation/load": 1}
    document = {
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": [size], "parameters": {"binary_data_size": 4 * size}}
            for name, size in sizes.items()
        ],
        "parameters": {"sequence_id": sequence, "sequence_start": True, "sequence_end": True},
    }
    text = json.dumps(document).encode()
    data = seen.tobytes()

    def post(content: bytes, length: str) -> httpx.Response:
        return http.post(
            INFER, content=content, headers={b"Inference-Header-Content-Length": length.encode("latin-1")}
        )

    assert post(text + data, str(len(text))).status_code == 200
    nan = np.array([0, np.nan, 0], np.float32).tobytes()
    assert refused(post(text + nan, str(len(text))), 400)["field"] == "observation/arm/joints"
    for content, length in [
        (text + data[:-1], str(len(text))),
        (text + data + b"x", str(len(text))),
        (text + data, str(len(text) + 1)),
        (text + data, str(len(text) - 1)),
        (text + data, "0"),
        (text + data, "99999999"),
        (text + data, "9" * 30),
        (text + data, "-5"),
        (text + data, "12x"),
        (text + data, "²"),
        (text.replace(b'": 8', b'": 99999999999999999999'), str(len(text))),
    ]:
        refused(post(content, length), 400)
    refused(http.post(INFER, content=text + data), 400)
    refused(http.post(INFER, content=b""), 400)
    refused(http.post(INFER, content=b"[" * 50_000), 400)
    refused(http.post(INFER, content=b" " * 300_000), 413)
    refused(http.post(INFER, content=text, headers={"Content-Encoding": "gzip"}), 415)
    assert '"level": "error"' not in driven.daemon.log_path.read_text()


def test_a_client_that_leaves_mid_request_leaves_a_sequence_that_goes_on(
    driven: Driven, http: httpx.Client, sequence: str
) -> None:
    first, second, third = observations(3)
    reference = Reference()
    step(http, first, sequence, sequence_start=True)
    reference.step(first)
    content = json.dumps(body(second, sequence, step=1)).encode()
    os.kill(driven.worker_pid, signal.SIGSTOP)
    try:
        with connect(driven.daemon) as gone:
            gone.sendall(request_bytes(INFER, content, **bearer("robot")))
            gone.setsockopt(*LINGER)
    finally:
        os.kill(driven.worker_pid, signal.SIGCONT)
    assert step(http, second, sequence, step=1) == pytest.approx(reference.step(second)[0], abs=1e-6)
    assert step(http, third, sequence, step=2) == pytest.approx(reference.step(third)[0], abs=1e-6)


def test_a_sequence_that_was_ended_elsewhere_is_an_error_not_a_zero_state(
    http: httpx.Client, sequence: str
) -> None:
    (seen,) = observations(1)
    step(http, seen, sequence, sequence_start=True)
    (session,) = [one["session_id"] for one in http.get("/sessions").json()["sessions"]]
    assert session.startswith("v2-")
    assert http.delete(f"/sessions/{session}").status_code == 204
    assert "evicted" in refused(http.post(INFER, json=body(seen, sequence)), 409)["detail"]


def test_models_and_versions(driven: Driven, http: httpx.Client, sequence: str) -> None:
    (seen,) = observations(1)
    mine, spare = driven.model_id, driven.spare_id
    described = http.get("/v2/models/brain").json()
    assert described["versions"] == [mine]
    assert described["platform"] == "continuon-brain_jax-cpu"
    for path in (f"/v2/models/{mine}", f"/v2/models/brain/versions/{mine}", f"/v2/models/{spare}"):
        assert http.get(path).json()["inputs"] == described["inputs"], path
    for path in (
        "/v2/models/none",
        "/v2/models/brain/versions/1",
        f"/v2/models/{mine}/versions/{spare}",
        "/v2/nothing",
    ):
        refused(http.get(path), 404)
    ready = {
        "/v2/health/live": 200,
        "/v2/health/ready": 200,
        "/v2/models/brain/ready": 200,
        f"/v2/models/{mine}/ready": 200,
        f"/v2/models/brain/versions/{mine}/ready": 200,
        f"/v2/models/{spare}/ready": 400,
        "/v2/models/brain/versions/1/ready": 400,
    }
    assert {path: http.get(path).status_code for path in ready} == ready
    assert http.get("/v2/health/live").content == b""
    assert http.get("/v2").json()["name"] == "continuon-brain"
    for path, status in ((f"/v2/models/{spare}/infer", 409), ("/v2/models/none/infer", 404)):
        refused(http.post(path, json=body(seen, sequence, sequence_start=True)), status)
    pinned = f"/v2/models/{mine}/infer"
    assert http.post(pinned, json=body(seen, sequence, sequence_start=True)).status_code == 200
    refused(http.post(f"/v2/models/{spare}/infer", json=body(seen, sequence)), 409)
    refused(http.get(pinned), 405)


def test_what_a_sequence_did_is_recorded(http: httpx.Client, sequence: str) -> None:
    episode = http.post("/episodes", json={"environment_id": "toy"}).json()["episode_id"]
    seen = observations(3)
    actions = []
    for number, one in enumerate(seen):
        reward = {"reward": FP32 | {"data": [number / 10]}}
        asked = body(one, sequence, inputs=tensors(one, **reward), record=episode, sequence_start=number == 0)
        asked["parameters"]["sequence_end"] = number == 2
        actions.append(http.post(INFER, json=asked).json()["outputs"][0]["data"][0])
    assert http.post(f"/episodes/{episode}/end", json={"reason": "truncated"}).json()["steps"] == 3
    steps = http.get(f"/episodes/{episode}/steps").json()["steps"]
    assert [one["action"]["gripper"] for one in steps] == pytest.approx(actions)
    assert [one["reward"] for one in steps] == pytest.approx([0.1, 0.2, 0.0])
    assert steps[0]["observation"]["arm"]["joints"] == pytest.approx(seen[0][:2].tolist())


@pytest.mark.parametrize(("name", "status"), [("reader", 403), ("boss", 403), ("nobody", 401)])
def test_it_needs_the_scope_to_control(driven: Driven, name: str, status: int) -> None:
    (seen,) = observations(1)
    asked = body(seen, 1, sequence_start=True)
    refused(httpx.post(driven.url + INFER, json=asked, headers=bearer(name)), status)
    if name == "nobody":
        assert httpx.get(f"{driven.url}/v2/health/ready").status_code == 200
        refused(httpx.get(f"{driven.url}/v2/models/brain", headers=bearer(name)), 401)
