"""A bundle's golden sequence run through a policy, its own state fed back: how far off, and how long a step."""

import time
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from brain_service.export.bundle import Golden, Manifest
from brain_service.inference.arena import Layout
from brain_service.inference.backends import Policy

if TYPE_CHECKING:
    from jaxtyping import Float32

__all__ = ["GoldenStep", "action_span", "check_golden", "golden_steps"]


class GoldenStep(NamedTuple):
    """One step of the sequence: what went in, what came out, and how long it took; the arrays are used again."""

    carry: "Float32[np.ndarray, '1 C']"
    request: "Float32[np.ndarray, '1 R']"
    next_carry: "Float32[np.ndarray, '1 C']"
    response: "Float32[np.ndarray, '1 HA']"
    taken_ns: int


def golden_steps(policy: Policy, layout: Layout, golden: Golden) -> Iterator[GoldenStep]:
    """Run the golden sequence one row at a time and yield each step."""
    carry = np.zeros((2, 1, layout.carry_size), np.float32)
    request = np.zeros((1, layout.request_size), np.float32)
    response = np.zeros((1, layout.response_size), np.float32)
    for t in range(len(golden.action)):
        layout.put(request[0], golden.at(t))
        read, write = carry[t % 2], carry[1 - t % 2]
        started_ns = time.monotonic_ns()
        policy.run(read, request, write, response)
        yield GoldenStep(read, request, write, response, time.monotonic_ns() - started_ns)


def action_span(manifest: Manifest) -> "Float32[np.ndarray, 'A']":
    """Return the range of each action, shape `[A]`; 1 where it has none."""
    span = np.asarray(manifest.action_high, np.float32) - np.asarray(manifest.action_low, np.float32)
    span[span == 0.0] = 1.0
    return span


def check_golden(policy: Policy, layout: Layout, golden: Golden, manifest: Manifest) -> tuple[float, float]:
    """Return the worst difference to the golden actions as a share of their range (NaN where an action is not
    finite), and the median step in microseconds."""
    span = action_span(manifest)
    worst, taken_ns = 0.0, []
    for step, expected in zip(golden_steps(policy, layout, golden), golden.action, strict=True):
        taken_ns.append(step.taken_ns)
        difference = np.abs(step.response.reshape(expected.shape) - expected) / span
        worst = max(worst, float(difference.max())) if np.isfinite(difference).all() else float("nan")
        if not worst <= np.inf:
            break
    return worst, median(taken_ns) / 1e3
