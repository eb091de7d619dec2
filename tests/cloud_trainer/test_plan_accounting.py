"""What a compiled program is said to do: laws of loops, products, slices and collectives; JAX's own programs."""

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.errors import CorruptDataError
from cloud_trainer.accounting import Account, account
from cloud_trainer.hlo import parse_program, parse_shapes

SIZE = st.integers(1, 40)


def program(entry: str, *others: str) -> str:
    """Return a module's text of instruction lines: `entry`, and whole computations beside it."""
    return "\n".join(["HloModule made_up", "", *others, "ENTRY %main (p: f32[]) -> f32[] {", entry, "}", ""])


def loop(trips: int, body: str, name: str = "one") -> str:
    """Return the computations of a loop that runs `body` so often, in the TPU compiler's manner."""
    return f"""%cond_{name} (arg: (s32[])) -> pred[] {{
  %limit_{name} = s32[]{{:T(128)}} constant({trips})
  %arg_{name} = (s32[]) parameter(0)
  %count_{name} = s32[] get-tuple-element(%arg_{name}), index=0
  ROOT %less_{name} = pred[] compare(%count_{name}, %limit_{name}), direction=LT
}}

%body_{name} (arg: (s32[])) -> (s32[]) {{
{body}
  ROOT %next_{name} = (s32[]) parameter(0)
}}
"""


def call(name: str = "one") -> str:
    """Return the line that runs `loop`."""
    return f"  %w_{name} = (s32[]) while(%start), condition=%cond_{name}, body=%body_{name}"


def counted(text: str, devices: int = 1) -> Account:
    """Return the account of a program's text."""
    return account(parse_program(text), devices)


def product(m: int, k: int, n: int) -> str:
    """Return a matrix product as the TPU compiler writes it."""
    return (
        f"  %a = bf16[{m},{k}]{{1,0:T(8,128)(2,1)S(1)}} parameter(0)\n"
        f"  %b = bf16[{k},{n}]{{1,0:T(8,128)}} parameter(1)\n"
        f"  %c = f32[{m},{n}]{{1,0}} convolution(%a, %b), dim_labels=bf_io->bf"
    )


@given(SIZE, SIZE, SIZE, st.integers(0, 500), st.integers(1, 20))
def test_a_loop_counts_as_often_as_it_runs_and_loops_in_loops_multiply(
    m: int, k: int, n: int, trips: int, outer: int
) -> None:
    once = counted(program(product(m, k, n)))
    assert once.matmul_flops == 2 * m * k * n
    text = program(call("two"), loop(trips, product(m, k, n)), loop(outer, call("one"), "two"))
    many = counted(text)
    assert many.matmul_flops == outer * trips * once.matmul_flops
    assert many.hbm_bytes == outer * trips * once.hbm_bytes
    assert many.kernels == outer * trips * once.kernels


@given(st.integers(2, 40), SIZE, SIZE, SIZE)
def test_a_batch_of_products_written_as_a_dilated_window_counts_as_what_it_is(
    batch: int, m: int, k: int, n: int
) -> None:
    shapes = (
        f"  %a = f32[{batch},{m},{k}]{{2,1,0}} parameter(0)\n  %b = f32[{batch},{k},{n}]{{2,1,0}} parameter(1)\n"
    )
    window = f"window={{size={batch} stride={batch - 1} lhs_dilate={batch}}}"
    line = f"  %c = f32[{batch},{m},{n}]{{2,1,0}} convolution(%a, %b), {window}, dim_labels=0bf_0io->0bf"
    assert counted(program(shapes + line)).matmul_flops == 2 * batch * m * k * n


