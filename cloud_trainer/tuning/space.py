"""What may vary between trials, and how a trial's settings are drawn."""

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from brain_service.errors import InvalidError, NotFoundError
from brain_service.training.config import TrainConfig

__all__ = ["FLAGS", "Parameter", "Settings", "Space", "read_space", "to_arguments"]

Kind = Literal["double", "integer", "discrete", "categorical"]
Scale = Literal["linear", "log"]
Value = float | int | str
Settings = dict[str, Value]

FLAGS = {"learning_rate": "--learning-rate", "batch_size": "--batch-size", "sequence_length": "--sequence-length"}
"""Settings that have an option of their own; the others go through `--set`."""

# What the search itself decides.
_TAKEN = frozenset(
    {"steps", "seed", "checkpoint_every", "keep", "evaluate_every", "patience", "log_every", "model"}
)


@dataclass(frozen=True)
class Parameter:
    """One setting: a range (`double`, `integer`) on a scale, or one of some `values`.

    Raises:
        InvalidError: it cannot be drawn from; names what is wrong.
    """

    name: str
    type: Kind
    min: float = math.nan
    max: float = math.nan
    scale: Scale = "linear"
    values: tuple[Value, ...] = ()

    def __post_init__(self) -> None:
        known = {field.name for field in fields(TrainConfig)} - _TAKEN
        if self.name not in known:
            raise InvalidError(
                f"{self.name!r} is no setting that can be searched; use one of {', '.join(sorted(known))}",
                field=self.name,
            )
        if self.type not in get_args(Kind):
            raise InvalidError(
                f"{self.name}: type {self.type!r} is none of {', '.join(get_args(Kind))}", field=self.name
            )
        if self.type in ("double", "integer"):
            if not self.min < self.max:
                raise InvalidError(f"{self.name}: min {self.min} is not below max {self.max}", field=self.name)
            if self.scale not in get_args(Scale) or (self.scale == "log" and self.min <= 0):
                raise InvalidError(
                    f"{self.name}: scale {self.scale!r} from {self.min}; use 'linear', or 'log' above 0",
                    field=self.name,
                )
        elif len(set(self.values)) < 2:
            raise InvalidError(f"{self.name}: {list(self.values)} leaves no choice; give values", field=self.name)
        elif self.type == "discrete" and not all(isinstance(value, int | float) for value in self.values):
            raise InvalidError(
                f"{self.name}: discrete values are numbers, not {list(self.values)}", field=self.name
            )

    def draw(self, rng: np.random.Generator) -> Value:
        """Return a value, uniform over the scale."""
        if self.type in ("discrete", "categorical"):
            return self.values[int(rng.integers(len(self.values)))]
        position = rng.random()
        if self.scale == "log":
            value = math.exp(math.log(self.min) + position * (math.log(self.max) - math.log(self.min)))
        else:
            value = self.min + position * (self.max - self.min)
        if self.type == "integer":
            return int(min(max(round(value), self.min), self.max))
        return float(f"{value:.6g}")

    def parse(self, text: str) -> Value:
        """Return a value that was written as text; Vertex AI writes whole numbers as `16.0` too.

        Raises:
            InvalidError: it is none.
        """
        if self.type == "categorical":
            return text
        try:
            value = float(text)
        except ValueError as error:
            raise InvalidError(f"{self.name}: {text!r} is no number", field=self.name) from error
        whole = self.type == "integer" or (
            self.type == "discrete" and all(isinstance(v, int) for v in self.values)
        )
        return int(value) if whole else value


@dataclass(frozen=True)
class Space:
    """All that varies."""

    parameters: tuple[Parameter, ...]

    def draw(self, seed: int, trial: int) -> Settings:
        """Return the settings of a trial: the same for the same seed and number, whatever was drawn before."""
        rng = np.random.default_rng([seed, trial])
        return {parameter.name: parameter.draw(rng) for parameter in self.parameters}

    def to_json(self) -> list[dict[str, Any]]:
        """Return the space as a JSON-ready list."""
        return [
            {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in vars(parameter).items()
                # JSON has no NaN, which stands for no bound.
                if not (isinstance(value, float) and math.isnan(value))
            }
            for parameter in self.parameters
        ]


def read_space(path: Path) -> Space:
    """Read a TOML file: a table for each setting, with `type`, and `min`, `max` and `scale`, or `values`.

    Raises:
        NotFoundError: there is no such file.
        InvalidError: it is no TOML, or a table is wrong; names it.
    """
    try:
        document = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        raise NotFoundError(f"no search space at {path}; see cloud-trainer tune --help for one") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidError(f"{path}: {error}") from error
    if not document:
        raise InvalidError(f"{path} is empty; give a table for each setting that varies")
    return Space(tuple(_parameter(name, table) for name, table in sorted(document.items())))


def _parameter(name: str, table: Any) -> Parameter:
    known = {field.name for field in fields(Parameter)} - {"name"}
    if not isinstance(table, Mapping) or not table.keys() <= known or "type" not in table:
        raise InvalidError(f"{name}: {table!r}; use a table with type, min, max and scale, or values", field=name)
    values = table.get("values", ())
    if not isinstance(values, list | tuple):
        raise InvalidError(f"{name}: values {values!r} is no list", field=name)
    try:
        return Parameter(name, **{**table, "values": tuple(values)})
    except TypeError as error:
        raise InvalidError(f"{name}: {error}", field=name) from error


def to_arguments(settings: Mapping[str, Value]) -> list[str]:
    """Return settings as options of `python -m cloud_trainer`."""
    found: list[str] = []
    for name, value in sorted(settings.items()):
        if name in FLAGS:
            found += [FLAGS[name], repr(value)]
        elif name in ("preset", "mode"):
            found += [f"--{name}", str(value)]
        else:
            found += ["--set", f"{name}={_json(value)}"]
    return found


def _json(value: Value) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)
