"""CoreModel itself behind the worker: the daemon's actions are the model's, exported or rebuilt."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.export.bundle import JAX_STEP, ONNX_MODEL, Bundle, write_bundle
from brain_service.export.jax_step import export_policy
from brain_service.export.manifest import PARITY_CAP, Parity
from brain_service.export.onnx_graph import to_onnx
from brain_service.export.policy import flat_params, make_policy_step
from brain_service.inference import InferRequest
from brain_service.model.state import carry_shapes
from tests.export.models import CONFIG, NORMALISER, source
from tests.inference.harness import eventually, run, serving


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_policy(source(), tmp_path_factory.mktemp("real") / "models")


async def drive(models_dir: Path, cache_dir: Path, model_id: str) -> None:
    step = jax.jit(make_policy_step(CONFIG, NORMALISER))
    params = flat_params(source().params)
    carry: Any = tuple(np.zeros((1, size), np.float32) for size in carry_shapes(CONFIG).values())
    previous = np.zeros(2, np.float32)
    rng = np.random.default_rng(0)
    async with serving(models_dir, cache_dir, model_id) as router:
        session = await router.create_session()
        for t in range(40):
            joints, is_open, reward = rng.normal([100, -5, 0], [20, 0.1, 1]), bool(t % 3), float(rng.normal())
            observation = {"arm": {"joints": joints.tolist()}, "gripper": {"open": is_open}, "task": "reach"}
            reply = await router.infer(InferRequest(session.session_id, observation, step=t, reward=reward))
            carry, action = step(
                params,
                carry,
                np.asarray([[*joints, is_open]], np.float32),
                previous[None],
                np.asarray([reward if t else 0.0], np.float32),
                np.asarray([t == 0], np.float32),
            )
            np.testing.assert_allclose(reply.chunk, action[0], rtol=1e-5, atol=1e-4)
            np.testing.assert_array_equal(reply.action["command"], reply.chunk[0])
            assert reply.chunk.shape == (3, 2)
            previous = reply.chunk[0]


def test_the_exported_model_is_served_number_for_number(exported: Path, tmp_path: Path) -> None:
    async def scenario() -> None:
        await drive(exported.parent, tmp_path / "cache", exported.name)

    run(scenario())


def with_graph(exported: Path, models_dir: Path) -> str:
    """Write the same bundle with its ONNX form beside the JAX one."""
    params = {name: jnp.asarray(array) for name, array in flat_params(source().params).items()}
    step, sizes = make_policy_step(CONFIG, NORMALISER), carry_shapes(CONFIG)

    def flat(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        carry, action = step(params, arrays[: len(sizes)], *arrays[len(sizes) :])
        return *carry, action

    inputs = {name: (1, size) for name, size in sizes.items()} | {
        "observation": (1, 4), "previous_action": (1, 2), "previous_reward": (1,), "is_first": (1,),
    }  # fmt: skip
    graph = to_onnx(flat, inputs, [*(f"next_{name}" for name in sizes), "action"])
    whole = Bundle.open(exported)
    files = {name: whole.read(name) for name in whole.manifest.files} | {ONNX_MODEL: graph.SerializeToString()}
    parity = {**whole.manifest.parity, "onnx": Parity(0.0, PARITY_CAP["none"])}
    draft = dataclasses.replace(whole.manifest, files={}, model_id="", parity=parity)
    return write_bundle(models_dir, draft, files)


@pytest.mark.long
def test_onnx_runtime_serves_the_same_and_sessions_may_move_to_it(exported: Path, tmp_path: Path) -> None:
    model_id = with_graph(exported, tmp_path / "models")

    async def scenario() -> None:
        async with serving(tmp_path / "models", tmp_path / "cache", model_id) as router:

            def model() -> dict[str, Any]:
                (found,) = router.status()["models"]
                return dict(found)

            await eventually(lambda: bool(model()["moves"]))
            (move,) = model()["moves"]
            assert set(move["backends"]) == {"jax-cpu", "onnx-cpu"} and 0 < move["measured"] <= 1e-4
            figures = {why["backend"]: why for why in model()["why"]}
            assert all(0 < figures[name]["golden_parity"] <= 1e-4 for name in move["backends"])

    run(scenario())


def test_an_unreadable_export_is_rebuilt_and_serves_the_same(exported: Path, tmp_path: Path) -> None:
    whole = Bundle.open(exported)
    files = {name: whole.read(name) for name in whole.manifest.files}
    # As a future jax would leave it to this one: hashes hold, the form cannot be read.
    files[JAX_STEP] = b"\x00" * 64
    draft = dataclasses.replace(whole.manifest, files={}, model_id="")
    model_id = write_bundle(tmp_path / "models", draft, files)

    async def scenario() -> None:
        await drive(tmp_path / "models", tmp_path / "cache", model_id)

    run(scenario())
