"""No route blocks the event loop: BlockBuster turns a file, socket or sleep call on it into an error."""

import asyncio
from pathlib import Path
from typing import Any

import httpx
from blockbuster import blockbuster_ctx

from brain_service.api.app import create_app
from brain_service.api.services import open_services
from brain_service.settings import Settings, load_settings

STEP = {"observation": {"state": [0.1, 0.2]}, "action": {"command": [0.5]}, "reward": 1.0}


async def visit_every_route(settings: Settings) -> dict[str, int]:
    """Call each operation of the OpenAPI document once; return the status by operation id."""
    seen: dict[str, int] = {}
    async with open_services(settings) as services:
        app = create_app(services)
        transport = httpx.ASGITransport(app, raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="http://brain") as http:
            episode = (await http.post("/episodes", json={})).json()["episode_id"]
            await http.post(f"/episodes/{episode}/steps", json=STEP)
            job = (await http.post("/convert", json={})).json()["job_id"]
            names = {
                "episode_id": episode,
                "job_id": job,
                "session_id": "none",
                "model_id": "none",
                "name": "none",
                "model_name": "brain",
                "model_version": "none",
            }
            bodies: dict[str, Any] = {
                "append_steps": STEP,
                "infer": {"session_id": "none", "step": 0, "observation": {"state": [0.1, 0.2]}},
            }
            # Reads come before deletes, so that each finds what it reads.
            operations = [
                (method, path, operation["operationId"])
                for path, methods in app.openapi()["paths"].items()
                for method, operation in methods.items()
            ]
            for method, path, name in sorted(operations, key=lambda item: item[0] == "delete"):
                if name in ("job_events", "status_stream"):
                    continue  # endless; its own test reads it over a socket
                url = path.format(**names)
                json = bodies.get(name, {}) if method == "post" else None
                seen[name] = (await http.request(method, url, json=json)).status_code
    return seen


def test_no_route_blocks_the_loop(tmp_path: Path) -> None:
    settings = load_settings({"data_dir": tmp_path / "brain"}, environ={})
    with blockbuster_ctx("brain_service"):
        seen = asyncio.run(visit_every_route(settings))
    assert {name: status for name, status in seen.items() if status == 500} == {}
    assert seen["livez"] == seen["append_steps"] == 200
    assert seen["end_episode"] == 200
    assert len(seen) >= 20
