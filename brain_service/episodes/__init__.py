"""What the robot lived: capture logs, their store, and readers of every file that holds episodes."""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.episodes.answers import Appended, Ended
    from brain_service.episodes.episode import Episode
    from brain_service.episodes.header import CONTROL_ROLES, EpisodeHeader
    from brain_service.episodes.logger import EpisodeLogger
    from brain_service.episodes.reader import episode_digest, read_episode, read_episodes
    from brain_service.episodes.schema import Step, StepIn
    from brain_service.episodes.store import EpisodeStore

__all__ = [
    "CONTROL_ROLES",
    "Appended",
    "Ended",
    "Episode",
    "EpisodeHeader",
    "EpisodeLogger",
    "EpisodeStore",
    "Step",
    "StepIn",
    "episode_digest",
    "read_episode",
    "read_episodes",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Appended": "answers",
        "CONTROL_ROLES": "header",
        "Ended": "answers",
        "Episode": "episode",
        "EpisodeHeader": "header",
        "EpisodeLogger": "logger",
        "EpisodeStore": "store",
        "Step": "schema",
        "StepIn": "schema",
        "episode_digest": "reader",
        "read_episode": "reader",
        "read_episodes": "reader",
    },
)
