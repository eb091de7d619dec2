"""A bounded, evenly spaced sample of steps: what histograms, quantiles and coverage are drawn from."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float32, Int64

from brain_service.datasets.quality.view import EpisodeView, step_changes

__all__ = ["Sample", "Sampler"]

_STEPS = 20_000
_BYTES = 64 * 1024**2
_EPISODES = 4_000


@dataclass(frozen=True)
class Sample:
    """n sampled steps with their episode, and the first and last observation of m sampled episodes."""

    observation: Float32[np.ndarray, "n D"]
    action: Float32[np.ndarray, "k A"]
    changes: Float32[np.ndarray, "c A"]
    episode: Int64[np.ndarray, " n"]
    action_episode: Int64[np.ndarray, " k"]
    is_val: Bool[np.ndarray, " n"]
    ends: Float32[np.ndarray, "m D"]
    end_episode: Int64[np.ndarray, " m"]


@dataclass
class Sampler:
    """Takes every `stride`-th step of the dataset, counted over all episodes, and every few episodes' ends.

    The stride follows from the index alone, so the same dataset gives the same sample.
    """

    steps: int
    episodes: int
    dimensions: int
    _seen: int = 0
    _parts: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        room = max(1, min(_STEPS, _BYTES // (4 * max(1, self.dimensions))))
        self.stride = max(1, -(-self.steps // room))
        self.episode_stride = max(1, -(-self.episodes // min(_EPISODES, room)))

    def add(self, view: EpisodeView) -> None:
        """Take one episode's share."""
        first = -self._seen % self.stride
        self._seen += len(view)
        observed = view.observation[first :: self.stride]
        acted = view.action[first :: self.stride]
        self._keep("observation", observed)
        self._keep("action", acted)
        self._keep("changes", step_changes(view.action)[first :: self.stride])
        self._keep("episode", np.full(len(observed), view.position, np.int64))
        self._keep("action_episode", np.full(len(acted), view.position, np.int64))
        self._keep("is_val", np.full(len(observed), view.split == "val"))
        if view.position % self.episode_stride == 0:
            self._keep("ends", view.observation[-1:])
            self._keep("end_episode", np.array([view.position], np.int64))

    def _keep(self, name: str, rows: np.ndarray) -> None:
        self._parts.setdefault(name, []).append(rows.copy())

    def result(self) -> Sample:
        """Return the sample; at least one episode must have been taken."""
        return Sample(**{name: np.concatenate(parts) for name, parts in self._parts.items()})
