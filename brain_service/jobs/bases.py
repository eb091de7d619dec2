"""What is fine-tuned: a run or a model, by id or by path, and what is taken where none is named."""

from pathlib import Path

from safetensors.numpy import load

from brain_service.errors import InvalidError, NotFoundError
from brain_service.export.bundle import MANIFEST, PARAMS, Bundle, is_model_id, read_manifest
from brain_service.jobs.references import checkpoint_path
from brain_service.model.config import CoreModelConfig
from brain_service.settings import Settings
from brain_service.training.normalisation import Normaliser
from brain_service.training.torch_lora.base import LoraBase, checkpoint_base, params_sha256
from brain_service.trees import unflatten

__all__ = ["active_adapters", "active_model", "find_base"]


def find_base(settings: Settings, reference: str | None) -> LoraBase:
    """Return the base that `reference` names: a run's checkpoints or a bundle by path, a run or a model by id.

    None is the active model, else the newest checkpoint. A bundle whose weights are quantised stands for the
    checkpoint that it was made from: adapters need the numbers that were rounded away.

    Raises:
        NotFoundError: there is nothing of that name, or no model and no checkpoint at all.
        InvalidError: a quantised bundle's checkpoint is not here, or its config is not one that is known.
        CorruptDataError: what was found fails its hash, or its shapes are not its config's.
    """
    if reference is None:
        active = active_model(settings)
        folder = _newest_checkpoint(settings) if active is None else settings.models_dir / active
    else:
        folder = _folder(settings, reference)
    return _bundle_base(settings, folder) if (folder / MANIFEST).is_file() else checkpoint_base(folder)


def _newest_checkpoint(settings: Settings) -> Path:
    try:
        return checkpoint_path(settings, None)
    except NotFoundError as error:
        # "Train" alone would lead back here where it is PyTorch that trains.
        raise NotFoundError(
            "there is no model and no checkpoint yet to train adapters on; make one with trainer 'jax' "
            "('brain train', or POST /train), here or elsewhere, or name one as base_model_path",
            field="base_model_path",
        ) from error


def active_model(settings: Settings) -> str | None:
    """Return the id of the model that is active, None where none is."""
    try:
        return str((settings.models_dir / "active").readlink())
    except OSError:
        return None


def active_adapters(settings: Settings) -> str | None:
    """Return the SHA-256 of the adapters that were merged into the active model, None where there are none.

    Raises:
        CorruptDataError: the active model's manifest cannot be read.
    """
    model_id = active_model(settings)
    if model_id is None or not (settings.models_dir / model_id).is_dir():
        return None
    adapters = read_manifest(settings.models_dir / model_id).adapters
    return None if adapters is None else str(adapters["sha256"])


def _folder(settings: Settings, reference: str) -> Path:
    try:
        path = Path(reference).expanduser()
    except RuntimeError:  # the home of nobody known
        path = Path(reference)
    if path.is_dir():
        return path.resolve()
    if is_model_id(reference) and (settings.models_dir / reference).is_dir():
        return settings.models_dir / reference
    if (settings.checkpoints_dir / reference).is_dir() and "/" not in reference:
        return checkpoint_path(settings, reference)
    raise NotFoundError(
        f"base_model_path {reference!r} is no folder, no run below {settings.checkpoints_dir} and no model below "
        f"{settings.models_dir}; give a run's checkpoints or a bundle, by path or id",
        field="base_model_path",
    )


def _bundle_base(settings: Settings, folder: Path) -> LoraBase:
    bundle = Bundle.open(folder)
    manifest = bundle.manifest
    if manifest.quantisation != "none":
        source = settings.checkpoints_dir / manifest.source_run
        if not manifest.source_run or not source.is_dir():
            raise InvalidError(
                f"model {manifest.model_id} is quantised ({manifest.quantisation}) and the checkpoint it was made "
                f"from, run {manifest.source_run!r}, is not below {settings.checkpoints_dir}; bring that back, or "
                "choose another base_model_path",
                field="base_model_path",
            )
        return checkpoint_base(source)
    try:
        config = CoreModelConfig.from_dict(manifest.config)
    except (ValueError, TypeError) as error:
        raise InvalidError(f"model {manifest.model_id}: config: {error}", field="base_model_path") from error
    params = unflatten(load(bundle.read(PARAMS)))
    return LoraBase(
        name=f"model {manifest.model_id}",
        source=str(folder),
        config=config,
        params=params,
        normaliser=Normaliser.from_dict(manifest.normalisation),
        spec=manifest.spec,
        sha256=params_sha256(params),
    )
