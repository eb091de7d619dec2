"""What one run of a compiled program does on one chip: products, memory traffic, what goes over the links.

The compiler's own cost analysis counts the body of a loop once. Here each computation counts as often as it runs:
the length of a loop is the constant that its condition compares the counter with.

    matmul flops   convolutions and dots; a TPU's compiler writes every product as a convolution
    HBM bytes      operands and results that lie in HBM, of what runs outside of fusions
    link bytes     what a chip must receive for a collective, whatever the algorithm (Thakur et al., 2005)
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod

from brain_service.errors import CorruptDataError
from cloud_trainer.hlo import Computation, Instruction, Program, Shape

__all__ = ["Account", "account", "matmul_flops", "trip_count"]

COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call"),
    *("copy-done", "slice-done", "partition-id", "replica-id", "after-all", "async-done", "async-update"),
    *("add-dependency", "opt-barrier", "iota"),
}
"""Instructions that move nothing themselves."""
BUFFERS = ("AllocateBuffer", "ConcatBitcast", "AsyncCollective")


@dataclass(frozen=True, kw_only=True)
class Account:
    """Counts of one run, on one chip."""

    matmul_flops: float
    hbm_bytes: float
    collectives: Mapping[str, float]
    """Kind -> bytes that a chip receives."""
    kernels: int
    """Instructions one after the other, each with its start-up time that no other count shows."""

    @property
    def link_bytes(self) -> float:
        """Bytes that a chip receives over its links."""
        return sum(self.collectives.values())


def account(program: Program, devices: int) -> Account:
    """Count a program that runs on so many devices.

    Raises:
        CorruptDataError: a loop's length or a product's shape cannot be read.
    """
    flops = 0.0
    traffic = 0.0
    kernels = 0
    found: dict[tuple[str, str], float] = {}
    for times, computation, fused in _walk(program, program.entry, 1, ""):
        for instruction in computation:
            flops += times * matmul_flops(instruction, computation)
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                kind, received = _received(kind, instruction, fused, devices)
                # A collective that overlaps with work stands in several fusions under one channel: count it once.
                channel = instruction.attribute("channel_id") or f"{computation.name}/{instruction.name}"
                found[kind, channel] = max(found.get((kind, channel), 0.0), times * received)
            if not fused and instruction.opcode not in FREE:
                moved = _hbm_bytes(program, computation, instruction)
                traffic += times * moved
                kernels += times if instruction.opcode not in ("copy-start", "slice-start") else 0
    by_kind: Counter[str] = Counter()
    for (kind, _), received in found.items():
        by_kind[kind] += received  # type: ignore[assignment]  # floats add up as well as integers do
    return Account(
        matmul_flops=flops, hbm_bytes=traffic, collectives=dict(sorted(by_kind.items())), kernels=kernels
    )


def _walk(program: Program, at: Computation, times: int, fused: str) -> Iterator[tuple[int, Computation, str]]:
    # Each computation that runs, how often, and the name of the fusion that it belongs to, if any.
    yield times, at, fused
    for instruction in at:
        inside, inner = times, fused
        if instruction.opcode == "while":
            inside *= trip_count(program, instruction)
        elif instruction.opcode == "fusion" or instruction.opcode.endswith("-start"):
            inner = "fused"
        elif instruction.opcode not in ("call", "conditional"):
            continue  # what a reduction calls is one scalar operation
        for name in instruction.called():
            if name in program.computations and name != (instruction.attribute("condition") or "").lstrip("%"):
                yield from _walk(program, program.computations[name], inside, name if inner == "fused" else inner)


def trip_count(program: Program, loop: Instruction) -> int:
    """Return how often a loop's body runs.

    Raises:
        CorruptDataError: its condition does not compare a counter with a constant.
    """
    known = re.search(r'known_trip_count"?:?=?\{"?n"?[:=]"?(\d+)', loop.attributes)
    if known:
        return int(known.group(1))
    condition = program.computations[(loop.attribute("condition") or "").lstrip("%")]
    inside = [program.computations[name] for call in condition for name in call.called()]
    lines = [line for each in (condition, *inside) for line in each]
    limits = [
        int(line.literal)
        for line in lines
        if line.opcode == "constant" and line.shapes[0].sizes == () and line.literal.lstrip("-").isdigit()
    ]
    compares = [line for line in lines if line.opcode == "compare"]
    if len(limits) != 1 or len(compares) != 1 or compares[0].attribute("direction") != "LT":
        raise CorruptDataError(
            f"compiled program: how often {loop.name} runs cannot be read from {condition.name}; this version of "
            "the compiler writes loops in another way"
        )
    return max(limits[0], 0)


def matmul_flops(instruction: Instruction, computation: Computation) -> float:
    """Return the floating-point operations of a product; 0 for everything else.

    Raises:
        CorruptDataError: it is a product whose dimensions cannot be read.
    """
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (computation.instructions[name].shapes[0] for name in instruction.operands[:2])
    out = instruction.shapes[0]
    if instruction.opcode == "dot":
        axes = (instruction.attribute("lhs_contracting_dims") or "{}").strip("{}")
        return 2.0 * prod(out.sizes) * prod(left.sizes[int(axis)] for axis in axes.split(",") if axis)
    labels = re.fullmatch(r"(\w+)_(\w+)->(\w+)", instruction.attribute("dim_labels") or "")
    if labels is None:
        raise CorruptDataError(f"compiled program: convolution {instruction.name} has no dim_labels")
    of_left, of_right, of_out = labels.groups()
    window = _window(instruction.attribute("window") or "{}", len(of_left) - 2)
    pairs = 1
    for axis in range(len(of_left) - 2):
        digit = str(axis)
        sizes = left.sizes[of_left.index(digit)], right.sizes[of_right.index(digit)]
        pairs *= _valid_pairs(out.sizes[of_out.index(digit)], *sizes, *window[axis])
    groups = int(instruction.attribute("batch_group_count") or 1)
    batch, features = left.sizes[of_left.index("b")] // groups, out.sizes[of_out.index("f")]
    return 2.0 * batch * features * right.sizes[of_right.index("i")] * pairs


def _window(text: str, axes: int) -> list[tuple[int, int, int, int]]:
    # stride, padding before, dilation of the left side, dilation of the window: one tuple an axis.
    def values(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=([\dx_\-]+)", text)
        return found.group(1).split("x") if found else [default] * axes

    before = [int(pad.split("_")[0]) for pad in values("pad", "0_0")]
    stride, left, right = ([int(v) for v in values(n, "1")] for n in ("stride", "lhs_dilate", "rhs_dilate"))
    return list(zip(stride, before, left, right, strict=True))


@lru_cache(maxsize=1024)
def _valid_pairs(out: int, size: int, kernel: int, stride: int, before: int, spread: int, dilate: int) -> int:
    # Pairs of an output place and a window place that meet an entry of the input, neither padding nor a hole.
    count = 0
    for place in range(out):
        for offset in range(kernel):
            at = place * stride + offset * dilate - before
            count += 0 <= at <= (size - 1) * spread and at % spread == 0
    return count


def _received(kind: str, instruction: Instruction, fused: str, devices: int) -> tuple[str, float]:
    # The kind (a reduction whose result is scattered at once is a reduce-scatter) and bytes a chip receives.
    group = _group_size(instruction, devices)
    shapes = instruction.shapes
    if instruction.opcode.endswith("-start") and kind in ("all-gather", "collective-permute"):
        shapes = shapes[len(shapes) // 2 :] if kind == "all-gather" else shapes[1:2]
    whole = float(sum(shape.size_bytes for shape in shapes))
    share = (group - 1) / group
    if kind == "all-reduce" and "all-reduce-scatter" in fused:
        return "reduce-scatter", whole * share
    factor = {"all-reduce": 2 * share, "reduce-scatter": float(group - 1)}
    if kind in ("collective-permute", "collective-broadcast"):
        return kind, whole
    return kind, whole * factor.get(kind, share)


def _group_size(instruction: Instruction, devices: int) -> int:
    text = instruction.attributes
    if named := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", text):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named.group(1)))
        axes = re.findall(r"'([^']+)'(?::\(\d+\)(\d+))?", named.group(2))
        return prod(int(part or sizes[axis]) for axis, part in axes)
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", text):
        return int(iota.group(1))
    if listed := re.search(r"replica_groups=\{\{([\d,]+)\}", text):
        return len(listed.group(1).split(","))
    return devices


def _hbm_bytes(program: Program, computation: Computation, instruction: Instruction) -> float:
    if instruction.opcode == "custom-call" and any(name in instruction.attributes for name in BUFFERS):
        return 0.0
    if instruction.opcode in ("copy-start", "slice-start"):
        # (to, from, ...) or ((from), to, ...): the smaller one is what moves, read and written where it is in HBM.
        arrays = [shape for shape in instruction.shapes if shape.sizes]
        return float(min((s.size_bytes for s in arrays), default=0) * sum(s.in_hbm for s in arrays))
    reads = [computation.instructions[name].shapes for name in instruction.operands]
    if instruction.opcode == "fusion":
        return _fusion_bytes(program, instruction, reads)
    if instruction.opcode == "dynamic-slice":
        return 2.0 * _in_hbm(instruction.shapes)
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * _in_hbm(reads[1])
    return _in_hbm(instruction.shapes) + sum(_in_hbm(shapes) for shapes in reads)


def _in_hbm(shapes: tuple[Shape, ...]) -> float:
    return float(sum(shape.size_bytes for shape in shapes if shape.in_hbm))


def _fusion_bytes(program: Program, fusion: Instruction, reads: list[tuple[Shape, ...]]) -> float:
    # A fusion that takes one step's slice out of a stack of all steps, or puts one in, moves the slice alone.
    body = program.computations[fusion.called()[0]]
    total = 0.0
    for place, shapes in enumerate(reads):
        whole, taken = _in_hbm(shapes), _taken(program, body, place)
        total += whole if taken is None else min(whole, taken)
    written = _in_hbm(fusion.shapes)
    for stack_bytes, part_bytes, sizes in _updates(program, body):
        if any(shape.sizes == sizes and shape.in_hbm for shape in fusion.shapes):
            written -= max(stack_bytes - part_bytes, 0)
    return total + max(written, 0.0)


def _taken(program: Program, body: Computation, number: int) -> float | None:
    # Bytes that slices take of a fusion's n-th operand; None where something uses all of it.
    parameter = next((p for p in body if p.opcode == "parameter" and p.literal == str(number)), None)
    return 0.0 if parameter is None else _taken_of(program, body, parameter)


def _taken_of(program: Program, body: Computation, line: Instruction) -> float | None:
    taken = 0.0
    for user in body:
        for place, operand in enumerate(user.operands):
            if operand != line.name:
                continue
            if user.opcode == "bitcast":
                inner = _taken_of(program, body, user)
            elif user.opcode == "fusion":
                inner = _taken(program, program.computations[user.called()[0]], place)
            elif user.opcode == "dynamic-slice" and place == 0:
                inner = float(user.shapes[0].size_bytes)
            elif user.opcode == "dynamic-update-slice" and place == 0:
                inner = 0.0
            else:
                inner = None
            if inner is None:
                return None
            taken += inner
    return taken


def _updates(program: Program, body: Computation) -> Iterator[tuple[int, int, tuple[int, ...]]]:
    # Of each update in place: bytes of the stack, bytes of the part, sizes of the stack.
    for line in body:
        if line.opcode == "dynamic-update-slice":
            part = body.instructions[line.operands[1]].shapes[0]
            yield line.shapes[0].size_bytes, part.size_bytes, line.shapes[0].sizes
        elif line.opcode == "fusion":
            yield from _updates(program, program.computations[line.called()[0]])
