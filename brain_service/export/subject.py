"""A bundle as evaluation sees it."""

from collections.abc import Mapping
from typing import Any

from safetensors.numpy import load

from brain_service.errors import CorruptDataError
from brain_service.export.bundle import PARAMS, Bundle
from brain_service.export.quantise import dequantise
from brain_service.model.config import CoreModelConfig
from brain_service.training.evaluation.subject import Subject
from brain_service.training.normalisation import Normaliser
from brain_service.trees import unflatten

__all__ = ["bundle_subject"]


def bundle_subject(bundle: Bundle, trained_on: Mapping[str, Any] | None) -> Subject:
    """Return a bundle's model; `trained_on` is the dataset of its training where that is known.

    Raises:
        CorruptDataError: the bundle's config, scales or parameters cannot be read.
    """
    manifest = bundle.manifest
    try:
        config = CoreModelConfig.from_dict(manifest.config)
    except (ValueError, TypeError) as error:
        raise CorruptDataError(f"model {manifest.model_id}: config: {error}") from error
    return Subject(
        name=manifest.model_id,
        config=config,
        params=unflatten(dequantise(load(bundle.read(PARAMS)))),
        normaliser=Normaliser.from_dict(manifest.normalisation),
        spec=manifest.spec,
        trained_on=trained_on,
        image=manifest.image,
    )
