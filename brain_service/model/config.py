"""Sizes and time constants of a CoreModel, checked when they are made."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

__all__ = ["PRESETS", "CoreModelConfig"]

SIZES = ("obs_dim", "action_dim", "action_horizon", "d_e", "d_s", "d_w", "d_p", "d_c", "d_k", "d_v", "d_h")


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreModelConfig:
    """Everything that fixes the shapes and the arithmetic of a CoreModel. Hashable, so jit may treat it as static.

    Raises:
        ValueError: a size, period, decay or range is impossible; the message names the field.
    """

    obs_dim: int = 128
    """Length of the observation vector."""
    action_dim: int = 32
    """Length of the action vector."""
    action_horizon: int = 1
    """Actions predicted at every step, H: a_t ... a_{t+H-1}."""
    d_e: int = 128
    """Encoded input."""
    d_s: int = 64
    """Fast state."""
    d_w: int = 64
    """Wave state: channels of the diagonal linear recurrence."""
    d_p: int = 32
    """Particle state."""
    d_c: int = 64
    """Mixed context z_t, which drives the particle and the memory writes."""
    d_k: int = 8
    """Memory keys and queries."""
    d_v: int = 16
    """Memory values."""
    d_h: int = 128
    """Trunk of the output heads."""
    cms_sizes: tuple[int, ...] = (8, 16, 16)
    """Slots of each memory level, fast to slow."""
    cms_periods: tuple[int, ...] = (1, 8, 64)
    """Steps between two writes of each level; the first is 1."""
    cms_decays: tuple[float, ...] = (0.05, 0.03, 0.01)
    """Share of a slot's strength that is lost at each write of its level, fast to slow."""
    wave_min_steps: float = 2.0
    """Time constant of the quickest wave channel at the start of training, in steps."""
    wave_max_steps: float = 10_000.0
    """Time constant of the slowest wave channel, in steps; no channel ever decays slower."""
    associative_wave: bool = False
    """Run the wave over a sequence in log T parallel rounds (accelerators) instead of T short ones (CPU)."""
    action_limit: float = 1.05
    """Bound of the action mean in normalised units; above 1 so that tanh reaches the recorded extremes."""
    log_std_min: float = -5.0
    """Least log standard deviation of an action, in normalised units."""
    log_std_max: float = 1.0
    """Greatest log standard deviation of an action, in normalised units."""

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} is {value!r}; use a positive integer")
        self._check_memory()
        if not 1.0 <= self.wave_min_steps < self.wave_max_steps <= 1e6:
            raise ValueError(
                f"wave_min_steps {self.wave_min_steps!r} and wave_max_steps {self.wave_max_steps!r}: "
                "use 1 <= wave_min_steps < wave_max_steps <= 1e6"
            )
        if not 1.0 <= self.action_limit <= 2.0:
            raise ValueError(f"action_limit is {self.action_limit!r}; use 1 to 2 times the recorded range")
        if not -20.0 <= self.log_std_min < self.log_std_max <= 5.0:
            raise ValueError(
                f"log_std_min {self.log_std_min!r} and log_std_max {self.log_std_max!r}: "
                "use -20 <= log_std_min < log_std_max <= 5"
            )

    def _check_memory(self) -> None:
        levels = len(self.cms_sizes)
        if levels < 1 or any(type(size) is not int or size < 1 for size in self.cms_sizes):
            raise ValueError(f"cms_sizes is {self.cms_sizes!r}; give one positive slot count a level")
        for name in ("cms_periods", "cms_decays"):
            if len(getattr(self, name)) != levels:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries; cms_sizes names {levels} levels")
        periods = self.cms_periods
        if any(type(period) is not int for period in periods) or periods[0] != 1:
            raise ValueError(f"cms_periods is {periods!r}; use integers that begin with 1")
        if any(b <= a for a, b in pairwise(periods)):
            raise ValueError(f"cms_periods is {periods!r}; slower levels come later, so they must grow")
        if not all(0.0 < decay < 1.0 for decay in self.cms_decays):
            raise ValueError(f"cms_decays is {self.cms_decays!r}; use values between 0 and 1")
        if any(b > a for a, b in pairwise(self.cms_decays)):
            raise ValueError(f"cms_decays is {self.cms_decays!r}; slower levels must not decay faster")

    @property
    def levels(self) -> int:
        """Number of memory levels, L."""
        return len(self.cms_sizes)

    @property
    def slots(self) -> int:
        """Slots of all memory levels together, N."""
        return sum(self.cms_sizes)

    @classmethod
    def development(cls, **overrides: Any) -> "CoreModelConfig":
        """Return the small model: quick to train on two CPU cores.

        Raises:
            ValueError: an override is unknown or impossible.
        """
        return cls.from_dict(overrides)

    @classmethod
    def pi5_optimized(cls, **overrides: Any) -> "CoreModelConfig":
        """Return the model for a Raspberry Pi 5: about 0.8 million parameters.

        Raises:
            ValueError: an override is unknown or impossible.
        """
        sizes = {"d_e": 192, "d_s": 128, "d_w": 192, "d_p": 64, "d_c": 128, "d_k": 32, "d_v": 64, "d_h": 256}
        return cls.from_dict(sizes | {"cms_sizes": (16, 32, 64)} | overrides)

    @classmethod
    def tpu_optimized(cls, **overrides: Any) -> "CoreModelConfig":
        """Return the model for training on accelerators: about 15 million parameters.

        Raises:
            ValueError: an override is unknown or impossible.
        """
        sizes = {"d_e": 896, "d_s": 640, "d_w": 1280, "d_p": 320, "d_c": 640, "d_k": 64, "d_v": 128, "d_h": 896}
        return cls.from_dict(
            sizes | {"cms_sizes": (16, 32, 64), "action_horizon": 4, "associative_wave": True} | overrides
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of all fields: the inverse of `from_dict`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "CoreModelConfig":
        """Build a config from field values; fields left out keep their defaults, lists become tuples.

        Raises:
            ValueError: a key is unknown, or a value impossible.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(document) - set(known))
        if unknown:
            raise ValueError(f"unknown model setting {', '.join(unknown)}; the settings are {', '.join(known)}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        return cls(**values)


PRESETS: Mapping[str, Callable[..., CoreModelConfig]] = {
    "development": CoreModelConfig.development,
    "pi5_optimized": CoreModelConfig.pi5_optimized,
    "tpu_optimized": CoreModelConfig.tpu_optimized,
}
"""Preset name -> function that takes overrides and returns the config."""
