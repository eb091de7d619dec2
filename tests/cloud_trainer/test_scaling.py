"""Weak scaling: what the table and the plot say of compiled points, and that what was compiled is kept."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.cloud.chips import parse_topology
from brain_service.cloud.plans import Plan
from brain_service.errors import UnavailableError
from cloud_trainer import scaling
from cloud_trainer.compiler import Compiler, StepRequest
from cloud_trainer.scaling import ROWS, Point, scaling_table, wanted, write_scaling
from tests.cloud.test_plans import PLAN


def test_the_work_a_chip_is_the_same_on_every_slice_from_1_to_256_chips() -> None:
    chips = []
    for way, request in wanted():
        slice_ = parse_topology(request.topology)
        chips.append(slice_.chips)
        assert request.batch_size == ROWS * slice_.chips
        assert slice_.chips % request.fsdp == 0
        assert (request.fsdp > 1) == (way == "fsdp")
    assert min(chips) == 1 and max(chips) == 256


@given(st.floats(1e-6, 1), st.floats(0, 1))
def test_efficiency_is_a_share_that_links_lower(memory_s: float, links_s: float) -> None:
    point = Point("data", replace(PLAN, compute_s=0.0, memory_s=memory_s, links_s=links_s))
    assert 0 < point.efficiency <= 1
    assert Point("data", replace(point.plan, links_s=2 * links_s)).efficiency <= point.efficiency
    assert Point("data", replace(point.plan, links_s=0.0)).efficiency == 1


def test_points_are_kept_one_by_one_told_and_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def compiled(self: Compiler, request: StepRequest, limit_s: float) -> Plan:
        asked.append(request.topology)
        if request.topology == "v5e:8x8":
            raise UnavailableError("the TPU's compiler failed")
        return replace(
            PLAN,
            topology=request.topology,
            preset=request.preset,
            batch_size=request.batch_size,
            sequence_length=request.sequence_length,
            fsdp=request.fsdp,
        )

    # The compiler is a process boundary; test_topology.py runs the real one.
    monkeypatch.setattr(Compiler, "compile", compiled)
    told: list[str] = []
    table = write_scaling(tmp_path, told.append)
    assert "| tpu_large | fsdp 16 | 256 |" in table
    assert sum("failed" in line for line in told) == sum(topology == "v5e:8x8" for topology in asked) == 2
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    first = len(asked)
    assert write_scaling(tmp_path, told.append) == table
    assert len(asked) == first + 2  # what failed is tried again, nothing else
    document = json.loads((tmp_path / "scaling.json").read_text())
    (tmp_path / "scaling.json").write_text(json.dumps(document | {"code": "another model"}))
    write_scaling(tmp_path, told.append)
    assert len(asked) == 2 * first + 2
    assert scaling.ROWS * 256 == 2048


def test_a_row_of_the_table_says_what_a_chip_does() -> None:
    row = scaling_table([Point("data", PLAN)]).splitlines()[-1]
    assert row == "| tpu_optimized | data 1 | 4 | 100.00 | 100.0 | 256.0 | 2.00 (memory) | 80% |"
