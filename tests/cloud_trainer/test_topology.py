"""The TPU's own compiler on a small model: laws of what it counts, sharing, refusal, and the process around it."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from brain_service.cloud.plans import Plan
from brain_service.errors import DeadlineExceededError, InvalidError
from brain_service.training.config import TrainConfig
from cloud_trainer.choosing import require_fit
from cloud_trainer.compiler import Compiler, StepRequest
from cloud_trainer.plan import check, main

pytest.importorskip("libtpu", reason="the TPU's compiler exists for x86 only")
pytestmark = [pytest.mark.long, pytest.mark.slow]

SMALL = StepRequest(
    topology="v5e:2x2",
    preset="development",
    batch_size=32,
    sequence_length=8,
    obs_dim=16,
    action_dim=8,
    model={"cms_sizes": [4, 4], "cms_periods": [1, 8], "cms_decays": [0.05, 0.03]},
)
LIMIT_S = 600.0


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    """One compiling process for all tests."""
    with Compiler() as running:
        yield running


@pytest.fixture(scope="module")
def small(compiler: Compiler) -> Plan:
    """The plan of the small run."""
    return compiler.compile(SMALL, LIMIT_S)


def test_the_compiled_products_are_those_of_the_source(small: Plan) -> None:
    assert small.matmul_flops == pytest.approx(small.model_flops, rel=0.02)
    assert small.fits and 0 < small.state_bytes < small.argument_bytes < small.hbm_bytes
    assert small.step_bound_s > 0


def test_products_are_linear_in_the_steps_of_a_sequence(compiler: Compiler, small: Plan) -> None:
    longer = compiler.compile(replace(SMALL, sequence_length=24), LIMIT_S)
    assert longer.matmul_flops == pytest.approx(3 * small.matmul_flops, rel=0.02)
    assert longer.model_flops == pytest.approx(3 * small.model_flops, rel=0.02)
    assert longer.kernels > small.kernels


def test_products_are_linear_in_the_rows_of_a_chip(compiler: Compiler, small: Plan) -> None:
    more = compiler.compile(replace(SMALL, batch_size=128, topology="v5e:2x4"), LIMIT_S)
    assert more.matmul_flops == pytest.approx(2 * small.matmul_flops, rel=0.02)


def test_chips_that_share_a_copy_hold_their_part_and_gather_the_rest(compiler: Compiler, small: Plan) -> None:
    shared = compiler.compile(replace(SMALL, fsdp=4), LIMIT_S)
    assert shared.state_bytes < 0.4 * small.state_bytes  # small arrays stay whole
    assert shared.matmul_flops == pytest.approx(small.matmul_flops, rel=0.02)
    assert shared.link_bytes["all-gather"] > 0
    assert "all-gather" not in small.link_bytes and small.link_bytes["all-reduce"] > 0


def test_a_run_that_is_too_large_for_the_chips_is_refused_with_what_would_fit(compiler: Compiler) -> None:
    huge = compiler.compile(replace(SMALL, batch_size=2**21, sequence_length=16), LIMIT_S)
    assert not huge.fits and huge.hbm_bytes > huge.hbm_limit_bytes
    with pytest.raises(InvalidError, match=r"--batch-size \d+"):
        require_fit(huge)


def test_the_compiler_is_stopped_at_its_limit_and_starts_anew(compiler: Compiler) -> None:
    begun_s = time.monotonic()
    with Compiler() as other, pytest.raises(DeadlineExceededError, match="--limit-s"):
        other.compile(SMALL, 0.5)
    assert time.monotonic() - begun_s < 10


def test_a_killed_compiler_is_told_and_the_next_request_starts_another() -> None:
    with Compiler() as other:
        with pytest.raises(InvalidError, match="33 is not divisible"):
            other.compile(replace(SMALL, batch_size=33), LIMIT_S)
        assert other._process is not None
        os.kill(other._process.pid, signal.SIGKILL)
        other._process.wait()
        with pytest.raises(Exception, match="compiling process ended"):
            other.compile(SMALL, LIMIT_S)
        with pytest.raises(InvalidError, match="33 is not divisible"):
            other.compile(replace(SMALL, batch_size=33), LIMIT_S)


def test_a_job_on_a_cpu_machine_plans_for_the_slice_that_it_names() -> None:
    told: list[str] = []
    config = TrainConfig(batch_size=32, sequence_length=8, model=SMALL.model)
    plan = check(config, 16, 8, topology="v5e:2x2", report=told.append)
    assert plan is not None and plan.fits and "GiB a chip" in told[0]


def test_the_command_prints_a_plan_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--preset",
        "development",
        "--topology",
        "v6e:2x2",
        "--batch-size",
        "32",
        "--sequence-length",
        "8",
    ]
    assert main([*arguments, "--json", "--num-steps", "100", "--spot"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["plan"]["fits"] and document["plan"]["topology"] == "v6e:2x2"
    assert document["plan"]["cost"]["usd"] > document["plan"]["cost"]["least_usd"] > 0
