"""The OpenAPI document of the capture paths against a real daemon: Schemathesis sends what it allows, and worse.

It fails on a status, media type, header or body that the document does not state, on a 5xx, on data that breaks
the document and is taken, and on what is still there after its deletion. One of its checks is left out: data that
fits the document may still be refused, since JSON Schema cannot say that arrays have one shape, that a step fits
its episode's spec or that a number fits float32. Our 422 says it instead, and names the field.
"""

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from tests.processes import Daemon, running_daemon

TOOL = Path(sys.executable).parent / "schemathesis"
CAPTURE = "^/episodes"


def throw(daemon: Daemon, folder: Path, *options: str) -> None:
    """Run Schemathesis over the capture paths; every failure it finds fails the test."""
    checks = ("--include-path-regex", CAPTURE, "--checks", "all", "--exclude-checks", "positive_data_acceptance")
    run(daemon, folder, *checks, *options)


def run(daemon: Daemon, folder: Path, *options: str) -> None:
    """Run Schemathesis; what it finds fails the test, and so does anything unexpected in the daemon's log."""
    command = [str(TOOL), "run", f"{daemon.url}/openapi.json", "--continue-on-failure", "--no-color", *options]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "150"}, timeout=1500
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    log = daemon.log_path.read_text()
    assert '"level": "error"' not in log, [line for line in log.splitlines() if '"level": "error"' in line][:3]
    assert httpx.get(f"{daemon.url}/livez").status_code == 200


def running(folder: Path) -> "contextlib.AbstractContextManager[Daemon]":
    # Thousands of episodes stay open: a 429 to nearly every request would test nothing else.
    return running_daemon(folder / "brain", env={"BRAIN_CAPTURE__MAX_OPEN_EPISODES": "1000000"})


def test_every_answer_of_the_capture_paths_is_documented_as_a_problem_or_a_success(daemon: Daemon) -> None:
    document = httpx.get(f"{daemon.url}/openapi.json").json()
    seen = set()
    for path, operations in document["paths"].items():
        if not path.startswith("/episodes"):
            continue
        for operation in operations.values():
            seen.add(operation["operationId"])
            for status, answer in operation["responses"].items():
                if int(status) >= 400:
                    schema = answer["content"]["application/problem+json"]["schema"]
                    Draft202012Validator.check_schema(schema)
                    assert {"type", "title", "status", "detail"} == set(schema["required"])
                if status in ("429", "503"):
                    assert "Retry-After" in answer["headers"]
            if operation["operationId"] in ("create_episode", "append_steps", "end_episode"):
                for content in operation["requestBody"]["content"].values():
                    Draft202012Validator.check_schema(content["schema"])
    assert {"create_episode", "append_steps", "end_episode", "list_episodes", "read_steps"} <= seen


@pytest.mark.long
def test_what_the_document_allows_and_forbids(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        throw(daemon, tmp_path, "--max-examples", "25", "--seed", "1")


@pytest.mark.long
def test_every_other_path_answers_as_it_is_documented(tmp_path: Path) -> None:
    """Without a model: 503 is then the right answer of many, which a check for 5xx alone would not know."""
    checks = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    with running(tmp_path) as daemon:
        # The runtimes are asked once, and that takes longer than the tool waits for an answer.
        assert httpx.get(f"{daemon.url}/hardware", timeout=180).status_code == 200
        endless = r"(^/episodes|/events$|/status/stream$)"
        options = ("--exclude-path-regex", endless, "--checks", ",".join(checks), "--seed", "1")
        run(daemon, tmp_path, *options, "--max-examples", "5", "--max-time", "25")


@pytest.mark.soak
@pytest.mark.timeout(1600)
def test_what_the_document_allows_and_forbids_for_longer(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        throw(daemon, tmp_path, "--max-examples", "400", "--max-time", "120")
