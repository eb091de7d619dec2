"""The Hailo worker: a process on another Python, its numbers and its temperature, and what it may import.

What `exercise` asks of the stand-in it asks of a real device behind the marker `hailo`: HAILO_TEST_BUNDLE names a
bundle whose HEF was compiled for it.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from brain_service.errors import UnavailableError
from brain_service.export.bundle import Bundle, Golden, Manifest
from brain_service.inference import InferenceRouter, InferRequest
from brain_service.inference.arena import Layout
from brain_service.inference.golden import check_golden
from brain_service.inference.protocol import Kind, decode_document
from brain_service.inference.telemetry import Reporter
from brain_service.spec import from_vector
from brain_service.trees import unflatten
from tests.export.hailo_toy import FAKES, PROJECT, CompiledToys
from tests.inference.hailo_chip import PROFILES, Chip, opened, plug_in
from tests.inference.harness import ask, eventually, run, serving
from tests.inference.toy import LIMIT, Reference, toy_observation

FOREIGN = PROJECT / "brain_service" / "inference" / "foreign_python.py"

ONLY_NUMPY = """
import importlib.abc, json, sys

class Refuse(importlib.abc.MetaPathFinder):
    allowed = {"brain_service", "numpy", "hailo_platform", *sys.stdlib_module_names}
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in self.allowed:
            raise ImportError(f"{name} is not on a robot's system Python")

before = set(sys.modules)
sys.meta_path.insert(0, Refuse())
import brain_service.inference.worker
import brain_service.inference.backends.hailo
print(json.dumps(sorted({name.split(".")[0] for name in set(sys.modules) - before} - Refuse.allowed)))
"""

GOLDEN_CHECK = """
import sys
from pathlib import Path
import numpy as np
from brain_service.export.bundle import Bundle
from brain_service.inference.arena import Layout
from brain_service.inference.backends.hailo import load
from brain_service.inference.golden import check_golden

