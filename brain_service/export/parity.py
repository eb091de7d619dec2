"""How far a form of the policy is from the float model: over the golden sequence, a long one, and across a switch.

Every form runs with its own state fed back, over inputs that the float model's run recorded, so that an error that
the state carries on shows and one that the world would correct does not hide it. A difference is the largest of
any action element at any step, as a share of that element's range.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Shaped, UInt8

from brain_service.export.bundle import Golden
from brain_service.training.normalisation import Normaliser

__all__ = [
    "GOLDEN_RESET",
    "GOLDEN_STEPS",
    "IMAGES",
    "LONG_STEPS",
    "SWITCH_STEPS",
    "Drive",
    "Inputs",
    "Reference",
    "Stepper",
    "difference",
    "drive",
    "measure_switch",
    "record_reference",
]

GOLDEN_STEPS = 64
GOLDEN_RESET = 40
"""The golden sequence begins an episode here a second time: a form that forgets to reset the state must fail."""

LONG_STEPS = 1000
"""One episode without a reset: what an error adds up to, 20 s at 50 steps a second."""

IMAGES = 16
"""As many different images a sequence has; they come round again."""

SWITCH_STEPS = 64
"""Of the long sequence: a session runs half of them on one form and the rest on another."""

Floats = Float32[np.ndarray, "..."]

Stepper = Callable[..., tuple[tuple[Any, ...], Any]]
"""A form that is ready to run: `(carry, observation [1, D], previous_action [1, A], previous_reward [1],
is_first [1])` to `(carry, action [1, H, A])`, float32 in raw units; `carry` is a tuple of arrays [1, n]. A model
that sees takes the image [1, h, w, C] as well, uint8."""


class Inputs(NamedTuple):
    """What a policy is fed over T steps: raw units, in the order of a stepper's arguments.

    Of the N images, for a model that sees, step t has number t modulo N: one a step would fill the memory.
    """

    observation: Float32[np.ndarray, "T D"]
    previous_action: Float32[np.ndarray, "T A"]
    previous_reward: Float32[np.ndarray, "T"]
    is_first: Float32[np.ndarray, "T"]
    image: UInt8[np.ndarray, "N h w C"] | None = None

    @staticmethod
    def of(golden: Golden) -> "Inputs":
        """Return the golden sequence's inputs."""
        return Inputs(*(getattr(golden, name) for name in Inputs._fields))

    def first(self, steps: int) -> "Inputs":
        """Return the first so many steps: vectors of shape `[steps, ...]`, and all images."""
        observation, action, reward, is_first = (values[:steps] for values in self._vectors)
        return Inputs(observation, action, reward, is_first, self.image)

    def at(self, t: int) -> tuple[Shaped[np.ndarray, "1 *X"], ...]:
        """Return the arguments of step `t`."""
        now = tuple(values[t : t + 1] for values in self._vectors)
        if self.image is None:
            return now
        place = t % len(self.image)
        return (*now, self.image[place : place + 1])

    @property
    def _vectors(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.observation, self.previous_action, self.previous_reward, self.is_first


class Drive(NamedTuple):
    """A run: the actions, shape [T, H, A], and the median time of a step."""

    action: Float32[np.ndarray, "T H A"]
    step_us: float


@dataclass(frozen=True, eq=False)
class Reference:
    """The float model's own runs, which every form is held against."""

    golden: Golden
    long: Inputs
    long_action: Float32[np.ndarray, "T H A"]


def drive(
    step: Stepper,
    carry: Mapping[str, int],
    inputs: Inputs,
    *,
    then: Stepper | None = None,
    feed_back: bool = False,
) -> Drive:
    """Run a form over the inputs from a fresh state, its carry (sizes by name) fed back.

    With `then` the second half runs on that form, from the first one's carry. With `feed_back` each action also
    replaces the next step's previous action in `inputs`.
    """
    state: tuple[Any, ...] = tuple(np.zeros((1, size), np.float32) for size in carry.values())
    steps = len(inputs.is_first)
    actions: list[Float32[np.ndarray, "H A"]] = []
    times_ns: list[int] = []
    for t in range(steps):
        if feed_back and t > 0:
            inputs.previous_action[t] = actions[-1][0]
        now = step if then is None or t < steps // 2 else then
        begun_ns = time.perf_counter_ns()
        state, action = now(state, *inputs.at(t))
        # A carry that crosses forms goes through memory, as it does between two workers.
        state, answered = tuple(np.asarray(part) for part in state), np.asarray(action)[0]
        times_ns.append(time.perf_counter_ns() - begun_ns)
        actions.append(answered)
    return Drive(np.stack(actions), float(np.median(times_ns)) / 1000)


def difference(action: Floats, expected: Floats, low: Floats, high: Floats) -> float:
    """Return the largest difference of two runs' actions, as a share of the range `low` to `high`.

    Actions are of shape [T, H, A], the limits [A]. NaN where an action is NaN. An element that never moved counts
    in its own units.
    """
    span = np.asarray(high, np.float32) - np.asarray(low, np.float32)
    return float((np.abs(action - expected) / np.where(span > 0, span, np.float32(1))).max())


def measure_switch(
    first: Stepper, second: Stepper, carry: Mapping[str, int], reference: Reference, normaliser: Normaliser
) -> float:
    """Return the difference to the float model when a session moves from one form to the other, either way."""
    inputs, expected = reference.long.first(SWITCH_STEPS), reference.long_action[:SWITCH_STEPS]
    limits = normaliser.action_low, normaliser.action_high
    return max(
        difference(drive(one, carry, inputs, then=other).action, expected, *limits)
        for one, other in ((first, second), (second, first))
    )


def record_reference(
    step: Stepper, carry: Mapping[str, int], normaliser: Normaliser, image_shape: tuple[int, ...] = ()
) -> Reference:
    """Draw sequences by the training data's mean and spread and run the model over them, its actions fed back.

    `image_shape` is the shape (h, w, C) of an image, for a model that sees.
    """
    golden = _draw(0, GOLDEN_STEPS, (0, GOLDEN_RESET), normaliser, image_shape)
    action = drive(step, carry, golden, feed_back=True).action
    long = _draw(1, LONG_STEPS, (0,), normaliser, image_shape)
    long_action = drive(step, carry, long, feed_back=True).action
    return Reference(Golden(*golden[:4], action=action, image=golden.image), long, long_action)


def _draw(
    seed: int, steps: int, resets: tuple[int, ...], normaliser: Normaliser, image_shape: tuple[int, ...]
) -> Inputs:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((steps, len(normaliser.observation_mean))).astype(np.float32)
    rewards = rng.standard_normal(steps).astype(np.float32)
    is_first = np.zeros(steps, np.float32)
    is_first[list(resets)] = 1.0
    return Inputs(
        observation=normaliser.observation_mean + normaliser.observation_std * noise,
        previous_action=np.zeros((steps, len(normaliser.action_low)), np.float32),
        previous_reward=normaliser.reward_mean + normaliser.reward_std * rewards,
        is_first=is_first,
        image=_draw_images(rng, image_shape) if image_shape else None,
    )


def _draw_images(rng: np.random.Generator, shape: tuple[int, ...]) -> UInt8[np.ndarray, "N h w C"]:
    # Patches of colour: in even noise all images would look alike to a convolution.
    height, width, channels = shape
    coarse = rng.integers(0, 256, (IMAGES, 4, 4, channels), np.uint8)
    return coarse[:, np.arange(height) * 4 // height][:, :, np.arange(width) * 4 // width]
