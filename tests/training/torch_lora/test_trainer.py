"""Fine-tuning: what it learns, from which steps, when it ends, and that a kill changes no bit of it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from brain_service.datasets.convert import convert_directory_to_tfrecord
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.training.loop import Hooks, TrainResult
from brain_service.training.metrics import read_metrics
from brain_service.training.torch_lora.base import LoraBase, checkpoint_base
from brain_service.training.torch_lora.document import FILE, read_document
from brain_service.training.torch_lora.state import STATE_FILE
from brain_service.training.torch_lora.trainer import train_adapters
from tests.training.tasks import make_dataset, record_episodes
from tests.training.torch_lora.adapting import digest, small

STEPS = 12


@pytest.fixture(scope="module")
def base(finished: TrainResult) -> LoraBase:
    return checkpoint_base(finished.checkpoint_dir)


def adapters(folder: Path) -> bytes:
    return (folder / FILE).read_bytes()


def test_adapters_learn_and_the_base_stays_as_it_is(
    dataset: Path, base: LoraBase, finished: TrainResult, tmp_path: Path
) -> None:
    before, params = digest(finished.checkpoint_dir), [np.array(leaf) for leaf in jax.tree.leaves(base.params)]
    done = train_adapters(dataset, tmp_path / "run", base, small(max_steps=40, evaluate_every=10))
    lines = read_metrics(tmp_path / "run")
    assert done.completed and done.ended_by == "steps"
    assert [line["step"] for line in lines] == list(range(1, 41))
    first, last = (np.mean([line["action"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert last < first - 0.05
    assert done.best_step and done.best_loss == min(line["held_out_loss"] for line in lines[9::10])
    assert digest(finished.checkpoint_dir) == before
    assert all(np.array_equal(a, b) for a, b in zip(params, jax.tree.leaves(base.params), strict=True))
    document = read_document(tmp_path / "run")
    assert document.sha256 == done.sha256
    assert document.base_sha256 == base.sha256
    assert document.extra["dataset"]["name"] == "episodes"


def test_the_same_run_twice_gives_the_same_bits_and_another_seed_others(
    dataset: Path, base: LoraBase, tmp_path: Path
) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_adapters(dataset, tmp_path / name, base, small(seed=seed))
    assert adapters(tmp_path / "a") == adapters(tmp_path / "b")
    assert adapters(tmp_path / "a") != adapters(tmp_path / "c")


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(dataset: Path, base: LoraBase, tmp_path: Path) -> None:
    whole = train_adapters(dataset, tmp_path / "whole", base, small())
    asked = itertools.count()
    stopped = train_adapters(dataset, tmp_path / "run", base, small(), Hooks(should_stop=lambda: next(asked) == 3))
    assert (stopped.completed, stopped.step, stopped.ended_by, stopped.sha256) == (False, 3, "request", None)
    assert not (tmp_path / "run" / FILE).exists()
    resumed = train_adapters(dataset, tmp_path / "run", base, small())
    assert resumed.resumed_from == 3
    assert resumed.sha256 == whole.sha256
    assert (resumed.best_step, resumed.best_loss) == (whole.best_step, whole.best_loss)
    # Once it is over, the same call finds nothing left to do.
    again = train_adapters(dataset, tmp_path / "run", base, small())
    assert (again.step, again.final_loss, again.sha256) == (6, None, whole.sha256)


def child(arguments: list[str]) -> "subprocess.Popen[bytes]":
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "tests.training.torch_lora.killed_lora", *arguments]
    return subprocess.Popen(command, cwd=Path(__file__).parents[3], env=os.environ | cache, stdout=subprocess.PIPE)


def wait_for(happened: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    give_up_s = time.monotonic() + 300
    while not happened():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < give_up_s
        time.sleep(0.002)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bits_and_curves(
    dataset: Path, base: LoraBase, finished: TrainResult, tmp_path: Path, record_property: Any
) -> None:
    config = small(max_steps=STEPS, checkpoint_every=1, evaluate_every=4)
    arguments = ["train", str(dataset), str(finished.checkpoint_dir)]
    with child([*arguments, str(tmp_path / "whole"), json.dumps(config.to_dict())]) as process:
        assert process.wait(300) == 0
    killed = tmp_path / "killed"
    with child([*arguments, str(killed), json.dumps(config.to_dict())]) as process:
        wait_for(lambda: len(read_metrics(killed)) >= 3, process)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    record_property("killed_at_step", len(read_metrics(killed)))
    assert not (killed / FILE).exists()
    with child([*arguments, str(killed), json.dumps(config.to_dict())]) as process:
        assert process.wait(300) == 0
    assert adapters(killed) == adapters(tmp_path / "whole")

    def curve(run: Path) -> list[dict[str, float]]:
        return [{k: v for k, v in line.items() if k != "steps_per_s"} for line in read_metrics(run)]

    assert curve(killed) == curve(tmp_path / "whole")


def test_too_few_episodes_are_told_with_their_number(dataset: Path, base: LoraBase, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match=r"has 8 episodes .* needs 16; record 8 more") as no:
        train_adapters(dataset, tmp_path / "run", base, small(min_episodes=16, max_episodes=16))
    assert no.value.field == "min_episodes"
    assert not (tmp_path / "run").exists()


def test_steps_of_a_policy_teach_nothing(base: LoraBase, tmp_path: Path) -> None:
    played = make_dataset(tmp_path, role="policy")
    with pytest.raises(InvalidError, match="has 0 episodes with steps of expert or intervention"):
        train_adapters(played, tmp_path / "run", base, small())


def test_another_robots_episodes_are_refused_by_the_feature_that_differs(base: LoraBase, tmp_path: Path) -> None:
    other = make_dataset(tmp_path, observation="joints")
    with pytest.raises(InvalidError, match=r"observation: run a, step 6 and .* differ in joints, state"):
        train_adapters(other, tmp_path / "run", base, small())


def test_of_too_many_episodes_the_newest_are_taken(dataset: Path, base: LoraBase, tmp_path: Path) -> None:
    from brain_service.datasets.dataset import open_dataset
    from brain_service.datasets.loader import SequenceLoader
    from brain_service.training.torch_lora.episodes import NewestEpisodes

    everything = open_dataset(dataset)
    newest = NewestEpisodes(everything.folder, 2)
    ids = sorted(entry.episode_id for entry in everything.entries("train"))
    assert sorted(entry.episode_id for entry in newest.entries("train")) == ids[-2:]
    assert newest.entries("val") == everything.entries("val")
    loader = SequenceLoader(newest, "train", batch_size=4, sequence_length=8, seed=0)
    known = np.concatenate(
        [
            everything.vectors("train", index).observation
            for index, entry in enumerate(everything.entries("train"))
            if entry.episode_id in ids[-2:]
        ]
    )
    batch = loader.batch(0)
    for seen in batch.observation[batch.mask == 1]:
        assert (known == seen).all(axis=1).any()


def test_what_a_policy_played_since_crowds_no_demonstration_out(tmp_path: Path) -> None:
    from brain_service.datasets.dataset import open_dataset
    from brain_service.training.torch_lora.episodes import NewestEpisodes

    recorded = record_episodes(tmp_path / "episodes", 4)
    for path in record_episodes(tmp_path / "played", 6, role="policy").iterdir():
        path.rename(recorded / f"later-{path.name}")
    folder = convert_directory_to_tfrecord(recorded, tmp_path / "datasets", val_fraction=0.0).dataset_dir
    kept = NewestEpisodes(open_dataset(folder).folder, 5).entries("train")
    assert sorted(entry.episode_id.startswith("later-") for entry in kept) == [False] * 4 + [True]


def test_the_time_is_bounded_and_what_was_learned_by_then_is_kept(
    dataset: Path, base: LoraBase, tmp_path: Path
) -> None:
    done = train_adapters(dataset, tmp_path / "run", base, small(max_steps=1_000_000, max_wall_time_s=1.0))
    assert (done.completed, done.ended_by) == (True, "time")
    assert done.step >= 1
    assert done.sha256 == read_document(tmp_path / "run").sha256


def test_adapters_that_make_it_worse_end_the_run_and_the_base_is_kept(
    dataset: Path, base: LoraBase, tmp_path: Path
) -> None:
    config = small(max_steps=100, learning_rate=1.0, evaluate_every=1, patience=3)
    done = train_adapters(dataset, tmp_path / "run", base, config)
    assert done.ended_by == "held-out loss"
    assert done.step < 100
    best = min(line["held_out_loss"] for line in read_metrics(tmp_path / "run"))
    assert done.best_loss is not None and done.best_loss <= best


def test_a_gate_holds_the_run_after_it_was_saved(dataset: Path, base: LoraBase, tmp_path: Path) -> None:
    reasons = iter(["", "", "too hot", "too hot", "battery", ""])
    told: list[tuple[str, bool]] = []

    def on_pause(reason: str) -> None:
        told.append((reason, (tmp_path / "run" / STATE_FILE).is_file()))

    hooks = Hooks(pause_reason=lambda: next(reasons, ""), on_pause=on_pause)
    done = train_adapters(dataset, tmp_path / "run", base, small(checkpoint_every=100), hooks)
    assert told == [("too hot", True), ("battery", True), ("", True)]
    assert done.completed and done.paused_s > 0


def test_what_diverges_never_reaches_the_saved_state(dataset: Path, base: LoraBase, tmp_path: Path) -> None:
    broken = replace(base, params=jax.tree.map(lambda leaf: leaf * np.nan, base.params))
    with pytest.raises(CorruptDataError, match="lower learning_rate"):
        train_adapters(dataset, tmp_path / "run", broken, small(evaluate_every=0))
    assert not (tmp_path / "run" / STATE_FILE).exists()


@pytest.mark.parametrize("change", [{"rank": 3}, {"learning_rate": 1e-3}, {"seed": 1}])
def test_another_run_in_the_same_folder_is_refused(
    change: dict[str, Any], dataset: Path, base: LoraBase, tmp_path: Path
) -> None:
    train_adapters(dataset, tmp_path / "run", base, small(max_steps=2, evaluate_every=0))
    kept = adapters(tmp_path / "run")
    with pytest.raises(InvalidError, match=next(iter(change))):
        train_adapters(dataset, tmp_path / "run", base, small(max_steps=2, evaluate_every=0, **change))
    assert adapters(tmp_path / "run") == kept


def test_a_flipped_bit_in_the_state_is_found(dataset: Path, base: LoraBase, tmp_path: Path) -> None:
    train_adapters(dataset, tmp_path / "run", base, small(max_steps=2, evaluate_every=0))
    path = tmp_path / "run" / STATE_FILE
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CorruptDataError, match="remove the file"):
        train_adapters(dataset, tmp_path / "run", base, small(max_steps=2, evaluate_every=0))


def test_a_checkpoint_with_other_shapes_than_its_config_is_no_base(base: LoraBase) -> None:
    wider = replace(base.config, d_h=32)
    with pytest.raises(CorruptDataError, match=r"run a, step 6: parameter heads/.* has shape .* its config says"):
        replace(base, config=wider)
