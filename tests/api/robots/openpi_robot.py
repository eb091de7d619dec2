"""Drives the toy model with Physical Intelligence's `openpi-client`, as a robot of theirs would, and reports."""

import json
import sys
from typing import Any

import numpy as np
from openpi_client.action_chunk_broker import ActionChunkBroker
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import InvalidStatus


def observe(values: list[float], **extra: Any) -> dict[str, Any]:
    """Return an observation as such robots name it: the joints as float64, a picture and a prompt beside them."""
    return {
        "observation/joints": np.array(values[:2]),
        "observation/load": np.float32(values[2]),
        "observation/image": np.zeros((8, 8, 3), np.uint8),
        "prompt": "pick up the cup",
        **extra,
    }


def plain(reply: dict[str, Any]) -> dict[str, Any]:
    """Return a reply with its arrays as lists, and their dtypes beside them."""

    def visit(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: visit(child) for name, child in node.items()}
        return node.tolist() if isinstance(node, np.ndarray | np.generic) else node

    return {**visit(reply), "dtype": str(reply["actions"].dtype)}


def refused(policy: WebsocketClientPolicy, observation: dict[str, Any]) -> str:
    try:
        policy.infer(observation)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("it was answered")


def connect(order: dict[str, Any], api_key: str | None) -> WebsocketClientPolicy:
    return WebsocketClientPolicy("127.0.0.1", order["port"], api_key=api_key)


def main(order: dict[str, Any]) -> dict[str, Any]:
    seen = order["observations"]
    policy = connect(order, order["token"])
    found: dict[str, Any] = {"metadata": policy.get_server_metadata()}
    found["steps"] = [plain(policy.infer(observe(values, reward=0.5))) for values in seen]
    found["refusals"] = [
        refused(policy, {"observation/joints": np.zeros(2)}),
        refused(policy, observe([0.0, 0.0, float("nan")])),
        refused(policy, observe(seen[0], torque=np.zeros(3))),
        refused(policy, observe(seen[0], deadline_ms=1e-6)),
        refused(policy, {"observation/joints": np.zeros((1, 2)), "load": 0.0}),
    ]
    found["after"] = plain(policy.infer(observe(seen[0], reward=0.5)))
    found["restarted"] = plain(policy.infer(observe(seen[0], reset=True)))
    broker = ActionChunkBroker(connect(order, order["token"]), action_horizon=2)
    found["broker"] = [plain(broker.infer(observe(seen[0]))) for _ in range(2)]
    found["doors"] = []
    for api_key in (None, "wrong-token-0123456789", order["reader"]):
        try:
            connect(order, api_key)
        except InvalidStatus as error:
            found["doors"].append(str(error))
    return found


print(json.dumps(main(json.loads(sys.argv[1]))))
