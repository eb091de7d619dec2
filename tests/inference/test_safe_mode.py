"""Crashes at start, with real daemons and real workers: the last good model comes up, and says so."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from brain_service.inference.starts import FILE, Record, Starts
from tests.inference.conftest import Toys
from tests.inference.harness import eventually, run, serving
from tests.inference.toy import as_tree, toy_observation
from tests.processes import Daemon

ENVIRONMENT = {"BRAIN_INFERENCE__BACKENDS": "cpu", "BRAIN_INFERENCE__HEALTHY_AFTER_S": "0.5"}


def link(toys: Toys, **names: str) -> None:
    for name, model_id in names.items():
        (toys.models_dir / name).symlink_to(model_id)


def record(toys: Toys) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((toys.models_dir / FILE).read_bytes())
    return document


def wait_ready(daemon: Daemon) -> None:
    give_up = time.monotonic() + 120
    while httpx.get(f"{daemon.url}/readyz", params={"for": "inference"}).status_code != 200:
        assert time.monotonic() < give_up, daemon.log_path.read_text()[-2000:]
        time.sleep(0.1)


@pytest.mark.long
def test_three_daemons_that_die_at_start_bring_up_the_last_good_model(toys: Toys, tmp_path: Path) -> None:
    link(toys, active=toys.first, last_good=toys.second)
    data_dir = tmp_path / "brain"
    data_dir.mkdir()
    shutil.move(toys.models_dir, data_dir / "models")
    (toys.models_dir).symlink_to(data_dir / "models")
    for crashes in range(3):
        killed = Daemon(data_dir, env=ENVIRONMENT | {"BRAIN_INFERENCE__HEALTHY_AFTER_S": "600"}).start()
        give_up = time.monotonic() + 60
        while not (toys.models_dir / FILE).exists() or record(toys)["crashes"] < crashes:
            assert time.monotonic() < give_up
            time.sleep(0.01)
        killed.kill()
        assert record(toys) | {"safe_mode": None} == record(toys), "safe mode before the third crash"
    daemon = Daemon(data_dir, env=ENVIRONMENT).start()
    try:
        wait_ready(daemon)
        with httpx.Client(base_url=daemon.url, timeout=60) as http:
            check = http.get("/health").json()["checks"]["inference"][0]
            assert check["status"] == "warn" and "safe mode" in check["output"]
            assert f"{toys.second} stands in for {toys.first}: 3 crashes at start" in check["output"]
            assert "activate" in check["output"] and "leaves safe mode" in check["output"]
            models = {model["model_id"]: model for model in http.get("/models").json()["models"]}
            assert models[toys.second]["role"] == "active"
            assert "3 crashes at start" in models[toys.first]["rejected"]["evidence"]
            # It answers: a robot is not left standing.
            session = http.post("/sessions", json={}).json()
            assert session["model_id"] == toys.second
            body = {
                "session_id": session["session_id"],
                "observation": as_tree(toy_observation(_rng())),
                "deadline_ms": 10_000,
            }
            assert http.post("/infer", json=body).json()["model_since_step"] == 0
            # A healthy while clears the count, not the mode.
            give_up = time.monotonic() + 60
            while record(toys)["phase"] != "healthy":
                assert time.monotonic() < give_up
                time.sleep(0.05)
            assert record(toys)["safe_mode"] is not None
            daemon.kill()
            daemon.start()
            wait_ready(daemon)
            assert "safe mode" in http.get("/health").json()["checks"]["inference"][0]["output"]
            lost = http.post("/infer", json=body)
            assert lost.status_code == 409 and "killed or lost power" in lost.json()["detail"]
            # The operator leaves it, here with the very model.
            assert http.post(f"/models/{toys.first}/activate").status_code == 200
            assert "safe mode" not in http.get("/health").json()["checks"]["inference"][0]["output"]
            assert record(toys) == {"model_id": toys.first, "phase": "healthy", "crashes": 0, "safe_mode": None}
            # A graceful stop takes the session along, into another process.
            body["session_id"] = http.post("/sessions", json={}).json()["session_id"]
            assert http.post("/infer", json=body).json()["step"] == 0
            assert daemon.stop() == 0
            daemon.start()
            wait_ready(daemon)
            assert http.post("/infer", json=body).json()["step"] == 1
    finally:
        daemon.stop()


def _rng() -> Any:
    import numpy as np

    return np.random.default_rng(0)


def test_a_worker_that_crashes_three_times_at_start_brings_up_the_last_good_model(toys: Toys) -> None:
    link(toys, active=toys.first, last_good=toys.second)
    mine, killed = psutil.Process(), set[int]()

    def kill_one() -> None:
        for child in mine.children():
            with contextlib.suppress(psutil.Error):
                if child.pid not in killed and "brain_service.inference.worker" in child.cmdline():
                    child.send_signal(signal.SIGKILL)
                    killed.add(child.pid)

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir) as router:
            while len(killed) < 3:
                await asyncio.to_thread(kill_one)
                await asyncio.sleep(0.005)
            await eventually(lambda: router.ready)
            status = router.status()
            assert status["active_model"] == toys.second
            assert "3 crashes at start, the last one" in status["safe_mode"]
            assert "died while it loaded" in status["safe_mode"]
            assert os.readlink(toys.models_dir / "active") == toys.first

    run(scenario())


def test_a_damaged_active_model_is_stood_in_for_at_once(toys: Toys) -> None:
    link(toys, active=toys.first, previous=toys.third)
    shutil.rmtree(toys.models_dir / toys.first)

    async def scenario() -> None:
        async with serving(toys.models_dir, toys.cache_dir) as router:
            await eventually(lambda: router.ready)
            assert router.status()["active_model"] == toys.third
            assert "no model" in router.status()["safe_mode"]
            # The one that stands in can be made the active one for good.
            assert await router.activate(toys.third) is not None
            assert router.status()["safe_mode"] is None
            assert os.readlink(toys.models_dir / "active") == toys.third

    run(scenario())


def test_crashes_count_in_a_row_and_a_good_start_or_a_stop_ends_the_row(tmp_path: Path) -> None:
    def start() -> Starts:
        return Starts(tmp_path)

    assert start().begin("a").crashes == 0
    assert start().begin("a").crashes == 1
    crashed = start()
    assert crashed.begin("a").crashes == 2 and crashed.unclean
    crashed.healthy()
    after = start()
    assert after.begin("a").crashes == 0 and after.unclean
    assert start().begin("a").crashes == 1
    stopped = start()
    assert stopped.begin("a").crashes == 2
    stopped.stopped()
    gentle = start()
    assert gentle.begin("a").crashes == 0 and not gentle.unclean


def test_safe_mode_lasts_until_another_model_is_pointed_at(tmp_path: Path) -> None:
    starts = Starts(tmp_path)
    starts.begin("a")
    starts.enter_safe_mode("it crashed")
    starts.healthy()
    assert Starts(tmp_path).begin("a").safe_mode == "it crashed"
    assert Starts(tmp_path).begin("b") == Record("b")
    starts.activated("a")
    assert Starts(tmp_path).begin("a") == Record("a", crashes=0)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"model_id": 1}', b'{"model_id":"a","phase":"odd"}'])
def test_a_damaged_record_holds_no_start_up(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    assert Starts(tmp_path).begin("a") == Record("a")


def test_a_folder_that_cannot_be_written_holds_no_start_up(tmp_path: Path) -> None:
    assert Starts(tmp_path / "missing").begin("a") == Record("a")
