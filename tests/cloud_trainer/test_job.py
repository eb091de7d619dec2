"""The job as a process, from and to a bucket. Simulated: the real fake-gcs-server on this machine."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from brain_service.cloud.run_status import RunStatus
from brain_service.datasets.places import Place, open_place
from tests.cloud_trainer.runs import arguments, do, status
from tests.fakes.gcs import FakeGcs, fake_gcs

pytestmark = pytest.mark.slow

RUN = {"num_steps": 14, "checkpoint_every": 2, "val": 4}
Outcome = tuple[int, str]


@pytest.fixture(scope="module")
def server() -> Iterator[FakeGcs]:
    with fake_gcs() as running:
        running.make_bucket("robots")
        yield running


@dataclass
class Found:
    """What the runs left. `bad` are the refused ones by name, with exit code and standard error."""

    bad: dict[str, Outcome]
    told_to_go: RunStatus
    damaged: str
    resumed: Outcome
    again: Outcome
    output: Place
    local: Path


def heartbeat(output: Place) -> RunStatus:
    data = output.read("status.json")
    assert data is not None, f"no status.json at {output.location}"
    return RunStatus.from_json(data, output.location)


def bad_inputs(dataset: Path, server: FakeGcs) -> dict[str, list[str]]:
    """Put what is wrong in the bucket and return the command that meets it."""
    changed = server.upload(dataset, "robots", "changed/toy/1.0.0")
    half = server.upload(dataset, "robots", "half/toy/1.0.0")
    shard = next(dataset.glob("*train.tfrecord*"))
    data = shard.read_bytes()
    server.put("robots", f"changed/toy/1.0.0/{shard.name}", data[:-30] + bytes([data[-30] ^ 1]) + data[-29:])
    server.delete("robots", f"half/toy/1.0.0/{shard.name}")
    output = "gs://robots/bad"
    return {
        "no-bucket": arguments("gs://nowhere/datasets", f"{output}/no-bucket"),
        "changed": arguments(changed, f"{output}/changed"),
        "half": arguments(half, f"{output}/half"),
        "batch": arguments(dataset, f"{output}/batch", batch_size=7, devices=2),
        "no-output-bucket": arguments(dataset, "gs://nowhere/run"),
    }


@pytest.fixture(scope="module")
def found(dataset: Path, server: FakeGcs, tmp_path_factory: pytest.TempPathFactory) -> Found:
    root = tmp_path_factory.mktemp("job")
    data = server.upload(dataset, "robots", "datasets/toy/1.0.0").removesuffix("/toy/1.0.0")
    output, local = open_place("gs://robots/runs/one"), root / "local"
    bad = bad_inputs(dataset, server)
    words, rows = arguments(data, output.location, **RUN), str(root / "rows.txt")
    signalled = {"arguments": words, "records": rows, "pause_s": 0.2, "term_when": [rows, "\n6 0 "]}
    undisturbed = {"arguments": arguments(dataset.parent, local, **RUN)}
    groups: list[list[dict[str, Any]]] = [
        *([{"arguments": bad[name]}] for name in bad),
        [signalled],
        [undisturbed],
    ]
    done = do(root / "work", groups, server.environment())
    outcomes = dict(zip(bad, (group[0] for group in done), strict=False))
    assert [group[0][0] for group in done[len(bad) :]] == [75, 0], done
    told_to_go = heartbeat(output)
    damaged = f"checkpoints/{told_to_go.step}/params/_METADATA"
    server.delete("robots", f"runs/one/{damaged}")
    (resumed,), (again,) = do(root / "work", [[{"arguments": words}]] * 2, server.environment())
    return Found(outcomes, told_to_go, damaged, resumed, again, output, local)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("no-bucket", "no dataset at gs://nowhere/datasets; check the bucket"),
        ("changed", "it was changed after the dataset was made"),
        ("half", "is missing; restore it"),
        ("batch", "batch_size 7 is not divisible by 2 devices"),
        ("no-output-bucket", "there is no bucket nowhere"),
    ],
)
def test_a_bad_input_is_one_line_an_exit_code_and_a_status(name: str, told: str, found: Found) -> None:
    code, errors = found.bad[name]
    lines = [line for line in errors.splitlines() if line.startswith("cloud-trainer: ")]
    assert code == 78, errors
    assert len(lines) == 1 and told in lines[0]
    assert "Traceback" not in errors
    if name != "no-output-bucket":
        failed = heartbeat(open_place(f"gs://robots/bad/{name}"))
        assert failed.phase == "failed"
        assert failed.error is not None and told in failed.error["detail"]
        assert failed.model_id is None


def test_nothing_of_the_data_is_deleted(found: Found, server: FakeGcs, dataset: Path) -> None:
    assert found.bad
    files = {path.name for path in dataset.iterdir()}
    assert set(open_place("gs://robots/changed/toy/1.0.0").stamps()) == files


def test_a_signal_saves_and_the_same_command_goes_on_to_the_same_model(found: Found) -> None:
    assert found.told_to_go.phase == "preempted"
    assert 6 <= found.told_to_go.step < RUN["num_steps"]
    done = heartbeat(found.output)
    assert (found.resumed[0], done.phase, done.step, done.attempt) == (0, "done", RUN["num_steps"], 2)
    # The id is a hash of the parameters: bucket, signal and damage made no difference to an undisturbed local run.
    assert done.model_id == status(found.local).model_id
    assert done.evaluation is not None and done.evaluation["episodes"] > 0


def test_a_checkpoint_with_a_missing_file_is_passed_over(found: Found) -> None:
    assert "passed over" in found.resumed[1]
    assert found.damaged.removeprefix("checkpoints/").split("/", 1)[1] in found.resumed[1]
    assert heartbeat(found.output).goodput["lost"] > 0, "the steps since the checkpoint before were made again"


def test_the_bundle_is_whole_and_its_report_lies_beside_it(found: Found) -> None:
    done = heartbeat(found.output)
    manifest = json.loads(found.output.read(f"models/{done.model_id}/manifest.json") or b"{}")
    assert set(manifest["files"]) <= set(found.output.child(f"models/{done.model_id}").stamps())
    report = json.loads(found.output.read("report.json") or b"{}")
    assert report["run"]["model_id"] == done.model_id
    assert b"<html" in (found.output.read("report.html") or b"")


def test_curves_of_all_attempts_are_one_and_tell_the_buckets(found: Found) -> None:
    lines = [
        json.loads(line) for line in (found.output.read("checkpoints/logs/metrics.jsonl") or b"").splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(1, RUN["num_steps"] + 1))
    assert all(line["goodput/step_s"] >= 0 for line in lines)
    events = [name for name in found.output.stamps() if "events.out.tfevents" in name]
    assert len(events) == 2


def test_the_buckets_add_up_over_both_attempts(found: Found) -> None:
    done = heartbeat(found.output)
    wall_s = (done.updated_ns - done.started_ns) / 1e9
    assert sum(done.goodput.values()) == pytest.approx(wall_s, rel=0.02)
    assert done.goodput["down"] > 0


def test_a_finished_run_only_says_so(found: Found) -> None:
    assert found.again[0] == 0
    assert heartbeat(found.output).attempt == 2
