"""Two processes of four (simulated) devices each do what one process with one device does, whatever happens.

The pauses make a step last so long that a signal comes in the middle of the run.
"""

import json
import shutil
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.training.metrics import read_metrics
from tests.cloud_trainer.runs import arguments, cluster, do, status
from tests.training.tasks import record_episodes, same_parameters

pytestmark = pytest.mark.slow

STEPS = 30
Run = dict[str, Any]


def runs(dataset: Path, output: Path, hosts: int, devices: int, fsdp: int, **more: Any) -> list[Run]:
    """Return the processes of one run; `term` is the number of the one that gets SIGTERM after five steps."""
    found = []
    for index, meeting in enumerate(cluster(hosts) if hosts > 1 else [[]]):
        words = arguments(dataset, output, "--no-bundle", *meeting, num_steps=STEPS, devices=devices, fsdp=fsdp)
        run: Run = {"arguments": words, "records": f"{output}-rows.txt", "pause_s": more.get("pause_s", 0.0)}
        if more.get("term") == index:
            run["term_when"] = [str(output / "checkpoints" / "logs" / "metrics.jsonl"), '"step": 5,']
        found.append(run)
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes, none held out: nothing here needs an evaluation."""
    folder = tmp_path_factory.mktemp("task")
    episodes = record_episodes(folder / "episodes", count=6)
    return convert_directory_to_tfrecord(episodes, folder / "datasets", val_fraction=0.0).dataset_dir


@pytest.fixture(scope="module")
def root(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of all runs: `single`, `data` and `fsdp` undisturbed, `again` and `fewer` with a signal."""
    root = tmp_path_factory.mktemp("scale")
    done = do(
        root / "work",
        [
            runs(dataset, root / "single", 1, 1, 1),
            runs(dataset, root / "data", 2, 4, 1),
            runs(dataset, root / "fsdp", 2, 4, 4),
            runs(dataset, root / "again", 2, 4, 4, pause_s=0.1, term=1),
        ],
    )
    assert [[code for code, _ in group] for group in done] == [[0], [0, 0], [0, 0], [75, 75]], done
    shutil.copytree(root / "again", root / "stopped")
    shutil.copytree(root / "again", root / "fewer")
    for name in ("stopped", "fewer"):
        shutil.copyfile(root / "again-rows.txt", root / f"{name}-rows.txt")
    done = do(
        root / "work",
        [runs(dataset, root / "again", 2, 4, 4), runs(dataset, root / "fewer", 1, 2, 2)],
    )
    assert [[code for code, _ in group] for group in done] == [[0, 0], [0]], done
    return root


def losses(output: Path) -> dict[int, float]:
    return {line["step"]: line["loss"] for line in read_metrics(output / "checkpoints")}


def rows(root: Path, name: str) -> dict[tuple[int, int], set[str]]:
    """Return what each (step, row) of the global batch was, over all attempts and hosts."""
    found: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    for line in (root / f"{name}-rows.txt").read_text().splitlines():
        step, row, crc = line.split()
        found[int(step), int(row)].add(crc)
    return {key: crcs for key, crcs in found.items() if key[0] < STEPS}


@pytest.mark.parametrize("name", ["data", "fsdp"])
def test_losses_are_those_of_one_device(name: str, root: Path) -> None:
    single, ours = losses(root / "single"), losses(root / name)
    assert list(ours) == list(range(1, STEPS + 1))
    assert list(ours.values()) == pytest.approx(list(single.values()), abs=2e-4)
    assert ours[1] != ours[STEPS]
    assert status(root / name).hosts == 2
    assert status(root / name).devices == 8


def test_a_signal_to_one_process_stops_all_at_the_same_step_and_saves_it(root: Path) -> None:
    stopped = status(root / "stopped")
    assert stopped.phase == "preempted"
    assert 5 <= stopped.step < STEPS
    sealed = [path.parent.name for path in (root / "stopped" / "checkpoints").glob("*/sha256.json")]
    assert sealed == [str(stopped.step)]


def test_the_resumed_run_is_bit_equal_to_one_that_was_never_interrupted(root: Path) -> None:
    assert same_parameters(root / "again" / "checkpoints", root / "fsdp" / "checkpoints")
    assert losses(root / "again") == losses(root / "fsdp")
    assert status(root / "again").attempt == 2


def test_on_another_number_of_hosts_exactly_the_remaining_records_are_consumed(root: Path) -> None:
    stopped = status(root / "stopped").step
    whole, ours = rows(root, "single"), rows(root, "fewer")
    assert ours == whole, "a row is missing, was made twice with other numbers, or is another one's"
    assert {step for step, _ in whole} == set(range(STEPS))
    before = len((root / "stopped-rows.txt").read_text().splitlines())
    new = (root / "fewer-rows.txt").read_text().splitlines()[before:]
    assert min(int(line.split()[0]) for line in new) == stopped
    expected = [loss for step, loss in losses(root / "single").items() if step > stopped]
    found = [loss for step, loss in losses(root / "fewer").items() if step > stopped]
    assert found == pytest.approx(expected, abs=2e-4)
    assert status(root / "fewer").hosts == 1


@pytest.mark.parametrize("name", ["single", "data", "fsdp", "again", "fewer"])
def test_the_buckets_add_up_to_the_time_since_the_first_start(name: str, root: Path) -> None:
    found = status(root / name)
    wall_s = (found.updated_ns - found.started_ns) / 1e9
    assert sum(found.goodput.values()) == pytest.approx(wall_s, rel=0.02)
    report = json.loads((root / name / "report.json").read_text())
    assert report["run"]["goodput_s"].keys() == found.goodput.keys()
