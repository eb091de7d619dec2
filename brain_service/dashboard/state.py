"""How the robot's brain is, in one word with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from brain_service.jobs.job import Job

__all__ = ["State", "Word", "state_of"]

Word = Literal["Down", "Degraded", "Starting", "Acting", "Recording", "Training", "Paused", "Working", "Idle"]

_NEEDED = ("disk", "capture", "inference")
"""Checks without which the robot neither records nor acts: one that fails is Down."""
_TELLING = frozenset({*_NEEDED, "recording", "jobs", "tokens"})
"""Checks whose warning makes the word Degraded; that of another one stands in the list of checks only."""
_LEARNING = ("train", "pipeline")


@dataclass(frozen=True, slots=True)
class State:
    """The word, its reason in a sentence, and how bad it is: `ok`, `warn` or `bad`."""

    word: Word
    reason: str
    level: Literal["ok", "warn", "bad"]


def state_of(
    checks: Mapping[str, Mapping[str, Any]],
    inference: Mapping[str, Any],
    capture: Mapping[str, Any],
    running: Sequence[Job],
    *,
    acting: bool,
    paused: str,
    strained: str = "",
) -> State:
    """Return the state: what fails first, then what the robot does, the most urgent of it first.

    `checks` are those of `/health` by name, `inference` and `capture` what those parts tell of themselves,
    `acting` whether an action was answered just now, `paused` why an operator lets learning rest (empty: nobody
    does), `strained` what is wrong with heat and supply (empty: nothing).
    """
    failing = [name for name, check in checks.items() if check["status"] == "fail"]
    for name in (*_NEEDED, *failing):
        if name in failing:
            down = name in _NEEDED
            return State("Down" if down else "Degraded", _told(name, checks[name]), "bad" if down else "warn")
    if inference["state"] in ("loading", "restarting"):
        return State("Starting", f"the model is {inference['state']}; capture takes steps already", "warn")
    if capture["recovering"]:
        return State("Starting", "episodes of before the last stop are being looked through", "warn")
    for name, check in checks.items():
        new = name == "inference" and inference["state"] == "no-model"
        if check["status"] == "warn" and name in _TELLING and not new:
            return State("Degraded", _told(name, check), "warn")
    if strained:
        return State("Degraded", strained, "warn")
    doing = _activities(inference, capture, running, acting=acting, paused=paused)
    if not doing:
        return State("Idle", _idle(inference), "ok")
    word, reason = doing[0]
    others = dict.fromkeys(also.lower() for also, _ in doing if also != word)
    rest = f"; {' and '.join(others)} too" if others else ""
    return State(word, f"{reason}{rest}", "ok")


def _activities(
    inference: Mapping[str, Any], capture: Mapping[str, Any], running: Sequence[Job], *, acting: bool, paused: str
) -> list[tuple[Word, str]]:
    found: list[tuple[Word, str]] = []
    if acting:
        sessions = _count(inference["sessions"], "session")
        found.append(
            ("Acting", f"{sessions} on model {inference['active_model']}, backend {inference['backend']}")
        )
    if capture["open_episodes"]:
        found.append(("Recording", f"{_count(capture['open_episodes'], 'episode')} open"))
    for job in running:
        stage = next((stage.name for stage in job.stages if stage.status == "running"), "")
        # Without its progress: a screen reader tells of each change of the reason.
        where = job.params.get("target", "local")
        told = f"job {job.kind}{f' at stage {stage}' if stage else ''}{f' on {where}' if where != 'local' else ''}"
        if job.kind in _LEARNING and paused:
            found.append(("Paused", f"learning rests: {paused}"))
        else:
            found.append(("Training" if job.kind in _LEARNING else "Working", told))
    if paused and not any(word == "Paused" for word, _ in found):
        found.append(("Paused", f"learning is paused: {paused}"))
    return found


def _idle(inference: Mapping[str, Any]) -> str:
    if inference["state"] == "no-model":
        return "no model yet: record some episodes, then start a training"
    return f"model {inference['active_model']} is ready on {inference['backend']}; nobody asks"


def _told(name: str, check: Mapping[str, Any]) -> str:
    return f"{name}: {check['output'] or check['observed_value']}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
