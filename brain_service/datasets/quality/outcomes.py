"""How episodes went: lengths, rewards, ends, who controlled, what was asked for; texts and images."""

from collections import Counter
from itertools import pairwise

import msgspec
import numpy as np

from brain_service.datasets.quality.findings import Finding, count_of, name_some
from brain_service.datasets.quality.limits import Limits
from brain_service.datasets.quality.ranges import Histogram, histogram
from brain_service.datasets.quality.view import EpisodeView

__all__ = ["Images", "OutcomeTaker", "Outcomes", "Rewards"]

_IMITATED = ("expert", "intervention")
_TEXTS = 10_000
_TEXTS_LISTED = 50


class Rewards(msgspec.Struct, frozen=True):
    """Rewards a step, and their sums over episodes."""

    mean: float
    min: float
    max: float
    nan_or_inf: int
    return_mean: float
    return_min: float
    return_max: float
    returns: Histogram


class Images(msgspec.Struct, frozen=True):
    """Files of one image feature; `repeated` ones have the bytes of the one before."""

    name: str
    count: int
    total_bytes: int
    min_bytes: int
    max_bytes: int
    repeated: int
    longest_frozen_run: int


class Lengths(msgspec.Struct, frozen=True):
    """Stored steps an episode."""

    min: int
    median: float
    max: int
    histogram: Histogram


class Outcomes(msgspec.Struct, frozen=True):
    """Counts of episodes by end, of steps by control role, of episodes by instruction (the most frequent ones)."""

    lengths: Lengths
    rewards: Rewards
    ends: dict[str, int]
    roles: dict[str, int]
    instructions: dict[str, int]
    more_instructions: int
    without_instruction: int
    images: list[Images]


class _ImageTally:
    def __init__(self) -> None:
        self.count = self.total = self.largest = self.repeated = self.longest = 0
        self.smallest: int | None = None
        self.frozen: list[tuple[int, str]] = []

    def add(self, episode_id: str, files: list[bytes], limit: int) -> None:
        sizes = [len(file) for file in files]
        self.count += len(files)
        self.total += sum(sizes)
        self.smallest = min(sizes if self.smallest is None else [self.smallest, *sizes])
        self.largest = max(self.largest, *sizes)
        run = longest = 1
        for before, after in pairwise(files):
            run = run + 1 if before == after else 1
            self.repeated += run > 1
            longest = max(longest, run)
        self.longest = max(self.longest, longest)
        if longest > limit:
            self.frozen.append((longest, episode_id))


