"""A running daemon as commands ask it: one request, or a job that is followed to its end."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from brain_service.cli_token import read_token
from brain_service.errors import NotFoundError, UnavailableError

__all__ = ["Daemon", "open_daemon"]

_FOLLOW_S = 0.5
_TIMEOUT_S = 180.0  # the first question to the runtimes after a boot takes seconds, an activation compiles a model


class Daemon:
    """The daemon at an address. What it refuses is raised with its own words."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return the answer's document.

        Raises:
            NotFoundError: it answers 404.
            UnavailableError: it refuses otherwise.
        """
        return _answered(self._client.post(path, json=body or {}))

    def get(self, path: str) -> dict[str, Any]:
        """Return the answer's document; raises as `post` does."""
        return _answered(self._client.get(path))

    def job(self, kind: str, body: Mapping[str, Any], report: Callable[..., None]) -> dict[str, Any]:
        """Start a job and return it as it ended; `report(done, total, stage)` follows its percentage.

        Raises:
            NotFoundError: the job is gone.
            UnavailableError: the daemon refuses it.
        """
        job = self.post(f"/{kind}", body)
        while job["state"] in ("queued", "running"):
            stage = next((each["name"] for each in job["stages"] if each["status"] == "running"), job["state"])
            report(round(100 * job["progress"]), 100, stage)
            time.sleep(_FOLLOW_S)
            job = self.get(f"/jobs/{job['job_id']}")
        return job


@contextmanager
def open_daemon(url: str, token_file: Path | None) -> Iterator[Daemon]:
    """Yield the daemon at `url`; `token_file` begins with a token of scope operate.

    Raises:
        ConfigError: the file holds no token.
        UnavailableError: none answers there.
    """
    token = read_token(token_file)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=_TIMEOUT_S) as client:
            yield Daemon(client)
    except httpx.HTTPError as error:
        raise UnavailableError(f"no daemon answers at {url}: {error}; start one with 'brain serve'") from error


def _answered(answer: httpx.Response) -> dict[str, Any]:
    document: dict[str, Any] = answer.json() if "json" in answer.headers.get("content-type", "") else {}
    if answer.is_success:
        return document
    kind = NotFoundError if answer.status_code == 404 else UnavailableError
    raise kind(
        f"{answer.request.url} answers {answer.status_code}: {document.get('detail') or answer.reason_phrase}"
    )
