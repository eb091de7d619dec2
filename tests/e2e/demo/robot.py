"""The robot: Meta-World's Sawyer arm on `reach-v3`, its scripted expert, and a controller that speaks HTTP.

The simulator, the task and the expert are Meta-World's (Yu et al. 2019, arXiv 1910.10897); nothing of them was
written here. The controller knows the daemon only by its URL.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import gymnasium
import httpx
import metaworld  # noqa: F401  (registers the environments)
import numpy as np
from metaworld.policies import ENV_POLICY_MAP

TASK = "reach-v3"
HELD_OUT_GOALS = 1_000_003  # added to a seed: another draw of 50 goals from the same box
ACTUATOR_NOISE = 0.3  # sigma, in units of the action, added after the command
MAX_STEPS = 500  # Meta-World's own horizon, for the expert
DRIVE_STEPS = 200  # for a policy: twice what the disturbed expert needs; 500 steps of wandering reach goals too


@dataclass(frozen=True)
class Drive:
    """One closed-loop episode: whether the goal was reached, in how many steps, and each answer's latency."""

    success: bool
    steps: int
    latency_ms: list[float]


class Robot:
    """A simulated arm whose controller records to, or is driven by, the daemon at `url`."""

    def __init__(self, url: str, *, goals_seed: int, noise_seed: int) -> None:
        warnings.filterwarnings("ignore", module="gymnasium")
        warnings.filterwarnings("ignore", module="metaworld")
        self._env = gymnasium.make("Meta-World/MT1", env_name=TASK, seed=goals_seed)
        self._expert = ENV_POLICY_MAP[TASK]()
        self._noise = np.random.default_rng(noise_seed)
        self._http = httpx.Client(base_url=url, timeout=30)

    def record_expert_episode(self) -> int:
        """Let the expert reach one goal with disturbed actuators, posting every step; return the step count.

        The label is the commanded action; what the actuators made of it is posted as `executed_action`.
        """
        opened = self._post("/episodes", {"environment_id": TASK, "xr_mode": "trainer", "tags": ["demo"]})
        steps_url = f"/episodes/{opened['episode_id']}/steps"
        observation, _ = self._env.reset()
        for index in range(MAX_STEPS):
            command = np.clip(self._expert.get_action(observation), -1.0, 1.0).astype(np.float32)
            executed = command + ACTUATOR_NOISE * self._noise.standard_normal(command.shape)
            executed = np.clip(executed, -1.0, 1.0).astype(np.float32)
            following, reward, _, _, info = self._env.step(executed)
            success = bool(info["success"])
            step = {
                "step_index": index,
                "observation": {"state": observation.tolist()},
                "action": {"command": command.tolist()},
                "executed_action": {"command": executed.tolist()},
                "reward": float(reward),
                "is_terminal": success,
            }
            self._post(steps_url, step)
            observation = following
            if success:
                break
        ended = self._post(
            f"/episodes/{opened['episode_id']}/end",
            {
                "reason": "terminated" if success else "truncated",
                "final_observation": {"state": observation.tolist()},
            },
        )
        return int(ended["steps"])

    def drive(self) -> Drive:
        """Pursue one goal with the daemon's actions, undisturbed, until it is reached or the horizon ends."""
        session = self._post("/sessions", {})["session_id"]
        observation, _ = self._env.reset()
        reward, latency_ms, success = 0.0, [], False
        for index in range(DRIVE_STEPS):
            answer = self._http.post(
                "/infer",
                json={
                    "session_id": session,
                    "step": index,
                    "observation": {"state": observation.tolist()},
                    "reward": reward,
                    "deadline_ms": 1000,
                },
            )
            answer.raise_for_status()
            latency_ms.append(answer.elapsed.total_seconds() * 1000)
            action = np.asarray(answer.json()["action"]["command"], np.float32)
            observation, reward, _, _, info = self._env.step(action)
            reward, success = float(reward), bool(info["success"])
            if success:
                break
        self._http.delete(f"/sessions/{session}").raise_for_status()
        return Drive(success, len(latency_ms), latency_ms)

    def close(self) -> None:
        """Close the simulator and the connection."""
        self._env.close()
        self._http.close()

    def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        answer = self._http.post(path, json=body)
        if answer.is_error:
            raise RuntimeError(f"POST {path} -> {answer.status_code}: {answer.text}")
        document: dict[str, Any] = answer.json()
        return document
