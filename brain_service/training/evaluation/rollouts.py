"""Open loop: from some step of an episode on, the model lives on what it predicts itself.

It sees the recorded steps up to a start, then its own next observation, reward and action. How far it drifts from
what was recorded tells how good a world model it is; the baseline is a world that stands still.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float32, Int

from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, step
from brain_service.model.signals import StepInputs
from brain_service.model.state import init_carry
from brain_service.training.evaluation.predictions import Prediction
from brain_service.training.evaluation.subject import Subject

__all__ = ["Rollouts", "open_loop"]

STARTS = (0.1, 0.3, 0.5, 0.7)  # of an episode's length
HORIZONS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Rollouts:
    """Errors after so many steps of imagination, root mean square over observation elements in normalised units.

    `action_rmse` is that of the action said in the imagined observation, in units of half the recorded range, over
    the steps whose action is an expert's or an intervention's (0 where a horizon meets none).
    """

    horizons: list[int]
    rollouts: list[int]
    """How many rollouts reached each horizon."""
    observation_rmse: list[float]
    still_rmse: list[float]
    """The error of saying that nothing changes."""
    action_rmse: list[float]


def open_loop(subject: Subject, episodes: Iterable[Prediction]) -> Rollouts:
    """Roll out from four starts of every episode, at most 32 steps each."""
    run = make_rollout(subject.config)
    squares = {name: np.zeros(len(HORIZONS)) for name in ("model", "still", "action")}
    counts, imitated = np.zeros(len(HORIZONS), np.int64), np.zeros(len(HORIZONS), np.int64)
    for episode in episodes:
        starts = np.unique([int(share * (episode.length - 1)) for share in STARTS])
        # As many rows for every episode: one compilation.
        rows = np.resize(starts, len(STARTS))
        observation, action = jax.device_get(run(subject.params, episode.inputs, jnp.asarray(rows)))
        seen = np.asarray(episode.inputs.observation)
        said = np.asarray(subject.normaliser.action(episode.action))
        for row, start in enumerate(starts):
            for place, horizon in enumerate(HORIZONS):
                t = int(start) + horizon
                if t >= episode.length:
                    break
                counts[place] += 1
                squares["model"][place] += np.mean((observation[row, t - 1] - seen[t]) ** 2)
                squares["still"][place] += np.mean((seen[start] - seen[t]) ** 2)
                if episode.counted[t]:
                    imitated[place] += 1
                    squares["action"][place] += np.mean((action[row, t] - said[t]) ** 2)
    reached = counts > 0
    numbers = {"model": counts, "still": counts, "action": imitated}
    rmse = {name: np.sqrt(squares[name] / np.maximum(of, 1))[reached].tolist() for name, of in numbers.items()}
    return Rollouts(
        horizons=[horizon for horizon, known in zip(HORIZONS, reached, strict=True) if known],
        rollouts=counts[reached].tolist(),
        observation_rmse=rmse["model"],
        still_rmse=rmse["still"],
        action_rmse=rmse["action"],
    )


Rollout = Callable[[Params, StepInputs, Int[Array, "R"]], tuple[Float32[Array, "R T D"], Float32[Array, "R T A"]]]


def make_rollout(config: CoreModelConfig) -> Rollout:
    """Return a compiled function from an episode's inputs (`[T, ...]`) and R starts to what was predicted.

    Entry t of the result: o_{t+1} and a_t as predicted at t. Up to a row's start the model sees what was recorded,
    after it only what it said itself. Images are not predicted: from the start on the camera stands still.
    """

    def rollout(
        params: Params, recorded: StepInputs, starts: Int[Array, "R"]
    ) -> tuple[Float32[Array, "R T D"], Float32[Array, "R T A"]]:
        rows = starts.shape[0]
        images, recorded = recorded.image, recorded._replace(image=None)

        def advance(state: tuple[Any, StepInputs], now: tuple[Array, StepInputs]) -> tuple[Any, Any]:
            carry, imagined = state
            t, seen = now
            real = (t <= starts).astype(jnp.float32)
            inputs = jax.tree.map(lambda a, b: _mix(real, a, b), seen, imagined)
            if images is not None:
                inputs = inputs._replace(image=images[jnp.minimum(t, starts)])
            carry, outputs = step(params, config, carry, inputs)
            action = outputs.action_mean[:, 0]
            following = StepInputs(outputs.next_observation, action, outputs.reward, jnp.zeros(rows, jnp.float32))
            return (carry, following), (outputs.next_observation, action)

        nothing = jax.tree.map(lambda values: jnp.zeros((rows, *values.shape[1:]), jnp.float32), recorded)
        times = jnp.arange(recorded.is_first.shape[0])
        _, (observation, action) = jax.lax.scan(advance, (init_carry(config, rows), nothing), (times, recorded))
        return jnp.swapaxes(observation, 0, 1), jnp.swapaxes(action, 0, 1)

    return jax.jit(rollout)


def _mix(real: Float32[Array, "R"], seen: Float32[Array, "*X"], imagined: Float32[Array, "R *X"]) -> Array:
    share = real.reshape((-1,) + (1,) * (imagined.ndim - 1))
    return share * seen[None] + (1.0 - share) * imagined
