"""A function's own matrix products, found by tracing it, run back to back: the floor under its training step."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr

REPEATS = 8  # of a product inside the scan, one after the other in one compiled program


def best_s(function: Callable[..., Any], *arguments: Any, repeats: int = 5) -> float:
    """Return the shortest of several runs in seconds, compilation not counted."""
    jax.block_until_ready(function(*arguments))
    taken = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - begun)
    return min(taken)


def products(function: Callable[..., Any], *arguments: Any) -> Counter[tuple[Any, ...]]:
    """Return how often each product runs: (left shape, right shape, dimension numbers) -> count."""
    found: Counter[tuple[Any, ...]] = Counter()
    for times, equation in _equations(jax.make_jaxpr(function)(*arguments).jaxpr, 1):
        if equation.primitive.name == "dot_general":
            left, right = (atom.aval.shape for atom in equation.invars)
            found[left, right, equation.params["dimension_numbers"]] += times
    return found


def _equations(jaxpr: Jaxpr, times: int) -> Iterator[tuple[int, Any]]:
    for equation in jaxpr.eqns:
        yield times, equation
        inside = times * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner, inside)


def flops(found: Counter[tuple[Any, ...]]) -> float:
    """Return the floating-point operations of the products, forward and both products of the backward pass."""
    total = 0
    for (left, right, ((left_sum, _), (left_batch, _))), count in found.items():
        shared = prod(left[axis] for axis in (*left_sum, *left_batch))
        total += 6 * count * prod(left) * prod(right) // shared
    return float(total)


def back_to_back_s(found: Counter[tuple[Any, ...]]) -> float:
    """Return the seconds that the products take, forward and backward, with nothing between them."""
    total = 0.0
    for (left, right, numbers), count in found.items():
        rng = np.random.default_rng(0)
        repeats = min(count, REPEATS)
        lefts = jnp.asarray(rng.standard_normal((repeats, *left)), jnp.float32)
        weight = jnp.asarray(rng.standard_normal(right), jnp.float32)

        def once(weight: Any, left: Any, numbers: Any = numbers) -> Any:
            out, back = jax.vjp(lambda a, b: jax.lax.dot_general(a, b, numbers), left, weight)
            to_left, to_weight = back(out)
            # The small step keeps one product waiting for the one before it, as a recurrence does.
            return weight - 1e-6 * to_weight, (out, to_left)

        total += (
            best_s(jax.jit(lambda w, ls, once=once: jax.lax.scan(once, w, ls)), weight, lefts) * count / repeats
        )
    return total
