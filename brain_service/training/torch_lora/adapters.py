"""Low-rank adapters on a model's linear layers: attach, merge, save and load.

On disk they are two files, which name each other by hash: `adapters.safetensors` with the numbers and
`adapters.json` with the rest. A kill at any instant leaves the old pair or the new one.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from brain_service.durable import fsync_directory, make_directory, write_atomic
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError, UnavailableError
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import Params
from brain_service.training.torch_lora.layers import Adapter, Linear
from brain_service.training.torch_lora.model import TorchCoreModel
from brain_service.training.torch_lora.parameters import base_parameters, nest

__all__ = [
    "AdapterSpec",
    "adapter_parameters",
    "attach",
    "default_layers",
    "layer_names",
    "load_adapters",
    "merged_params",
    "save_adapters",
]

SCHEMA = "continuon-brain/adapters/1"
DOCUMENT, FILE = "adapters.json", "adapters.safetensors"
NEXT = "adapters.next.safetensors"
"""The numbers of a save whose document may not be in place yet."""

DEFAULT_RANK = 4
DEFAULT_SHARE = 0.02
"""Adapters on the default layers are smaller than this share of the model's parameters."""
BY_WORTH = ("encoder.first", "encoder.second", "heads.out", "heads.first")
"""What reads the observation, then what acts: a task that moved is seen otherwise, and heads alone do not make up
for that (`tests/bench/learning/shifted.py`). An adapter before the state takes gradients through time, which makes
a step more than twice as long."""


@dataclass(frozen=True)
class AdapterSpec:
    """Which layers carry adapters, and of what size: each adds `alpha / rank * x A B` to its layer's output.

    `layers` are names of linear layers, or patterns: `heads`, `encoder.*`.

    Raises:
        InvalidError: the rank is not positive, alpha not a positive number, or no layer is named.
    """

    rank: int
    alpha: float
    layers: tuple[str, ...]

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise InvalidError(f"rank is {self.rank!r}; use a positive integer", field="rank")
        if type(self.alpha) not in (int, float) or not (isfinite(self.alpha) and self.alpha > 0):
            raise InvalidError(f"alpha is {self.alpha!r}; use a positive number", field="alpha")
        if not self.layers:
            raise InvalidError("no layer is named for adapters; name one, as in 'heads'", field="layers")


def layer_names(model: nn.Module) -> list[str]:
    """Return the names of the linear layers, which may carry adapters."""
    return list(_layers(model))


def _layers(model: nn.Module) -> dict[str, Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, Linear)}


def attach(model: TorchCoreModel, spec: AdapterSpec) -> None:
    """Give the named layers fresh adapters, which change no output yet, and freeze all other parameters.

    Adapters that the model carries are taken away. Torch's default generator draws the numbers.

    Raises:
        InvalidError: a pattern matches no linear layer, or a layer is narrower than the rank. Nothing was changed.
    """
    layers = _layers(model)
    chosen = _chosen(layers, spec.layers)
    for name in chosen:
        width = min(layers[name].kernel.shape)
        if spec.rank > width:
            raise InvalidError(
                f"rank {spec.rank} is above the width of layer {name}, {width}; lower the rank or leave "
                "the layer out",
                field="rank",
            )
    for layer in layers.values():
        layer.adapter = None
    model.requires_grad_(False)
    for name in chosen:
        layer = layers[name]
        inputs, outputs = layer.kernel.shape
        layer.adapter = Adapter(inputs, outputs, spec.rank, spec.alpha / spec.rank).to(layer.kernel.device)