class OutcomeTaker:
    """Takes episodes one by one."""

    def __init__(self, image_features: list[str], limits: Limits) -> None:
        self._limits = limits
        self._lengths: list[int] = []
        self._names: list[str] = []
        self._returns: list[float] = []
        self._reward_low, self._reward_high = np.inf, -np.inf
        self._reward_sum, self._reward_count = 0.0, 0
        self._bad_rewards: Counter[str] = Counter()
        self._ends: dict[str, list[str]] = {}
        self._roles: Counter[str] = Counter()
        self._texts: Counter[str] = Counter()
        self._more_texts = 0
        self._silent: list[str] = []
        self._images = {name: _ImageTally() for name in image_features}

    def add(self, view: EpisodeView) -> None:
        """Take one episode."""
        name = view.episode_id
        self._lengths.append(len(view))
        self._names.append(name)
        self._ends.setdefault(view.entry.end, []).append(name)
        self._roles.update(view.entry.roles)
        self._add_reward(view)
        text = str(view.columns["language_instruction"][0])
        if not text:
            self._silent.append(name)
        elif text in self._texts or len(self._texts) < _TEXTS:
            self._texts[text] += 1
        else:
            self._more_texts += 1
        for feature, tally in self._images.items():
            files = [file for file in view.columns[feature] if isinstance(file, bytes)]
            tally.add(name, files, self._limits.max_frozen_steps)

    def _add_reward(self, view: EpisodeView) -> None:
        good = view.reward[np.isfinite(view.reward)]
        if len(good) < len(view.reward):
            self._bad_rewards[view.episode_id] += len(view.reward) - len(good)
        if len(good):
            total = float(good.sum(dtype=np.float64))
            self._returns.append(total)
            self._reward_sum += total
            self._reward_count += len(good)
            self._reward_low = min(self._reward_low, float(good.min()))
            self._reward_high = max(self._reward_high, float(good.max()))

    def result(self) -> Outcomes:
        """Return the figures; at least one episode must have been taken."""
        lengths, returns = np.array(self._lengths), np.array(self._returns or [0.0])
        known = self._reward_count > 0
        rewards = Rewards(
            mean=self._reward_sum / max(self._reward_count, 1),
            min=self._reward_low if known else 0.0,
            max=self._reward_high if known else 0.0,
            nan_or_inf=self._bad_rewards.total(),
            return_mean=float(returns.mean()),
            return_min=float(returns.min()),
            return_max=float(returns.max()),
            returns=histogram(returns),
        )
        common = dict(sorted(self._texts.items(), key=lambda item: (-item[1], item[0]))[:_TEXTS_LISTED])
        return Outcomes(
            lengths=Lengths(
                int(lengths.min()),
                float(np.median(lengths)),
                int(lengths.max()),
                histogram(lengths.astype(np.float64)),
            ),
            rewards=rewards,
            ends={end: len(names) for end, names in sorted(self._ends.items())},
            roles=dict(sorted(self._roles.items())),
            instructions=common,
            more_instructions=max(0, len(self._texts) - len(common)) + self._more_texts,
            without_instruction=len(self._silent),
            images=[
                Images(
                    name,
                    tally.count,
                    tally.total,
                    tally.smallest or 0,
                    tally.largest,
                    tally.repeated,
                    tally.longest,
                )
                for name, tally in self._images.items()
            ],
        )

    def findings(self) -> list[Finding]:
        """Return what is wrong with how episodes went."""
        return [
            *self._length_findings(),
            *self._reward_findings(),
            *self._label_findings(),
            *self._image_findings(),
        ]

    def _length_findings(self) -> list[Finding]:
        limits, median = self._limits, float(np.median(self._lengths))
        shortest = max(limits.min_length_steps, limits.min_length_share * median)
        longest = limits.max_length_ratio * median
        both = sorted(zip(self._lengths, self._names, strict=True))
        short = [item for item in both if item[0] < shortest]
        long = [item for item in reversed(both) if item[0] > longest]
        found = []
        for code, items, limit, fix in (
            ("short_episode", short, shortest, "leave them out: something ended them before they began"),
            (
                "long_episode",
                long,
                longest,
                "split them, or leave them out: nobody ended them, and they outweigh others",
            ),
        ):
            if items:
                found.append(
                    Finding(
                        code=code,
                        severity="warn",
                        message=f"{count_of(len(items), 'episode')} with {'fewer' if items is short else 'more'} "
                        f"than {limit:g} steps (usual {median:g}): {items[0][1]} has {items[0][0]}",
                        fix=fix,
                        episodes=[name for _, name in items],
                        value=items[0][0],
                        limit=limit,
                    )
                )
        return found

    def _reward_findings(self) -> list[Finding]:
        if self._bad_rewards:
            names = [name for name, _ in self._bad_rewards.most_common()]
            return [
                Finding(
                    code="not_finite",
                    severity="fail",
                    message=f"reward is NaN or infinite {self._bad_rewards.total()} times, in {name_some(names)}",
                    fix="leave these episodes out and mend the reward; one NaN ends a training",
                    episodes=names,
                    feature="reward",
                    value=self._bad_rewards.total(),
                    limit=0,
                )
            ]
        if self._reward_count and self._reward_low == self._reward_high:
            return [
                Finding(
                    code="constant_reward",
                    severity="info",
                    message=f"every reward is {self._reward_low:g}",
                    fix="fine for imitation; nothing that learns values or rewards has a signal here",
                    feature="reward",
                    value=self._reward_low,
                )
            ]
        return []

    def _label_findings(self) -> list[Finding]:
        limits, found, episodes = self._limits, [], len(self._names)
        recovered = self._ends.get("recovered", [])
        if len(recovered) > limits.max_recovered_share * episodes:
            found.append(
                Finding(
                    code="many_recovered",
                    severity="warn",
                    message=f"{len(recovered)} of {episodes} episodes were never ended by the robot "
                    f"(recovered): {name_some(recovered)}",
                    fix="call /end, and look in the log for crashes and lost connections",
                    episodes=recovered,
                    value=len(recovered) / episodes,
                    limit=limits.max_recovered_share,
                )
            )
        if not any(self._roles[role] for role in _IMITATED):
            roles = ", ".join(sorted(self._roles))
            found.append(
                Finding(
                    code="nothing_to_imitate",
                    severity="fail",
                    message=f"no step has a control role to imitate ({' or '.join(_IMITATED)}); found: {roles}",
                    fix="record demonstrations or interventions; a policy must not clone itself",
                    value=0,
                    limit=1,
                )
            )
        if self._silent and (self._texts or self._more_texts):
            found.append(
                Finding(
                    code="missing_instruction",
                    severity="warn",
                    message=f"{len(self._silent)} of {episodes} episodes have no language instruction, the others "
                    f"do: {name_some(self._silent)}",
                    fix="give language_instruction in the metadata of every episode, or of none",
                    episodes=self._silent,
                    value=len(self._silent),
                    limit=0,
                )
            )
        return found

    def _image_findings(self) -> list[Finding]:
        found = []
        for name, tally in self._images.items():
            if tally.frozen:
                worst = sorted(tally.frozen, key=lambda item: (-item[0], item[1]))
                episodes = [episode for _, episode in worst]
                found.append(
                    Finding(
                        code="frozen_camera",
                        severity="warn",
                        message=f"{name} shows the same image {worst[0][0]} steps in a row in {episodes[0]}"
                        + (f"; also in {name_some(episodes[1:])}" if episodes[1:] else ""),
                        fix="check the camera and its rate: what an older step saw is no observation of this one",
                        episodes=episodes,
                        feature=name,
                        value=worst[0][0],
                        limit=self._limits.max_frozen_steps,
                    )
                )
        return found