bundle = Bundle.open(Path(sys.argv[1]))
layout = Layout.of(bundle.manifest)
parity, _ = check_golden(load(bundle, layout, Path()), layout, bundle.golden(), bundle.manifest)
print(np.__version__, parity <= 2e-2)
"""


@pytest.fixture(params=PROFILES)
def chip(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chip:
    return plug_in(request.param, tmp_path / "chip", monkeypatch)


@pytest.fixture
def bundle(chip: Chip, compiled: CompiledToys) -> Bundle:
    return compiled.bundle(chip.profile)


async def exercise(router: InferenceRouter, manifest: Manifest, golden: Golden, name: str) -> None:
    """Serve a session on the device: every answer names it and lies within the limits."""
    (model,) = router.status()["models"]
    # The worker ran the golden sequence with its state fed back, and would have refused.
    assert model["backend"] == name and 0 < model["golden_parity"] <= manifest.parity["hailo"].bound
    assert 0 < model["telemetry"]["temperature_c"] < 120 and model["telemetry"]["architecture"]
    session = (await router.create_session()).session_id
    for t, row in enumerate(golden.observation):
        values = from_vector(row, manifest.spec.observation)
        observation = unflatten({path: np.asarray(value).tolist() for path, value in values.items()})
        reply = await router.infer(InferRequest(session, observation, step=t))
        assert reply.backend == name and reply.chunk.shape == (manifest.action_horizon, manifest.action_size)
        assert (reply.chunk >= manifest.action_low).all() and (reply.chunk <= manifest.action_high).all()


@pytest.mark.hailo
def test_a_real_device_serves(tmp_path: Path) -> None:
    path = os.environ.get("HAILO_TEST_BUNDLE")
    if not path or not Path("/dev/hailo0").exists():
        pytest.skip("no Hailo device here, or HAILO_TEST_BUNDLE names no bundle that was compiled for it")
    bundle = Bundle.open(Path(path).resolve())
    golden = bundle.golden()

    async def scenario() -> None:
        models = bundle.path.parent
        async with serving(models, tmp_path / "cache", backends=("hailo",)) as router:
            await router.activate(bundle.path.name)
            await exercise(router, bundle.manifest, golden, "hailo")

    run(scenario())


def test_sessions_are_served_by_the_device_and_every_answer_says_simulated(
    chip: Chip, bundle: Bundle, tmp_path: Path
) -> None:
    golden = bundle.golden()

    async def scenario() -> None:
        python = Path(os.environ.get("HAILO_TEST_PYTHON", sys.executable))
        async with serving(
            bundle.path.parent,
            tmp_path / "cache",
            bundle.path.name,
            backends=("hailo",),
            hailo_python=python,
            worker_hang_s=60.0,
        ) as router:
            rng = np.random.default_rng(0)
            live = {(await router.create_session()).session_id: Reference() for _ in range(3)}
            for _ in range(8):
                for session_id, reference in live.items():
                    observation = toy_observation(rng)
                    expected = reference.step(observation)
                    reply = await ask(router, session_id, observation)
                    assert reply.backend == "hailo (simulated)"
                    # Fed back: what the device answered is what the next step says was done.
                    reference.previous = reply.chunk[0]
                    np.testing.assert_allclose(reply.chunk, expected, atol=2e-2 * 2 * LIMIT)
            await exercise(router, bundle.manifest, golden, "hailo (simulated)")

    run(scenario())
    assert not chip.crimes


def test_a_device_that_is_not_there_is_the_reason_in_the_decision(
    chip: Chip, bundle: Bundle, tmp_path: Path
) -> None:
    chip.set(no_device=True)

    async def scenario() -> None:
        async with serving(
            bundle.path.parent, tmp_path / "cache", backends=("hailo",), hailo_python=Path(sys.executable)
        ) as router:
            with pytest.raises(UnavailableError, match="hailo: Hailo: no device found; check its seat"):
                await router.activate(bundle.path.name)

    run(scenario())


@pytest.mark.parametrize("chip", ["4.23"], indirect=True)
def test_a_device_that_comes_back_is_used_again(chip: Chip, bundle: Bundle, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(
            bundle.path.parent,
            tmp_path / "cache",
            bundle.path.name,
            backends=("hailo",),
            hailo_python=Path(sys.executable),
        ) as router:
            rng = np.random.default_rng(0)
            session_id = (await router.create_session()).session_id
            reference = Reference()
            first = toy_observation(rng)
            reference.step(first)
            await ask(router, session_id, first)
            chip.set(remove=1)
            with pytest.raises(UnavailableError):
                await ask(router, session_id, toy_observation(rng), step=1)
            await eventually(lambda: "no device found" in str(router.status()["models"][0]["last_error"]))
            chip.set()
            (chip.folder / "removed").unlink()
            await eventually(lambda: router.ready)
            second = toy_observation(rng)
            reply = await ask(router, session_id, second, step=1)
            np.testing.assert_allclose(reply.chunk, reference.step(second), atol=2e-2 * 2 * LIMIT)

    run(scenario())


@pytest.mark.parametrize("chip", ["4.23"], indirect=True)
def test_the_golden_check_measures_the_drift_of_fed_back_state(chip: Chip, bundle: Bundle) -> None:
    layout, golden = Layout.of(bundle.manifest), bundle.golden()
    with opened(bundle) as policy:
        parity, _ = check_golden(policy, layout, golden, bundle.manifest)
        assert 0 < parity <= 2e-2
        golden.action[-1] += 0.03 * 2 * LIMIT
        parity, _ = check_golden(policy, layout, golden, bundle.manifest)
        assert parity > 2e-2


def test_the_worker_needs_numpy_and_the_standard_library_alone() -> None:
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run([sys.executable, "-c", ONLY_NUMPY], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_another_python_gets_the_package_and_nothing_that_lies_beside_it(tmp_path: Path) -> None:
    site = tmp_path / "site-packages"
    shutil.copytree(PROJECT / "brain_service", site / "brain_service", ignore=shutil.ignore_patterns("*.pyc"))
    (site / "numpy").mkdir()
    (site / "numpy" / "__init__.py").write_text("raise SystemExit('the numpy of another Python')\n")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", str(site / FOREIGN.relative_to(PROJECT)), "--help"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=site,
    )
    assert done.returncode == 0, done.stderr
    assert "brain_service.inference.worker" in done.stdout


@pytest.mark.skipif("HAILO_TEST_PYTHON" not in os.environ, reason="HAILO_TEST_PYTHON names no Python with NumPy 1")
@pytest.mark.parametrize("chip", ["4.23"], indirect=True)
def test_the_backend_runs_with_numpy_1(chip: Chip, bundle: Bundle) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}{os.pathsep}{FAKES}"}
    command = [os.environ["HAILO_TEST_PYTHON"], "-c", GOLDEN_CHECK, str(bundle.path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    version, fits = done.stdout.split()
    assert version.startswith("1.") and fits == "True"


class Thermometer:
    def __init__(self) -> None:
        self.read = 0

    def telemetry(self) -> dict[str, int]:
        self.read += 1
        return {"temperature_c": 40 + self.read}


def test_telemetry_goes_out_while_nobody_asks_and_no_message_is_lost() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        reporter = Reporter(theirs, Thermometer(), period_s=0.01)
        heard: list[bytes] = []
        ear = threading.Thread(target=lambda: heard.extend(iter(reporter.receive, b"")))
        ear.start()
        found = [decode_document(ours.recv(4096)) for _ in range(3)]
        assert found == [(Kind.TELEMETRY, {"temperature_c": 41 + n}) for n in range(3)]
        ours.send(b"one")
        ours.send(b"two")
        ours.shutdown(socket.SHUT_WR)
        ear.join(60)
        assert not ear.is_alive() and heard == [b"one", b"two"]


def test_a_policy_without_telemetry_is_only_listened_for() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.send(b"one")
        assert Reporter(theirs, object(), period_s=0.0).receive() == b"one"
        ours.close()
        assert Reporter(theirs, object(), period_s=0.0).receive() == b""
