"""The search for settings: its laws on a process that keeps the protocol, its specification against the SDK."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.cloud.run_status import EXIT_PREEMPTED
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from cloud_trainer import hypertune
from cloud_trainer.cli import main
from cloud_trainer.tuning import local, trial
from cloud_trainer.tuning.local import LocalSearch, run_search
from cloud_trainer.tuning.report import best_trial
from cloud_trainer.tuning.search import Asha, RandomSearch, Search, Work
from cloud_trainer.tuning.space import Parameter, Space, read_space, to_arguments
from cloud_trainer.tuning.state import Trial, Trials
from tests.datasets.recording import record_many

FAKE = (sys.executable, str(Path(__file__).with_name("fake_trainer.py")))
SPACE = """
[learning_rate]
type = "double"
min = 0.01
max = 0.45
scale = "log"

[batch_size]
type = "discrete"
values = [2, 4]

[weight_decay]
type = "double"
min = 0.0
max = 0.1
"""


@pytest.fixture
def space(tmp_path: Path) -> Path:
    """A space in a file."""
    path = tmp_path / "space.toml"
    path.write_text(SPACE)
    return path


def _arguments(space: Path, folder: Path, *more: str) -> list[str]:
    return [
        *("tune", "--space", str(space), "--data-path", "nothing", "--output-dir", str(folder)),
        *("--num-steps", "9", "--min-steps", "1", "--trials", "6", *more),
    ]


def _search(folder: Path, space: Space, steps: int = 9, parallel: int = 1) -> LocalSearch:
    return LocalSearch("nothing", folder, space, seed=3, steps=steps, parallel=parallel, program=FAKE)


def _results(folder: Path) -> dict[int, dict[int, float]]:
    found: dict[int, dict[int, float]] = {}
    for line in map(json.loads, (folder / "trials.jsonl").read_text().splitlines()):
        if "value" in line:
            found.setdefault(line["trial"], {})[line["step"]] = line["value"]
    return found


def _require_no_step_twice(folder: Path) -> None:
    for log in folder.glob("trial-*/steps.log"):
        steps = list(map(int, log.read_text().split()))
        assert steps == list(range(1, len(steps) + 1)), log


@given(st.integers(0, 2**31), st.integers(0, 50))
def test_a_trial_is_the_same_whatever_was_drawn_before(seed: int, number: int) -> None:
    space = Space(
        (
            Parameter("batch_size", "integer", 1, 512, "log"),
            Parameter("learning_rate", "double", 1e-5, 1e-1, "log"),
            Parameter("mode", "categorical", values=("windows", "streams")),
            Parameter("weight_decay", "discrete", values=(0.0, 0.1)),
        )
    )
    drawn = space.draw(seed, number)
    assert drawn == space.draw(seed, number)
    assert isinstance(drawn["batch_size"], int)
    assert 1 <= drawn["batch_size"] <= 512
    assert isinstance(drawn["learning_rate"], float)
    assert 1e-5 <= drawn["learning_rate"] <= 1e-1
    assert drawn["mode"] in ("windows", "streams")
    assert to_arguments(drawn)[:2] == ["--batch-size", str(drawn["batch_size"])]


def _has_earned(asha: Asha, trials: dict[int, Trial], work: Work) -> bool:
    below = asha.rungs[asha.rungs.index(work.step) - 1]
    standing = sorted((its.results[below], number) for number, its in trials.items() if below in its.results)
    return work.number in [number for _, number in standing[: len(standing) // asha.eta]]


@settings(max_examples=60)
@given(
    st.integers(1, 30), st.integers(2, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 4), st.randoms()
)
def test_only_the_best_share_goes_on_and_one_goes_to_the_end(
    count: int, eta: int, first: int, rungs: int, parallel: int, chance: Any
) -> None:
    asha = Asha(count, first * eta ** (rungs + 1), first, eta)
    trials: dict[int, Trial] = {}
    busy: dict[int, int] = {}
    values = {number: chance.random() for number in range(count)}
    done = 0
    while True:
        while len(busy) < parallel and (work := asha.next(trials, busy)) is not None:
            assert work.number not in busy
            assert work.step in asha.rungs
            trials.setdefault(work.number, Trial(work.number, {}))
            if work.step > asha.rungs[0] and not _has_earned(asha, trials, work):
                # The best one's way to the end, once nothing else can be done.
                assert not busy
                assert work.step == asha.steps
            assert work.step not in trials[work.number].results
            busy[work.number] = work.step
        if not busy:
            break
        number = chance.choice(sorted(busy))
        trials[number].results[busy.pop(number)] = values[number]
        done += 1
    assert len(trials) == count
    assert all(asha.rungs[0] in trial.results for trial in trials.values())
    assert any(asha.steps in trial.results for trial in trials.values())
    # It never costs more than a whole run of each.
    assert done <= count * len(asha.rungs)


def test_the_best_comes_out_on_top_and_no_step_is_paid_twice(tmp_path: Path, space: Path) -> None:
    said: list[str] = []
    search, asha = _search(tmp_path / "s", read_space(space)), Asha(6, 9, 1)
    trials = Trials(search.folder, {})
    assert run_search(search, asha, trials, said.append) == 0
    _require_no_step_twice(search.folder)
    best = best_trial(list(trials.trials.values()))
    assert best is not None
    assert best.step == 9
    rates = {number: abs(float(trial.settings["learning_rate"]) - 0.2) for number, trial in trials.trials.items()}
    assert rates[best.number] == min(rates.values())
    made = sum(len(log.read_text().split()) for log in search.folder.glob("trial-*/steps.log"))
    assert made < 6 * 9


def test_the_same_seed_gives_the_same_search(tmp_path: Path, space: Path) -> None:
    found = []
    for name in ("one", "two"):
        search, asha = _search(tmp_path / name, read_space(space)), Asha(4, 9, 3)
        assert run_search(search, asha, Trials(search.folder, {}), lambda _: None) == 0
        found.append((search.folder / "trials.jsonl").read_text())
    assert found[0] == found[1]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_search_that_is_ended_goes_on(tmp_path: Path, space: Path, number: signal.Signals) -> None:
    whole, ended = tmp_path / "whole", tmp_path / "ended"
    script = (
        "import sys; from cloud_trainer.tuning import local; from cloud_trainer import tune\n"
        "program = tuple(sys.argv[1:3]); real = local.LocalSearch\n"
        "tune.LocalSearch = lambda **its: real(**its, program=program)\n"
        "sys.exit(tune.main(sys.argv[4:]))"
    )

    def start(folder: Path) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-c", script, *FAKE, *_arguments(space, folder)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL)

    assert start(whole).wait(150) == 0
    process = start(ended)
    deadline_s = time.monotonic() + 90
    while not (ended / "trials.jsonl").exists() or len(_results(ended)) < 3:
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    process.send_signal(number)
    code = process.wait(120)
    assert code == (-number if number == signal.SIGKILL else EXIT_PREEMPTED)
    if number == signal.SIGKILL:
        with (ended / "trials.jsonl").open("ab") as file:
            file.write(b'{"trial": 4, "st')
    assert start(ended).wait(150) == 0
    assert _results(ended) == _results(whole)
    if number == signal.SIGTERM:
        _require_no_step_twice(ended)
    assert (ended / "results.png").read_bytes().startswith(b"\x89PNG")
    assert (ended / "results.txt").read_text().splitlines()[1:7] == (
        whole / "results.txt"
    ).read_text().splitlines()[1:7]


def test_several_trials_at_once_and_one_that_fails(tmp_path: Path) -> None:
    said: list[str] = []
    space = Space((Parameter("learning_rate", "discrete", values=(0.5, 0.2)),))
    search = _search(tmp_path, space, steps=3, parallel=3)
    trials = Trials(tmp_path, {})
    method: Search = RandomSearch(6, 3)
    assert run_search(search, method, trials, said.append) == 0
    refused = [its for its in trials.trials.values() if its.settings["learning_rate"] == 0.5]
    assert 0 < len(refused) < 6
    assert all(its.problem == "exit code 78: a rate of 0.5 is refused" for its in refused)
    assert all(its.step == 3 for its in trials.trials.values() if its not in refused)


def test_another_search_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    Trials(tmp_path, {"seed": 1}).add(Trial(0, {"learning_rate": 0.1}))
    with pytest.raises(InvalidError, match="holds a search with seed 1, not 2"):
        Trials(tmp_path, {"seed": 2})
    (tmp_path / "trials.jsonl").write_text('{"trial": 3, "step": 1, "value": 2.0}\n')
    with pytest.raises(CorruptDataError, match=r"trials.jsonl:1: "):
        Trials(tmp_path, {"seed": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("[learning_rate", "space.toml"),
        ("[steps]\ntype = 'integer'\nmin = 1\nmax = 2", "'steps' is no setting that can be searched"),
        ("[learning_rate]\nmin = 1", "use a table with type"),
        ("[learning_rate]\ntype = 'double'\nmin = 2\nmax = 1", "min 2 is not below max 1"),
        ("[learning_rate]\ntype = 'double'\nmin = 0\nmax = 1\nscale = 'log'", "'log' above 0"),
        ("[learning_rate]\ntype = 'discrete'\nvalues = [1]", "leaves no choice"),
        ("[learning_rate]\ntype = 'discrete'\nvalues = ['a', 'b']", "discrete values are numbers"),
        ("[learning_rate]\ntype = 'real'", "type 'real' is none of"),
    ],
)
def test_a_wrong_space_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "space.toml"
    path.write_text(text)
    with pytest.raises(InvalidError, match=message):
        read_space(path)
    with pytest.raises(NotFoundError, match="no search space"):
        read_space(tmp_path / "none.toml")


def test_the_vertex_job_is_one_for_the_sdk(
    tmp_path: Path, space: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from google.cloud.aiplatform_v1 import HyperparameterTuningJob
    from google.protobuf import json_format

    for kind, stopping in (("asha", "median_automated_stopping_spec"), ("random", None)):
        arguments = [
            *("tune", "--search", kind, "--trials", "20", "--space", str(space), "--launcher", "vertex-spec"),
            *("--data-path", "gs://b/d", "--output-dir", "gs://b/o", "--image", "eu/image:1", "--parallel", "4"),
            *("--num-steps", "2700", "--service-account", "job@p.iam.gserviceaccount.com"),
            *("--", "--preset", "development"),
        ]
        assert main(arguments) == 0
        job = HyperparameterTuningJob.pb(HyperparameterTuningJob())
        json_format.ParseDict(json.loads(capsys.readouterr().out), job, ignore_unknown_fields=False)
        assert (job.max_trial_count, job.parallel_trial_count) == (20, 4)
        assert job.study_spec.WhichOneof("automated_stopping_spec") == stopping
        names = {its.parameter_id: its.WhichOneof("parameter_value_spec") for its in job.study_spec.parameters}
        assert names == {
            "learning_rate": "double_value_spec",
            "batch_size": "discrete_value_spec",
            "weight_decay": "double_value_spec",
        }
        container = job.trial_job_spec.worker_pool_specs[0].container_spec
        assert container.image_uri == "eu/image:1"
        # What Vertex adds is understood by what the container runs.
        given = [*container.args[2:], "--learning_rate=0.001", "--batch_size=4.0", "--weight_decay=0.05"]
        command, output = trial.translate(given, "7")
        assert output == "gs://b/o/trial-7"
        assert command[-6:] == ["--batch-size", "4", "--learning-rate", "0.001", "--set", "weight_decay=0.05"]
        from cloud_trainer.train import _parser

        assert _parser().parse_args(command).batch_size == 4
    assert main(["here" if argument == "gs://b/d" else argument for argument in arguments]) == 78
    assert "lies on this machine" in capsys.readouterr().err


def test_a_container_tells_the_tuning_service_every_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_FILE", str(tmp_path / "h" / "output.metrics"))
    monkeypatch.setenv("CLOUD_ML_TRIAL_ID", "3")
    arguments = [
        *("--data-path", "d", "--output-dir", str(tmp_path / "o"), "--num-steps", "4", "--val", "2"),
        "--learning_rate=0.2",
    ]
    assert trial.main(arguments, FAKE, look_s=0.05) == 0
    lines = list(map(json.loads, (tmp_path / "h" / "output.metrics").read_text().splitlines()))
    assert [(line["global_step"], line["held_out_loss"], line["trial"]) for line in lines] == [
        ("2", "0.5", "3"),
        ("4", "0.25", "3"),
    ]
    assert (tmp_path / "o" / "trial-3" / "steps.log").exists()
    with pytest.raises(InvalidError, match="needs --output-dir"):
        trial.translate(["--learning_rate=1"], "1")
    with pytest.raises(InvalidError, match="no number"):
        trial.translate(["--output-dir", "o", "--learning_rate=x"], "1")


def test_the_metric_file_stays_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics"
    monkeypatch.setenv("CLOUD_ML_HP_METRIC_FILE", str(path))
    for step in range(130):
        hypertune.report("loss", step / 2, step)
    lines = list(map(json.loads, path.read_text().splitlines()))
    assert [line["global_step"] for line in lines] == [str(step) for step in range(30, 130)]
    assert lines[-1].keys() == {"timestamp", "trial", "loss", "global_step"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_three_real_trials(tmp_path: Path, space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from brain_service.datasets.convert import convert_directory_to_tfrecord

    record_many(tmp_path / "in", [8] * 8)
    convert_directory_to_tfrecord(tmp_path / "in", tmp_path / "data", val_fraction=0.3)
    arguments = [
        *("tune", "--space", str(space), "--data-path", str(tmp_path / "data")),
        *("--output-dir", str(tmp_path / "search"), "--trials", "3", "--num-steps", "6", "--min-steps", "2"),
        *("--", "--preset", "development", "--sequence-length", "4"),
        *("--compile-cache", str(tmp_path / "cache")),
    ]
    assert main(arguments) == 0
    results = _results(tmp_path / "search")
    assert sorted(results) == [0, 1, 2]
    assert all(2 in its for its in results.values())
    (whole,) = [number for number, its in results.items() if 6 in its]
    said = capsys.readouterr().out
    assert f"trial {whole} at step 6" in said
    assert "the best one:" in said
    assert list((tmp_path / "search" / f"trial-{whole:04d}" / "models").iterdir())
    assert main(arguments) == 0
    assert _results(tmp_path / "search") == results


def test_options_that_are_wrong_are_named(tmp_path: Path, space: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for more, message in (
        (("--trials", "0"), "trials is 0"),
        (("--min-steps", "9"), "min_steps 9 is not between"),
        (("--eta", "1"), "eta 1 is below 2"),
        (("--output-dir", "gs://a/b"), "local folder"),
        (("--launcher", "vertex-spec"), "needs --image"),
    ):
        assert main(_arguments(space, tmp_path / "o", *more)) == 78
        assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["space.toml"]
    assert local.PROGRAM[1:] == ("-m", "cloud_trainer")
