"""The model that is adapted: read once, never written; its normalisation stays as it is."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from brain_service.datasets.dataset import Dataset
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params, init_params
from brain_service.spec import EpisodeSpec
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.normalisation import Normaliser

__all__ = ["LoraBase", "checkpoint_base", "params_sha256"]


@dataclass(frozen=True)
class LoraBase:
    """A model with all that its numbers depend on; `source` is where it was read from, for people and for merging.

    Raises:
        CorruptDataError: the parameters are not of the config's shapes; names the first that is not.
    """

    name: str
    source: str
    config: CoreModelConfig
    params: Params
    normaliser: Normaliser
    spec: EpisodeSpec
    sha256: str
    """Of the parameters, as `params_sha256` has it: what adapters are bound to."""

    def __post_init__(self) -> None:
        like = _named(jax.eval_shape(lambda: init_params(self.config, jax.random.key(0))))
        ours = _named(self.params)
        for name in sorted(like.keys() | ours.keys()):
            expected, found = (tuple(part[name].shape) if name in part else None for part in (like, ours))
            if expected != found:
                raise CorruptDataError(
                    f"{self.name}: parameter {name} has shape {found}, its config says {expected}; choose another "
                    "base_model_path"
                )

    def require_fit(self, dataset: Dataset) -> None:
        """Check that the dataset's features are those that the base was trained on.

        Raises:
            InvalidError: they are not; names the first that differs.
        """
        for part in ("observation", "action"):
            ours, theirs = getattr(self.spec, part), getattr(dataset.spec, part)
            if ours != theirs:
                names = sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))
                raise InvalidError(
                    f"{part}: {self.name} and {dataset.location} differ in {', '.join(names)}; adapters need the "
                    "very features of their base: train a new model on this dataset, or choose another "
                    "base_model_path",
                    field=f"{part}/{names[0]}",
                )


def checkpoint_base(folder: Path, step: int | None = None) -> LoraBase:
    """Return the best or newest checkpoint of a run, or that of `step`, as a base.

    Raises:
        NotFoundError: there is no checkpoint, or not that step.
        CorruptDataError: it fails its hash, cannot be read, or holds other shapes than its config says.
        InvalidError: its config is not one that this version knows.
    """
    loaded = load_checkpoint(folder, step)
    return LoraBase(
        name=f"run {folder.name}, step {loaded.step}",
        source=str(folder),
        config=loaded.config,
        params=loaded.params,
        normaliser=loaded.normaliser,
        spec=loaded.spec,
        sha256=params_sha256(loaded.params),
    )


def params_sha256(params: Params) -> str:
    """Return a hash over names, shapes and bits of all parameters; the same wherever they are stored."""
    digest = hashlib.sha256()
    for name, array in sorted(_named(params).items()):
        values = np.ascontiguousarray(array, np.float32)
        digest.update(f"{name} {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _named(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the leaves by their path, `encoder/dense/kernel`."""
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(getattr(part, "key", part)) for part in path): leaf for path, leaf in leaves}
