"""What stands twice: whole episodes, steps in which nothing moves, features that stop changing."""

import hashlib

import msgspec
import numpy as np
from jaxtyping import Bool, Float32

from brain_service.datasets.quality.findings import Finding, Worst, count_of, name_some
from brain_service.datasets.quality.limits import Limits
from brain_service.datasets.quality.view import EpisodeView, Slot

__all__ = ["RepeatFinder", "Repeats"]

# Time, who controlled, and the flags of the conversion say nothing about what was sensed and done.
_NOT_CONTENT = ("timestamp_ns", "control_role", "discount", "is_first", "is_last")


class Repeats(msgspec.Struct, frozen=True):
    """`frozen_steps` have the whole observation of the step before; `groups` are episodes of equal content."""

    frozen_steps: int
    longest_frozen_run: int
    duplicate_episodes: int
    groups: list[list[str]]


class RepeatFinder:
    """Takes episodes one by one; keeps a hash of each."""

    def __init__(self, slots: list[Slot], limits: Limits, episodes: int) -> None:
        self._limits = limits
        self._slots = [slot for slot in slots if slot.is_float and not slot.pooled]
        self._worst = Worst(len(self._slots) + 1)
        self._repeats = np.zeros(len(self._slots) + 1, np.int64)
        self._pairs = 0
        self._longest = 0
        self._first: dict[bytes, int] = {}
        self._groups: dict[int, list[int]] = {}
        self._names: list[str] = []
        self._is_val = np.zeros(episodes, np.bool_)

    def add(self, view: EpisodeView) -> None:
        """Take one episode."""
        self._names.append(view.episode_id)
        self._is_val[view.position] = view.split == "val"
        digest = _digest(view)
        first = self._first.setdefault(digest, view.position)
        if first != view.position:
            self._groups.setdefault(first, [first]).append(view.position)
        if len(view) < 2:
            return
        runs = [_longest_run(_same_rows(view.observation[:, slot.start : slot.stop])) for slot in self._slots]
        whole = _same_rows(view.observation)
        if whole.any():
            whole &= _others_same(view)
        runs.append(_longest_run(whole))
        lengths = np.array([run[0] for run in runs], np.float32)
        self._worst.add(view.position, lengths, np.array([run[1] for run in runs], np.int64))
        self._repeats += np.array([run[2] for run in runs], np.int64)
        self._pairs += len(whole)
        self._longest = max(self._longest, runs[-1][0])

    def result(self) -> Repeats:
        """Return the figures."""
        groups = [[self._names[i] for i in group] for group in self._groups.values()]
        return Repeats(
            frozen_steps=int(self._repeats[-1]),
            longest_frozen_run=self._longest,
            duplicate_episodes=sum(len(group) - 1 for group in groups),
            groups=groups,
        )

    def findings(self) -> list[Finding]:
        """Return what stands twice and should not."""
        return [*self._duplicates(), *self._frozen()]

    def _duplicates(self) -> list[Finding]:
        found = []
        for leaks in (True, False):
            groups = [
                [self._names[i] for i in group]
                for group in self._groups.values()
                if bool(len(set(self._is_val[group].tolist())) == 2) == leaks
            ]
            if not groups:
                continue
            copies = sum(len(group) - 1 for group in groups)
            where = "; one in training, the other held out" if leaks else ""
            found.append(
                Finding(
                    code="validation_leak" if leaks else "duplicate_episode",
                    severity="fail" if leaks else "warn",
                    message=f"{count_of(copies, 'episode')} with the content of another one: "
                    f"{' = '.join(groups[0][:3])}{where}",
                    fix="delete the copies (brain episodes rm) and convert again"
                    + ("; until then validation measures memory" if leaks else "; they count double in training"),
                    episodes=[name for group in groups for name in group],
                    value=copies,
                    limit=0,
                )
            )
        return found

    def _frozen(self) -> list[Finding]:
        limits, found = self._limits, []
        whole = self._worst.above(len(self._slots), float(limits.max_frozen_steps))
        if whole:
            found.append(self._finding("frozen_observation", "the whole observation", None, whole))
        said = {episode for _, episode, _ in whole}
        for i, slot in enumerate(self._slots):
            usual = self._repeats[i] / max(self._pairs, 1)
            worst = [item for item in self._worst.above(i, float(limits.max_frozen_steps)) if item[1] not in said]
            if worst and usual <= limits.usual_repeat_share:
                found.append(self._finding("frozen_feature", slot.feature, slot.feature, worst))
        return found

    def _finding(self, code: str, what: str, feature: str | None, worst: list[tuple[float, int, int]]) -> Finding:
        names = [self._names[episode] for _, episode, _ in worst]
        return Finding(
            code=code,
            severity="warn",
            message=f"{what} stays bit for bit the same for {worst[0][0]:.0f} steps from step {worst[0][2]} of "
            f"{names[0]}" + (f"; also in {name_some(names[1:])}" if names[1:] else ""),
            fix="check the sensor and its driver; cut the still steps off, or leave the episodes out",
            episodes=names,
            feature=feature,
            value=worst[0][0],
            limit=self._limits.max_frozen_steps,
        )


def _digest(view: EpisodeView) -> bytes:
    """Return a hash of what was sensed, done, earned and asked for; not of the id, the time and the roles."""
    digest = hashlib.sha256(usedforsecurity=False)
    for name, column in view.columns.items():
        if name in _NOT_CONTENT:
            continue
        digest.update(name.encode())
        if isinstance(column, list):
            # Each with its length: ["ab", "c"] is not ["a", "bc"]. An instruction is the same at all steps.
            distinct = column[:1] if len(set(column)) == 1 else column
            encoded = [item if isinstance(item, bytes) else item.encode() for item in distinct]
            digest.update(np.array([len(item) for item in encoded]).tobytes())
            digest.update(b"".join(encoded))
        else:
            digest.update(np.ascontiguousarray(column).data)
    return digest.digest()


def _same_rows(rows: Float32[np.ndarray, "T n"]) -> Bool[np.ndarray, " t"]:
    """Return for each row but the first whether it equals the one before."""
    if not rows.shape[1]:
        return np.ones(len(rows) - 1, np.bool_)
    same: Bool[np.ndarray, " t"] = rows[1:, 0] == rows[:-1, 0]
    # Most often the first dimension alone says no.
    at = np.flatnonzero(same)
    if len(at):
        same[at] = (rows[at + 1] == rows[at]).all(axis=1)
    return same


def _others_same(view: EpisodeView) -> Bool[np.ndarray, " T"]:
    """Return for each step but the first whether texts and images are those of the step before."""
    same = np.ones(len(view) - 1, np.bool_)
    for name, column in view.columns.items():
        if isinstance(column, list) and name.startswith("observation/"):
            same &= np.array([a == b for a, b in zip(column[1:], column[:-1], strict=True)])
    return same


def _longest_run(same: Bool[np.ndarray, " t"]) -> tuple[int, int, int]:
    """Return (steps, first step, true values) of the longest run: n equal pairs in a row are n + 1 equal steps."""
    total = int(np.count_nonzero(same))
    if not total:
        return 0, 0, 0
    breaks = np.flatnonzero(np.concatenate([[True], ~same, [True]]))
    runs = np.diff(breaks) - 1
    longest = int(runs.argmax())
    return int(runs[longest]) + 1, int(breaks[longest]), total
