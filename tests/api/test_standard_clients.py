"""`tritonclient` and `openpi-client`, unchanged, in an environment of their own, against a running daemon."""

import json

import httpx
import numpy as np
import pytest

from tests.api.conftest import Driven, bearer, token
from tests.api.judges import drive
from tests.inference.toy import Floats, Reference, toy_observation

pytestmark = pytest.mark.long  # the environment is made by pip

STEPS = 6


def observations() -> list[Floats]:
    rng = np.random.default_rng(5)
    return [toy_observation(rng) for _ in range(STEPS)]


def chunks(seen: list[Floats], reward: float) -> list[Floats]:
    """Return the plans [H, A] that the model must answer."""
    reference = Reference()
    return [reference.step(one, reward) for one in seen]


def test_tritonclient(driven: Driven) -> None:
    seen = observations()
    expected = chunks(seen, 0.5)
    found = drive(
        "triton_robot",
        address=f"127.0.0.1:{driven.daemon.port}",
        token=token("robot"),
        model_id=driven.model_id,
        spare_id=driven.spare_id,
        observations=[one.tolist() for one in seen],
    )
    assert (found["live"], found["ready"], found["model_ready"], found["version_ready"]) == (True,) * 4
    assert found["other_ready"] is False
    assert {"sequence", "binary_tensor_data"} <= set(found["server"]["extensions"])
    assert found["model"]["versions"] == [driven.model_id]
    assert {"name": "observation/arm/joints", "datatype": "FP32", "shape": [2]} in found["model"]["inputs"]
    assert {"name": "chunk", "datatype": "FP32", "shape": [2, 2]} in found["model"]["outputs"]
    for way in ("binary", "json", "text id"):
        for step, (answer, plan) in enumerate(zip(found[way], expected, strict=True)):
            assert np.allclose(answer["chunk"], plan, atol=1e-6), (way, step)
            assert set(answer["dtypes"]) == {"float32"}
            assert (answer["response"]["id"], answer["response"]["parameters"]["step"]) == (f"r{step}", step)
            if way != "json":
                assert np.allclose(answer["action/gripper"], plan[0, :1], atol=1e-6)
                assert np.allclose(answer["action/velocity"], plan[0, 1:], atol=1e-6)
    assert found["json"][0]["action/gripper"] is None  # only the plan was asked for
    for answer in found["async"]:
        assert np.allclose(answer["chunk"], expected[0], atol=1e-6)
    statuses = {name: refusal[0] for name, refusal in found["refusals"].items()}
    assert statuses == {
        "ended": "409", "no sequence": "400", "no model": "404", "spare": "409", "shape": "400", "no token": "401",
        "late": "504",
    }  # fmt: skip
    assert "expected FP32 [1], got FP32 [2]" in found["refusals"]["shape"][1]
    assert "sequence_start" in found["refusals"]["no sequence"][1]
    left = httpx.get(f"{driven.url}/sessions", headers=bearer("reader")).json()["sessions"]
    assert [one for one in left if one["session_id"].startswith("v2-")] == []


def test_openpi_client(driven: Driven) -> None:
    seen = observations()
    expected = chunks([*seen, seen[0]], 0.5)
    found = drive(
        "openpi_robot",
        port=driven.daemon.port,
        token=token("robot"),
        reader=token("reader"),
        observations=[one.tolist() for one in seen],
    )
    metadata = found["metadata"]
    assert metadata["model_id"] == driven.model_id
    assert metadata["observation"]["arm/joints"] == {"dtype": "float32", "shape": [2]}
    assert (metadata["action_horizon"], metadata["action_size"]) == (2, 2)
    for step, (answer, plan) in enumerate(zip(found["steps"], expected[:-1], strict=True)):
        assert np.allclose(answer["actions"], plan, atol=1e-6), step
        assert (answer["dtype"], answer["step"]) == ("float32", step)
        assert np.allclose(answer["action"]["velocity"], plan[:, 1:], atol=1e-6)
        assert np.allclose(answer["action"]["gripper"], plan[:, 0], atol=1e-6)
        assert 0 <= answer["server_timing"]["infer_ms"] <= answer["server_timing"]["total_ms"]
        assert len(answer["warnings"]) == 2  # the picture and the prompt
    problems = [json.loads(text.partition("\n")[2]) for text in found["refusals"]]
    assert [(one["status"], one.get("field")) for one in problems] == [
        (422, "observation/load"),
        (422, "observation/load"),
        (422, "observation/torque"),
        (504, None),
        (422, "observation/arm/joints"),
    ]
    assert np.allclose(found["after"]["actions"], expected[-1], atol=1e-6)
    assert np.allclose(found["restarted"]["actions"], expected[0], atol=1e-6)
    assert found["restarted"]["step"] == 0
    # openpi's broker hands the plan out action by action, and the named actions with it.
    assert np.allclose([one["actions"] for one in found["broker"]], chunks(seen[:1], 0.0)[0], atol=1e-6)
    assert found["broker"][1]["action"]["velocity"] == pytest.approx([found["broker"][1]["actions"][1]])
    assert [("401" in text, "403" in text) for text in found["doors"]] == [
        (True, False),
        (True, False),
        (False, True),
    ]
    left = httpx.get(f"{driven.url}/sessions", headers=bearer("reader")).json()["sessions"]
    assert left == []
