"""A bundle on disk: `models/<model_id>/` with a manifest, parameters, a compiled step and golden vectors.

Content-addressed: the id follows from what decides the model's actions, so the same checkpoint exported twice
is one bundle. A bundle is verified before it is used. No file of a published one is ever changed; a form that it
did not have may be added, and the manifest that lists it then takes the old one's place in one step.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from brain_service.durable import make_directory, publish_directory, remove_tree, write_atomic
from brain_service.errors import CorruptDataError, NotFoundError, UnavailableError
from brain_service.export.manifest import FileEntry, Manifest, Parity

__all__ = [
    "GOLDEN",
    "HEF",
    "JAX_STEP",
    "MANIFEST",
    "ONNX_MODEL",
    "PARAMS",
    "Bundle",
    "FileEntry",
    "Golden",
    "Manifest",
    "Parity",
    "add_files",
    "is_model_id",
    "read_manifest",
    "write_bundle",
    "write_manifest",
]

MANIFEST = "manifest.json"
PARAMS = "params.safetensors"
JAX_STEP = "step.jaxexport"
ONNX_MODEL = "model.onnx"
HEF = "hailo/model.hef"
GOLDEN = "golden.npz"

_CHUNK_BYTES = 1 << 20
_MODEL_ID = re.compile(r"[0-9a-f]{16}")
# At the top, or in the one folder that a compiler for a device fills.
_FILE_NAME = re.compile(r"(hailo/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, eq=False)
class Golden:
    """A sequence of T steps with the reference outputs, all float32, in raw units.

    observation [T, D], previous_action [T, A], previous_reward [T], is_first [T], action [T, H, A]. Step t of a
    model that sees has image t modulo N of `image` [N, h, w, C], which is uint8.
    """

    observation: Floats
    previous_action: Floats
    previous_reward: Floats
    is_first: Floats
    action: Floats
    image: np.ndarray[Any, np.dtype[np.uint8]] | None = None

    def to_bytes(self) -> bytes:
        """Return the `.npz` form; the same arrays give the same bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, **{name: array for name, array in vars(self).items() if array is not None})
        return buffer.getvalue()

    def at(self, t: int) -> tuple[np.ndarray[Any, np.dtype[Any]], ...]:
        """Return the inputs of step `t`: observation, previous action and reward, is_first, the image if any.

        Their shapes are `[D]`, `[A]`, `[1]`, `[1]` and `[h, w, C]`.
        """
        now = (
            self.observation[t],
            self.previous_action[t],
            self.previous_reward[t : t + 1],
            self.is_first[t : t + 1],
        )
        return now if self.image is None else (*now, self.image[t % len(self.image)])

    @staticmethod
    def from_bytes(data: bytes, manifest: Manifest) -> "Golden":
        """Parse the `.npz` form and hold its shapes against the manifest.

        Raises:
            CorruptDataError: not an archive of these float32 arrays, or they do not fit the manifest.
        """
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as archive:
                golden = Golden(**{name: archive[name] for name in archive.files})
        except (ValueError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise CorruptDataError(f"{GOLDEN}: not an archive of the golden arrays: {error}") from error
        steps, size = len(golden.observation), manifest.action_size
        expected = {
            "observation": (steps, manifest.observation_size),
            "previous_action": (steps, size),
            "previous_reward": (steps,),
            "is_first": (steps,),
            "action": (steps, manifest.action_horizon, size),
        }
        for name, shape in expected.items():
            array = getattr(golden, name)
            if array.shape != shape or array.dtype != np.float32 or steps == 0:
                raise CorruptDataError(
                    f"{GOLDEN}: {name} is {array.dtype}{list(array.shape)}, expected float32{list(shape)}"
                )
        image, seen = golden.image, manifest.image
        found = None if image is None else (image.dtype.name, *image.shape[1:])
        if found != (None if seen is None else ("uint8", *seen.shape)) or (image is not None and not len(image)):
            raise CorruptDataError(f"{GOLDEN}: image is {found}, expected that of {seen}")
        return golden


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: its folder and manifest."""

    path: Path
    manifest: Manifest

    @staticmethod
    def open(path: Path) -> "Bundle":
        """Verify every listed file's size and SHA-256, and that the id follows from the content. Blocking.

        Raises:
            NotFoundError: there is no such folder.
            CorruptDataError: a file is missing, short or changed, or the manifest does not hold together; the
                message says which file and why.
        """
        manifest = read_manifest(path)
        for name, entry in manifest.files.items():
            _verify(path / name, entry)
        if PARAMS not in manifest.files or GOLDEN not in manifest.files:
            raise CorruptDataError(f"{path / MANIFEST}: lists no {PARAMS} or no {GOLDEN}")
        identity = manifest.identity(manifest.files[PARAMS].sha256)
        if identity != manifest.model_id:
            raise CorruptDataError(
                f"{path / MANIFEST}: its content is that of model {identity}, but it names {manifest.model_id}"
            )
        return Bundle(path, manifest)

    def read(self, name: str) -> bytes:
        """Return a listed file's content, verified once more as it is read. Blocking.

        Raises:
            NotFoundError: the manifest lists no such file.
            CorruptDataError: the file was changed or removed since the bundle was opened.
        """
        if name not in self.manifest.files:
            raise NotFoundError(f"{self.path}: has no {name}; it holds {', '.join(self.manifest.files)}")
        try:
            data = (self.path / name).read_bytes()
        except OSError as error:
            raise CorruptDataError(f"{self.path / name}: cannot be read: {error}") from error
        if FileEntry.of(data) != self.manifest.files[name]:
            raise CorruptDataError(f"{self.path / name}: changed while it was in use")
        return data

    def golden(self) -> Golden:
        """Return the golden sequence. Blocking.

        Raises:
            CorruptDataError: the file does not hold it.
        """
        return Golden.from_bytes(self.read(GOLDEN), self.manifest)


def is_model_id(text: str) -> bool:
    """Tell whether `text` has the form of a model id: 16 lower-case hex digits."""
    return _MODEL_ID.fullmatch(text) is not None


def read_manifest(path: Path) -> Manifest:
    """Read a bundle's manifest without verifying the files it lists. Blocking.

    Raises:
        NotFoundError: there is no such folder.
        CorruptDataError: the manifest is missing or cannot be.
    """
    if not path.is_dir():
        raise NotFoundError(f"no bundle at {path}")
    source = path / MANIFEST
    try:
        document = json.loads(source.read_bytes())
    except (OSError, ValueError) as error:
        raise CorruptDataError(f"{source}: cannot be read: {error}") from error
    if not isinstance(document, dict) or document.pop("checksum", None) != _checksum(document):
        raise CorruptDataError(f"{source}: its checksum does not hold; copy or export the bundle again")
    manifest = Manifest.from_json(document, str(source))
    for name in manifest.files:
        if not _FILE_NAME.fullmatch(name) or name == MANIFEST:
            raise CorruptDataError(f"{source}: {name!r} is not a file name inside the bundle")
    return manifest


def write_bundle(models_dir: Path, draft: Manifest, files: Mapping[str, bytes]) -> str:
    """Publish a bundle in `models_dir` and return its model id. Blocking.

    `draft` is the manifest without files and id. A bundle of the same id that verifies stays as it is and gets
    what it did not have (see `add_files`); one that does not verify is replaced.

    Raises:
        CorruptDataError: the draft does not hold together.
        UnavailableError: the medium is full or read-only; nothing half-written stays.
    """
    entries = {name: FileEntry.of(data) for name, data in files.items()}
    manifest = replace(draft, created_ns=draft.created_ns or time.time_ns()).with_files(entries, PARAMS)
    Manifest.from_json(manifest.to_json(), "manifest draft")
    Golden.from_bytes(files[GOLDEN], manifest)
    final = models_dir / manifest.model_id
    temporary = models_dir / f".{manifest.model_id}.{os.getpid()}.tmp"
    try:
        there = _whole(final) if final.is_dir() else None
        if there is not None:
            add_files(there, files, manifest)
            return manifest.model_id
        temporary.mkdir(parents=True)
        for name, data in files.items():
            (temporary / name).parent.mkdir(exist_ok=True)
            (temporary / name).write_bytes(data)
        (temporary / MANIFEST).write_bytes(_document(manifest))
        if final.exists():
            remove_tree(final)
        publish_directory(temporary, final)
    except OSError as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise UnavailableError(f"cannot write bundle {final}: {error}; free space or fix the folder") from error
    return manifest.model_id


def add_files(bundle: Bundle, files: Mapping[str, bytes], found: Manifest) -> Bundle:
    """Add what the bundle lacks of `files`, with the parity and the figures that `found` has of it. Blocking.

    A file that the bundle lists already is left as it is, and so are its figures. The manifest is replaced last
    and in one step: whoever reads meanwhile, or after a kill, sees the bundle as it was or as it becomes.

    Raises:
        CorruptDataError: the manifest would not hold together.
        UnavailableError: the medium is full or read-only; the bundle is as it was.
    """
    old = bundle.manifest
    new = {name: data for name, data in files.items() if name not in old.files}
    if not new:
        return bundle
    manifest = replace(
        old,
        files=dict(sorted({**old.files, **{name: FileEntry.of(data) for name, data in new.items()}}.items())),
        parity={**found.parity, **old.parity},
        measured={**found.measured, **old.measured},
    )
    Manifest.from_json(manifest.to_json(), str(bundle.path / MANIFEST))
    document = _document(manifest)
    try:
        for name, data in new.items():
            make_directory((bundle.path / name).parent)
            write_atomic(bundle.path / name, data)
        write_atomic(bundle.path / MANIFEST, document)
    except OSError as error:
        with contextlib.suppress(OSError):
            # Where the flush after the rename failed, the new manifest stands and its files must.
            if (bundle.path / MANIFEST).read_bytes() != document:
                for name in new:
                    (bundle.path / name).unlink(missing_ok=True)
        raise UnavailableError(
            f"cannot add {', '.join(new)} to {bundle.path}: {error}; free space or fix the folder"
        ) from error
    return Bundle(bundle.path, manifest)


def _document(manifest: Manifest) -> bytes:
    document = manifest.to_json()
    document["checksum"] = _checksum(document)
    return (json.dumps(document, indent=1) + "\n").encode()


def _checksum(document: Mapping[str, Any]) -> str:
    # Over the values, not the bytes: the files have their hashes in here, and this guards the rest of it.
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _whole(path: Path) -> Bundle | None:
    try:
        return Bundle.open(path)
    except CorruptDataError:
        return None


def _verify(path: Path, entry: FileEntry) -> None:
    digest, size_bytes = hashlib.sha256(), 0
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
    except OSError as error:
        raise CorruptDataError(f"{path}: listed in the manifest but cannot be read: {error}") from error
    if size_bytes != entry.size_bytes:
        raise CorruptDataError(f"{path}: {size_bytes} bytes, the manifest says {entry.size_bytes}")
    if not size_bytes:
        raise CorruptDataError(f"{path}: is empty; no file of a bundle is. Export or compile it again")
    if digest.hexdigest() != entry.sha256:
        raise CorruptDataError(f"{path}: its SHA-256 is not the manifest's; copy or export the bundle again")


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest of a bundle in the making.

    Raises:
        OSError: it cannot be written.
    """
    document = manifest.to_json()
    document["checksum"] = _checksum(document)
    (folder / MANIFEST).write_text(json.dumps(document, indent=1) + "\n")
