"""Where a fine-tuning stands, in one file that a kill leaves whole: adapters, moments, the best ones, the step.

The file is replaced in one step, and the hash of its numbers is in it: what does not hold is not gone on from.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from brain_service.durable import make_directory, write_atomic
from brain_service.errors import CorruptDataError, InvalidError, UnavailableError
from brain_service.training.held_out import Standing

__all__ = ["STATE_FILE", "RunState", "base_source", "restore_state", "save_state"]

STATE_FILE = "state.safetensors"
SCHEMA = "continuon-brain/adapter-state/1"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass
class RunState:
    """What changes while adapters are trained; the batches are a function of `step`."""

    parameters: Sequence[nn.Parameter]
    optimiser: torch.optim.AdamW
    best: list[Float32[Tensor, "..."]]
    """The adapters at the best held-out loss, in the order of `parameters`; empty where nobody looked yet."""
    base_source: str = ""
    """Where the base was read from: a run that goes on takes it from there, whatever is active by then."""
    step: int = 0
    worked_s: float = 0.0
    standing: Standing = field(default_factory=Standing)

    def keep_best(self) -> None:
        """Remember the adapters as they are now."""
        self.best = [parameter.detach().clone() for parameter in self.parameters]

    def take_best(self) -> None:
        """Make the best adapters the model's; without any, the last ones stay."""
        with torch.no_grad():
            for parameter, best in zip(self.parameters, self.best, strict=False):
                parameter.copy_(best)


def save_state(folder: Path, state: RunState, identity: Mapping[str, Any]) -> None:
    """Write the state durably; `identity` says what the run is.

    Raises:
        UnavailableError: the medium is full or read-only; the state before is still there.
    """
    tensors: dict[str, Tensor] = {}
    for index, parameter in enumerate(state.parameters):
        tensors[f"adapter.{index}"] = parameter.detach()
        moments = state.optimiser.state.get(parameter, {})
        tensors |= {f"{name}.{index}": moments[name] for name in MOMENTS if name in moments}
    tensors |= {f"best.{index}": tensor for index, tensor in enumerate(state.best)}
    meta = {
        "schema": SCHEMA,
        "step": state.step,
        "worked_s": state.worked_s,
        "standing": state.standing.to_json(),
        "base_source": state.base_source,
        "identity": dict(identity),
        "sha256": _digest(tensors),
    }
    try:
        make_directory(folder)
        write_atomic(folder / STATE_FILE, save(tensors, {"state": json.dumps(meta)}))
    except OSError as error:
        raise UnavailableError(
            f"{folder / STATE_FILE}: {error.strerror}; make room, then start the run again"
        ) from error


def base_source(folder: Path) -> str | None:
    """Return where the run in `folder` found its base, None where there is no run.

    Raises:
        CorruptDataError: the file is damaged, or of a later version.
    """
    path = folder / STATE_FILE
    return str(_read(path)[0]["base_source"]) if path.is_file() else None


def restore_state(folder: Path, state: RunState, identity: Mapping[str, Any]) -> bool:
    """Put the state of `save_state` into the run's parts; false where there is none.

    Raises:
        InvalidError: it is of another run: other settings, another base or other data; names the difference.
        CorruptDataError: the file is damaged, or of a later version.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        return False
    meta, tensors = _read(path)
    before = meta.get("identity", {})
    differing = sorted(name for name in identity.keys() | before.keys() if identity.get(name) != before.get(name))
    if differing:
        name = differing[0]
        raise InvalidError(
            f"{path} was made with {name} {before.get(name)!r}, not {identity.get(name)!r}; give this run a name "
            "of its own",
            field=name,
        )
    with torch.no_grad():
        for index, parameter in enumerate(state.parameters):
            parameter.copy_(tensors[f"adapter.{index}"])
            moments: dict[str, Any] = {
                name: tensors[f"{name}.{index}"] for name in MOMENTS if f"{name}.{index}" in tensors
            }
            if moments:
                state.optimiser.state[parameter] = {"step": torch.tensor(float(meta["step"])), **moments}
    state.best = [tensors[f"best.{index}"] for index in range(len(state.parameters)) if f"best.{index}" in tensors]
    state.step, state.worked_s = int(meta["step"]), float(meta["worked_s"])
    state.standing = Standing.from_json(meta["standing"])
    return True


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt") as file:
            meta = json.loads((file.metadata() or {}).get("state", ""))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise CorruptDataError(f"{path}: {error}; remove the file to begin the run anew") from error
    if not isinstance(meta, dict) or meta.get("schema") != SCHEMA or meta.get("sha256") != _digest(tensors):
        raise CorruptDataError(
            f"{path}: its numbers are not what was written, or it is not of schema {SCHEMA}; remove the file to "
            "begin the run anew"
        )
    return meta, tensors


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
