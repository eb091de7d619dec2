"""JAX or ONNX Runtime: the faster one, and no flapping by noise."""

from pathlib import Path

import numpy as np
import pytest

from brain_service.inference import cpu_choice
from brain_service.inference.cpu_choice import MARGIN, Choice, ChoiceFile, choose

PACKAGES = {"jax-cpu": "jax", "onnx-cpu": "onnxruntime"}


def test_the_faster_one_is_chosen_and_the_reason_has_both_figures() -> None:
    choice = choose({"jax-cpu": 180.0, "onnx-cpu": 61.0})
    assert choice.backend == "onnx-cpu"
    assert "jax-cpu 180 us" in choice.reason and "onnx-cpu 61 us" in choice.reason


def test_noise_within_the_margin_never_changes_the_choice() -> None:
    rng = np.random.default_rng(0)
    before: str | None = None
    chosen = set()
    for _ in range(200):
        noisy = 100.0 * (1 + rng.uniform(-MARGIN, MARGIN, 2) / 2.3)
        before = choose({"jax-cpu": noisy[0], "onnx-cpu": noisy[1]}, before).backend
        chosen.add(before)
    assert len(chosen) == 1


def test_a_clear_difference_changes_it() -> None:
    assert choose({"jax-cpu": 130.0, "onnx-cpu": 100.0}, "jax-cpu").backend == "onnx-cpu"
    assert choose({"jax-cpu": 110.0, "onnx-cpu": 100.0}, "jax-cpu").backend == "jax-cpu"


def test_a_choice_is_kept_for_the_same_runtimes_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = Choice("onnx-cpu", {"jax-cpu": 180.0, "onnx-cpu": 61.0})
    ChoiceFile(tmp_path, "0123", PACKAGES).write(choice)
    assert ChoiceFile(tmp_path, "0123", PACKAGES).read() == choice
    assert ChoiceFile(tmp_path, "4567", PACKAGES).read() is None
    monkeypatch.setattr(cpu_choice, "version", lambda package: "99.0")
    assert ChoiceFile(tmp_path, "0123", PACKAGES).read() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"backend": "jax-cpu"}', '{"versions": {}, "backend": []}'])
def test_a_file_that_makes_no_sense_is_no_choice(tmp_path: Path, text: str) -> None:
    (tmp_path / "backends").mkdir()
    (tmp_path / "backends" / "0123.json").write_text(text)
    assert ChoiceFile(tmp_path, "0123", PACKAGES).read() is None


def test_a_medium_that_takes_nothing_costs_no_error(tmp_path: Path) -> None:
    (tmp_path / "backends").write_text("a file in the way")
    kept = ChoiceFile(tmp_path, "0123", PACKAGES)
    kept.write(Choice("jax-cpu", {"jax-cpu": 1.0, "onnx-cpu": 2.0}))
    assert kept.read() is None
