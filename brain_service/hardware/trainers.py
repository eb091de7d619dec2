"""`select_trainer()`: who trains on this machine, JAX or PyTorch, and why; decided by what both can do here."""

import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self

from brain_service.errors import UnavailableError
from brain_service.hardware.accelerators import hailo_parts, package_obstacle
from brain_service.hardware.detection import TRAINING_ORDER, Machine, jax_backend
from brain_service.hardware.probes import Probe, ask

__all__ = ["TrainerChoice", "TrainerOption", "describe_trainers", "select_trainer"]

TrainerName = Literal["jax", "pytorch"]

THIS_MACHINE = Machine()

# By name: nothing here imports the trainer.
TORCH_PROBE = "brain_service.training.torch_lora.probe"


@dataclass(frozen=True, slots=True)
class TrainerOption:
    """A trainer, whether it computes on this machine, and what it computes on or why not with the next step."""

    trainer: TrainerName
    available: bool
    reason: str


class TrainerChoice(str):
    """The name of the trainer that was chosen, `jax` or `pytorch`; it prints and compares as that text.

    `reason` says why this one, `alternatives` what the others would have been.
    """

    reason: str
    alternatives: tuple[TrainerOption, ...]

    def __new__(cls, trainer: TrainerName, reason: str, alternatives: tuple[TrainerOption, ...]) -> Self:
        """Make the text, and put the rest beside it."""
        choice = super().__new__(cls, trainer)
        choice.reason, choice.alternatives = reason, alternatives
        return choice

    def __getnewargs__(self) -> tuple[str, str, tuple[TrainerOption, ...]]:  # type: ignore[override]
        return str(self), self.reason, self.alternatives

    def to_json(self) -> dict[str, Any]:
        """Return what a job and `GET /hardware` show."""
        return {
            "trainer": str(self),
            "reason": self.reason,
            "alternatives": [asdict(option) for option in self.alternatives],
        }


class _Found(NamedTuple):
    """What the rules look at: both trainers, and the chips that speak for JAX, by name."""

    jax: TrainerOption
    pytorch: TrainerOption
    tpu: str | None
    hailo: str | None
    prefer_jax: bool


class _Rule(NamedTuple):
    trainer: TrainerName
    holds: Callable[[_Found], bool]
    reason: str


_RULES = (
    _Rule("jax", lambda seen: seen.jax.available and seen.tpu is not None, "a TPU is here ({seen.tpu})"),
    _Rule(
        "jax",
        lambda seen: seen.jax.available and seen.prefer_jax and seen.hailo is not None,
        "a Hailo is here ({seen.hailo}), which serves what JAX trains",
    ),
    _Rule("jax", lambda seen: seen.jax.available and seen.prefer_jax, "JAX is preferred, and {seen.jax.reason}"),
    _Rule(
        "pytorch",
        lambda seen: seen.pytorch.available and not seen.prefer_jax,
        "JAX is not preferred, and {seen.pytorch.reason}",
    ),
    _Rule("pytorch", lambda seen: seen.pytorch.available, "JAX is not usable here: {seen.jax.reason}"),
    _Rule("jax", lambda seen: seen.jax.available, "PyTorch is not usable here: {seen.pytorch.reason}"),
)
"""The first that holds decides."""


def select_trainer(
    prefer_jax: bool = True,
    *,
    forced: Literal["auto", "jax", "pytorch"] = "auto",
    machine: Machine = THIS_MACHINE,
) -> TrainerChoice:
    """Choose who trains on this machine; `forced` wins where it is usable. Blocking: seconds, if nothing is kept.

    A TPU, or a Hailo where JAX is preferred, speaks for JAX; so does the preference itself; else PyTorch trains,
    and each stands in where the other does not compute. Both are asked to in child processes, at the same time;
    what they answered is kept (`probes.ask`). Neither is imported here.

    Raises:
        UnavailableError: the forced trainer, or each of both, does not compute here; says why and what to do.
    """
    seen = _look(prefer_jax, machine)
    if forced != "auto":
        wanted, other = (seen.jax, seen.pytorch) if forced == "jax" else (seen.pytorch, seen.jax)
        if not wanted.available:
            instead = f"; {other.trainer!r} is usable" if other.available else ""
            raise UnavailableError(f"trainer {forced!r} is not usable here: {wanted.reason}{instead}")
        return TrainerChoice(forced, f"it was asked for, and {wanted.reason}", (other,))
    choice = _decide(seen)
    if choice is None:
        raise UnavailableError(_neither(seen))
    return choice


def describe_trainers(prefer_jax: bool = True, *, machine: Machine = THIS_MACHINE) -> dict[str, Any]:
    """Return `select_trainer`'s choice as JSON; where nothing trains, `trainer` is None. Blocking as that is."""
    seen = _look(prefer_jax, machine)
    choice = _decide(seen)
    if choice is not None:
        return choice.to_json()
    return {
        "trainer": None,
        "reason": _neither(seen),
        "alternatives": [asdict(seen.jax), asdict(seen.pytorch)],
    }


def _decide(seen: _Found) -> TrainerChoice | None:
    for rule in _RULES:
        if rule.holds(seen):
            other = seen.pytorch if rule.trainer == "jax" else seen.jax
            return TrainerChoice(rule.trainer, rule.reason.format(seen=seen), (other,))
    return None


def _neither(seen: _Found) -> str:
    return f"nothing trains here: JAX: {seen.jax.reason}; PyTorch: {seen.pytorch.reason}"


def _look(prefer_jax: bool, machine: Machine) -> _Found:
    with ThreadPoolExecutor(1, thread_name_prefix="probe") as pool:
        asked = pool.submit(_pytorch, machine)
        device, backend = _best_jax(machine)
        pytorch = asked.result()
    parts = hailo_parts(machine.sysfs, machine.dev, machine.root)
    is_here = not (parts["pci"]["reason"] or parts["device_node"]["reason"])
    told = _runs("JAX", backend["jax_version"], backend["devices"]) if backend["available"] else backend["reason"]
    return _Found(
        jax=TrainerOption("jax", backend["available"], told),
        pytorch=pytorch,
        tpu=", ".join(backend["devices"]) if device == "tpu" and backend["available"] else None,
        hailo=", ".join(chip["name"] for chip in parts["pci"]["found"]) if is_here else None,
        prefer_jax=prefer_jax,
    )


def _best_jax(machine: Machine) -> tuple[str, Mapping[str, Any]]:
    """Ask for one device after the other, the best first, until one is usable; else the last one's word counts."""
    *better, last = TRAINING_ORDER
    for device in better:
        if (backend := jax_backend(device, machine))["available"]:
            return device, backend
    return last, jax_backend(last, machine)


def _pytorch(machine: Machine) -> TrainerOption:
    if package_obstacle("torch") is not None:
        return TrainerOption("pytorch", False, "torch is not installed; pip install 'continuon-brain[torch]'")
    probe = Probe((sys.executable, "-m", TORCH_PROBE), {}, ("torch",))
    answer = ask(probe, timeout_s=machine.timeout_s, cache_dir=machine.cache_dir)
    if "error" in answer:
        return TrainerOption("pytorch", False, answer["error"])
    return TrainerOption("pytorch", True, _runs("PyTorch", answer["version"], answer["devices"]))


def _runs(name: str, version: str, devices: list[str]) -> str:
    return f"{name} {version} runs on {', '.join(devices)}"
