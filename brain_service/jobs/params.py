"""Bodies of the POSTs that start jobs (/train, /convert and so on): frozen, and an unknown key is an error.

The names of presets, trainers and targets are written out here because this module is imported by the daemon,
which must not import the model's code; a test compares them with the real tables.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ConvertParams",
    "EvaluateParams",
    "ExportParams",
    "Params",
    "PipelineParams",
    "SanityCheckParams",
    "TrainParams",
    "UploadParams",
]

_DATASET = r"[a-z][a-z0-9_]{0,63}"

DatasetName = Annotated[str, Field(pattern=rf"^{_DATASET}$")]
"""What TFDS accepts as a dataset's name: lower-case letters, digits and `_`, a letter first."""

Quantization = Annotated[
    Literal["none", "fp16", "int8"], Field(description="How a bundle stores the weights of matrices.")
]

RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
"""The job that trained: one path component, never a path."""

DatasetRef = Annotated[str, Field(pattern=rf"^{_DATASET}(/[0-9]+\.[0-9]+\.[0-9]+)?$")]
"""`name` (its newest version) or `name/1.0.3`."""


FeaturePath = Annotated[str, Field(min_length=1, max_length=256)]
"""A feature's path in the observation."""

ImageSize = Annotated[str, Field(pattern=r"^([0-9]{1,5}x[0-9]{1,5}|auto)$")]
"""`<height>x<width>` in pixels, as in `48x64`."""


class Params(BaseModel):
    """What every job's parameters have in common: they are frozen and name every key they know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    priority: Literal["high", "normal", "low"] = Field(
        default="normal", description="Which of the jobs that wait starts first; none is interrupted for another."
    )


class ConvertParams(Params):
    """Every ended episode that was recorded becomes an RLDS dataset of TFRecord shards."""

    name: DatasetName = Field(
        default="episodes", description="The dataset's name; each conversion of something new is a new version."
    )
    profile: Literal["oxe", "rlds"] = Field(
        default="oxe", description="Where the last step's flags go: oxe one to one, rlds on a step of its own."
    )
    val_fraction: float = Field(default=0.1, ge=0, lt=1, description="Share of the episodes held out.")
    compress: bool = Field(default=False, description="Also write a gzip archive to send elsewhere.")
    drop_missing: bool = Field(
        default=False, description="Leave out episodes whose logs are gone; else the dataset keeps them."
    )


class TrainParams(Params):
    """An empty body trains the development preset on all that was recorded, on this machine.

    What is left out takes the trainer's own default.
    """

    preset: Literal["development", "pi5_optimized", "tpu_optimized", "tpu_large"] = Field(
        default="development", description="Size of the model."
    )
    steps: int | None = Field(
        default=None, ge=0, le=100_000_000, description="Gradient steps; 0 = the freshly initialised model."
    )
    mode: Literal["windows", "packed", "episodes", "streams"] | None = Field(
        default=None,
        description="What a row of a batch is: a random window, several short ones, a whole episode, or the next "
        "window of a stream whose state is carried over.",
    )
    batch_size: int | None = Field(default=None, gt=0, le=65_536, description="Sequences a gradient step.")
    sequence_length: int | None = Field(default=None, gt=0, le=65_536, description="Steps a sequence.")
    learning_rate: float | None = Field(default=None, gt=0, le=10, description="Peak of the schedule.")
    seed: int | None = Field(default=None, ge=0, lt=2**31, description="Initialisation and shuffling.")
    checkpoint_every: int | None = Field(
        default=None, gt=0, le=100_000_000, description="Steps between two checkpoints."
    )
    evaluate_every: int | None = Field(
        default=None, ge=0, le=100_000_000, description="Steps between two looks at the held-out loss; 0 = none."
    )
    patience: int | None = Field(
        default=None,
        ge=0,
        le=100_000_000,
        description="Looks without a better held-out loss before the run ends; 0 = all steps.",
    )
    image: FeaturePath | None = Field(
        default=None,
        description="Which image the model sees: a feature's path, `auto` (the only one, if there "
        "is one) or `none`.",
    )
    image_size: ImageSize | None = Field(
        default=None,
        description="Height and width it is shrunk to, by whole factors; left out: no side above 96 pixels.",
    )
    trainer: Literal["auto", "jax", "pytorch"] = Field(
        default="auto", description="Who trains; auto: decided by the hardware (`select_trainer`)."
    )
    target: Literal["local", "process", "vertex", "queued_resource"] = Field(
        default="local",
        description="Where: in this job; by the cloud's own program as a process here; on Vertex AI; on a queued "
        "resource.",
    )
    topology: str | None = Field(
        default=None,
        pattern=r"^v[0-9]+[a-z]*:[0-9]+(x[0-9]+){1,2}$",
        description="TPU slice in the cloud, as in `v5e:2x2`; left out: the setting.",
    )
    spot: bool | None = Field(
        default=None, description="Cheaper capacity that may be taken away; left out: the setting."
    )
    dataset: DatasetRef | None = Field(
        default=None, description="Train on this (`name` or `name/1.0.3`) instead of on all that was recorded."
    )


class UploadParams(Params):
    """Upload a dataset; an empty body takes the one that was converted last."""

    dataset: DatasetRef | None = Field(default=None, description="`name` or `name/1.0.3`; left out: the newest.")


class SanityCheckParams(Params):
    """A minute's look at whether this machine trains: on a dataset, or on numbers made up for it."""

    preset: Literal["development", "pi5_optimized", "tpu_optimized", "tpu_large"] = Field(
        default="development", description="Size of the model."
    )
    dataset: DatasetRef | None = Field(
        default=None, description="`name` or `name/1.0.3`; left out: made-up numbers of the sizes below."
    )
    obs_dim: int | None = Field(default=None, gt=0, le=65_536, description="Numbers of an observation.")
    action_dim: int | None = Field(default=None, gt=0, le=65_536, description="Numbers of an action.")
    max_steps: int = Field(default=30, ge=2, le=100_000, description="Gradient steps at most.")
    batch_size: int = Field(default=4, gt=0, le=65_536, description="Sequences a gradient step.")
    sequence_length: int = Field(default=32, ge=4, le=65_536, description="Steps a sequence.")
    image: FeaturePath = Field(default="none", description="Which image the model sees; see TrainParams.")
    image_size: ImageSize = Field(default="auto", description="Height and width of it; see TrainParams.")


class EvaluateParams(Params):
    """Compare a checkpoint's actions with those of held-out episodes."""

    checkpoint: RunId | None = Field(default=None, description="The run; left out: the newest.")
    dataset: DatasetRef | None = Field(default=None, description="`name` or `name/1.0.3`; left out: the newest.")
    split: Literal["train", "val"] = Field(default="val", description="Which episodes.")


class ExportParams(Params):
    """Turn a checkpoint into a bundle that can be served."""

    checkpoint: RunId | None = Field(default=None, description="The run; left out: the newest.")
    quantization: Quantization = "none"


class PipelineParams(TrainParams):
    """The whole loop: health, inventory, convert, train, evaluate, export, canary, activate."""

    activate: bool = Field(default=True, description="Serve the model once it passed the canary.")
    dry_run: bool = Field(
        default=False, description="Look at health and recordings, and tell what the other stages would run."
    )
    quantization: Quantization = "none"