@given(st.integers(1, 300), st.integers(1, 300))
def test_taking_a_step_out_of_a_stack_moves_one_step(steps: int, width: int) -> None:
    stack = f"f32[{steps},{width}]{{1,0}}"
    taking = f"""%take (p: {stack}, i: s32[]) -> f32[1,{width}] {{
  %p = {stack} parameter(0)
  %i = s32[] parameter(1)
  ROOT %s = f32[1,{width}]{{1,0}} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={{1,{width}}}
}}
"""
    body = (
        f"  %p = {stack} parameter(0)\n  %i = s32[]{{:S(6)}} parameter(1)\n"
        f"  %f = f32[1,{width}]{{1,0:T(1,128)S(1)}} fusion(%p, %i), kind=kLoop, calls=%take"
    )
    text = program(call(), taking, loop(steps, body))
    assert counted(text).hbm_bytes == 4 * steps * width


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("[2,4]<=[8]", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0', 'axis_1'}", 8),
        ("{}", 8),
    ],
)
@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("all-reduce", lambda g: 2 * (g - 1) / g),
        ("all-gather", lambda g: (g - 1) / g),
        ("reduce-scatter", lambda g: g - 1),
        ("all-to-all", lambda g: (g - 1) / g),
        ("collective-permute", lambda g: 1),
    ],
)
def test_a_chip_receives_what_the_collective_needs(groups: str, size: int, kind: str, share: object) -> None:
    lines = (
        "  %x = f32[16,16]{1,0} parameter(0)\n"
        f"  %y = f32[32,8]{{1,0}} {kind}(%x), channel_id=3, replica_groups={groups}, to_apply=%add"
    )
    found = counted(program(lines), devices=8)
    assert found.collectives == {kind: pytest.approx(1024 * share(size))}  # type: ignore[operator]


def test_a_collective_that_overlaps_with_work_is_counted_once_and_in_a_loop_as_often_as_it_runs() -> None:
    part = """%part{0} (x: f32[8]) -> f32[32] {{
  %x{0} = f32[8]{{0}} parameter(0)
  ROOT %g{0} = f32[32]{{0}} all-gather(%x{0}), channel_id=7, replica_groups=[1,4]<=[4], dimensions={{0}}
}}
"""
    body = "  %x = f32[8]{0:S(1)} parameter(0)\n" + "\n".join(
        f"  %f{n} = f32[32]{{0:S(1)}} fusion(%x), kind=kCustom, calls=%part{n}" for n in range(3)
    )
    text = program(call(), *(part.format(n) for n in range(3)), loop(5, body))
    assert counted(text, devices=4).collectives == {"all-gather": 5 * 128 * 3 / 4}


@given(st.sampled_from([1, 3, 8]), st.sampled_from([1, 4, 16]), st.sampled_from([1, 7, 64]))
def test_shapes_are_read_with_their_memory(rows: int, width: int, steps: int) -> None:
    (one, two) = parse_shapes(f"(bf16[{rows},{width}]{{1,0:T(8,128)(2,1)S(1)}}, /*index=5*/f32[{steps}]{{0}})")
    assert (one.size_bytes, one.in_hbm, two.size_bytes, two.in_hbm) == (2 * rows * width, False, 4 * steps, True)


@pytest.mark.parametrize("steps", [1, 5, 32])
@pytest.mark.parametrize("rows", [8, 24])
def test_jax_own_program_of_a_recurrence_holds_the_products_that_it_was_written_with(
    steps: int, rows: int
) -> None:
    def run(weight: jax.Array, state: jax.Array, inputs: jax.Array) -> jax.Array:
        def advance(state: jax.Array, x: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(state @ weight + x), None

        return jax.lax.scan(advance, state, inputs)[0]

    shapes = [(64, 64), (rows, 64), (steps, rows, 64)]
    text = jax.jit(run).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile().as_text()
    assert text is not None
    assert counted(text).matmul_flops == 2 * steps * rows * 64 * 64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no ENTRY"),
        (program("  %x = f32[8]{0} parameter(0"), "stays open"),
        (program(call(), loop(4, "").replace("direction=LT", "direction=NE")), "how often"),
        (program(call(), loop(4, "").replace("constant(4)", "parameter(1)")), "how often"),
        (program(product(2, 2, 2).replace("dim_labels=bf_io->bf", "to_be=read")), "dim_labels"),
    ],
)
def test_what_cannot_be_read_is_an_error_and_no_zero(text: str, says: str) -> None:
    with pytest.raises(CorruptDataError, match=says):
        counted(text)
