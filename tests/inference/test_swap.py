"""Activation, refusal, rollback and restart, under live sessions."""

import asyncio
import dataclasses
import os
import shutil
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from brain_service.errors import ConflictError, CorruptDataError, NotFoundError, UnavailableError
from brain_service.export.bundle import GOLDEN, HEF, JAX_STEP, MANIFEST, PARAMS, Bundle, write_bundle
from brain_service.inference import InferenceRouter
from tests.inference.conftest import Toys
from tests.inference.harness import ask, eventually, is_gone, run, serving, worker_pid
from tests.inference.toy import Reference, build_toy, toy_observation


def links(toys: Toys) -> dict[str, str]:
    found = {name: toys.models_dir / name for name in ("active", "previous")}
    return {name: str(link.readlink()) for name, link in found.items() if link.is_symlink()}


def state_of(router: InferenceRouter, model_id: str) -> str:
    (state,) = [model["state"] for model in router.status()["models"] if model["model_id"] == model_id]
    return str(state)


def test_new_sessions_take_the_new_model_and_old_ones_finish_on_theirs(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            assert links(toys) == {"active": toys.first}
            rng = np.random.default_rng(1)
            old, old_reference = await router.create_session(), Reference(1.0)
            observation = toy_observation(rng)
            await ask(router, old.session_id, observation)
            old_reference.step(observation)
            await router.activate(toys.second)
            assert links(toys) == {"active": toys.second, "previous": toys.first}
            new, new_reference = await router.create_session(), Reference(2.0)
            assert new.model_id == toys.second
            for session, reference in [(old, old_reference), (new, new_reference)] * 3:
                observation = toy_observation(rng)
                reply = await ask(router, session.session_id, observation)
                assert reply.model_id == session.model_id
                np.testing.assert_allclose(reply.chunk, reference.step(observation), atol=1e-6)
            assert (await router.reset_session(old.session_id)).model_id == toys.second

    run(scenario())


def test_swaps_under_load_lose_and_mix_nothing(toys: Toys) -> None:
    async def drive(router: InferenceRouter, seed: int, stop: asyncio.Event) -> int:
        rng, answered = np.random.default_rng(seed), 0
        while not stop.is_set():
            session = await router.create_session()
            reference = Reference(toys.scales[session.model_id])
            for _ in range(25):
                observation = toy_observation(rng)
                reply = await ask(router, session.session_id, observation)
                assert reply.model_id == session.model_id
                np.testing.assert_allclose(reply.chunk, reference.step(observation), atol=1e-5)
                answered += 1
            await router.end_session(session.session_id)
        return answered

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            stop = asyncio.Event()
            robots = [asyncio.create_task(drive(router, seed, stop)) for seed in range(4)]
            for model_id in (toys.second, toys.third, toys.first):
                await router.activate(model_id)
            await router.rollback()
            stop.set()
            answered = await asyncio.gather(*robots)
            assert min(answered) > 0
            assert router.status()["active_model"] == toys.third
            assert router.status()["deadline_misses"] == 0

    run(scenario())


def test_rollback_is_immediate_reversible_and_survives_a_restart(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir) as router:
            with pytest.raises(ConflictError, match="no previous model"):
                await router.rollback()
            await router.activate(toys.first)
            with pytest.raises(ConflictError, match="no previous model"):
                await router.rollback()
            await router.activate(toys.second)
            standby = worker_pid(router, toys.first)
            assert await router.rollback() == toys.first
            assert worker_pid(router) == standby
            assert await router.rollback() == toys.second
        async with serving(toys.models_dir, toys.cache_dir) as router:
            await eventually(lambda: router.ready)
            assert router.status()["active_model"] == toys.second
            assert await router.rollback() == toys.first
            assert links(toys) == {"active": toys.first, "previous": toys.second}

    run(scenario())


@pytest.mark.parametrize("name", [MANIFEST, PARAMS, JAX_STEP, GOLDEN])
def test_a_flipped_bit_is_refused_by_name_and_the_active_model_goes_on(toys: Toys, name: str) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session = await router.create_session()
            path = toys.models_dir / toys.second / name
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 0x01
            path.write_bytes(data)
            with pytest.raises(CorruptDataError, match=name):
                await router.activate(toys.second)
            assert router.ready and router.status()["active_model"] == toys.first
            assert links(toys) == {"active": toys.first}
            observation = toy_observation(np.random.default_rng(2))
            reply = await ask(router, session.session_id, observation)
            np.testing.assert_allclose(reply.chunk, Reference().step(observation), atol=1e-6)

    run(scenario())


def test_a_missing_or_empty_file_is_refused_by_name(toys: Toys) -> None:
    whole = Bundle.open(toys.models_dir / toys.third)
    files = {name: whole.read(name) for name in whole.manifest.files}
    draft = dataclasses.replace(whole.manifest, files={}, model_id="", control_period_s=0.5)
    # Its hash holds: a compiler that left nothing behind, and an exporter that did not look.
    empty = write_bundle(toys.models_dir, draft, files | {HEF: b""})
    (toys.models_dir / toys.second / JAX_STEP).unlink()

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            with pytest.raises(CorruptDataError, match=f"{JAX_STEP}: listed in the manifest but cannot be read"):
                await router.activate(toys.second)
            with pytest.raises(CorruptDataError, match=f"{HEF}: is empty"):
                await router.activate(empty)
            assert router.ready and links(toys) == {"active": toys.first}
            assert [model["model_id"] for model in router.status()["models"]] == [toys.first]

    run(scenario())


def test_a_model_that_misses_its_golden_vectors_is_never_served(toys: Toys) -> None:
    wrong = build_toy(toys.models_dir, scale=4.0, golden_error=0.01)

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            with pytest.raises(CorruptDataError, match=r"golden vectors by 1\.0"):
                await router.activate(wrong)
            assert router.status()["active_model"] == toys.first and len(router.status()["models"]) == 1

    run(scenario())


def test_why_no_backend_was_used(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, backends=("hailo", "gpu")) as router:
            refused = r"hailo: the bundle holds no hailo/model\.hef.*jax-gpu: no NVIDIA"
            with pytest.raises(UnavailableError, match=refused):
                await router.activate(toys.first)
            with pytest.raises(UnavailableError, match="no model yet"):
                await router.create_session()
        async with serving(toys.models_dir, toys.cache_dir, toys.first, backends=("hailo", "cpu")) as router:
            why = {entry["backend"]: entry for entry in router.status()["why"]}
            assert {name for name, entry in why.items() if entry["used"]} == {"jax-cpu"}
            assert why.keys() == {"hailo", "jax-cpu", "onnx-cpu"} and all(
                entry["reason"] for entry in why.values()
            )
            assert "holds no model.onnx" in why["onnx-cpu"]["reason"]

    run(scenario())


@pytest.mark.parametrize("model_id", ["0123456789abcdef", "active", "../models", ""])
def test_an_unknown_model_is_not_found_and_the_known_are_named(toys: Toys, model_id: str) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir) as router:
            with pytest.raises(NotFoundError, match=toys.second):
                await router.activate(model_id)
            with pytest.raises(NotFoundError):
                await router.model(model_id)

    run(scenario())


