"""Merging adapters into their base: the same numbers, from any kind of base, whole or not at all."""

import random
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.export.bundle import Bundle
from brain_service.export.jax_step import export_jax
from brain_service.jobs.bases import active_adapters, find_base
from brain_service.settings import Settings
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.evaluation import Subject
from brain_service.training.loop import TrainResult
from brain_service.training.torch_lora.adapters import load_adapters, merged_params
from brain_service.training.torch_lora.base import LoraBase, checkpoint_base, params_sha256
from brain_service.training.torch_lora.document import FILE, read_document
from brain_service.training.torch_lora.merge import merge_adapters
from brain_service.training.torch_lora.parameters import to_torch
from brain_service.training.torch_lora.trainer import train_adapters
from tests.training.torch_lora.adapting import digest, small
from tests.training.torch_lora.test_trainer import child

KILLS = 6


@pytest.fixture(scope="module")
def base(finished: TrainResult) -> LoraBase:
    return checkpoint_base(finished.checkpoint_dir)


@pytest.fixture(scope="module")
def trained(dataset: Path, base: LoraBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run's adapters. Read only."""
    folder = tmp_path_factory.mktemp("adapters") / "kitchen"
    train_adapters(dataset, folder, base, small(max_steps=4, evaluate_every=0))
    return folder


def same(left: Any, right: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def test_the_merged_checkpoint_is_one_that_the_usual_reader_takes(
    trained: Path, base: LoraBase, dataset: Path, tmp_path: Path
) -> None:
    assert merge_adapters(trained, base, tmp_path / "merged") == 4
    loaded, document = load_checkpoint(tmp_path / "merged"), read_document(trained)
    model = to_torch(base.params, base.config)
    load_adapters(trained, model, base_sha256=base.sha256)
    assert same(loaded.params, merged_params(model))
    assert not same(loaded.params, base.params)
    assert (loaded.config, loaded.step) == (base.config, 4)
    assert loaded.normaliser.to_dict() == base.normaliser.to_dict()
    assert loaded.meta["adapters"] == document.provenance()
    assert loaded.meta["adapters"] == {
        "sha256": document.sha256,
        "base": base.name,
        "base_sha256": base.sha256,
        "rank": 2,
        "alpha": 8.0,
        "layers": ["heads.*"],
    }
    assert Subject.of_checkpoint(loaded, "merged").trained_on == document.extra["dataset"]


def test_merging_again_writes_nothing_and_other_adapters_take_the_place(
    trained: Path, base: LoraBase, dataset: Path, tmp_path: Path
) -> None:
    merge_adapters(trained, base, tmp_path / "merged")
    before = digest(tmp_path / "merged")
    merge_adapters(trained, base, tmp_path / "merged")
    assert digest(tmp_path / "merged") == before
    other = tmp_path / "other"
    train_adapters(dataset, other, base, small(max_steps=4, evaluate_every=0, seed=5))
    merge_adapters(other, base, tmp_path / "merged")
    assert load_checkpoint(tmp_path / "merged").meta["adapters"]["sha256"] == read_document(other).sha256


def test_adapters_of_another_model_are_refused_and_nothing_counts(
    trained: Path, base: LoraBase, tmp_path: Path
) -> None:
    moved = jax.tree.map(lambda leaf: leaf + 1e-3, base.params)
    other = replace(base, params=moved, sha256=params_sha256(moved))
    with pytest.raises(InvalidError, match="belong to the base"):
        merge_adapters(trained, other, tmp_path / "merged")
    with pytest.raises(NotFoundError):
        load_checkpoint(tmp_path / "merged")


def test_no_other_models_checkpoint_gives_way(
    trained: Path, base: LoraBase, finished: TrainResult, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.checkpoint_dir, tmp_path / "base")
    before = digest(tmp_path / "base")
    with pytest.raises(InvalidError, match=r"holds another model's checkpoint.*a name of its own"):
        merge_adapters(trained, base, tmp_path / "base")
    assert digest(tmp_path / "base") == before
    # Nor does what adapters of another base were merged into: here the base itself of the second run.
    merge_adapters(trained, base, tmp_path / "first")
    first = checkpoint_base(tmp_path / "first")
    train_adapters(dataset, tmp_path / "run", first, small(max_steps=2, evaluate_every=0))
    before = digest(tmp_path / "first")
    with pytest.raises(InvalidError, match="holds another model's checkpoint"):
        merge_adapters(tmp_path / "run", first, tmp_path / "first")
    assert digest(tmp_path / "first") == before


def test_a_flipped_bit_in_the_adapters_is_no_model(trained: Path, base: LoraBase, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "run")
    data = bytearray((tmp_path / "run" / FILE).read_bytes())
    data[-1] ^= 1
    (tmp_path / "run" / FILE).write_bytes(bytes(data))
    with pytest.raises(CorruptDataError, match="SHA-256"):
        merge_adapters(tmp_path / "run", base, tmp_path / "merged")


@pytest.mark.slow
def test_a_merge_that_is_killed_leaves_no_checkpoint_that_counts_or_a_whole_one(
    trained: Path, base: LoraBase, finished: TrainResult, tmp_path: Path, record_property: Any
) -> None:
    instants = []
    expected = params_sha256(load_checkpoint(_merged(trained, base, tmp_path / "reference")).params)
    before = digest(finished.checkpoint_dir), digest(trained)
    for kill in range(KILLS):
        checkpoints = tmp_path / f"kill-{kill}"
        with child(["merge", str(finished.checkpoint_dir), str(trained), str(checkpoints)]) as process:
            assert process.stdout is not None
            process.stdout.readline()  # the first merge compiles
            begun_s = time.monotonic()
            number = process.stdout.readline().strip().decode()
            whole_s = time.monotonic() - begun_s
            instants.append(random.SystemRandom().uniform(0.0, min(whole_s, 1.0)))
            time.sleep(instants[-1])
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        for folder in checkpoints.iterdir():
            try:
                assert params_sha256(load_checkpoint(folder).params) == expected
            except NotFoundError:
                assert folder.name >= number, "a merge that had ended is gone"
        merge_adapters(trained, base, checkpoints / number)
        assert params_sha256(load_checkpoint(checkpoints / number).params) == expected
    record_property("killed_after_s", instants)
    assert (digest(finished.checkpoint_dir), digest(trained)) == before


def _merged(trained: Path, base: LoraBase, folder: Path) -> Path:
    merge_adapters(trained, base, folder)
    return folder


@pytest.mark.slow
def test_a_base_is_a_run_or_a_bundle_by_path_or_by_id_and_the_active_model_where_none_is_named(
    trained: Path, base: LoraBase, finished: TrainResult, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path)
    with pytest.raises(NotFoundError, match="no checkpoint yet to train adapters on; make one with trainer 'jax'"):
        find_base(settings, None)
    shutil.copytree(finished.checkpoint_dir, settings.checkpoints_dir / "a")
    merge_adapters(trained, base, settings.checkpoints_dir / "b")
    merged = checkpoint_base(settings.checkpoints_dir / "b")
    assert find_base(settings, None).sha256 == merged.sha256  # the newest run
    bundle = export_jax(settings.checkpoints_dir / "a", settings.models_dir)
    (settings.models_dir / "active").symlink_to(bundle.name)
    for reference in (None, "a", bundle.name, str(bundle), str(settings.checkpoints_dir / "a")):
        found = find_base(settings, reference)
        assert (found.sha256, found.config, found.spec) == (base.sha256, base.config, base.spec)
        assert same(found.params, base.params)
    assert active_adapters(settings) is None
    with pytest.raises(NotFoundError, match="is no folder, no run below"):
        find_base(settings, "nothing")

    tuned = export_jax(settings.checkpoints_dir / "b", settings.models_dir)
    _link(tmp_path / "link", tuned.name).replace(settings.models_dir / "active")
    assert active_adapters(settings) == read_document(trained).sha256
    assert Bundle.open(tuned).manifest.adapters == read_document(trained).provenance()

    # A quantised bundle stands for the checkpoint that it was made from, and for nothing where that is gone.
    small_one = export_jax(settings.checkpoints_dir / "a", settings.models_dir, quantisation="int8")
    assert find_base(settings, small_one.name).sha256 == base.sha256
    shutil.rmtree(settings.checkpoints_dir / "a")
    with pytest.raises(InvalidError, match=r"is quantised \(int8\) and the checkpoint .* run 'a'"):
        find_base(settings, small_one.name)


def _link(path: Path, target: str) -> Path:
    path.symlink_to(target)
    return path
