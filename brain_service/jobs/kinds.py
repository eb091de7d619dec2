"""Kinds of jobs: what may be asked for, and which stages it takes. A table; the work is in `stages`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from brain_service.errors import InvalidError
from brain_service.jobs.params import (
    ConvertParams,
    EvaluateParams,
    ExportParams,
    Params,
    PipelineParams,
    SanityCheckParams,
    TrainParams,
)

__all__ = ["KINDS", "Kind", "parse_params"]


@dataclass(frozen=True, slots=True)
class Kind:
    """The parameters a kind of job takes and the stages it runs, in order."""

    params: type[Params]
    stages: tuple[str, ...]
    summary: str


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "convert": Kind(ConvertParams, ("convert",), "Convert what was recorded into an RLDS dataset."),
        "evaluate": Kind(EvaluateParams, ("evaluate",), "Evaluate a checkpoint on held-out episodes."),
        "export": Kind(ExportParams, ("export", "canary"), "Export a checkpoint as a bundle to serve."),
        "pipeline": Kind(
            PipelineParams,
            ("health", "inventory", "convert", "train", "evaluate", "export", "canary", "activate"),
            "Run the whole loop: what was recorded becomes the model that is served.",
        ),
        "sanity-check": Kind(
            SanityCheckParams, ("sanity_check",), "Check in under a minute that this machine trains the model."
        ),
        "train": Kind(
            TrainParams, ("health", "convert", "train"), "Train; an empty body takes all that was recorded."
        ),
    }
)


def parse_params(kind: str, params: Mapping[str, Any]) -> Params:
    """Return the checked parameters of a job of this kind, defaults filled in.

    Raises:
        InvalidError: the kind or a key is unknown, or a value is wrong; `field` names the first one.
    """
    if kind not in KINDS:
        raise InvalidError(f"kind {kind!r} is none of {', '.join(KINDS)}", field="kind")
    model = KINDS[kind].params
    try:
        return model.model_validate(dict(params))
    except ValidationError as error:
        first = error.errors()[0]
        field = "/".join(str(part) for part in first["loc"]) or "body"
        known = f"; known: {', '.join(model.model_fields)}" if first["type"] == "extra_forbidden" else ""
        raise InvalidError(f"{field}: {first['msg']}, got {first['input']!r}{known}", field=field) from error
