"""Choosing, refusing and telling: what `cloud-trainer plan` does around the compiler."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from brain_service.cloud.chips import CHIPS, parse_topology
from brain_service.cloud.plans import Plan, estimate
from brain_service.cloud.run_status import EXIT_REFUSED
from brain_service.errors import DeadlineExceededError, InvalidError, NotFoundError, UnavailableError
from brain_service.training.config import TrainConfig
from cloud_trainer.choosing import choose, fsdp_candidates, recommended, require_fit, what_would_fit
from cloud_trainer.compiler import StepRequest
from cloud_trainer.here import slice_of
from cloud_trainer.plan import check, main
from cloud_trainer.plan_text import comparison_text, plan_text
from tests.cloud.test_plans import PLAN

GIB = 2**30
REQUEST = StepRequest(topology="v5e:4x4", preset="tpu_large", batch_size=256, sequence_length=64)


def compiled(state_gib: float, rows_gib: float, made: list[int]) -> object:
    """Return a compiler of a run whose parameters take `state_gib` in all and whose rows `rows_gib` a chip."""

    def compile_step(request: StepRequest, limit_s: float) -> Plan:
        made.append(request.fsdp)
        state = int(state_gib * GIB / request.fsdp)
        return replace(
            PLAN,
            topology=request.topology,
            fsdp=request.fsdp,
            state_bytes=state,
            hbm_bytes=state + int(rows_gib * GIB),
            hbm_limit_bytes=16 * GIB,
            fits=state + rows_gib * GIB <= 15 * GIB,
            links_s=0.001 * request.fsdp,
        )

    return compile_step


@given(st.floats(0.1, 200), st.floats(0.1, 20))
def test_auto_takes_the_fewest_chips_a_copy_that_fit_and_compiles_no_hopeless_ones(
    state_gib: float, rows_gib: float
) -> None:
    made: list[int] = []
    step = compiled(state_gib, rows_gib, made)
    choice = choose(step, REQUEST, fsdp=None, compare=False, limit_s=60)  # type: ignore[arg-type]
    fitting = [ways for ways in fsdp_candidates(16) if state_gib / ways + rows_gib <= 15]
    assert choice.best.fits == bool(fitting)
    if fitting:
        assert choice.best.fsdp == fitting[0]
        assert len(made) <= len(fsdp_candidates(16))
    if state_gib + rows_gib <= 14:
        assert made == [1]


def test_compare_compiles_all_and_recommends_the_shortest_bound() -> None:
    made: list[int] = []
    step = compiled(20, 1, made)
    choice = choose(step, REQUEST, fsdp=None, compare=True, limit_s=60)  # type: ignore[arg-type]
    assert made == [1, 4, 16]
    assert choice.best.fsdp == 4
    text = comparison_text(choice.plans, choice.best, {})
    assert text.splitlines()[1].endswith("does not fit")
    assert "recommended" in text.splitlines()[2]


def test_a_choice_that_the_compiler_fails_on_spoils_no_other() -> None:
    step = compiled(1, 1, [])

    def sometimes(request: StepRequest, limit_s: float) -> Plan:
        if request.fsdp == 4:
            raise UnavailableError("the TPU's compiler failed: INTERNAL")
        return step(request, limit_s)  # type: ignore[operator,no-any-return]

    choice = choose(sometimes, REQUEST, fsdp=None, compare=True, limit_s=60)
    assert [plan.fsdp for plan in choice.plans] == [1, 16]
    assert "INTERNAL" in comparison_text(choice.plans, choice.best, choice.failed)
    with pytest.raises(UnavailableError, match="INTERNAL"):
        choose(sometimes, REQUEST, fsdp=4, compare=False, limit_s=60)


def test_planning_that_takes_too_long_ends() -> None:
    with pytest.raises(DeadlineExceededError, match="--limit-s"):
        choose(compiled(200, 1, []), REQUEST, fsdp=None, compare=False, limit_s=0)  # type: ignore[arg-type]


@given(st.sampled_from([slice_ for chip in CHIPS.values() for slice_ in chip.shapes if len(slice_) == 2]))
def test_candidates_divide_the_slice(shape: tuple[int, ...]) -> None:
    chips = shape[0] * shape[1]
    assert all(chips % ways == 0 for ways in fsdp_candidates(chips))
    assert fsdp_candidates(chips)[0] == 1 and fsdp_candidates(chips)[-1] == chips


@given(st.integers(1, 4096).map(lambda n: 4 * n), st.floats(0.01, 40), st.floats(0.01, 200))
def test_what_is_suggested_fits_by_the_same_estimate(batch_size: int, state_gib: float, rows_gib: float) -> None:
    limit = CHIPS["v5e"].hbm_bytes
    assume((state_gib + rows_gib) * GIB > limit)
    plan = replace(
        PLAN,
        batch_size=batch_size,
        fits=False,
        state_bytes=int(state_gib * GIB),
        hbm_bytes=int((state_gib + rows_gib) * GIB),
        hbm_limit_bytes=limit,
    )
    change = what_would_fit(plan)
    if smaller := change.get("batch_size"):
        assert isinstance(smaller, int) and smaller % 4 == 0 and smaller < batch_size
        assert state_gib * GIB + rows_gib * GIB * smaller / batch_size <= limit
    if ways := change.get("fsdp"):
        assert state_gib * GIB / int(ways) + rows_gib * GIB <= limit
    if topology := change.get("topology"):
        larger = parse_topology(str(topology))
        assert batch_size % larger.chips == 0
        assert state_gib * GIB + rows_gib * GIB * 4 / larger.chips <= larger.chip.hbm_bytes
    with pytest.raises(InvalidError, match=r"GiB on each chip of v5e:2x2") as caught:
        require_fit(plan)
    assert all(str(value) in caught.value.detail for value in change.values())


def test_a_plan_is_told_with_its_bound_its_cost_and_the_date_of_the_prices() -> None:
    text = plan_text(PLAN, estimate(PLAN, 10_000, spot=True), 10_000)
    for fact in (
        "1.00 of 16.00 GiB",
        "bound by memory",
        "500.0 steps/s",
        "8,192,000 tokens",
        "Spot",
        "all-reduce",
    ):
        assert fact in text, fact
    assert estimate(PLAN, 10_000, spot=True).prices_as_of in text


def test_where_nothing_fits_the_smallest_is_told() -> None:
    large, small = (replace(PLAN, fits=False, hbm_bytes=size * GIB) for size in (40, 20))
    assert recommended((large, small)) is small


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--topology", "v5e:5x5"], "2x2"),
        (["--topology", "h100:8"], "v5e"),
        (["--preset", "tpu_huge"], "tpu_large"),
        (["--fsdp", "two"], "auto"),
        (["--batch-size", "0"], "positive"),
        (["--batch-size", "255"], "252 or 256"),
        (["--fsdp", "3"], "fsdp 3 does not divide"),
        (["--mode", "all"], "windows"),
    ],
)
def test_an_impossible_run_is_refused_by_name(arguments: list[str], says: str) -> None:
    # The last ones are found in the compiling process, before it compiles.
    pytest.importorskip("libtpu", reason="the TPU's compiler exists for x86 only")
    with pytest.raises(InvalidError, match=says):
        main(["--preset", "development", *arguments])


def test_a_dataset_that_is_not_there_is_told(tmp_path: object) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        main(["--data-path", f"{tmp_path}/nowhere"])


def test_a_run_on_a_cpu_goes_on_unplanned_and_says_so() -> None:
    told: list[str] = []
    assert check(TrainConfig(), 39, 4, report=told.append) is None
    assert told == ["not planned: there is no TPU here, and no topology is named"]


def test_a_run_on_a_cpu_without_the_compiler_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud_trainer.plan.find_spec", lambda name: None)
    told: list[str] = []
    assert check(TrainConfig(), 39, 4, topology="v5e:2x2", report=told.append) is None
    assert "libtpu" in told[0]


@pytest.mark.parametrize(
    ("kind", "chips", "topology"),
    [("TPU v5 lite", 4, "v5e:2x2"), ("TPU v5 lite", 256, "v5e:16x16"), ("TPU v6 lite", 16, "v6e:4x4")],
)
def test_the_devices_of_a_job_are_a_slice(kind: str, chips: int, topology: str) -> None:
    assert slice_of(kind, chips).topology == topology


@pytest.mark.parametrize(("kind", "chips"), [("TPU v2", 4), ("TPU v5 lite", 5)])
def test_devices_without_a_data_sheet_are_told(kind: str, chips: int) -> None:
    with pytest.raises(UnavailableError):
        slice_of(kind, chips)


@pytest.mark.long
def test_a_refused_run_ends_with_its_own_exit_code_and_one_line() -> None:
    pytest.importorskip("libtpu", reason="the TPU's compiler exists for x86 only")
    code = "import sys; from cloud_trainer.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["plan", "--preset", "development", "--batch-size", "30", "--topology", "v5e:2x2"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == EXIT_REFUSED, done.stderr
    assert "28 or 32" in done.stderr
    assert json.dumps(done.stdout) == '""'
