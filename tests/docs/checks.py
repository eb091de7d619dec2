"""What can be said of a command that is not run."""

import re
import shutil
import subprocess

from tests.docs.commands import Command, programs
from tests.docs.markdown import PROJECT
from tests.docs.parsing import PROGRAMS, parse

__all__ = [
    "dockerfile",
    "event_files_are_named",
    "file_of_tests",
    "install_flags",
    "install_makes",
    "json_is_there",
    "make_target",
    "module_flags",
    "script",
    "taken_by_the_parser",
    "units",
]

_INSTALL = PROJECT / "deploy" / "install.sh"


def make_target(command: Command) -> None:
    """`make` knows the target and what it depends on."""
    for words in programs(command.text):
        done = _run("make", "--dry-run", *words[1:])
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def module_flags(command: Command) -> None:
    """The module's sources have every flag; to ask it for its help would import the frameworks first."""
    for words in programs(command.text):
        folder = PROJECT / words[words.index("-m") + 1].replace(".", "/")
        source = "".join(path.read_text() for path in folder.glob("*.py"))
        for flag in [word.split("=")[0] for word in words if word.startswith("--")]:
            assert f'"{flag}"' in source, f"{command}: {folder.name} knows no {flag}"


def file_of_tests(command: Command) -> None:
    """The file of tests is there."""
    for path in re.findall(r"tests/\S+", command.text):
        assert (PROJECT / path).exists(), f"{command}: no {path}"


def taken_by_the_parser(command: Command) -> None:
    """The program's own parser takes the words; what it hands on to Beam is judged by test_fleet_beam.py."""
    parsed = 0
    for words in programs(command.text):
        name = "cloud-trainer" if words[1:3] == ["-m", "cloud_trainer"] else words[0]
        if name in PROGRAMS:
            parse([name, *words[3:]] if words[0] != name else words)
            parsed += 1
    assert parsed, f"{command}: no program of ours"


def install_flags(command: Command) -> None:
    """`install.sh` has every flag, also one that the comment names."""
    flags = re.findall(r"--[a-z-]+", command.text)
    known = _run(str(_INSTALL), "--help").stdout
    for flag in flags:
        assert flag in known, f"{command}: {_INSTALL.name} knows no {flag}"
    script(Command(command.where, command.line, "deploy/install.sh"))


def install_makes(command: Command) -> None:
    """`install.sh` names the file."""
    for path in re.findall(r"/etc/[\w./-]+", command.text):
        assert path.rsplit("/", 1)[1] in _INSTALL.read_text(), f"{command}: install.sh makes no {path}"


def units(command: Command) -> None:
    """Every unit that systemctl and journalctl name is in systemd/."""
    words = [word for each in programs(command.text) for word in each]
    named = [word for word in words if word.startswith("continuon")]
    assert named, f"{command}: names no unit"
    for name in named:
        unit = name if "." in name else f"{name}.service"
        assert (PROJECT / "systemd" / unit).is_file(), f"{command}: systemd/ has no {unit}"


def event_files_are_named(command: Command) -> None:
    """The trainer writes the event files that the viewer looks for."""
    assert "tensorboardX" in (PROJECT / "brain_service/training/metrics.py").read_text(), str(command)


def dockerfile(command: Command) -> None:
    """The Dockerfile is there, and so is everything that it copies."""
    if found := re.search(r"-f (\S+)", command.text):
        text = (PROJECT / found[1]).read_text()
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
            for source in line.split()[:-1]:
                assert list(PROJECT.glob(source)), f"{found[1]} copies {source}, which is not there"


def script(command: Command) -> None:
    """The script is there, may be run, and shellcheck has nothing against it where it is installed."""
    path = PROJECT / command.text.split()[0]
    assert path.stat().st_mode & 0o100, f"{command}: {path.name} may not be run"
    assert _run("bash", "-n", str(path)).returncode == 0
    if shutil.which("shellcheck"):
        done = _run("shellcheck", "--severity=error", str(path))
        assert done.returncode == 0, done.stdout


def json_is_there(command: Command) -> None:
    """A file of ours that the comment names is there; whatever else is Google's."""
    for name in re.findall(r"\b[\w-]+\.json\b", command.text):
        if name != "job.json":
            assert (PROJECT / "deploy" / "cloud" / name).is_file(), f"{command}: no {name}"


def _run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=120)
