"""How to train: sizes, optimiser, disturbances and checkpoints, checked when they are made."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

from brain_service.datasets.loader import Mode
from brain_service.errors import InvalidError
from brain_service.model.config import PRESETS, CoreModelConfig
from brain_service.pixels import AUTO, NONE, SIZE_FORM, ImageInput

__all__ = ["TrainConfig", "require_known"]

COUNTS = ("batch_size", "checkpoint_every", "keep", "log_every")
WHOLE = ("steps", "warmup_steps", "seed", "remat_steps", "evaluate_every", "patience")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of one training run; the defaults clone a simulated reaching task from 60 episodes.

    Raises:
        InvalidError: a value is impossible; the error names the field.
    """

    preset: str = "development"
    """Name of the model's preset."""
    steps: int = 500
    """Optimiser steps in all; the learning rate ends its decay there. 0 saves the freshly initialised model."""
    mode: str = "windows"
    """What a row of a batch is: a random window of an episode (`windows`, or `packed`: several short ones), a
    whole episode (`episodes`), or the next window of a stream whose state is carried over (`streams`: truncated
    backpropagation through time)."""
    batch_size: int = 32
    """Sequences a step."""
    sequence_length: int | None = 64
    """Time steps of a sequence; in mode `episodes` the longest episode that is taken, None for any."""
    remat_steps: int = 128
    """Longer sequences are run in pieces of so many steps, of which the backward pass keeps only the states
    between; 0 keeps everything."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    weight_decay: float = 1e-3
    """Decay a unit of learning rate of the layers' matrices; nothing else decays."""
    clip_norm: float = 1.0
    """Greatest global norm of a gradient."""
    previous_action_dropout: float = 0.5
    """Probability that the model does not see its previous action and reward."""
    observation_noise: float = 0.1
    """Standard deviation of the noise on observations, in normalised units. It hides the small recent motions from
    which a policy learns to repeat itself, and to stop for good once it has stopped."""
    seed: int = 0
    """Decides parameters, data order and disturbances."""
    checkpoint_every: int = 500
    """Steps between two checkpoints; the last step is always kept."""
    keep: int = 2
    """Newest checkpoints that stay; the best one by held-out loss stays too."""
    evaluate_every: int = 0
    """Steps between two looks at the held-out loss; 0 never looks."""
    patience: int = 0
    """Looks without a better held-out loss after which the run ends; 0 runs to the end."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    image: str = NONE
    """Which image the model sees: a feature's path, `auto` (the only one, if there is one) or `none`."""
    image_size: str = AUTO
    """Height and width that it is shrunk to, as in `48x64`, whole factors of the camera's; `auto` leaves no side
    longer than 96 pixels."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the preset's fields."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise InvalidError(f"preset {self.preset!r} is none of {', '.join(PRESETS)}", field="preset")
        if self.mode not in get_args(Mode):
            raise InvalidError(f"mode {self.mode!r} is none of {', '.join(get_args(Mode))}", field="mode")
        for name in COUNTS:
            _require_count(name, getattr(self, name))
        if self.sequence_length is not None or self.mode != "episodes":
            _require_count("sequence_length", self.sequence_length)
        for name in WHOLE:
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value < 2**31 - 1:
                raise InvalidError(f"{name} is {value!r}; use an integer from 0", field=name)
        if self.patience and not self.evaluate_every:
            raise InvalidError(
                f"patience is {self.patience} and evaluate_every 0: without looks at the held-out loss there is "
                "nothing to wait for; set evaluate_every too",
                field="evaluate_every",
            )
        for name, low, high in (
            ("learning_rate", 1e-8, 1.0),
            ("clip_norm", 1e-6, 1e6),
            ("weight_decay", 0.0, 1.0),
            ("previous_action_dropout", 0.0, 1.0),
            ("observation_noise", 0.0, 1.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise InvalidError(f"{name} is {getattr(self, name)!r}; use {low:g} to {high:g}", field=name)
        if not isinstance(self.image, str) or not self.image:
            raise InvalidError(f"image is {self.image!r}; use a feature's path, 'auto' or 'none'", field="image")
        if not isinstance(self.image_size, str) or not (
            self.image_size == AUTO or SIZE_FORM.fullmatch(self.image_size)
        ):
            raise InvalidError(
                f"image_size is {self.image_size!r}; use height x width as in '48x64', or 'auto'",
                field="image_size",
            )
        if "image_shape" in self.model:
            raise InvalidError(
                "model: image_shape follows from the data; set image and image_size instead", field="image_size"
            )
        self.model_config(1, 1)

    def model_config(self, obs_dim: int, action_dim: int, image: ImageInput | None = None) -> CoreModelConfig:
        """Return the preset with the overrides, for observations of shape `[obs_dim]` and actions `[action_dim]`.

        `image` is what the model sees of the camera.

        Raises:
            InvalidError: an override is unknown or impossible, or the image is too large.
        """
        sizes = {"obs_dim": obs_dim, "action_dim": action_dim, "image_shape": image.shape if image else ()}
        try:
            return PRESETS[self.preset](**{**self.model, **sizes})
        except (ValueError, TypeError) as error:
            raise InvalidError(f"model: {error}", field="model") from error

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready mapping of all fields: the inverse of `from_dict`."""
        model = {name: list(value) if isinstance(value, tuple) else value for name, value in self.model.items()}
        return asdict(self) | {"model": model}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "TrainConfig":
        """Build a config from field values; fields left out keep their defaults.

        Raises:
            InvalidError: a key is unknown, or a value impossible.
        """
        require_known(document, [item.name for item in fields(cls)], "training")
        return cls(**document)


def require_known(document: Mapping[str, Any], known: Sequence[str], kind: str) -> None:
    """Check the keys of a document of settings; `kind` of them is for the message.

    Raises:
        InvalidError: a key is none of the known ones.
    """
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise InvalidError(
            f"unknown {kind} setting {', '.join(unknown)}; the settings are {', '.join(known)}", field=unknown[0]
        )


def _require_count(name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise InvalidError(f"{name} is {value!r}; use a positive integer", field=name)
