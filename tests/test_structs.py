import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from brain_service.structs import PREPARED

ROOT = Path(__file__).parents[1]
ROOMS = ("episodes", "datasets")
"""Where threads parse; the HTTP layer does so on the event loop alone."""

FIRST_USES = """
import sys, threading
import msgspec
from brain_service.structs import prepared
sys.setswitchinterval(1e-6)
for number in range(400):
    inner = msgspec.defstruct(f"Inner{number}", [("a", int), ("b", str | None, None), ("c", list[int], [])])
    fields = [(f"x{place}", str | None, None) for place in range(12)] + [("y", inner | None, None)]
    kind = prepared(msgspec.defstruct(f"Outer{number}", fields))
    start = threading.Barrier(6)
    def use():
        start.wait()
        msgspec.convert({"x0": "a", "x11": "b", "y": {"a": 1}}, kind)
    threads = [threading.Thread(target=use) for _ in range(6)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""


def parsed_types(module: str) -> Iterator[type[msgspec.Struct]]:
    """Yield the struct types that a module hands to `convert` or as `type=` to a decoder, by name."""
    found = importlib.import_module(module)
    assert found.__file__ is not None
    for node in ast.walk(ast.parse(Path(found.__file__).read_text())):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).startswith("msgspec."):
            continue
        asked = [keyword.value for keyword in node.keywords if keyword.arg == "type"]
        if ast.unparse(node.func) == "msgspec.convert":
            asked += node.args[1:2]
        for name in (part for each in asked for part in ast.walk(each) if isinstance(part, ast.Name)):
            kind = getattr(found, name.id, None)
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                yield kind


def test_a_prepared_type_stands_first_uses_from_many_threads() -> None:
    # Without `prepared` this ends with a segmentation fault within a few rounds.
    done = subprocess.run([sys.executable, "-c", FIRST_USES], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("room", ROOMS)
def test_every_type_that_threads_parse_into_is_prepared(room: str) -> None:
    modules = [f"brain_service.{room}.{path.stem}" for path in (ROOT / "brain_service" / room).glob("[a-z]*.py")]
    kinds = {kind for module in modules for kind in parsed_types(module)}
    assert kinds, "a room that parses nothing needs no such test"
    assert {kind.__qualname__ for kind in kinds - PREPARED} <= {"StepIn"}  # a decoder of its module prepares it