def _chosen(names: Iterable[str], patterns: tuple[str, ...]) -> list[str]:
    chosen = set()
    for pattern in patterns:
        found = [name for name in names if fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")]
        if not found:
            raise InvalidError(
                f"layer {pattern!r} matches no linear layer of this model; it has {', '.join(names)}",
                field="layers",
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def adapter_parameters(model: TorchCoreModel) -> list[nn.Parameter]:
    """Return the adapters' parameters, in the order of the model's layers: what is trained."""
    return list(_named(model).values())


def _named(model: TorchCoreModel) -> dict[str, nn.Parameter]:
    return {
        f"{name}.{part}": value
        for name, layer in _layers(model).items()
        if layer.adapter is not None
        for part, value in layer.adapter.named_parameters()
    }


def merged_params(model: TorchCoreModel) -> Params:
    """Return a copy of the parameters as the JAX model's tree, each adapter added to its layer's kernel."""
    merged = base_parameters(model)
    with torch.no_grad():
        for name, layer in _layers(model).items():
            if layer.adapter is not None:
                merged[f"{name}.kernel"] = layer.kernel + layer.adapter.product()
    return nest(merged)


def default_layers(config: CoreModelConfig, rank: int = DEFAULT_RANK) -> tuple[str, ...]:
    """Return the layers to adapt by default: the worthiest whose adapters stay below 2 % of the parameters.

    Where not even one adapter of that rank does, as in a toy model, it is the first of them alone.
    """
    with torch.device("meta"):
        model = TorchCoreModel(config)
    room = DEFAULT_SHARE * sum(parameter.numel() for parameter in model.parameters())
    layers, chosen = _layers(model), []
    for name in BY_WORTH:
        size = rank * sum(layers[name].kernel.shape)
        if size < room:
            chosen.append(name)
            room -= size
    return tuple(chosen) or BY_WORTH[:1]


def save_adapters(
    folder: Path, model: TorchCoreModel, spec: AdapterSpec, *, base_sha256: str, extra: Mapping[str, Any]
) -> str:
    """Write the model's adapters and what they belong to; return the SHA-256 of their numbers.

    Raises:
        UnavailableError: the medium is full or read-only; what was saved before is still there.
    """
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in _named(model).items()}
    data = save(tensors)
    document = {
        "schema": SCHEMA,
        **asdict(spec),
        "base_sha256": base_sha256,
        "sha256": hashlib.sha256(data).hexdigest(),
        "shapes": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "extra": dict(extra),
    }
    try:
        make_directory(folder)
        write_atomic(folder / NEXT, data)
        # From here on the new pair counts: whoever reads looks for the document's hash in both files.
        write_atomic(folder / DOCUMENT, json.dumps(document, indent=2).encode())
        (folder / NEXT).replace(folder / FILE)
        fsync_directory(folder)
    except OSError as error:
        raise UnavailableError(f"adapters in {folder}: {error.strerror}; make room, then save again") from error
    return str(document["sha256"])


def load_adapters(folder: Path, model: TorchCoreModel, *, base_sha256: str) -> AdapterSpec:
    """Attach the adapters of `save_adapters` to their base; the base's other parameters are frozen.

    Raises:
        NotFoundError: there are none in the folder.
        CorruptDataError: the document cannot be read, or the numbers are not those that it names.
        InvalidError: they were trained for another base, or for layers of other shapes; the model is as it was.
    """
    document = _document(folder)
    tensors = _tensors(folder, document)
    if document["base_sha256"] != base_sha256:
        raise InvalidError(
            f"the adapters in {folder} belong to the base {document['base_sha256'][:12]}, this model is "
            f"{base_sha256[:12]}; load the base that they were trained on, or train adapters for this one",
            field="base_sha256",
        )
    spec = AdapterSpec(document["rank"], document["alpha"], tuple(document["layers"]))
    layers = _layers(model)
    wanted: dict[str, tuple[int, ...]] = {}
    for name in _chosen(layers, spec.layers):
        inputs, outputs = layers[name].kernel.shape
        wanted |= {f"{name}.down": (inputs, spec.rank), f"{name}.up": (spec.rank, outputs)}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(given.keys() | wanted.keys()):
        if given.get(name) != wanted.get(name):
            raise InvalidError(
                f"adapter {name} in {folder} has shape {given.get(name)}, this model wants {wanted.get(name)}; "
                "load the base that they were trained on",
                field=name,
            )
    attach(model, spec)
    with torch.no_grad():
        for name, parameter in _named(model).items():
            parameter.copy_(tensors[name])
    return spec


def _document(folder: Path) -> dict[str, Any]:
    path = folder / DOCUMENT
    try:
        document = json.loads(path.read_bytes())
        if document["schema"] != SCHEMA:
            raise CorruptDataError(f"{path} is not of schema {SCHEMA}; train the adapters again")
        for name, kind in (("base_sha256", str), ("sha256", str), ("layers", list)):
            if not isinstance(document[name], kind):
                raise TypeError(f"{name} is {document[name]!r}")
        AdapterSpec(document["rank"], document["alpha"], tuple(document["layers"]))
    except FileNotFoundError as error:
        raise NotFoundError(f"{folder} holds no adapters; train some first") from error
    except (OSError, ValueError, TypeError, KeyError, InvalidError) as error:
        raise CorruptDataError(f"{path}: {error}; train the adapters again") from error
    found: dict[str, Any] = document
    return found


def _tensors(folder: Path, document: Mapping[str, Any]) -> dict[str, Tensor]:
    for name in (FILE, NEXT):
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CorruptDataError(f"{folder / name}: {error}; train the adapters again") from error
        if hashlib.sha256(data).hexdigest() == document["sha256"]:
            try:
                tensors: dict[str, Tensor] = load(data)
                return tensors
            except SafetensorError as error:
                raise CorruptDataError(f"{folder / name}: {error}; train the adapters again") from error
    raise CorruptDataError(
        f"{folder / FILE}: missing, or its SHA-256 is not the document's; train the adapters again"
    )
