"""Every program of docs/robot-developers.md, in its order, against a daemon that learns on the way.

What a program prints is held against the block below it, but for ids and measured numbers. `tritonclient` and
`openpi-client` are the published ones, in the environment that other tests of theirs share.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.judges import judges_python
from tests.processes import Daemon, running_daemon

pytestmark = [
    pytest.mark.long,
    pytest.mark.slow,
]  # it trains for a moment, and the clients' environment is made by pip

PAGE = Path(__file__).parent.parent.parent / "docs" / "robot-developers.md"
PORT = "8080"
_PAIR = re.compile(r"```python\n(.*?)```\n\n```text\n(.*?)```", re.DOTALL)
PROGRAMS = [
    (section.partition("\n")[0], *found.groups())
    for section in PAGE.read_text().split("\n## ")[1:]
    for found in _PAIR.finditer(section)
]
FOREIGN = ("tritonclient", "openpi_client")
MEASURED = re.compile(r"-?\d+\.\d+(e-?\d+)?")
BACKENDS = re.compile(r"\b(jax|onnx)-cpu\b")


@pytest.fixture(scope="module")
def robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon on an empty directory: what it serves later is what the programs recorded."""
    with running_daemon(tmp_path_factory.mktemp("programs") / "brain") as daemon:
        yield daemon


def same(printed: str) -> str:
    """Return an output without what differs from run to run."""
    return BACKENDS.sub("<backend>", MEASURED.sub("<number>", printed))


@pytest.mark.parametrize(("title", "program", "expected"), PROGRAMS, ids=[title for title, _, _ in PROGRAMS])
def test_a_program_runs_as_it_stands(
    title: str, program: str, expected: str, robot: Daemon, tmp_path: Path
) -> None:
    path = tmp_path / "program.py"
    # The same program, with a deadline that no busy machine misses.
    path.write_text(program.replace(PORT, str(robot.port)).replace("1000", "30000"))
    python = judges_python() if any(name in program for name in FOREIGN) else Path(sys.executable)
    done = subprocess.run([str(python), str(path)], capture_output=True, text=True, timeout=550)
    assert done.returncode == 0, f"{title}:\n{done.stderr[-3000:]}\n{robot.log_path.read_text()[-3000:]}"
    assert same(done.stdout) == same(expected), title


def test_the_page_has_every_client_and_each_program_its_output() -> None:
    text = PAGE.read_text()
    assert len(PROGRAMS) == text.count("```python\n") >= 10
    together = "".join(program for _, program, _ in PROGRAMS)
    for name in ("urllib", "websockets", "BrainClient", *FOREIGN):
        assert name in together


def test_the_programs_leave_no_session_behind(robot: Daemon) -> None:
    left = httpx.get(f"{robot.url}/sessions").json()["sessions"]
    # The two over plain HTTP do not say goodbye; such a session is evicted when it was idle for long enough.
    assert len(left) <= 1
