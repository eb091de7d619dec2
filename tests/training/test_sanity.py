"""The sanity check: what passes, and that each check can fail."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from brain_service.cli import main
from brain_service.errors import InvalidError
from brain_service.model import core
from brain_service.training import sanity
from brain_service.training.sanity import SanityOptions, sanity_check
from brain_service.training.synthetic import synthetic_batch


def test_made_up_data_is_what_a_loader_would_give() -> None:
    batch = synthetic_batch(3, 2, 6, 5, 4)
    np.testing.assert_array_equal(batch.inputs.previous_action[:, 1:], batch.action[:, :-1])
    assert not np.any(batch.inputs.previous_action[:, 0])
    assert np.asarray(batch.inputs.is_first[:, 0]).all() and not np.asarray(batch.inputs.is_first[:, 1:]).any()
    assert np.abs(batch.action).max() <= 1.0
    again = synthetic_batch(3, 2, 6, 5, 4)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(batch), jax.tree.leaves(again), strict=True))
    assert not np.array_equal(batch.action, synthetic_batch(4, 2, 6, 5, 4).action)


@pytest.mark.parametrize(("flag", "value"), [("--obs-dim", "128"), ("--action-dim", "7")])
def test_sizes_that_the_dataset_does_not_have_fail_before_anything_is_compiled(
    flag: str, value: str, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sanity-check", "--rlds-dir", str(dataset), flag, value]) == 1
    told = capsys.readouterr().out
    assert f"{flag} is {value}" in told
    assert told.splitlines()[-1].startswith("FAIL")


def test_data_that_cannot_be_used_is_a_failed_check(tmp_path: Path) -> None:
    report = sanity_check(SanityOptions(rlds_dir=tmp_path / "none"))
    assert not report.passed
    assert "data: " in report.failures()


def test_a_number_too_small_to_tell_anything_is_refused() -> None:
    with pytest.raises(InvalidError, match="at least 2") as caught:
        SanityOptions(max_steps=1)
    assert caught.value.field == "max_steps"


def test_each_verdict_can_fail() -> None:
    assert not sanity._finite("loss", [1.0, float("nan")]).passed
    assert "step 2" in sanity._finite("loss", [1.0, float("nan")]).details
    assert not sanity._falls(1.0, 1.0, 5).passed
    assert not sanity._falls(1.0, float("nan"), 5).passed
    assert not sanity._memory(1e9).passed


@pytest.mark.slow
@pytest.mark.long
def test_the_whole_check_on_a_dataset_and_parity_that_breaks(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["sanity-check", "--rlds-dir", str(dataset), "--max-steps", "10", "--batch-size", "4", "--json"]
    assert main(arguments) == 0
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    names = ["data", "shapes", "loss", "gradients", "loss falls", "step = unroll", "memory"]
    assert [check["name"] for check in report["checks"]] == names
    assert report["steps"] == 10
    assert report["steps_per_s"] > 0 and report["peak_memory_mb"] > 100 and report["parameters"] > 10_000

    # A serving step that is not the trained one: off by a hair, it must not pass.
    served = core.step

    def other(*given: Any) -> Any:
        carry, outputs = served(*given)
        return carry, outputs._replace(value=outputs.value + 1e-4)

    monkeypatch.setattr(sanity, "step", other)
    report_again = sanity_check(SanityOptions(rlds_dir=dataset, max_steps=10))
    assert report_again.failures().startswith("step = unroll: greatest difference 1")
