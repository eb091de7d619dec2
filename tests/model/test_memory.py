from functools import cache
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.model.core import Params
from brain_service.model.memory import Memory, MemoryRules, MemoryState, pack_memory, unit, unpack_memory
from brain_service.model.state import carry_shapes
from tests.model.models import SMALL, params_of

FIRST, LATER = jnp.ones((1,), jnp.float32), jnp.zeros((1,), jnp.float32)


def params() -> Params:
    """Return the memory's parameters; not at import, since every process of a run imports every test."""
    return {"params": params_of(SMALL)["cell"]["memory"]}


@cache
def rules() -> MemoryRules:
    """Return the rules that the parameters make."""
    with jax.ensure_compile_time_eval():  # also where a compiled function asks first
        found: MemoryRules = Memory(SMALL).apply(params(), method="rules")
    return found


def fresh() -> MemoryState:
    shapes = carry_shapes(SMALL)
    empty = unpack_memory(SMALL, jnp.zeros((1, shapes["slots"])), jnp.zeros((1, shapes["clock"])))
    return empty._replace(keys=jnp.asarray(rules().keys)[None])


@jax.jit
def read(state: MemoryState, query: jax.Array, is_first: jax.Array = LATER) -> jax.Array:
    return jnp.asarray(Memory(SMALL).apply(params(), rules(), state, is_first, query, method="read"))


@jax.jit
def write(state: MemoryState, drive: jax.Array, reads: jax.Array, is_first: jax.Array = LATER) -> MemoryState:
    after: MemoryState = Memory(SMALL).apply(params(), rules(), state, is_first, drive, reads, method="write")
    return after


def rollout(steps: int, seed: int = 0) -> list[MemoryState]:
    """Return the states after each of `steps` random writes, the fresh one first."""
    rng = np.random.default_rng(seed)
    states = [fresh()]
    for _ in range(steps):
        drive = jnp.asarray(rng.standard_normal((1, SMALL.d_c)), jnp.float32)
        query = jnp.asarray(rng.standard_normal((1, SMALL.d_k)), jnp.float32)
        states.append(write(states[-1], drive, read(states[-1], query)))
    return states


def level_of_slot() -> np.ndarray:
    return np.repeat(np.arange(SMALL.levels), SMALL.cms_sizes)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=20, deadline=None)
def test_packing_loses_nothing(seed: int) -> None:
    rng, shapes = np.random.default_rng(seed), carry_shapes(SMALL)
    slots = jnp.asarray(rng.standard_normal((2, shapes["slots"])), jnp.float32)
    clock = jnp.asarray(rng.standard_normal((2, shapes["clock"])), jnp.float32)
    again = pack_memory(unpack_memory(SMALL, slots, clock))
    assert np.array_equal(again[0], slots) and np.array_equal(again[1], clock)


def test_an_empty_memory_answers_nothing_whatever_is_asked() -> None:
    for seed in range(5):
        query = jax.random.normal(jax.random.key(seed), (1, SMALL.d_k))
        assert np.array_equal(read(fresh(), query), np.zeros((1, SMALL.levels, SMALL.d_v)))


def test_each_level_is_written_at_its_own_period_and_untouched_between() -> None:
    states = rollout(2 * SMALL.cms_periods[-1])
    level = level_of_slot()
    for t, (before, after) in enumerate(pairwise(states), start=1):
        for index, period in enumerate(SMALL.cms_periods):
            mine = level == index
            changed = not np.array_equal(before.values[0, mine], after.values[0, mine])
            assert changed == (t % period == 0), (t, index)
            if t % period:
                assert np.array_equal(before.strength[0, mine], after.strength[0, mine])


def test_a_slow_level_takes_in_the_mean_of_what_the_level_below_returned_since() -> None:
    state = fresh()
    drive = jnp.zeros((1, SMALL.d_c))
    reads = jax.random.normal(jax.random.key(0), (SMALL.cms_periods[1] - 1, 1, SMALL.levels, SMALL.d_v))
    for one in reads:
        state = write(state, drive, one)
    np.testing.assert_allclose(state.pending[0, : SMALL.d_v], reads[:, 0, 0].sum(axis=0), atol=1e-6)
    state = write(state, drive, jnp.zeros((1, SMALL.levels, SMALL.d_v)))
    assert np.array_equal(state.pending[0, : SMALL.d_v], np.zeros(SMALL.d_v))
    assert np.array_equal(state.elapsed[0, :1], [0.0])


