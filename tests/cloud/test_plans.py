"""The shipped plans: a look-up never promises more than was compiled, and knows when the model has moved on."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.cloud import plans
from brain_service.cloud.chips import CHIPS, parse_topology
from brain_service.cloud.plans import Plan, PlanTable, code_digest, estimate, look_up, shipped_table
from brain_service.errors import CorruptDataError, InvalidError

PLAN = Plan(
    preset="tpu_optimized",
    topology="v5e:2x2",
    batch_size=256,
    sequence_length=64,
    obs_dim=128,
    action_dim=32,
    fsdp=1,
    fits=True,
    hbm_bytes=2**30,
    hbm_limit_bytes=2**34,
    state_bytes=2**28,
    argument_bytes=2**28,
    temporary_bytes=2**29,
    parameters=15_000_000,
    model_flops=1e11,
    matmul_flops=1e11,
    traffic_bytes=1e9,
    link_bytes={"all-reduce": 1e8},
    kernels=10_000,
    compute_s=0.001,
    memory_s=0.002,
    links_s=0.0005,
    compile_s=30.0,
)
SIZES = st.tuples(
    st.sampled_from(["tpu_optimized", "development"]),
    st.integers(1, 8).map(lambda n: 64 * n),
    st.integers(1, 128),
    st.integers(1, 256),
    st.integers(1, 64),
)


def planned(sizes: tuple[str, int, int, int, int], fits: bool) -> Plan:
    """Return a plan of these sizes."""
    preset, batch_size, length, obs_dim, action_dim = sizes
    return replace(
        PLAN,
        preset=preset,
        batch_size=batch_size,
        sequence_length=length,
        obs_dim=obs_dim,
        action_dim=action_dim,
        fits=fits,
    )


def table(*made: Plan) -> PlanTable:
    """Return a table that is not stale."""
    return PlanTable(made_with={"jax": "1"}, code=code_digest(), plans=made)


@given(st.lists(st.tuples(SIZES, st.booleans()), max_size=6), SIZES)
def test_what_is_found_is_at_least_as_large_and_fits_or_no_larger_and_does_not(
    made: list[tuple[tuple[str, int, int, int, int], bool]], run: tuple[str, int, int, int, int]
) -> None:
    held = table(*(planned(sizes, fits) for sizes, fits in made))
    preset, batch_size, length, obs_dim, action_dim = run
    found = held.look_up(preset, batch_size, length, "v5e:2x2", obs_dim, action_dim)
    larger = [plan for plan in held.plans if plan.fits and plan.covers(*run)]
    if larger:
        assert found in larger
        assert found is not None and found.size == min(plan.size for plan in larger)
    elif found is not None:
        assert not found.fits
        assert found.preset == preset and found.batch_size <= batch_size and found.sequence_length <= length
        assert found.obs_dim <= obs_dim and found.action_dim <= action_dim
    else:
        assert not any(not plan.fits and plan.covered_by(*run) for plan in held.plans)


@pytest.mark.parametrize("change", [{"batch_size": 260}, {"length": 65}, {"obs_dim": 129}, {"action_dim": 33}])
def test_one_size_above_the_plan_is_a_miss(change: dict[str, int]) -> None:
    run = {"batch_size": 256, "length": 64, "obs_dim": 128, "action_dim": 32} | change
    found = table(PLAN).look_up(
        "tpu_optimized", run["batch_size"], run["length"], "v5e:2x2", run["obs_dim"], run["action_dim"]
    )
    assert found is None


def test_another_slice_or_preset_and_a_stale_table_are_misses() -> None:
    sizes = 256, 64
    assert table(PLAN).look_up("tpu_optimized", *sizes, "v5e:2x2", 128, 32) == PLAN
    assert table(PLAN).look_up("tpu_optimized", *sizes, "v5e:4x4", 128, 32) is None
    assert table(PLAN).look_up("tpu_large", *sizes, "v5e:2x2", 128, 32) is None
    stale = replace(table(PLAN), code="0" * 16)
    assert stale.is_stale
    assert stale.look_up("tpu_optimized", *sizes, "v5e:2x2", 128, 32) is None


def test_a_table_comes_back_as_it_was_written() -> None:
    held = table(PLAN, replace(PLAN, fits=False, batch_size=4096))
    assert PlanTable.from_json(held.to_json(), "here") == held


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"schema": "x"}', table(PLAN).to_json().replace(b"hbm_bytes", b"hbm")]
)
def test_a_damaged_table_is_refused_with_its_name(data: bytes) -> None:
    with pytest.raises(CorruptDataError, match=r"plans\.json"):
        PlanTable.from_json(data, "plans.json")


@given(st.integers(0, 10**7), st.booleans())
def test_costs_are_linear_in_steps_and_spot_is_cheaper(steps: int, spot: bool) -> None:
    none, some, twice = (estimate(PLAN, n, spot=spot) for n in (0, steps, 2 * steps))
    assert twice.hours - none.hours == pytest.approx(2 * (some.hours - none.hours), rel=1e-6, abs=1e-9)
    assert some.least_hours <= some.hours and some.least_usd <= some.usd
    assert some.least_hours * 3600 >= steps * PLAN.step_bound_s
    assert estimate(PLAN, steps, spot=True).usd < estimate(PLAN, steps, spot=False).usd


def test_an_hour_on_four_chips_costs_four_chip_hours() -> None:
    steps = round((3600 - plans.START_S) / PLAN.step_bound_s)
    assert estimate(PLAN, steps, spot=False).least_usd == pytest.approx(4 * CHIPS["v5e"].usd_per_hour)


@pytest.mark.parametrize(
    ("batch_size", "topology", "says"),
    [(255, "v5e:2x2", "252 or 256"), (2, "v5e:2x2", "use 4"), (256, "v5e:3x3", "2x2"), (256, "v9:2x2", "v5e")],
)
def test_a_batch_or_slice_that_cannot_be_names_what_can(batch_size: int, topology: str, says: str) -> None:
    with pytest.raises(InvalidError, match=says):
        look_up("tpu_optimized", batch_size, 64, topology, 128, 32)


def test_the_shipped_table_is_of_this_model_and_answers_for_a_robot() -> None:
    shipped = shipped_table()
    assert not shipped.is_stale, "the model or the step has changed: run `cloud-trainer plan --write-table`"
    assert set(shipped.made_with) == {"jax", "jaxlib", "libtpu"}
    found = look_up("tpu_optimized", 128, 64, "v5e:2x2", 39, 4)
    assert found is not None and found.fits and found.hbm_bytes < found.hbm_limit_bytes
    for plan in shipped.plans:
        assert plan.hbm_limit_bytes == parse_topology(plan.topology).chip.hbm_bytes
        again = look_up(
            plan.preset, plan.batch_size, plan.sequence_length, plan.topology, plan.obs_dim, plan.action_dim
        )
        assert again is not None and again.fits == plan.fits


def test_the_digest_sees_code_and_no_comment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for room in ("model", "training"):
        shutil.copytree(plans.PACKAGE / room, tmp_path / room)
    before = code_digest()
    monkeypatch.setattr(plans, "PACKAGE", tmp_path)
    wave, sharding = tmp_path / "model" / "wave.py", tmp_path / "training" / "sharding.py"

    def digest() -> str:
        code_digest.cache_clear()
        return code_digest()

    try:
        assert digest() == before
        wave.write_text(wave.read_text().replace('"""', '"""Told otherwise. ', 1) + "\n# a remark\n")
        assert digest() == before
        sharding.write_text(sharding.read_text() + "\n\ndef elsewhere() -> None:\n    return None\n")
        assert digest() == before
        sharding.write_text(sharding.read_text().replace("MIN_SHARDED_SIZE = 1024", "MIN_SHARDED_SIZE = 1025"))
        other = digest()
        assert other != before
        wave.write_text(wave.read_text().replace("1e-6", "1e-7", 1))
        assert digest() != other
    finally:
        code_digest.cache_clear()


def test_a_look_up_costs_a_robot_no_framework() -> None:
    code = (
        "import sys; from brain_service.cloud.plans import look_up, estimate\n"
        "look_up('tpu_optimized', 256, 64, 'v5e:4x4', 39, 4)\n"
        "print([name for name in ('jax', 'flax', 'numpy', 'optax', 'libtpu') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
