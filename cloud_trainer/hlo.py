"""A compiled program's text (HLO) as computations and instructions, as far as counting needs it.

The text is no stable interface, so what cannot be read is an error and never a silent zero.
Source: https://openxla.org/xla/operation_semantics; shapes and layouts: https://openxla.org/xla/shapes.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod

from brain_service.errors import CorruptDataError

__all__ = ["Computation", "Instruction", "Program", "Shape", "parse_program", "parse_shapes"]

BITS = {"pred": 8, "token": 0, "opaque": 0, "c64": 64, "c128": 128}
SHAPE = re.compile(r"\b([a-z]+[0-9]*(?:e[0-9]m[0-9][a-z]*)?)\[([0-9,<=]*)\](?:\{([^}]*)\})?")
HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
NAME = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = ")
OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
OPERAND = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


@dataclass(frozen=True, slots=True)
class Shape:
    """One array: element type, sizes, and whether it lies in the chip's main memory (HBM)."""

    dtype: str
    sizes: tuple[int, ...]
    in_hbm: bool = True

    @property
    def size_bytes(self) -> int:
        """Bytes without the padding of tiles.

        Raises:
            CorruptDataError: the element type is unknown.
        """
        bits = BITS.get(self.dtype)
        if bits is None:
            digits = re.search(r"[0-9]+", self.dtype)
            if digits is None:
                raise CorruptDataError(f"compiled program: unknown element type {self.dtype!r}")
            bits = int(digits.group())
        return (prod(self.sizes) * bits + 7) // 8


@dataclass(slots=True)
class Instruction:
    """One line: `%name = shapes opcode(operands), attributes`."""

    name: str
    shapes: tuple[Shape, ...]
    """Of the result; several where it is a tuple."""
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    literal: str = ""
    """What stands between the brackets: a constant's value, a parameter's number."""
    is_root: bool = False

    def attribute(self, name: str) -> str | None:
        """Return the text of `name={...}` or `name=word`, None where it is not there."""
        found = re.search(rf"\b{name}=(\{{[^}}]*\}}|[^\s,]+)", self.attributes)
        return found.group(1) if found else None

    def called(self) -> tuple[str, ...]:
        """Return the names of the computations that it runs."""
        names: list[str] = CALLED.findall(self.attributes)
        for branches in BRANCHES.findall(self.attributes):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        return tuple(names)


@dataclass(slots=True)
class Computation:
    """A function of the program: instructions by name, in their order."""

    name: str
    instructions: dict[str, Instruction] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Instruction]:
        return iter(self.instructions.values())

    @property
    def root(self) -> Instruction:
        """The instruction whose result is the function's.

        Raises:
            CorruptDataError: the text marks none.
        """
        for instruction in reversed(self.instructions.values()):
            if instruction.is_root:
                return instruction
        raise CorruptDataError(f"compiled program: {self.name} has no ROOT instruction")


@dataclass(frozen=True, slots=True)
class Program:
    """All computations by name, and the one that is called from outside."""

    computations: dict[str, Computation]
    entry: Computation


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """Return the arrays of a shape such as `(f32[2,3]{1,0:T(8,128)S(1)}, s32[])`; `S(n)` with n > 0 is not HBM."""
    return tuple(
        Shape(
            dtype,
            tuple(int(size.lstrip("<=")) for size in sizes.split(",") if size),
            "S(" not in layout or "S(0)" in layout,
        )
        for dtype, sizes, layout in SHAPE.findall(text)
    )


def parse_program(text: str) -> Program:
    """Parse what `compiled.as_text()` gives.

    Raises:
        CorruptDataError: the text has no entry, or a line of it is no instruction as this version knows them.
    """
    computations: dict[str, Computation] = {}
    entry: Computation | None = None
    current: Computation | None = None
    for line in text.splitlines():
        if line and not line[0].isspace():
            head = HEAD.match(line)
            current = None
            if head is not None:
                current = computations[head.group(2)] = Computation(head.group(2))
                entry = current if head.group(1) else entry
        elif current is not None and (named := NAME.match(line)) is not None:
            instruction = _parse_instruction(line, named)
            current.instructions[instruction.name] = instruction
    if entry is None:
        raise CorruptDataError("compiled program: its text has no ENTRY; this JAX writes it in another way")
    return Program(computations, entry)


def _parse_instruction(line: str, named: re.Match[str]) -> Instruction:
    start = named.end()
    end = _closing(line, start) + 1 if line[start] == "(" else _word_end(line, start)
    opcode = OPCODE.match(line, end)
    if opcode is None:
        raise CorruptDataError(f"compiled program: cannot read {line.strip()[:120]!r}")
    inside = line[opcode.end() : (close := _closing(line, opcode.end() - 1))]
    return Instruction(
        name=named.group(1),
        shapes=parse_shapes(line[start:end]),
        opcode=opcode.group(1),
        operands=tuple(OPERAND.findall(inside)),
        attributes=line[close + 1 :],
        literal=inside,
        is_root=line.lstrip().startswith("ROOT "),
    )


def _word_end(line: str, start: int) -> int:
    # A shape holds no blank outside of braces; a layout such as {1,0:T(8,128)} holds none either.
    end = line.find(" ", start)
    return end if end > 0 else len(line)


def _closing(line: str, start: int) -> int:
    depth = 0
    for place in range(start, len(line)):
        if line[place] == "(":
            depth += 1
        elif line[place] == ")":
            depth -= 1
            if depth == 0:
                return place
    raise CorruptDataError(f"compiled program: a bracket stays open in {line.strip()[:120]!r}")
