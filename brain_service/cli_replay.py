"""`brain replay`: compute a recorded episode's policy steps again and say whether each action is the same."""

import argparse
import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_service.errors import InvalidError, NotFoundError
from brain_service.settings import Settings, load_settings
from brain_service.terminal import progress_bar, say, say_json

if TYPE_CHECKING:
    from brain_service.inference.replay import RecordedStep, ReplayedStep

__all__ = ["add_replay_command"]

EXAMPLES = """\
examples:
  brain replay 20261122T201500-3f9a1c
  brain replay 20261122T201500-3f9a1c --data-dir ./brain --backend onnx-cpu
  brain replay 20261122T201500-3f9a1c --json | jq '.steps[] | select(.outcome == "differs")'
"""

_PAGE = 1000


def add_replay_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `replay` to the parser of `brain`."""
    summary = "Compute a recorded episode's policy steps again and compare each action."
    added = commands.add_parser(
        "replay",
        help=summary,
        description=f"{summary} On the backend that answered, in the recorded batch and place, each must be the "
        "same bit for bit; on another, within the bundle's parity bound. Exit code 0: all are; 1: one is not, or "
        "could not be computed because the state before it is not known.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=_replay)
    added.add_argument("episode_id")
    added.add_argument("--data-dir", type=Path, help="everything the daemon keeps")
    added.add_argument("--config", type=Path, help="settings file (default: brain.toml)")
    added.add_argument("--backend", metavar="NAME", help="run on this one: jax-cpu, onnx-cpu, ...")
    added.add_argument("--json", action="store_true", help="print JSON, with a line of each step")


def _replay(options: argparse.Namespace) -> int:
    settings = load_settings({"data_dir": options.data_dir}, config=options.config)
    recorded = _recorded_steps(settings, options.episode_id)
    steps = asyncio.run(_replayed(settings, recorded, options.episode_id, options.backend))
    counts = Counter(step.outcome for step in steps)
    first = next((step for step in steps if step.outcome == "differs"), None)
    passed = counts["differs"] == counts["skipped"] == 0
    summary: dict[str, Any] = {
        "episode_id": options.episode_id,
        "passed": passed,
        "policy_steps": len(steps),
        "counts": {name: counts[name] for name in ("equal", "within", "differs", "skipped")},
        "largest_difference": max((step.difference or 0.0 for step in steps), default=0.0),
        "first_divergent_step": None if first is None else first.step_index,
    }
    if options.json:
        say_json(summary | {"steps": [asdict(step) for step in steps]})
    else:
        for line in _lines(summary, steps, first):
            say(line)
    return int(not passed)


def _lines(summary: dict[str, Any], steps: "Sequence[ReplayedStep]", first: "ReplayedStep | None") -> list[str]:
    counts = summary["counts"]
    lines = [
        f"{summary['policy_steps']} policy steps: {counts['equal']} bit for bit the same, {counts['within']} "
        f"within the bound, {counts['differs']} different, {counts['skipped']} not computed",
        f"largest difference: {summary['largest_difference']:.3g} of the action's range",
    ]
    # Each reason once, with the first step that it holds for.
    reasons = {step.reason: step for step in reversed(steps) if step.reason is not None}
    lines += [f"from step {step.step_index} on: {reason}" for reason, step in reversed(reasons.items())]
    if first is not None:
        lines.append(
            f"first divergent step: {first.step_index} (state step {first.state_step}, model {first.model_id}, "
            f"{first.backend}, bucket {first.bucket}, row {first.row}): off by {first.difference:.3g} of the "
            f"range, allowed {first.bound:.3g}"
        )
    return lines


def _recorded_steps(settings: Settings, episode_id: str) -> "list[RecordedStep]":
    """Return the policy's steps of an episode.

    Raises:
        NotFoundError: there is no such episode.
        InvalidError: it has no policy steps.
        CorruptDataError: its log is damaged.
    """
    from brain_service.episodes.store import EpisodeStore
    from brain_service.inference.replay import RecordedStep

    if not settings.episodes_dir.is_dir():
        raise NotFoundError(
            f"no episodes in {settings.data_dir}; name the daemon's data directory with --data-dir"
        )
    store = EpisodeStore(settings.episodes_dir, settings.capture)
    found: list[RecordedStep] = []
    start = 0
    try:
        while page := store.steps(episode_id, start, _PAGE):
            start += len(page)
            found += [step for record in page if (step := RecordedStep.of(record)) is not None]
    finally:
        store.close()
    if not found:
        raise InvalidError(
            f"episode {episode_id} has no policy steps; give an episode that was named as `record` in /infer"
        )
    return found


async def _replayed(
    settings: Settings, recorded: "Sequence[RecordedStep]", episode_id: str, backend: str | None
) -> "list[ReplayedStep]":
    from brain_service.episodes.images import read_image
    from brain_service.inference.replay import replay_steps

    done: list[ReplayedStep] = []
    with progress_bar("replaying") as report:
        report(0, len(recorded), "loading")
        replayed = replay_steps(
            recorded,
            settings.models_dir,
            settings.cache_dir,
            backend,
            on_worker=lambda what: report(len(done), len(recorded), what),
            read_image=partial(read_image, settings.episodes_dir, episode_id),
        )
        async for step in replayed:
            done.append(step)
            report(len(done), len(recorded))
    return done
