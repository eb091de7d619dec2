"""Drives the toy model with NVIDIA's `tritonclient`, as its users would, and reports what came back."""

import json
import sys
from typing import Any

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException


def tensors(observation: list[float], reward: float, *, binary: bool) -> list[triton.InferInput]:
    values = {
        "observation/arm/joints": np.array(observation[:2], np.float32),
        "observation/load": np.array(observation[2:], np.float32),
        "reward": np.array([reward], np.float32),
    }
    found = []
    for name, value in values.items():
        tensor = triton.InferInput(name, list(value.shape), "FP32")
        tensor.set_data_from_numpy(value, binary_data=binary)
        found.append(tensor)
    return found


def read(result: triton.InferResult) -> dict[str, Any]:
    names = ("action/gripper", "action/velocity", "chunk")
    arrays = {name: result.as_numpy(name) for name in names}
    return {
        "dtypes": [str(array.dtype) for array in arrays.values() if array is not None],
        "response": {name: value for name, value in result.get_response().items() if name != "outputs"},
        **{name: None if array is None else array.tolist() for name, array in arrays.items()},
    }


def refused(client: triton.InferenceServerClient, *arguments: Any, **options: Any) -> list[str]:
    try:
        client.infer(*arguments, **options)
    except InferenceServerException as error:
        return [error.status(), error.message()]
    raise AssertionError("it was answered")


def main(order: dict[str, Any]) -> dict[str, Any]:
    seen = order["observations"]

    def headers() -> dict[str, str]:
        # A new one for each call: the client leaves the length of its binary request in the one it is given.
        return {"Authorization": f"Bearer {order['token']}"}

    client = triton.InferenceServerClient(order["address"], network_timeout=120, connection_timeout=60)
    outputs = [triton.InferRequestedOutput("chunk", binary_data=False)]
    last = len(seen) - 1
    found: dict[str, Any] = {
        "live": client.is_server_live(),
        "ready": client.is_server_ready(),
        "server": client.get_server_metadata(headers()),
        "model": client.get_model_metadata("brain", headers=headers()),
        "model_ready": client.is_model_ready("brain", headers=headers()),
        "other_ready": client.is_model_ready(order["spare_id"], headers=headers()),
        "version_ready": client.is_model_ready("brain", order["model_id"], headers=headers()),
    }
    for way, sequence in (("binary", 41), ("json", 42), ("text id", "robot-7")):
        steps = []
        for step, observation in enumerate(seen):
            result = client.infer(
                "brain",
                tensors(observation, 0.5, binary=way == "binary"),
                request_id=f"r{step}",
                sequence_id=sequence,
                sequence_start=step == 0,
                sequence_end=step == last,
                outputs=outputs if way == "json" else None,
                headers=headers(),
            )
            steps.append(read(result))
        found[way] = steps
    pending = [
        client.async_infer(
            order["model_id"], tensors(seen[0], 0.0, binary=True), sequence_id=50 + n, sequence_start=True,
            sequence_end=True, headers=headers(),
        )
        for n in range(3)
    ]  # fmt: skip
    found["async"] = [read(one.get_result()) for one in pending]
    inputs = tensors(seen[0], 0.0, binary=True)
    wrong = triton.InferInput("observation/load", [2], "FP32")
    wrong.set_data_from_numpy(np.zeros(2, np.float32))
    found["refusals"] = {
        "ended": refused(client, "brain", inputs, sequence_id=41, headers=headers()),
        "no sequence": refused(client, "brain", inputs, headers=headers()),
        "no model": refused(client, "none-such", inputs, sequence_id=1, sequence_start=True, headers=headers()),
        "spare": refused(client, order["spare_id"], inputs, sequence_id=1, sequence_start=True, headers=headers()),
        "shape": refused(
            client, "brain", [inputs[0], wrong], sequence_id=1, sequence_start=True, headers=headers()
        ),
        "no token": refused(client, "brain", inputs, sequence_id=1, sequence_start=True),
        "late": refused(
            client,
            "brain",
            inputs,
            sequence_id=1,
            sequence_start=True,
            sequence_end=True,
            timeout=1,
            headers=headers(),
        ),
    }
    client.close()
    return found


print(json.dumps(main(json.loads(sys.argv[1]))))
