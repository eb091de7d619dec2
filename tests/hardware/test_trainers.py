"""Who trains: every rule over a robot of files and of packages that real child processes import."""

import json
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from brain_service.errors import UnavailableError
from brain_service.hardware import accelerators, probes, select_trainer
from brain_service.hardware.trainers import TrainerChoice, TrainerOption, describe_trainers
from tests.hardware.runtimes import (
    BROKEN_JAX,
    CRASHING_TORCH,
    CUDA_TORCH,
    GONE_TORCH,
    GOOD_TORCH,
    HANGING_TORCH,
    OLD_TORCH,
    WRONG_TORCH,
    Robot,
    jax_on,
)

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def ask_afresh() -> Iterator[None]:
    probes.forget()
    yield
    probes.forget()


@pytest.fixture
def robot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Robot:
    """A robot with JAX on its CPU and PyTorch, and nothing else."""
    found = Robot(tmp_path / "robot", monkeypatch)
    found.install("jax", jax_on("cpu"))
    found.install("torch", GOOD_TORCH)
    installed = {"jax", "torch", "libtpu"}
    monkeypatch.setattr(accelerators, "find_spec", lambda name: name in installed)
    return found


def expected(*, tpu: bool, hailo: bool, prefer_jax: bool, jax: bool, pytorch: bool) -> tuple[str, str] | None:
    """Return the trainer and a word of its reason, by the rules as they are documented."""
    if jax and tpu:
        return "jax", "a TPU is here"
    if jax and prefer_jax:
        return "jax", "a Hailo is here" if hailo else "JAX is preferred"
    if pytorch:
        return "pytorch", "JAX is not usable" if prefer_jax else "JAX is not preferred"
    return ("jax", "PyTorch is not usable") if jax else None


@pytest.mark.parametrize(("tpu", "hailo", "jax", "pytorch"), list(product((False, True), repeat=4)))
def test_every_rule(robot: Robot, tpu: bool, hailo: bool, jax: bool, pytorch: bool) -> None:
    robot.install("jax", jax_on("cpu", *(["tpu"] if tpu else [])) if jax else BROKEN_JAX)
    robot.install("torch", GOOD_TORCH if pytorch else CUDA_TORCH)
    if tpu:
        robot.add_tpu()
    if hailo:
        robot.add_hailo()
    for prefer_jax in (True, False):
        wanted = expected(tpu=tpu, hailo=hailo, prefer_jax=prefer_jax, jax=jax, pytorch=pytorch)
        described = describe_trainers(prefer_jax, machine=robot.machine())
        if wanted is None:
            with pytest.raises(UnavailableError, match=r"AVX.*libcudart"):
                select_trainer(prefer_jax, machine=robot.machine())
            assert described["trainer"] is None and "AVX" in described["reason"]
            assert [option["available"] for option in described["alternatives"]] == [False, False]
            continue
        choice = select_trainer(prefer_jax, machine=robot.machine())
        assert (str(choice), wanted[1] in choice.reason) == (wanted[0], True), choice.reason
        assert described == choice.to_json()
        (other,) = choice.alternatives
        assert {str(choice), other.trainer} == {"jax", "pytorch"}
        assert other.available == (jax if other.trainer == "jax" else pytorch)
        assert other.reason
    # Neither preference nor description asked again: both runtimes were started once, JAX once a device.
    assert robot.imports("torch") == 1
    assert robot.imports("jax") == (2 if tpu and not jax else 1)


@pytest.mark.parametrize("forced", ["jax", "pytorch"])
def test_a_forced_trainer_wins_over_every_rule(robot: Robot, forced: str) -> None:
    robot.install("jax", jax_on("cpu", "tpu"))
    robot.add_tpu()
    robot.add_hailo()
    for prefer_jax in (True, False):
        choice = select_trainer(prefer_jax, forced=forced, machine=robot.machine())  # type: ignore[arg-type]
        assert choice == forced and "asked for" in choice.reason
        assert [option.trainer for option in choice.alternatives] == [{"jax": "pytorch"}.get(forced, "jax")]


@pytest.mark.parametrize(
    ("source", "reason", "next_step"),
    [
        (GONE_TORCH, "torch is not installed", "pip install 'continuon-brain[torch]'"),
        (CUDA_TORCH, "libcudart.so.13", "install the CPU build"),
        (OLD_TORCH, "version 2.0.1", "at least"),
        (WRONG_TORCH, "should be 2 everywhere", "docs/lora.md"),
        (CRASHING_TORCH, "exit code -4", ""),
        (HANGING_TORCH, "no answer within", ""),
    ],
)
def test_a_forced_trainer_that_does_not_compute_is_refused_with_why_and_what_to_do(
    robot: Robot, source: str, reason: str, next_step: str
) -> None:
    robot.install("torch", source)
    with pytest.raises(UnavailableError) as refused:
        select_trainer(forced="pytorch", machine=robot.machine(timeout_s=5.0 if source == HANGING_TORCH else 60.0))
    assert "trainer 'pytorch' is not usable here" in refused.value.detail
    assert reason in refused.value.detail and next_step in refused.value.detail
    assert "'jax' is usable" in refused.value.detail


