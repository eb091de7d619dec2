"""How adapters are trained: sizes, limits and where things lie, checked when they are made."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from brain_service.errors import InvalidError
from brain_service.training.config import TrainConfig, require_known

__all__ = ["LoraConfig"]

COUNTS = ("min_episodes", "max_episodes", "batch_size", "sequence_length", "rank", "checkpoint_every", "log_every")
WHOLE = ("max_steps", "seed", "evaluate_every", "patience")
RANGES = (
    ("max_wall_time_s", 1.0, 7 * 86_400.0),
    ("learning_rate", 1e-8, 1.0),
    ("alpha", 1e-3, 1e4),
    ("clip_norm", 1e-6, 1e6),
    ("previous_action_dropout", 0.0, 1.0),
    ("observation_noise", 0.0, 1.0),
)


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Settings of one fine-tuning; the defaults adapt a model to 16 new episodes within five minutes on two cores.

    Raises:
        InvalidError: a value is impossible; the error names the field.
    """

    rlds_dir: Path | None = None
    """The dataset's directory; the job's own where it is left out."""
    adapters_out_dir: Path | None = None
    """Where the run's folder is made; `<data_dir>/adapters` where it is left out."""
    base_model_path: str | None = None
    """What is adapted: a run's checkpoints or a bundle, by path or id; left out: the active model, else the newest
    checkpoint."""
    min_episodes: int = 16
    """Fewest episodes with something to imitate."""
    max_episodes: int = 256
    """Of more training episodes, the newest so many are taken, those with something to imitate first."""
    max_steps: int = 500
    """Optimiser steps at most; the learning rate ends its decay there."""
    max_wall_time_s: float = 300.0
    """Seconds of work after which the run ends where it stands; pauses do not count."""
    batch_size: int = 32
    """Sequences a step."""
    sequence_length: int = 64
    """Time steps of a sequence."""
    lora_layers: tuple[str, ...] = ()
    """Linear layers that get adapters, by name or pattern (`heads`, `encoder.*`); empty: the usual ones."""
    rank: int = 4
    """Rank of an adapter's update."""
    alpha: float = 8.0
    """An adapter's update is scaled by alpha / rank."""
    learning_rate: float = 6e-3
    """Peak learning rate."""
    clip_norm: float = 1.0
    """Greatest global norm of a gradient."""
    previous_action_dropout: float = 0.5
    """Probability that the model does not see its previous action."""
    observation_noise: float = 0.1
    """Standard deviation of the noise on observations, in normalised units."""
    seed: int = 0
    """Decides adapters, data order and disturbances."""
    checkpoint_every: int = 25
    """Steps between two saves of the run's state."""
    evaluate_every: int = 50
    """Steps between two looks at the held-out loss, where episodes are held out; 0 never looks."""
    patience: int = 4
    """Looks without a better held-out loss after which the run ends; 0 runs to the end."""
    log_every: int = 10
    """Steps between two lines of metrics."""

    def __post_init__(self) -> None:
        for name in COUNTS:
            if type(value := getattr(self, name)) is not int or not 1 <= value < 2**31:
                raise InvalidError(f"{name} is {value!r}; use a positive integer", field=name)
        for name in WHOLE:
            if type(value := getattr(self, name)) is not int or not 0 <= value < 2**31 - 1:
                raise InvalidError(f"{name} is {value!r}; use an integer from 0", field=name)
        for name, low, high in RANGES:
            value = getattr(self, name)
            if type(value) not in (int, float) or not low <= value <= high:
                raise InvalidError(f"{name} is {value!r}; use {low:g} to {high:g}", field=name)
        if self.patience and not self.evaluate_every:
            raise InvalidError(
                f"patience is {self.patience} and evaluate_every 0: without looks at the held-out loss there is "
                "nothing to wait for; set patience to 0 too",
                field="patience",
            )
        if self.max_episodes < self.min_episodes:
            raise InvalidError(
                f"max_episodes is {self.max_episodes} and min_episodes {self.min_episodes}; raise max_episodes",
                field="max_episodes",
            )
        if not all(isinstance(layer, str) and layer for layer in self.lora_layers):
            raise InvalidError(
                f"lora_layers is {self.lora_layers!r}; give names or patterns of layers, as in 'heads.*'",
                field="lora_layers",
            )

    def train_config(self) -> TrainConfig:
        """Return what of it also is a matter of every training: data, disturbances and rhythm."""
        return TrainConfig(
            steps=self.max_steps,
            batch_size=self.batch_size,
            sequence_length=self.sequence_length,
            learning_rate=self.learning_rate,
            weight_decay=0.0,
            clip_norm=self.clip_norm,
            previous_action_dropout=self.previous_action_dropout,
            observation_noise=self.observation_noise,
            seed=self.seed,
            checkpoint_every=self.checkpoint_every,
            evaluate_every=self.evaluate_every,
            patience=self.patience,
            log_every=self.log_every,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of all fields: the inverse of `from_dict`."""
        found = asdict(self)
        found["lora_layers"] = list(self.lora_layers)
        return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "LoraConfig":
        """Build a config from field values; fields left out keep their defaults, lists become tuples.

        Raises:
            InvalidError: a key is unknown, or a value impossible.
        """
        require_known(document, [item.name for item in fields(cls)], "fine-tuning")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in document.items()
        }
        for name in ("rlds_dir", "adapters_out_dir"):
            if isinstance(values.get(name), str):
                values[name] = Path(values[name])
        return cls(**values)
