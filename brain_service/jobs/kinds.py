"""Kinds of jobs: what may be asked for, and which stages it takes. A table; the work is in `stages`."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pydantic import ValidationError

from brain_service.errors import InvalidError
from brain_service.jobs.job import Lane
from brain_service.jobs.params import (
    ConvertParams,
    EvaluateParams,
    ExportParams,
    Params,
    PipelineParams,
    SanityCheckParams,
    TrainParams,
    UploadParams,
)
from brain_service.settings import CloudSettings

__all__ = ["KINDS", "Kind", "parse_params", "require_target", "stages_of"]


@dataclass(frozen=True, slots=True)
class Kind:
    """The parameters a kind of job takes and the stages it runs, in order.

    `away` are its stages where it trains on another machine; `lane` is the one of its first stage.
    """

    params: type[Params]
    stages: tuple[str, ...]
    summary: str
    away: tuple[str, ...] = ()
    lane: Lane = "work"


_RETURN_TRIP = ("upload", "launch", "fetch", "evaluate", "canary", "activate")


KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        "convert": Kind(ConvertParams, ("convert",), "Convert what was recorded into an RLDS dataset."),
        "evaluate": Kind(EvaluateParams, ("evaluate",), "Evaluate a checkpoint on held-out episodes."),
        "export": Kind(ExportParams, ("export", "canary"), "Export a checkpoint as a bundle to serve."),
        "pipeline": Kind(
            PipelineParams,
            ("health", "inventory", "convert", "train", "evaluate", "export", "canary", "activate"),
            "Run the whole loop: what was recorded becomes the model that is served.",
            ("health", "inventory", "convert", *_RETURN_TRIP),
        ),
        "sanity-check": Kind(
            SanityCheckParams, ("sanity_check",), "Check in under a minute that this machine trains the model."
        ),
        "train": Kind(
            TrainParams,
            ("health", "convert", "train"),
            "Train; an empty body takes all that was recorded. In the cloud the better model also comes back.",
            ("health", "convert", *_RETURN_TRIP),
        ),
        "upload": Kind(
            UploadParams, ("upload",), "Upload a dataset to the bucket of the settings.", lane="network"
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


def stages_of(kind: str, params: Params) -> tuple[str, ...]:
    """Return the stages of a job, in order: they depend on where it trains."""
    away = isinstance(params, TrainParams) and params.target != "local"
    return KINDS[kind].away if away else KINDS[kind].stages


def require_target(params: Params, cloud: CloudSettings) -> None:
    """Check that what a job needs of the cloud is set.

    Raises:
        InvalidError: a setting is missing; names it.
    """
    target = params.target if isinstance(params, TrainParams) else "local"
    needed = {"vertex": ("bucket", "project", "image"), "queued_resource": ("bucket", "project")}.get(target, ())
    if isinstance(params, UploadParams):
        needed = ("bucket",)
    missing = [f"cloud.{name}" for name in needed if getattr(cloud, name) is None]
    if missing:
        where = f"target {target!r}" if needed and target != "local" else "an upload"
        raise InvalidError(
            f"{where} needs {' and '.join(missing)}; set {'them' if len(missing) > 1 else 'it'} in brain.toml "
            "([cloud]) and restart, see docs/cloud.md",
            field="target" if target != "local" else None,
        )
