"""The audit log: who did what, durably before the answer, and nothing that is secret."""

import json
import os
import resource
import threading
from pathlib import Path

import httpx
import pytest

from brain_service.audit import AuditLog
from tests.api.conftest import Driven, bearer, token
from tests.processes import Daemon, running_daemon


def entries(http: httpx.Client, **query: int) -> list[dict[str, object]]:
    answer = http.get("/audit", params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, object]] = answer.json()["entries"]
    return found


def test_what_an_operator_does_is_noted_with_who_what_and_outcome(driven: Driven) -> None:
    with httpx.Client(base_url=driven.url, headers=bearer("boss")) as http:
        http.post("/models/rollback")
        http.post("/models/nothing/activate")
        job = http.post("/convert", json={"dataset": "secret-dataset-name"}).json().get("job_id", "unknown")
        http.delete(f"/jobs/{job}?note=secret-query")
        http.delete("/episodes/none")
        found = entries(http, limit=5)
    assert [(entry["action"], entry["target"], entry["outcome"]) for entry in reversed(found)] == [
        ("rollback", "models", 409),
        ("activate", "models/nothing", 404),
        ("convert", "", found[2]["outcome"]),
        ("cancel", f"jobs/{job}", found[1]["outcome"]),
        ("delete", "episodes/none", 404),
    ]
    assert {entry["who"] for entry in found} == {"token of line 4"}
    assert {entry["via"] for entry in found} == {"127.0.0.1"}
    text = (driven.daemon.data_dir / "audit.jsonl").read_text()
    assert "secret" not in text
    assert token("boss") not in text


def test_who_tried_without_the_scope_is_noted_too(driven: Driven) -> None:
    assert httpx.post(f"{driven.url}/models/rollback", headers=bearer("robot")).status_code == 403
    assert httpx.post(f"{driven.url}/models/rollback").status_code == 401
    with httpx.Client(base_url=driven.url, headers=bearer("boss")) as http:
        unknown, robot = entries(http, limit=2)
    assert (robot["who"], robot["outcome"]) == ("token of line 1", 403)
    assert (unknown["who"], unknown["outcome"]) == ("127.0.0.1", 401)


def test_only_operators_read_it(driven: Driven) -> None:
    assert httpx.get(f"{driven.url}/audit").status_code == 401
    assert httpx.get(f"{driven.url}/audit", headers=bearer("reader")).status_code == 403
    assert httpx.get(f"{driven.url}/audit", headers=bearer("boss"), params={"cursor": 0}).status_code == 422


def test_steps_and_reads_are_no_business_of_it(daemon: Daemon) -> None:
    with httpx.Client(base_url=daemon.url) as http:
        episode = http.post("/episodes", json={}).json()["episode_id"]
        http.post(f"/episodes/{episode}/steps", json={"observation": {"x": [1.0]}, "action": {"u": [1.0]}})
        http.get("/models")
        assert entries(http) == []
        assert not (daemon.data_dir / "audit.jsonl").exists()


def test_through_the_unix_socket_it_is_the_user_that_the_kernel_names(daemon: Daemon) -> None:
    transport = httpx.HTTPTransport(uds=str(daemon.data_dir / "brain.sock"))
    with httpx.Client(transport=transport, base_url="http://brain") as http:
        http.post("/models/rollback")
        (entry,) = entries(http)
    assert entry["who"] == entry["via"] == f"uid {os.geteuid()}"


def test_tokens_that_change_are_noted(tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text("boss-token-0123456789 operate # the boss\n")
    with running_daemon(tmp_path / "brain", "--tokens-file", str(tokens)) as daemon:
        tokens.write_text("boss-token-0123456789 operate # the boss\nrobot-token-0123456789 control\n")
        log = tmp_path / "brain" / "audit.jsonl"
        while not log.exists():
            pass
        with httpx.Client(base_url=daemon.url, headers={"Authorization": "Bearer boss-token-0123456789"}) as http:
            assert http.post("/models/rollback").status_code == 409
            rollback, reload = entries(http)
    assert (reload["action"], reload["tokens"]) == ("reload-tokens", 2)
    assert rollback["who"] == "the boss"


def test_pages_go_back_over_rotated_files_and_a_restart_goes_on_counting(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_bytes=2000)
    for number in range(30):
        log.append("a", "b", "act", str(number), 200)
    assert (tmp_path / "audit.jsonl.1").exists()
    again = AuditLog(tmp_path, max_bytes=2000)
    again.append("a", "b", "act", "30", 200)
    seen: list[int] = []
    cursor: int | None = None
    while True:
        page, cursor = again.page(7, cursor)
        seen += [entry["n"] for entry in page]
        if cursor is None:
            break
    assert seen == list(range(31, 31 - len(seen), -1))
    assert len(seen) == 31
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o640}


def test_what_is_older_than_the_kept_files_goes(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, max_bytes=500)
    for number in range(100):
        log.append("a", "b", "act", str(number), 200)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "audit.jsonl",
        *(f"audit.jsonl.{number}" for number in range(1, 5)),
    ]


def test_a_line_that_a_power_cut_left_half_spoils_no_other(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append("a", "b", "first", "", 200)
    with (tmp_path / "audit.jsonl").open("ab") as file:
        file.write(b'{"n":2,"acti')
    again = AuditLog(tmp_path)
    again.append("a", "b", "second", "", 200)
    assert [entry["action"] for entry in again.page(10)[0]] == ["second", "first"]


def test_a_full_card_is_told_and_holds_no_operator_up(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)
    log.append("a", "b", "cancel", "jobs/1", 202)
    before, (soft, hard) = (tmp_path / "audit.jsonl").read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel then writes what fits and refuses the rest, as a full card does.
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, hard))
    try:
        log.append("a", "b", "cancel", "jobs/2", 202)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "cannot be written" in log.problem
    assert (tmp_path / "audit.jsonl").read_bytes() == before
    log.append("a", "b", "cancel", "jobs/3", 202)
    assert not log.problem
    assert [entry["n"] for entry in log.page(10)[0]] == [2, 1]


def test_entries_of_many_threads_are_whole(tmp_path: Path) -> None:
    log = AuditLog(tmp_path)

    def act(name: str) -> None:
        for _ in range(20):
            log.append(name, "x" * 1000, "act", "t\n" * 500, 200)

    threads = [threading.Thread(target=act, args=(f"thread {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [line["n"] for line in lines] == list(range(1, 81))
    assert max(len(line["via"]) for line in lines) == 200


@pytest.mark.parametrize("hostile", ["a\nb", '"}', "\x00", "ü" * 500])
def test_what_a_client_names_cannot_forge_a_line(tmp_path: Path, hostile: str) -> None:
    log = AuditLog(tmp_path)
    log.append(hostile, "via", "act", hostile, 404)
    (line,) = (tmp_path / "audit.jsonl").read_bytes().splitlines()
    assert json.loads(line)["target"] == hostile[:200]
