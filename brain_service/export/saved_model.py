"""A TensorFlow SavedModel of a bundle's step, beside the bundle: for users of TensorFlow, never for the daemon.

Two child processes do the work, so that TensorFlow's memory and faults stay out of this one: the first converts
(`saved_model_convert`), the second loads what was written as its users will, without the model's code, and
measures it against the golden sequence (`saved_model_check`). Needs the standard library and NumPy alone.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from brain_service.durable import publish_directory, remove_tree
from brain_service.errors import CorruptDataError, InvalidError, UnavailableError
from brain_service.export.bundle import MANIFEST, Bundle
from brain_service.export.manifest import PARITY_CAP, Manifest, Parity
from brain_service.spec import FeatureSpec

__all__ = ["SCHEMA", "Tensor", "export_saved_model", "require_tensorflow", "signature_inputs", "signature_outputs"]

SCHEMA = "continuon-brain/saved-model/1"

_TIMEOUT_S = 1800
_ENVIRONMENT = {"TF_CPP_MIN_LOG_LEVEL": "2", "JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "-1"}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One named float32 tensor of the signature: its shape, and the part and path that it stands for.

    `part` is `carry`, `observation`, `previous_action`, `previous_reward`, `is_first` or `action`.
    """

    name: str
    part: str
    path: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements: the product of the shape."""
        return prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return asdict(self) | {"shape": list(self.shape)}


def signature_inputs(manifest: Manifest) -> list[Tensor]:
    """Return what the step takes: the carry, one tensor a feature, reward and is_first; one row."""
    return _named(
        [
            *(("carry", name, (1, size)) for name, size in manifest.carry.items()),
            *_features("observation", manifest.spec.observation, (1,)),
            *_features("previous_action", manifest.spec.action, (1,)),
            ("previous_reward", "", (1,)),
            ("is_first", "", (1,)),
        ]
    )


def signature_outputs(manifest: Manifest) -> list[Tensor]:
    """Return what the step gives: the next carry under the names it is fed back by, and one tensor an action."""
    return _named(
        [
            *(("carry", name, (1, size)) for name, size in manifest.carry.items()),
            *_features("action", manifest.spec.action, (1, manifest.action_horizon)),
        ]
    )


def _features(part: str, spec: FeatureSpec, lead: tuple[int, ...]) -> list[tuple[str, str, tuple[int, ...]]]:
    return [(part, path, (*lead, *feature.shape)) for path, feature in spec.items() if feature.is_numeric]


def _named(parts: list[tuple[str, str, tuple[int, ...]]]) -> list[Tensor]:
    # TensorFlow takes no `/` in the name of an argument; of two paths that become one, the later gets a number.
    taken: dict[str, Tensor] = {}
    for part, path, shape in parts:
        wanted = re.sub(r"\W", "_", f"{part}_{path}" if path else part, flags=re.ASCII)
        name = wanted
        while name in taken:
            name = f"{wanted}_{len(taken)}"
        taken[name] = Tensor(name, part, path, shape)
    return list(taken.values())


def require_tensorflow() -> None:
    """Check that TensorFlow is installed, without importing it.

    Raises:
        UnavailableError: it is not; the message says how to install it.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise UnavailableError(
            "a SavedModel needs TensorFlow, which is not installed: pip install 'continuon-brain[tensorflow]'"
        )


def export_saved_model(bundle: Bundle, folder: Path) -> dict[str, Any]:
    """Write the SavedModel of a bundle as `folder`, replacing one of ours, and return its manifest. Blocking.

    Raises:
        CorruptDataError: TensorFlow's numbers are not the bundle's.
        InvalidError: the model sees images.
        UnavailableError: TensorFlow is missing or fails, the folder holds something else, or it cannot be written;
            nothing half-written stays.
    """
    if bundle.manifest.image is not None:
        raise InvalidError(
            f"model {bundle.manifest.model_id} sees the image {bundle.manifest.image.path!r}; the signature of a "
            "SavedModel holds numbers only. Use the ONNX form",
            field="format",
        )
    _require_replaceable(folder)
    require_tensorflow()
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        versions = _child("saved_model_convert", bundle.path, temporary)
        found = _child("saved_model_check", bundle.path, temporary)
        manifest = _manifest(bundle, temporary, versions, found)
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        if folder.exists():
            remove_tree(folder)
        publish_directory(temporary, folder)
    except OSError as error:
        raise UnavailableError(f"cannot write {folder}: {error}; free space or choose another folder") from error
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
    return manifest


def _require_replaceable(folder: Path) -> None:
    try:
        ours = not folder.exists() or json.loads((folder / MANIFEST).read_bytes()).get("schema") == SCHEMA
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise UnavailableError(f"{folder} holds something else than a SavedModel of ours; choose another folder")


def _manifest(
    bundle: Bundle, folder: Path, versions: Mapping[str, str], found: Mapping[str, float]
) -> dict[str, Any]:
    parity = Parity(found["measured"], PARITY_CAP[bundle.manifest.quantisation])
    # Written this way round so that NaN, which compares as false, is refused.
    if not parity.measured <= parity.bound:
        raise CorruptDataError(
            f"the SavedModel of {bundle.path} differs from the model by {parity.measured:.2e} of the action "
            f"range, the bound is {parity.bound:.0e}; this is a fault of the conversion: try another version of "
            "tensorflow"
        )
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        "schema": SCHEMA,
        "model_id": bundle.manifest.model_id,
        "quantisation": bundle.manifest.quantisation,
        "signature": "serving_default",
        "inputs": [tensor.to_json() for tensor in signature_inputs(bundle.manifest)],
        "outputs": [tensor.to_json() for tensor in signature_outputs(bundle.manifest)],
        "parity": asdict(parity),
        "step_us": found["step_us"],
        "versions": dict(versions),
        "files": {
            str(path.relative_to(folder)): {
                "size_bytes": path.stat().st_size,
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            }
            for path in files
        },
    }


def _child(module: str, *arguments: Path) -> Any:
    """Run a module of this package and return the JSON document of its last line of output."""
    command = [sys.executable, "-m", f"brain_service.export.{module}", *map(str, arguments)]
    try:
        done = subprocess.run(
            command, env=os.environ | _ENVIRONMENT, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"TensorFlow did not finish within {_TIMEOUT_S} s; try a smaller preset") from error
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UnavailableError(
            f"{module} failed: {reason}; see that jax and tensorflow fit each other (docs/export.md)"
        )
    return json.loads(done.stdout.splitlines()[-1])
