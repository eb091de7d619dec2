"""When the loop starts by itself: a decision over what is known, without a look at anything."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from brain_service.settings import LearningSettings

__all__ = ["Decision", "Situation", "decide"]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What the decision rests on. Times are local and without a zone; `last_run` is when a loop last began."""

    now: datetime
    watching_since: datetime
    """Since when the triggers are watched: a time of day before it is not made up for."""
    last_run: datetime | None
    new_episodes: int
    """Episodes that ended since `last_run`, or all of them where it never ran."""
    open_sessions: int
    open_episodes: int
    gate: str
    """Why heavy work must rest, or nothing."""
    training: bool
    """Whether a training waits or runs."""


@dataclass(frozen=True)
class Decision:
    """Whether to start, and the reason either way, for people."""

    start: bool
    reason: str


def decide(settings: LearningSettings, seen: Situation) -> Decision:
    """Say whether the loop starts now: a trigger has fired, there is something to learn, and nothing holds it."""
    fired = _fired(settings, seen)
    if not fired:
        return Decision(False, f"no trigger has fired: {seen.new_episodes} new episodes")
    if not seen.new_episodes:
        return Decision(False, f"{fired}, but no episode has ended since the last run")
    held = _held(settings, seen)
    return Decision(False, f"{fired}, but {held}") if held else Decision(True, fired)


def _fired(settings: LearningSettings, seen: Situation) -> str:
    if settings.after_episodes is not None and seen.new_episodes >= settings.after_episodes:
        return f"{seen.new_episodes} new episodes"
    if settings.daily_at is not None and _passed(settings.daily_at, seen):
        return f"it is past {settings.daily_at}"
    return ""


def _passed(daily_at: str, seen: Situation) -> bool:
    """Tell whether the time of day came since the last run and since anybody watched."""
    hour, minute = map(int, daily_at.split(":"))
    latest = seen.now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if latest > seen.now:
        latest -= timedelta(days=1)
    # A clock that was set back leaves a last run in the future: that one counts as none.
    ran = seen.last_run is not None and latest <= seen.last_run <= seen.now
    return latest >= seen.watching_since and not ran


def _held(settings: LearningSettings, seen: Situation) -> str:
    if seen.training:
        return "a training waits or runs already"
    if settings.only_idle and (seen.open_sessions or seen.open_episodes):
        return f"the robot works: {seen.open_sessions} sessions and {seen.open_episodes} episodes are open"
    since_s = (seen.now - seen.last_run).total_seconds() if seen.last_run is not None else None
    if since_s is not None and 0 <= since_s < settings.min_interval_s:
        return f"the last run began only {since_s:.0f} s ago, the least is {settings.min_interval_s:g} s"
    return seen.gate
