"""Sizes and time constants of a CoreModel, checked when they are made."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from math import isfinite, prod
from typing import Any

__all__ = ["PRESETS", "CoreModelConfig"]

COMPUTE_DTYPES = ("auto", "float32", "bfloat16")
ACTION_KINDS = ("continuous", "discrete")
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
    action_kind: str = "continuous"
    """`continuous`: a bounded Gaussian an element. `discrete`: each element is one of `action_choices`."""
    action_choices: int = 0
    """Choices of each element of a discrete action, at least 2; 0 for continuous actions."""
    image_shape: tuple[int, ...] = ()
    """Height, width and channels of the camera image; empty for none."""
    image_channels: tuple[int, ...] = (16, 32, 32)
    """Channels of the image encoder's convolutions; each halves height and width."""
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
    wave_pairs: int = 0
    """Pairs of wave channels that rotate, R: at the start of training they hold about the last R inputs apart."""
    associative_wave: bool = False
    """Run the wave over a sequence in log T parallel rounds (accelerators) instead of T short ones (CPU)."""
    compute_dtype: str = "auto"
    """Factors of matrix products: `float32`, `bfloat16`, or `auto`: bfloat16 but on a CPU. All else is float32."""
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
        for name in ("wave_min_steps", "wave_max_steps", "action_limit", "log_std_min", "log_std_max"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not isfinite(value):
                raise ValueError(f"{name} is {value!r}; use a finite number")
        self._check_memory()
        self._check_wave()
        self._check_actions()
        self._check_image()
        if self.compute_dtype not in COMPUTE_DTYPES:
            raise ValueError(f"compute_dtype is {self.compute_dtype!r}; use one of {', '.join(COMPUTE_DTYPES)}")

    def _check_memory(self) -> None:
        for name in ("cms_sizes", "cms_periods", "cms_decays"):
            if type(getattr(self, name)) is not tuple:
                raise ValueError(f"{name} is {getattr(self, name)!r}; give one number a level")
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
        if not all(type(decay) is float and 0.0 < decay < 1.0 for decay in self.cms_decays):
            raise ValueError(f"cms_decays is {self.cms_decays!r}; use values between 0 and 1")
        if any(b > a for a, b in pairwise(self.cms_decays)):
            raise ValueError(f"cms_decays is {self.cms_decays!r}; slower levels must not decay faster")

    def _check_wave(self) -> None:
        if not 1.0 <= self.wave_min_steps < self.wave_max_steps <= 1e6:
            raise ValueError(
                f"wave_min_steps {self.wave_min_steps!r} and wave_max_steps {self.wave_max_steps!r}: "
                "use 1 <= wave_min_steps < wave_max_steps <= 1e6"
            )
        if type(self.wave_pairs) is not int or not 0 <= 2 * self.wave_pairs <= self.d_w:
            raise ValueError(f"wave_pairs is {self.wave_pairs!r}; use 0 to {self.d_w // 2}, half of d_w")
        if type(self.associative_wave) is not bool:
            raise ValueError(f"associative_wave is {self.associative_wave!r}; use true or false")

    def _check_actions(self) -> None:
        if self.action_kind not in ACTION_KINDS:
            raise ValueError(f"action_kind is {self.action_kind!r}; use one of {', '.join(ACTION_KINDS)}")
        choices = self.action_choices
        if self.action_kind == "continuous" and choices != 0:
            raise ValueError(f"action_choices is {choices!r} but action_kind is continuous; use 0")
        if self.action_kind == "discrete" and (type(choices) is not int or choices < 2):
            raise ValueError(f"action_choices is {choices!r} and action_kind discrete; use at least 2")
        if not 1.0 <= self.action_limit <= 2.0:
            raise ValueError(f"action_limit is {self.action_limit!r}; use 1 to 2 times the recorded range")
        if not -20.0 <= self.log_std_min < self.log_std_max <= 5.0:
            raise ValueError(
                f"log_std_min {self.log_std_min!r} and log_std_max {self.log_std_max!r}: "
                "use -20 <= log_std_min < log_std_max <= 5"
            )

    def _check_image(self) -> None:
        shape, channels = self.image_shape, self.image_channels
        if type(shape) is not tuple or any(type(size) is not int or size < 1 for size in shape):
            raise ValueError(f"image_shape is {shape!r}; use height, width and channels, or nothing")
        if shape and (len(shape) != 3 or prod(shape) > 2**24):
            raise ValueError(f"image_shape is {shape!r}; use height, width and channels, at most 16 MiB of pixels")
        if type(channels) is not tuple or not channels or any(type(c) is not int or c < 1 for c in channels):
            raise ValueError(f"image_channels is {channels!r}; use one positive integer a convolution")

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
        return cls._preset({}, overrides)

    @classmethod
    def pi5_optimized(cls, **overrides: Any) -> "CoreModelConfig":
        """Return the model for a Raspberry Pi 5: about 0.8 million parameters.

        Raises:
            ValueError: an override is unknown or impossible.
        """
        sizes = {"d_e": 192, "d_s": 128, "d_w": 192, "d_p": 64, "d_c": 128, "d_k": 32, "d_v": 64, "d_h": 256}
        return cls._preset(sizes | {"cms_sizes": (16, 32, 64)}, overrides)

    @classmethod
    def tpu_optimized(cls, **overrides: Any) -> "CoreModelConfig":
        """Return the model for training on accelerators: about 15 million parameters.

        Raises:
            ValueError: an override is unknown or impossible.
        """
        sizes = {"d_e": 896, "d_s": 640, "d_w": 1280, "d_p": 320, "d_c": 640, "d_k": 64, "d_v": 128, "d_h": 896}
        more = {"cms_sizes": (16, 32, 64), "action_horizon": 4, "associative_wave": True}
        return cls._preset(sizes | more, overrides)

    @classmethod
    def tpu_large(cls, **overrides: Any) -> "CoreModelConfig":
        """Return the model for slices of many chips: about 113 million parameters.

        Parameters and moments take 1.35 GB, which `--fsdp` spreads over chips.

        Raises:
            ValueError: an override is unknown or impossible.
        """
        sizes = {"d_e": 2048, "d_s": 2048, "d_w": 4096, "d_p": 1024, "d_c": 2048, "d_k": 128, "d_v": 256}
        more = {"d_h": 2048, "cms_sizes": (32, 64, 128), "action_horizon": 4, "associative_wave": True}
        return cls._preset(sizes | more, overrides)

    @classmethod
    def _preset(cls, sizes: Mapping[str, Any], overrides: Mapping[str, Any]) -> "CoreModelConfig":
        # Half of the wave's channels rotate, whatever its size.
        settings = {"d_w": cls.__dataclass_fields__["d_w"].default, **sizes, **overrides}
        pairs = settings["d_w"] // 4 if type(settings["d_w"]) is int else 0
        return cls.from_dict({"wave_pairs": max(pairs, 0)} | settings)

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of all fields: the inverse of `from_dict`."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "CoreModelConfig":
        """Build a config from field values; fields left out keep their defaults, lists become tuples.

        A field that a later version adds has a default under which the model is the one from before it, so the
        config of an earlier version gives the model that it gave then. (Presets may set it otherwise.)

        Raises:
            ValueError: a key is unknown (as in the config of a later version), or a value impossible.
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
    "tpu_large": CoreModelConfig.tpu_large,
}
"""Preset name -> function that takes overrides and returns the config."""
