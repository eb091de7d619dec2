"""`manifest.json` of a bundle: what the model is, what it expects and gives, and which files make it up."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from brain_service.errors import CorruptDataError, InvalidError
from brain_service.pixels import ImageInput
from brain_service.spec import EpisodeSpec, Feature, vector_size

__all__ = ["HAILO_PARITY_CAP", "PARITY_CAP", "SCHEMA", "FileEntry", "Manifest", "Parity"]

SCHEMA = "1.0"

ADDED = frozenset({"image", "measured", "adapters"})
"""Keys that the first bundles of this schema do not have."""

PARITY_CAP: Mapping[str, float] = {"none": 1e-4, "fp16": 2e-2, "int8": 2e-2}
"""Largest parity bound by quantisation, as a share of the action range: no bundle may promise less."""

HAILO_PARITY_CAP = 2e-2
"""The same for what runs on a Hailo, whose arithmetic is quantised whatever the bundle's own quantisation is."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """Size and SHA-256 (hex) of one file of the bundle."""

    size_bytes: int
    sha256: str

    @staticmethod
    def of(data: bytes) -> "FileEntry":
        """Describe a file's content."""
        return FileEntry(len(data), hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class Parity:
    """Largest difference to the reference outputs over the golden sequence, as a share of the action range.

    `measured` was found at export; a backend that exceeds `bound` on the robot is not used.
    """

    measured: float
    bound: float


@dataclass(frozen=True, slots=True)
class Manifest:
    """A bundle's description.

    `action_low` and `action_high` are the limits of the flat action vector [A] in raw units; every answered
    action lies between them. `normalisation` maps names to flat float lists. `carry` gives the size of each
    carry array of one session, in the order in which they are packed. `parity` is by form: `jax` is
    `step.jaxexport`, `onnx` is `model.onnx`, and `switch` is a session that moves from one form to another.
    `control_period_s` is the median step of the training data, None where unknown. `measured` is by form, for
    information: `drift`, as parity but over a long sequence and without a bound, and `step_us` on the exporting
    machine. `adapters` says of a fine-tuned model which adapters were merged into which base: `sha256`, `base`,
    `base_sha256`, `rank`, `alpha`, `layers`.
    `image` says which image of the observation the model sees and to which size it is shrunk.
    """

    config: Mapping[str, Any]
    spec: EpisodeSpec
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    normalisation: Mapping[str, tuple[float, ...]]
    carry: Mapping[str, int]
    action_horizon: int
    control_period_s: float | None
    parity: Mapping[str, Parity]
    quantisation: str = "none"
    source_run: str = ""
    evaluation: Mapping[str, Any] | None = None
    image: ImageInput | None = None
    created_ns: int = 0
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    adapters: Mapping[str, Any] | None = None
    files: Mapping[str, FileEntry] = field(default_factory=dict)
    model_id: str = ""
    schema: str = SCHEMA

    @property
    def observation_size(self) -> int:
        """Length of the flat observation vector, shape [D]."""
        return vector_size(self.spec.observation)

    @property
    def action_size(self) -> int:
        """Length of the flat action vector, shape [A]."""
        return vector_size(self.spec.action)

    @property
    def usual_reward(self) -> float:
        """The mean reward of the training data, in raw units: what stands for a reward that nobody told."""
        return float(self.normalisation.get("reward_mean", (0.0,))[0])

    def identity(self, params_sha256: str) -> str:
        """Return the model id: 16 hex digits over all that decides the model's actions.

        Config, specs, image, limits, normalisation, carry layout, quantisation and parameters; not the compiled
        forms, nor what was measured.
        """
        decisive = {
            "config": self.config,
            "spec": self.spec.to_json(),
            "limits": [self.action_low, self.action_high],
            "normalisation": self.normalisation,
            "carry": list(self.carry.items()),
            "action_horizon": self.action_horizon,
            "control_period_s": self.control_period_s,
            "quantisation": self.quantisation,
            "params": params_sha256,
        }
        if self.image is not None:
            decisive["image"] = self.image.to_json()
        text = json.dumps(decisive, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def with_files(self, files: Mapping[str, FileEntry], params: str) -> "Manifest":
        """Return this manifest with its files and the model id that follows; `params` names the parameters."""
        return replace(self, files=dict(sorted(files.items())), model_id=self.identity(files[params].sha256))

    def to_json(self) -> dict[str, Any]:
        """Return the JSON document."""
        document = {item.name: getattr(self, item.name) for item in fields(self)}
        document |= {
            "spec": self.spec.to_json(),
            "parity": {form: asdict(parity) for form, parity in self.parity.items()},
            "files": {name: asdict(entry) for name, entry in self.files.items()},
            "normalisation": {name: list(values) for name, values in self.normalisation.items()},
            "action_low": list(self.action_low),
            "action_high": list(self.action_high),
        }
        # Left out where there is none: so a bundle of before this key reads as it did.
        document.pop("image")
        if self.image is not None:
            document["image"] = self.image.to_json()
        return document

    @staticmethod
    def from_json(document: Any, source: str) -> "Manifest":
        """Parse and check a manifest; `source` names its file in errors.

        Raises:
            CorruptDataError: another schema, a missing or unknown key, or a value that cannot be.
        """
        if not isinstance(document, Mapping):
            raise CorruptDataError(f"{source}: not a JSON object")
        if document.get("schema") != SCHEMA:
            raise CorruptDataError(
                f"{source}: schema {document.get('schema')!r} cannot be read here, which knows {SCHEMA!r}; "
                "export the checkpoint again with this version"
            )
        known = {item.name for item in fields(Manifest)}
        missing, unknown = sorted(known - ADDED - document.keys()), sorted(document.keys() - known)
        if missing or unknown:
            raise CorruptDataError(f"{source}: missing keys {missing}, unknown keys {unknown}")
        try:
            manifest = Manifest(**{name: _PARSERS.get(name, _same)(document[name]) for name in document})
        except (TypeError, ValueError, AttributeError, InvalidError) as error:
            raise CorruptDataError(f"{source}: {error}") from error
        manifest._check(source)
        return manifest

    def _check(self, source: str) -> None:
        cap = PARITY_CAP.get(self.quantisation)
        low, high = self.action_low, self.action_high
        finite = all(math.isfinite(value) for value in (*low, *high))
        problems = {
            f"quantisation {self.quantisation!r} is none of {', '.join(PARITY_CAP)}": cap is None,
            f"{len(low)} and {len(high)} action limits for an action of {self.action_size}": not (
                len(low) == len(high) == self.action_size
            ),
            "an action limit is not finite, or low exceeds high": not finite
            or any(a > b for a, b in zip(low, high, strict=False)),
            f"action_horizon {self.action_horizon!r} is not a positive integer": not _positive(
                self.action_horizon
            ),
            f"carry {dict(self.carry)!r} needs positive integer sizes": not self.carry
            or not all(map(_positive, self.carry.values())),
            f"control_period_s {self.control_period_s!r} is neither null nor positive": not (
                self.control_period_s is None
                or (type(self.control_period_s) in (int, float) and self.control_period_s > 0)
            ),
            f"image {self.image} is not the config's and the spec's": not self._image_fits(),
            f"created_ns {self.created_ns!r} is not an integer": type(self.created_ns) is not int,
            f"adapters {self.adapters!r} name no sha256": self.adapters is not None
            and not (isinstance(self.adapters, Mapping) and isinstance(self.adapters.get("sha256"), str)),
            f"a parity bound is above the cap {cap} for quantisation {self.quantisation!r}": any(
                not parity.bound <= (HAILO_PARITY_CAP if form == "hailo" else cap or 0.0)
                for form, parity in self.parity.items()
            ),
        }
        for problem, present in problems.items():
            if present:
                raise CorruptDataError(f"{source}: {problem}")

    def _image_fits(self) -> bool:
        shape = tuple(self.config.get("image_shape", ()))
        if self.image is None:
            return not shape
        feature = self.spec.observation.get(self.image.path)
        return shape == self.image.shape and feature == Feature("image", self.image.source)


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _same(value: Any) -> Any:
    return value


def _floats(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


_PARSERS: Mapping[str, Callable[[Any], Any]] = {
    "spec": EpisodeSpec.from_json,
    "action_low": _floats,
    "action_high": _floats,
    "normalisation": lambda document: {name: _floats(values) for name, values in document.items()},
    "carry": lambda document: dict(document.items()),
    "image": lambda document: None if document is None else ImageInput.from_json(document),
    "parity": lambda document: {form: Parity(**parity) for form, parity in document.items()},
    "measured": lambda document: {
        form: {name: float(value) for name, value in figures.items()} for form, figures in document.items()
    },
    "files": lambda document: {name: FileEntry(**entry) for name, entry in document.items()},
}