def test_a_start_that_takes_too_long_is_given_up(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, worker_start_timeout_s=0.05) as router:
            with pytest.raises(UnavailableError, match="not ready within"):
                await router.activate(toys.first)
            assert router.status()["state"] == "no-model" and not links(toys)

    run(scenario())


def test_start_loads_the_active_model_in_the_background(toys: Toys) -> None:
    (toys.models_dir / "active").symlink_to(toys.third)

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir) as router:
            await eventually(lambda: router.status()["state"] == "loading")
            with pytest.raises(UnavailableError, match="being loaded"):
                await router.create_session()
            await eventually(lambda: router.ready)
            assert (await router.create_session()).model_id == toys.third

    run(scenario())


def test_a_lost_active_model_is_reported_and_another_can_be_activated(toys: Toys) -> None:
    (toys.models_dir / "active").symlink_to(toys.third)
    shutil.rmtree(toys.models_dir / toys.third)

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir) as router:
            await eventually(lambda: router.status()["state"] == "failed")
            assert toys.third in router.status()["error"]
            with pytest.raises(UnavailableError, match="could not be loaded"):
                await router.create_session()
            await router.activate(toys.first)
            assert router.ready and router.status()["error"] is None
            assert links(toys) == {"active": toys.first}

    run(scenario())


def test_links_that_cannot_be_written_keep_the_old_model(toys: Toys) -> None:
    (toys.models_dir / "previous").mkdir()

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            with pytest.raises(UnavailableError, match="cannot record"):
                await router.activate(toys.second)
            assert router.status()["active_model"] == toys.first and links(toys) == {"active": toys.first}

    run(scenario())


def test_a_drained_model_is_stopped_once_it_is_neither_active_nor_the_rollback(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            oldest = worker_pid(router)
            await router.activate(toys.second)
            await router.activate(toys.third)
            await asyncio.sleep(1.2)
            reply = await ask(router, session_id, toy_observation(np.random.default_rng(3)))
            assert reply.model_id == toys.first
            await router.end_session(session_id)
            await eventually(lambda: is_gone(oldest))
            loaded = {model["model_id"]: model["role"] for model in router.status()["models"]}
            assert loaded == {toys.second: "previous", toys.third: "active"}

    run(scenario())


def test_models_are_listed_with_role_and_fault(toys: Toys) -> None:
    (toys.models_dir / toys.third / MANIFEST).write_text("{")

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            await router.activate(toys.second)
            models = {model["model_id"]: model for model in await router.models()}
            assert models.keys() == toys.scales.keys()
            assert models[toys.second]["role"] == "active" and models[toys.first]["role"] == "previous"
            assert models[toys.second]["serving"]["state"] == "serving"
            assert models[toys.third]["role"] is None and MANIFEST in models[toys.third]["error"]
            one = await router.model(toys.first)
            assert one["manifest"]["evaluation"] == {"scale": 1.0} and one["role"] == "previous"

    run(scenario())


def test_an_empty_or_missing_models_folder_is_no_model(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(tmp_path / "none", tmp_path / "cache") as router:
            assert await router.models() == []
            assert not router.ready and router.status()["state"] == "no-model"
            with pytest.raises(UnavailableError, match="POST /pipeline"):
                await router.create_session()

    run(scenario())


def test_a_rollback_to_a_model_whose_worker_is_down_keeps_what_serves(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            await router.activate(toys.second)
            down = worker_pid(router, toys.first)
            os.kill(down, signal.SIGKILL)
            await eventually(lambda: state_of(router, toys.first) == "restarting")
            with pytest.raises(UnavailableError, match="started again"):
                await router.rollback()
            assert router.ready and router.status()["active_model"] == toys.second
            await eventually(lambda: state_of(router, toys.first) == "serving")
            assert await router.rollback() == toys.first

    run(scenario())


def test_closing_while_a_model_loads_leaves_no_worker(toys: Toys) -> None:
    (toys.models_dir / "active").symlink_to(toys.third)
    before = {child.pid for child in psutil.Process().children()}

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir) as router:
            await eventually(lambda: router.status()["state"] == "loading")

    for _ in range(3):
        run(scenario())
    assert {child.pid for child in psutil.Process().children()} <= before
