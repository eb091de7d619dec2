"""The bound on a step's time: the slowest of products, memory and links."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.cloud.chips import CHIPS, Slice, parse_topology
from cloud_trainer.accounting import Account
from cloud_trainer.roofline import bound

AMOUNT = st.floats(0, 1e15)
SLICES = [Slice(chip, shape) for chip in CHIPS.values() for shape in chip.shapes]


def doing(flops: float, traffic: float, links: float) -> Account:
    """Return an account of so much work."""
    return Account(matmul_flops=flops, hbm_bytes=traffic, collectives={"all-reduce": links}, kernels=1)


@given(AMOUNT, AMOUNT, AMOUNT, st.sampled_from(SLICES))
def test_the_bound_is_the_slowest_part_and_grows_with_the_work(
    flops: float, traffic: float, links: float, where: Slice
) -> None:
    least = bound(doing(flops, traffic, links), where)
    assert least.step_s == max(least.compute_s, least.memory_s, least.links_s)
    twice = bound(doing(2 * flops, 2 * traffic, 2 * links), where)
    assert twice.step_s == pytest.approx(2 * least.step_s)


def test_a_second_of_each_is_a_second() -> None:
    for where in SLICES:
        chip = where.chip
        least = bound(doing(chip.bf16_flops_per_s, chip.hbm_bytes_per_s, where.ici_bytes_per_s), where)
        assert (least.compute_s, least.memory_s) == (1.0, 1.0)
        assert least.links_s == (1.0 if where.chips > 1 else 0.0)


@pytest.mark.parametrize(
    ("topology", "links"),
    [("v5e:1x1", 0), ("v5e:2x2", 2), ("v5e:4x4", 2), ("v5e:8x16", 3), ("v5e:16x16", 4), ("v5p:4x4x4", 6)],
)
def test_the_corner_of_a_slice_has_a_link_a_line_and_two_a_ring(topology: str, links: int) -> None:
    assert parse_topology(topology).links == links
