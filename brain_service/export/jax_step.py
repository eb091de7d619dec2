"""A checkpoint becomes a bundle: parameters, the compiled forms of its step, golden vectors, manifest."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from brain_service.errors import CorruptDataError, UnavailableError
from brain_service.export.bundle import GOLDEN, PARAMS, Manifest, write_bundle
from brain_service.export.forms import choose_forms
from brain_service.export.jax_form import model_step
from brain_service.export.measure import make_forms
from brain_service.export.parity import record_reference
from brain_service.export.policy import flat_params
from brain_service.export.quantise import quantise, require_quantisation
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import init_params
from brain_service.model.state import carry_shapes
from brain_service.pixels import ImageInput
from brain_service.spec import EpisodeSpec
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.normalisation import Normaliser

__all__ = ["PolicySource", "Progress", "export_jax", "export_policy"]

Progress = Callable[[int, int, str], None]
"""`(done, total, what begins now)`; may raise to end the export there."""


@dataclass(frozen=True)
class PolicySource:
    """All that a bundle is made from: the model, its parameters and scales, and the features it was trained on.

    `adapters` tells which ones are merged into the parameters, as the manifest has it.
    """

    config: CoreModelConfig
    params: Mapping[str, Any]
    normaliser: Normaliser
    spec: EpisodeSpec
    control_period_s: float | None
    adapters: Mapping[str, Any] | None = None
    image: ImageInput | None = None


def export_jax(
    checkpoint_dir: str | Path,
    models_dir: str | Path,
    *,
    step: int | None = None,
    quantisation: str = "none",
    forms: Sequence[str] = ("jax",),
    evaluation: Mapping[str, Any] | None = None,
    source_run: str = "",
    untrained: bool = False,
    progress: Progress = lambda *_: None,
) -> Path:
    """Export a checkpoint (the best or newest, or that of `step`) and return the bundle's folder.

    With `untrained` the parameters are fresh ones in place of the trained: the baseline that a closed-loop
    comparison needs. `evaluation` and `source_run` are recorded in the manifest. For the rest see `export_policy`.

    Raises:
        NotFoundError: there is no checkpoint.
        CorruptDataError: it cannot be restored, or as `export_policy` says.
        InvalidError: as `export_policy` says.
        UnavailableError: as `export_policy` says.
    """
    require_quantisation(quantisation)
    choose_forms(forms)
    loaded = load_checkpoint(checkpoint_dir, step)
    params = init_params(loaded.config, jax.random.key(0)) if untrained else loaded.params
    # An episode of one step has no period; none is recorded, so that none is warned about.
    period_s = loaded.control_period_s if loaded.control_period_s > 0 else None
    adapters = None if untrained else loaded.meta.get("adapters")
    return export_policy(
        PolicySource(
            loaded.config, params, loaded.normaliser, loaded.spec, period_s, adapters, image=loaded.image
        ),
        Path(models_dir),
        quantisation=quantisation,
        forms=forms,
        evaluation=evaluation,
        source_run=source_run or Path(checkpoint_dir).name,
        progress=progress,
    )


def export_policy(
    source: PolicySource,
    models_dir: Path,
    *,
    quantisation: str = "none",
    forms: Sequence[str] = ("jax",),
    evaluation: Mapping[str, Any] | None = None,
    source_run: str = "",
    progress: Progress = lambda *_: None,
) -> Path:
    """Write the bundle of a model in memory and return its folder.

    The bundle holds each of `forms` (names of `FORMS`; `jax` always), with what it measured against the float
    model. Where the same model has a bundle already, the forms that it lacks are added to it.

    Raises:
        CorruptDataError: a parameter is not finite, or a form does not give the model's numbers.
        InvalidError: a form or the quantisation is not known, or the quantised actions are too far off.
        UnavailableError: a package is missing, or the bundle cannot be written; nothing half-written stays.
    """
    chosen = choose_forms(forms)
    config, normaliser, params = source.config, source.normaliser, flat_params(source.params)
    _require_finite(params)
    stored = quantise(params, quantisation)
    _require_writable(models_dir)
    begin = _counted(progress, 3 + 2 * len(chosen) + (len(chosen) > 1))
    begin("running the model")
    reference = record_reference(
        model_step(config, normaliser, params), carry_shapes(config), normaliser, config.image_shape
    )
    made = make_forms(chosen, config, normaliser, stored, quantisation, reference, begin)
    draft = Manifest(
        config=config.to_dict(),
        spec=source.spec,
        action_low=tuple(normaliser.action_low.tolist()),
        action_high=tuple(normaliser.action_high.tolist()),
        normalisation={name: tuple(values) for name, values in normaliser.to_dict().items()},
        carry=carry_shapes(config),
        action_horizon=config.action_horizon,
        control_period_s=source.control_period_s,
        parity=made.parity,
        quantisation=quantisation,
        source_run=source_run,
        evaluation=evaluation,
        image=source.image,
        measured=made.measured,
        adapters=source.adapters,
    )
    begin("writing")
    files = {PARAMS: save(stored), GOLDEN: reference.golden.to_bytes(), **made.files}
    path = models_dir / write_bundle(models_dir, draft, files)
    begin("done")
    return path


def _counted(progress: Progress, total: int) -> Callable[[str], None]:
    """Return what announces each piece of work as it begins, and the end as one more."""
    done = iter(range(total))
    return lambda label: progress(next(done), total - 1, label)


def _require_finite(params: Mapping[str, np.ndarray[Any, np.dtype[Any]]]) -> None:
    for name, array in params.items():
        if not np.isfinite(array).all():
            raise CorruptDataError(
                f"parameter {name} holds NaN or an infinity: the training diverged; export an earlier step "
                "(--step), or train again with a lower learning rate"
            )


def _require_writable(models_dir: Path) -> None:
    # Asked before minutes of compiling, and by writing: the rights of a path do not tell of a read-only medium.
    folder = next(each for each in (models_dir, *models_dir.absolute().parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UnavailableError(f"cannot write a bundle into {models_dir}: {error}; fix the folder") from error
