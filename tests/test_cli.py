"""The command line as a person meets it: help with examples, one-line failures, the loop by hand."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from brain_service import EpisodeLogger
from brain_service.cli import main
from tests.processes import Daemon, running_daemon, told_nobody


def brain(*arguments: str, module: str = "brain_service") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=280)


def record(folder: Path, episodes: int = 4, steps: int = 12) -> None:
    logger = EpisodeLogger(folder, format="jsonl")
    for number in range(episodes):
        logger.start_episode(environment_id="toy", xr_mode="trainer")
        for step in range(steps):
            state = [0.1 * (step + number), -0.1 * step]
            logger.log_step(
                obs={"state": state}, action={"command": [state[0] / 2]}, reward=0.5, done=step == steps - 1
            )
        logger.end_episode()


@pytest.mark.parametrize(
    ("module", "command"),
    [
        ("brain_service", ()),
        ("cloud_trainer", ()),
        ("brain_service", ("train",)),
        ("brain_service", ("sanity-check",)),
        ("brain_service", ("export",)),
    ],
)
def test_help_shows_examples(module: str, command: tuple[str, ...]) -> None:
    done = brain(*command, "--help", module=module)
    assert done.returncode == 0
    assert "example" in done.stdout


def test_help_needs_no_framework() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "brain_service", "--help"], capture_output=True, text=True
    )
    assert " brain_service" in done.stderr
    assert "jax" not in done.stderr


def test_hardware_is_a_table_or_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["hardware", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["backends"]["cpu"]["available"] and found["best_for_training"]
    assert main(["hardware"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line and line[0] != " "][:4] == ["device", "cpu", "gpu", "tpu"]
    assert f"best for inference: {found['best_for_inference']}" in lines
    assert f"trainer: {found['trainers']['trainer']}: {found['trainers']['reason']}" in lines


FAILURES = [
    (("convert", "--input-dir", "/nowhere", "--output-dir", "out"), "/nowhere"),
    (("convert", "--input-dir", "empty", "--output-dir", "out"), "episode"),
    (("train", "--data-path", "empty", "--checkpoint-dir", "ckpt"), "empty"),
    (("train", "--data-path", "empty", "--checkpoint-dir", "ckpt", "--preset", "huge"), "development"),
    (("evaluate", "--data-path", "empty", "--checkpoint-dir", "ckpt"), "ckpt"),
    (("export", "--checkpoint-dir", "ckpt", "--output-dir", "models"), "ckpt"),
    (("health", "--url", "http://127.0.0.1:1"), "brain serve"),
    (("health", "--url", "foo"), "http://127.0.0.1:8080"),
    (("health", "--url", "file:///etc"), "http://127.0.0.1:8080"),
    (("health", "--token-file", "nowhere"), "nowhere"),
    (("health", "--token-file", "empty"), "empty"),
]


@pytest.mark.parametrize(("arguments", "word"), FAILURES, ids=[" ".join(case[0][:3]) for case in FAILURES])
def test_a_failure_is_one_line_with_the_next_step(tmp_path: Path, arguments: tuple[str, ...], word: str) -> None:
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "brain_service", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"brain {arguments[0]}: ")
    assert word in done.stderr


def test_health_exits_by_the_worst_check(daemon: Daemon) -> None:
    done = brain("health", "--url", daemon.url)
    assert done.returncode == 1, "a daemon without a model warns"
    assert "POST /pipeline" in done.stdout


def test_health_of_something_else_is_one_line(daemon: Daemon) -> None:
    for url in (f"{daemon.url}/livez", f"{daemon.url}/episodes"):
        done = brain("health", "--url", url)
        assert done.returncode == 2
        assert done.stderr.startswith("brain health: ")
        assert len(done.stderr.splitlines()) == 1
        assert url in done.stderr


def test_health_takes_a_token_from_a_file_and_never_shows_it(tmp_path: Path) -> None:
    right, wrong = tmp_path / "tokens", tmp_path / "wrong"
    right.write_text("read-token-0123456789 read\n", encoding="utf-8-sig")
    wrong.write_text("other-token-0123456789\n")
    with running_daemon(tmp_path / "brain", "--tokens-file", str(right)) as daemon:
        assert "POST /pipeline" in brain("health", "--url", daemon.url, "--token-file", str(right)).stdout
        for arguments in ((), ("--token-file", str(wrong))):
            done = brain("health", "--url", daemon.url, *arguments)
            assert done.returncode == 2
            assert len(done.stderr.splitlines()) == 1
            assert "--token-file" in done.stderr
            assert "0123456789" not in done.stderr


@pytest.mark.slow
@pytest.mark.long
def test_the_loop_by_hand(tmp_path: Path) -> None:
    record(tmp_path / "episodes")
    datasets, checkpoints, models = (str(tmp_path / name) for name in ("datasets", "checkpoints", "models"))
    converted = brain("convert", "--input-dir", str(tmp_path / "episodes"), "--output-dir", datasets)
    assert json.loads(converted.stdout)["episodes"] == 4
    trained = brain("train", "--data-path", datasets, "--checkpoint-dir", checkpoints, "--steps", "3")
    assert json.loads(trained.stdout)["step"] == 3, trained.stderr
    evaluated = brain("evaluate", "--data-path", datasets, "--checkpoint-dir", checkpoints)
    assert json.loads(evaluated.stdout)["episodes"] >= 1
    exported = brain("export", "--checkpoint-dir", checkpoints, "--output-dir", models)
    assert (Path(exported.stdout.strip()) / "manifest.json").is_file(), exported.stderr


@pytest.mark.slow
@pytest.mark.long
def test_the_cloud_job_on_local_paths(tmp_path: Path) -> None:
    record(tmp_path / "episodes")
    datasets, output = str(tmp_path / "datasets"), str(tmp_path / "run")
    brain("convert", "--input-dir", str(tmp_path / "episodes"), "--output-dir", datasets)
    options = ("--preset", "development", "--batch-size", "4", "--num-steps", "3", "--learning-rate", "1e-4")
    done = brain("--data-path", datasets, "--output-dir", output, *options, module="cloud_trainer")
    assert done.returncode == 0, done.stderr
    bundle = Path(done.stdout.splitlines()[-1])
    assert (bundle / "manifest.json").is_file()
    again = brain("--data-path", datasets, "--output-dir", output, *options, module="cloud_trainer")
    assert (again.returncode, again.stdout) == (0, f"run run is done: {bundle.name} in {output}\n")
    refused = brain("--data-path", "gs://bucket/data", "--output-dir", output, *options, module="cloud_trainer")
    assert refused.returncode == 78
    assert refused.stderr.startswith(f"cloud-trainer: {output} holds run run with data_path")


@pytest.mark.slow
@pytest.mark.long
def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    record(tmp_path / "episodes")
    datasets, run = str(tmp_path / "datasets"), tmp_path / "run"
    brain("convert", "--input-dir", str(tmp_path / "episodes"), "--output-dir", datasets)
    small = ("--batch-size", "2", "--sequence-length", "8", "--checkpoint-every", "100000", "--log-every", "1")
    command = ("train", "--data-path", datasets, "--checkpoint-dir", str(run), "--steps", "1000000", *small)
    whole = [sys.executable, "-m", "brain_service", *command]
    cache = {
        "JAX_COMPILATION_CACHE_DIR": os.environ.get("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    before = 0
    for attempt in (1, 2):
        seen = (run / "logs" / "metrics.jsonl").stat().st_size if attempt == 2 else 0
        with subprocess.Popen(
            whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | cache
        ) as process:
            give_up_s = time.monotonic() + 300
            curves = run / "logs" / "metrics.jsonl"
            while not (curves.is_file() and curves.stat().st_size > seen):
                assert process.poll() is None and time.monotonic() < give_up_s
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            said, warned = process.communicate(timeout=120)
        result = json.loads(said)
        assert process.returncode == 0
        assert result["completed"] is False
        assert f"stopped at step {result['step']}; the same command goes on" in warned
        if attempt == 2:
            assert result["resumed_from"] == before
        before = result["step"]
        assert (run / str(before) / "sha256.json").is_file()


def data_dir_with_episodes(root: Path) -> tuple[Path, list[str]]:
    """Return a data directory without a daemon: two ended episodes and one that runs."""
    names = []
    with EpisodeLogger(root / "episodes") as logger:
        for tag in ("a", "b"):
            names.append(logger.start_episode(environment_id="bench", tags=[tag]))
            logger.log_step({"x": [1.0]}, {"a": 1.0}, timestamp_ns=1)
            logger.end_episode("truncated")
    return root, names


def test_episodes_are_listed_shown_and_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, names = data_dir_with_episodes(tmp_path)
    where = ["--data-dir", str(root)]
    assert main(["episodes", "ls", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["episode", *names[::-1]]
    assert main(["episodes", "ls", "--tag", "a", "--json", *where]) == 0
    assert [item["episode_id"] for item in json.loads(capsys.readouterr().out)] == names[:1]
    assert main(["episodes", "show", names[0], *where]) == 0
    assert "truncated" in capsys.readouterr().out
    assert main(["episodes", "show", names[0], "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    assert main(["episodes", "rm", names[0], *where]) == 0
    assert main(["episodes", "rm", names[0], *where]) == 2
    captured = capsys.readouterr()
    assert f"deleted {names[0]}" in captured.out
    assert "no episode" in captured.err


def test_a_list_of_nothing_is_no_list(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, _ = data_dir_with_episodes(tmp_path)
    for limit in ("-1", "0", "many"):
        with pytest.raises(SystemExit) as done:
            main(["episodes", "ls", "--limit", limit, "--data-dir", str(root)])
        assert done.value.code == 2
        assert "--limit" in capsys.readouterr().err


def test_what_an_episode_says_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "data"
    with EpisodeLogger(root / "episodes") as logger:
        name = logger.start_episode(environment_id="lab\x1b[2J\nfake", tags=["\u202e"])
        logger.log_step({"x": [1.0]}, {"a": 1.0}, timestamp_ns=1)
        logger.end_episode("truncated")
    where = ["--data-dir", str(root)]
    assert main(["episodes", "ls", *where]) == 0
    _, row = capsys.readouterr().out.splitlines()
    assert row.startswith(name)
    assert row.endswith(r"lab\x1b[2J\nfake")
    assert main(["episodes", "show", name, *where]) == 0
    assert all(line.isprintable() for line in capsys.readouterr().out.splitlines())
    assert main(["episodes", "show", "\x1b]0;x\x07", *where]) == 2
    assert capsys.readouterr().err.rstrip("\n").isprintable()


def test_a_reader_that_goes_is_no_error(tmp_path: Path) -> None:
    root, names = data_dir_with_episodes(tmp_path)
    for action in (["ls"], ["ls", "--json"], ["show", names[0]]):
        command = [sys.executable, "-m", "brain_service", "episodes", *action, "--data-dir", str(root)]
        assert told_nobody(command) == (141, b"")


def test_retention_is_shown_before_it_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root, names = data_dir_with_episodes(tmp_path)
    where = ["--data-dir", str(root)]
    monkeypatch.setenv("BRAIN_RETENTION__MAX_TOTAL_BYTES", "1")
    assert main(["episodes", "retention", *where]) == 0
    assert "2 episodes that no dataset holds" in capsys.readouterr().out
    monkeypatch.setenv("BRAIN_RETENTION__DELETE_UNCONVERTED", "true")
    monkeypatch.setenv("BRAIN_RETENTION__DELETE_NOT_UPLOADED", "true")
    assert main(["episodes", "retention", "--dry-run", "--json", *where]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [item["episode_id"] for item in plan["deleted"]] == names
    assert main(["episodes", "retention", *where]) == 0
    assert "2 episodes" in capsys.readouterr().out
    assert main(["episodes", "ls", "--json", *where]) == 0
    assert json.loads(capsys.readouterr().out) == []


def test_a_directory_without_episodes_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["episodes", "ls", "--data-dir", str(tmp_path)]) == 2
    assert "--data-dir" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["episodes", "ls", "--help"])
    assert "examples:" in capsys.readouterr().out