def test_values_strengths_and_keys_stay_in_their_ranges() -> None:
    for state in rollout(100, seed=2):
        values, keys, strength = (np.asarray(part) for part in (state.values, state.keys, state.strength))
        assert np.abs(values).max() <= 1.0
        assert strength.min() >= 0.0 and strength.max() <= 1.0
        assert np.linalg.norm(keys, axis=-1).max() <= 1.0 + 1e-5


def test_a_read_is_a_mixture_of_what_was_stored() -> None:
    state = rollout(30, seed=4)[-1]
    level = level_of_slot()
    for seed in range(10):
        answer = np.asarray(read(state, jax.random.normal(jax.random.key(seed), (1, SMALL.d_k))))[0]
        for index in range(SMALL.levels):
            values = np.asarray(state.values[0, level == index])
            # The null slot draws towards zero, so zero belongs to the mixture.
            assert (answer[index] <= np.maximum(values.max(axis=0), 0) + 1e-6).all()
            assert (answer[index] >= np.minimum(values.min(axis=0), 0) - 1e-6).all()


def test_asking_with_a_slots_own_key_gives_most_weight_to_that_slot() -> None:
    state = fresh()
    level = level_of_slot()
    first = np.flatnonzero(level == 0)
    marks = np.eye(len(level), SMALL.d_v, dtype=np.float32)
    state = state._replace(values=jnp.asarray(marks)[None], strength=jnp.ones_like(state.strength))
    for slot in first:
        answer = np.asarray(read(state, state.keys[:, slot]))[0, 0]
        assert answer.argmax() == slot


def test_decay_weakens_a_slot_and_leaves_its_key_alone() -> None:
    state = rollout(21, seed=5)[-1]
    weak = state._replace(strength=state.strength * 0.01)
    query = jax.random.normal(jax.random.key(0), (1, SMALL.d_k))
    assert float(jnp.abs(read(weak, query)).sum()) < float(jnp.abs(read(state, query)).sum())
    # A level that is not written keeps its keys while its strength fades at its own writes only.
    after = write(state, jnp.zeros((1, SMALL.d_c)), jnp.zeros((1, SMALL.levels, SMALL.d_v)))
    slow = level_of_slot() == SMALL.levels - 1
    # But for the last bit: keys are scaled to length 1 at every step.
    np.testing.assert_allclose(after.keys[0, slow], state.keys[0, slow], atol=1e-6)


def test_a_row_that_begins_reads_and_writes_as_a_fresh_memory_and_others_go_on() -> None:
    used = rollout(9, seed=1)[-1]
    both = MemoryState(*(jnp.concatenate([part, part]) for part in used))
    query, drive = (jax.random.normal(jax.random.key(seed), (1, size)) for seed, size in enumerate((4, 8)))
    first = jnp.asarray([1.0, 0.0])
    reads = read(both, jnp.tile(query, (2, 1)), first)
    after = write(both, jnp.tile(drive, (2, 1)), reads, first)
    for row, before in enumerate((fresh(), used)):
        expected_reads = read(before, query)
        np.testing.assert_allclose(reads[row], expected_reads[0], atol=1e-6)
        for mine, expected in zip(after, write(before, drive, expected_reads), strict=True):
            np.testing.assert_allclose(mine[row], expected[0], atol=1e-6)


def test_initial_keys_differ_so_that_slots_can_be_told_apart() -> None:
    keys = np.asarray(fresh().keys[0])
    distances = np.linalg.norm(keys[:, None] - keys[None], axis=-1) + 9 * np.eye(len(keys))
    assert distances.min() > 1e-3


def test_unit_vectors_have_length_one_and_zero_stays_zero() -> None:
    vectors = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-2, 0.0]])
    lengths = np.linalg.norm(unit(vectors), axis=-1)
    np.testing.assert_allclose(lengths, [1.0, 0.0, 1.0], atol=1e-2)


def test_a_fresh_memory_takes_in_a_twentieth_of_what_is_neither_wanted_nor_unwanted() -> None:
    # Gates that begin half open overwrite what a long episode has to keep.
    after = write(fresh(), jnp.zeros((1, SMALL.d_c)), jnp.zeros((1, SMALL.levels, SMALL.d_v)))
    taken = float(after.strength[0, level_of_slot() == 0].sum())
    np.testing.assert_allclose(taken, 1.0 / (1.0 + np.exp(3.0)), atol=1e-3)