def test_without_the_package_no_process_is_started(robot: Robot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "find_spec", lambda name: name == "jax")
    choice = select_trainer(machine=robot.machine())
    assert choice == "jax" and "pip install 'continuon-brain[torch]'" in choice.alternatives[0].reason
    assert robot.imports("torch") == 0 and robot.imports("jax") == 1


def test_both_runtimes_are_asked_at_the_same_time(robot: Robot, tmp_path: Path) -> None:
    """Each waits for the other to have begun: one after the other, they would wait for ever."""
    meet = """
import pathlib, time
here, there = (pathlib.Path({folder!r}) / name for name in {names!r})
here.touch()
while not there.exists(): time.sleep(0.01)
"""
    for names, package, source in ((("a", "b"), "jax", jax_on("cpu")), (("b", "a"), "torch", GOOD_TORCH)):
        robot.install(package, meet.format(folder=str(tmp_path), names=names) + source)
    choice = select_trainer(machine=robot.machine(timeout_s=20.0))
    assert choice == "jax" and choice.alternatives[0].available


def test_many_threads_ask_once(robot: Robot) -> None:
    found: list[TrainerChoice] = []
    threads = [
        threading.Thread(target=lambda: found.append(select_trainer(machine=robot.machine()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and robot.imports("jax") == robot.imports("torch") == 1


def test_the_next_process_takes_the_answers_of_the_one_before(robot: Robot, tmp_path: Path) -> None:
    machine = robot.machine(cache_dir=tmp_path / "cache" / "deep")
    first = select_trainer(machine=machine)
    probes.forget()  # what a new process knows
    assert select_trainer(machine=machine).to_json() == first.to_json()
    assert robot.imports("jax") == robot.imports("torch") == 1


def test_a_failure_is_not_for_the_next_process(robot: Robot, tmp_path: Path) -> None:
    robot.install("torch", CUDA_TORCH)
    machine = robot.machine(cache_dir=tmp_path / "cache")
    assert not select_trainer(machine=machine).alternatives[0].available
    robot.install("torch", GOOD_TORCH)
    assert not select_trainer(machine=machine).alternatives[0].available  # for half a minute
    probes.forget()
    assert select_trainer(machine=machine).alternatives[0].available
    assert robot.imports("torch") == 2 and robot.imports("jax") == 1


@pytest.mark.parametrize("damage", [b"", b"{}", b"not ours", "cut", "flip"])
def test_a_damaged_file_of_answers_is_as_none(robot: Robot, tmp_path: Path, damage: bytes | str) -> None:
    machine = robot.machine(cache_dir=tmp_path)
    first = select_trainer(machine=machine)
    path = tmp_path / probes.PROBES_FILE
    whole = path.read_bytes()
    half = len(whole) // 2
    changed = {"cut": whole[:half], "flip": whole[:half] + bytes([whole[half] ^ 1]) + whole[half + 1 :]}
    path.write_bytes(damage if isinstance(damage, bytes) else changed[damage])
    probes.forget()
    assert select_trainer(machine=machine).to_json() == first.to_json()
    assert robot.imports("jax") == robot.imports("torch") == 2
    probes.forget()  # and it was written anew
    select_trainer(machine=machine)
    assert robot.imports("jax") == robot.imports("torch") == 2


@pytest.mark.parametrize("change", ["boot", "version", "path", "age"])
def test_an_answer_of_another_boot_version_place_or_day_is_none(
    robot: Robot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    machine = robot.machine(cache_dir=tmp_path)
    select_trainer(machine=machine)
    probes.forget()
    if change == "boot":
        monkeypatch.setattr(probes, "boot_id", lambda: "another")
    elif change == "version":
        monkeypatch.setattr(probes, "version", lambda distribution: "9.9")
    elif change == "path":
        monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/elsewhere")
    else:
        now_ns = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: now_ns + 90_000 * 10**9)
    select_trainer(machine=machine)
    assert robot.imports("jax") == robot.imports("torch") == 2


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(robot: Robot, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert select_trainer(machine=robot.machine(cache_dir=tmp_path / "file" / "cache")) == "jax"


def test_a_choice_is_its_name_wherever_text_goes() -> None:
    choice = TrainerChoice("jax", "because", (TrainerOption("pytorch", False, "not here"),))
    assert f"Selected trainer: {choice}" == "Selected trainer: jax" and choice == "jax"
    again = pickle.loads(pickle.dumps(choice))
    assert again.to_json() == choice.to_json() == json.loads(json.dumps(choice.to_json()))


def test_the_real_runtimes_are_not_imported_where_it_is_asked() -> None:
    code = (
        "import sys; from brain_service.hardware import select_trainer; "
        "choice = select_trainer(prefer_jax=True); assert choice == 'jax', choice.to_json(); "
        "print(f'Selected trainer: {choice}'); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PROJECT)
    told, modules = done.stdout.splitlines()
    assert told == "Selected trainer: jax"
    assert not {name.split(".")[0] for name in modules.split()} & {"jax", "jaxlib", "tensorflow", "torch"}
