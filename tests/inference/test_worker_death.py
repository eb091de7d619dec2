"""Workers die, the daemon dies, sessions live: with real processes and SIGKILL."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from brain_service.errors import UnavailableError
from tests.inference.conftest import Toys
from tests.inference.harness import ask, eventually, is_gone, refused, run, serving, stopped, worker_pid
from tests.inference.toy import Reference, toy_observation

DAEMON = """
import asyncio, json, sys
from pathlib import Path
from brain_service.inference import InferenceRouter, InferRequest
from brain_service.settings import InferenceSettings

async def main():
    router = InferenceRouter(Path(sys.argv[1]), InferenceSettings(deadline_ms=20000), Path(sys.argv[2]))
    await router.start()
    await router.activate(sys.argv[3])
    session = await router.create_session()
    observation = {"arm": {"joints": [0.1, 0.2]}, "load": 0.0}
    await router.infer(InferRequest(session.session_id, observation))
    heavy = {"jax", "jaxlib", "flax", "orbax", "tensorflow", "torch"}
    loaded = sorted(heavy & {name.split(".")[0] for name in sys.modules})
    print(json.dumps({"worker": router.status()["models"][0]["worker_pid"], "heavy": loaded}), flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def test_steps_in_flight_get_503_and_sessions_go_on_with_their_state(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first, worker_hang_s=60.0) as router:
            rng = np.random.default_rng(1)
            live = {(await router.create_session()).session_id: Reference() for _ in range(20)}
            for session_id, reference in live.items():
                observation = toy_observation(rng)
                reference.step(observation)
                await ask(router, session_id, observation)
            killed = worker_pid(router)
            with stopped(killed):
                under_way = [
                    asyncio.create_task(refused(router, session_id, toy_observation(rng), step=1))
                    for session_id in live
                ]
                await asyncio.sleep(0.05)
                os.kill(killed, signal.SIGKILL)
                errors = await asyncio.gather(*under_way)
            assert all(isinstance(error, UnavailableError) for error in errors)
            assert {error.members["next_step"] for error in errors} == {1}
            assert not router.ready and router.status()["state"] == "restarting"
            await eventually(lambda: router.ready)
            assert worker_pid(router) != killed and router.status()["worker_restarts"] == 1
            for session_id, reference in live.items():
                observation = toy_observation(rng)
                reply = await ask(router, session_id, observation, step=1)
                np.testing.assert_allclose(reply.chunk, reference.step(observation), atol=1e-6)

    run(scenario())


def test_a_step_without_a_worker_is_refused_at_once(toys: Toys) -> None:
    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            session_id = (await router.create_session()).session_id
            observation = toy_observation(np.random.default_rng(2))
            os.kill(worker_pid(router), signal.SIGKILL)
            await eventually(lambda: not router.ready)
            error = await refused(router, session_id, observation, step=0)
            assert isinstance(error, UnavailableError) and error.members["next_step"] == 0
            assert "started again" in error.detail
            await eventually(lambda: router.ready)
            await ask(router, session_id, observation, step=0)

    run(scenario())


def test_close_leaves_no_process_even_a_frozen_one(toys: Toys) -> None:
    pids: list[int] = []

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir, toys.first) as router:
            await router.activate(toys.second)
            pids.extend([worker_pid(router, toys.first), worker_pid(router, toys.second)])
            os.kill(pids[0], signal.SIGSTOP)

    run(scenario())
    assert all(is_gone(pid) for pid in pids)


def test_the_daemon_never_imports_jax_and_its_worker_dies_with_it(toys: Toys) -> None:
    command = [sys.executable, "-c", DAEMON, str(toys.models_dir), str(toys.cache_dir), toys.first]
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as daemon:
        try:
            assert daemon.stdout is not None
            report = json.loads(daemon.stdout.readline())
            assert report["heavy"] == []
            assert not is_gone(report["worker"])
        finally:
            daemon.kill()

    async def scenario() -> None:
        await eventually(lambda: is_gone(report["worker"]))

    asyncio.run(scenario())
