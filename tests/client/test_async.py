"""The async client: the same on the caller's own event loop, which it never blocks."""

import asyncio
import threading
from pathlib import Path

import pytest
from blockbuster import blockbuster_ctx

from brain_service.client import AsyncBrainClient, BrainClient, ClientError, RejectedError, TimedOutError
from tests.client.robot import action, assert_recorded, observation
from tests.fakes.proxy import running_proxy
from tests.processes import Daemon, free_port


def check(daemon: Daemon, episode_id: str, count: int) -> None:
    with BrainClient(daemon.url) as client:
        assert_recorded(client, episode_id, count)


def test_a_block_records_an_episode_and_never_blocks_the_loop(shared_daemon: Daemon) -> None:
    async def record() -> str:
        threads = threading.active_count()
        async with AsyncBrainClient(shared_daemon.url) as client:
            assert "http" in repr(client)
            with blockbuster_ctx():
                async with client.record(environment_id="async") as episode:
                    for index in range(300):
                        episode.log_step(observation(index), action(index), index)
                        await asyncio.sleep(0)
                    await episode.flush()
                    assert episode.pending == 0
                assert threading.active_count() <= threads + 1, "no thread but asyncio's own"
                summary = await client.episode(episode.episode_id)
            assert (summary["state"], summary["steps"]) == ("truncated", 300)
            assert len([record async for record in client.steps(episode.episode_id, 290)]) == 10
            found = [s["episode_id"] async for s in client.episodes(environment_id="async", page_size=1)]
            assert episode.episode_id in found
            assert (await client.health())["status"] in ("pass", "warn", "fail")
            return episode.episode_id

    check(shared_daemon, asyncio.run(record()), 300)


def test_many_episodes_at_once_through_cut_connections(shared_daemon: Daemon) -> None:
    async def one(client: AsyncBrainClient, number: int) -> str:
        async with client.record(tags=[str(number)]) as episode:
            for index in range(100):
                episode.log_step(observation(index), action(index), index)
                await asyncio.sleep(0.002)
        return episode.episode_id

    async def record(port: int) -> list[str]:
        async with AsyncBrainClient(f"http://127.0.0.1:{port}") as client:
            return list(await asyncio.gather(*(one(client, number) for number in range(8))))

    with running_proxy(shared_daemon.port) as proxy:
        timer = threading.Timer(0.2, proxy.drop)
        timer.start()
        for episode_id in asyncio.run(record(proxy.port)):
            check(shared_daemon, episode_id, 100)
        timer.join()


def test_errors_are_the_same(shared_daemon: Daemon) -> None:
    async def record() -> None:
        async with AsyncBrainClient(shared_daemon.url) as client:
            episode = await client.start_recording()
            episode.log_step({"x": float("inf")}, {"y": 1})
            with pytest.raises(RejectedError) as raised:
                await episode.flush()
            assert raised.value.field == "observation/x"
            with pytest.raises(RejectedError):
                await episode.end()
            with pytest.raises(ZeroDivisionError):
                async with client.record() as other:
                    other.log_step({"x": 1}, {"y": 1})
                    _ = 1 / 0
        with pytest.raises(ClientError, match="closed"):
            await client.start_recording()

    asyncio.run(record())


def test_a_spool_passes_from_a_closed_client_to_the_next(shared_daemon: Daemon, tmp_path: Path) -> None:
    async def record() -> str:
        lost = AsyncBrainClient(f"http://127.0.0.1:{free_port()}", spool_dir=tmp_path)
        episode = await lost.start_recording()
        for index in range(20):
            episode.log_step(observation(index), action(index), index)
        with pytest.raises(TimedOutError):
            await episode.end("terminated", timeout_s=0.1)
        await lost.close(0.1)
        async with AsyncBrainClient(shared_daemon.url, spool_dir=tmp_path) as client:
            (resent,) = await client.resend_spool(20)
            assert resent.ended is not None
            assert resent.ended.reason == "terminated"
        return episode.episode_id

    check(shared_daemon, asyncio.run(record()), 20)
