"""The images of an episode: files beside its log, each under the hash of its bytes.

    <episode_id>.jsonl                  the log; a step refers to `images/<sha256>.png`
    <episode_id>.images/<sha256>.png    the file as the camera made it

An image is written before the line that refers to it and flushed before that line is, so a step that is durable
has its images. The same picture is stored once; a retry and a still scene cost a comparison.
"""

import contextlib
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from brain_service.durable import fsync_directory
from brain_service.episodes.header import is_episode_id
from brain_service.episodes.log import io_problem
from brain_service.episodes.page_cache import bring_file_to_medium
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError, TooLargeError, UnavailableError
from brain_service.image_header import image_kind, is_reference, read_image_header
from brain_service.spec import EpisodeSpec, Feature, Leaf
from brain_service.trees import flatten

__all__ = [
    "FOLDER_SUFFIX",
    "ImageStore",
    "image_reference",
    "read_image",
    "remove_images",
    "split_images",
    "sweep_images",
]

FOLDER_SUFFIX = ".images"
_SETTLED_S = 60.0
_LOG_SUFFIXES = (".jsonl", ".jsonl.zst", ".json")


def image_reference(data: bytes) -> str:
    """Return the reference under which a PNG or JPEG is stored: `images/<sha256>.png` or `.jpg`."""
    return f"images/{hashlib.sha256(data).hexdigest()}.{image_kind(data) or 'png'}"


def split_images(values: Mapping[str, Leaf], spec: EpisodeSpec) -> tuple[dict[str, Leaf], dict[str, bytes]]:
    """Return the values of an observation with references in place of images, and the images by reference."""
    found: dict[str, bytes] = {}
    named = dict(values)
    for path in spec.image_paths:
        data = named[path]
        if isinstance(data, bytes):
            named[path] = reference = image_reference(data)
            found[reference] = data
    return named, found


class ImageStore:
    """The images of one episode. `put` is for one thread at a time; `sync` may run beside it.

    The folder is made with the first image. `written` is told how many bytes each write had.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.written: Callable[[int], None] = lambda _: None
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._unsynced: set[str] = set()
        # Flushing these failed: the kernel may have dropped their pages, so they are written anew.
        self._suspect: set[str] = set()
        self._verified: set[str] = set()
        self._parent_synced = False

    @staticmethod
    def beside(log: Path) -> "ImageStore":
        """Return the store of the episode whose log (or document) is `log`, compressed or not."""
        suffix = next((suffix for suffix in _LOG_SUFFIXES if log.name.endswith(suffix)), log.suffix)
        return ImageStore(log.with_name(log.name.removesuffix(suffix) + FOLDER_SUFFIX))

    def path(self, reference: str) -> Path:
        """Return the file of a reference.

        Raises:
            InvalidError: it is no reference, so nothing can be stored under it (nor outside the folder).
        """
        if not is_reference(reference):
            raise InvalidError(f"{reference!r} is no image reference: images/<sha256>.png or .jpg")
        return self.folder / reference.removeprefix("images/")

    def put(self, data: bytes, reference: str | None = None) -> str:
        """Store a PNG or JPEG and return its reference; `reference` saves hashing it again.

        Raises:
            UnavailableError: the medium refuses; nothing stays behind.
        """
        reference = reference or image_reference(data)
        path = self.path(reference)
        try:
            if self._create(path, data):
                self.written(len(data))
            elif not _holds(path, data):
                _overwrite(path, data)
                self.written(len(data))
        except OSError as error:
            raise io_problem(error, f"store an image of episode {self.folder.stem!r}") from error
        with self._lock:
            self._unsynced.add(reference)
        return reference

    def put_all(self, images: Mapping[str, bytes]) -> None:
        """Store images by their references.

        Raises:
            UnavailableError: the medium refuses; those before the refused one stay.
        """
        for reference, data in images.items():
            self.put(data, reference)

    def sync(self) -> None:
        """Flush what was put since the last time, the files first and then their names.

        Raises:
            UnavailableError: the medium refuses; the next call writes and flushes the same files again.
        """
        # Who comes while another flushes must not return before that is done: it took the names along.
        with self._flushing:
            self._sync()

    def _sync(self) -> None:
        with self._lock:
            waiting, self._unsynced = self._unsynced, set()
            suspect = self._suspect & waiting
        if not waiting:
            return
        try:
            for reference in sorted(waiting):
                _flush(self.path(reference), rewrite=reference in suspect)
            self._sync_names()
        except (OSError, CorruptDataError) as error:
            with self._lock:
                self._unsynced |= waiting
                self._suspect |= waiting
            if isinstance(error, CorruptDataError):
                raise UnavailableError(f"{error.detail}: the medium lost it before it was flushed") from error
            raise io_problem(error, f"flush the images of episode {self.folder.stem!r}") from error
        with self._lock:
            self._suspect -= waiting

    def sync_names(self) -> None:
        """Flush the folder's entries; after `verify` of the files this makes them durable.

        Raises:
            UnavailableError: the medium refuses.
        """
        try:
            if self.folder.is_dir():
                self._sync_names()
        except OSError as error:
            raise io_problem(error, f"flush the images of episode {self.folder.stem!r}") from error

    def read(self, reference: str) -> bytes:
        """Return an image's bytes, held against their hash.

        Raises:
            NotFoundError: it is not stored.
            CorruptDataError: the file is another than what was stored.
            UnavailableError: the medium cannot read it.
        """
        path = self.path(reference)
        try:
            data = path.read_bytes()
        except FileNotFoundError as error:
            raise NotFoundError(f"no image {path.name} in {self.folder.name}; was the folder copied?") from error
        except OSError as error:
            raise io_problem(error, f"read image {path.name}") from error
        _require_hash(path, data)
        return data

    def verify(self, reference: str) -> None:
        """Check that an image is stored whole, and bring its bytes to the medium, whoever wrote them.

        Raises:
            CorruptDataError: it is missing, or another than what was stored.
            UnavailableError: the medium cannot read or flush it.
        """
        try:
            with contextlib.suppress(FileNotFoundError):  # reading it says so
                bring_file_to_medium(self.path(reference))
            self.read(reference)
            self._verified.add(reference)
        except (NotFoundError, InvalidError) as error:
            raise CorruptDataError(error.detail) from error
        except OSError as error:
            raise io_problem(error, f"flush image {reference}") from error

    def verify_all(self, tree: Any, spec: EpisodeSpec) -> None:
        """Check that the images of a stored observation are whole, and bring them to the medium, each once.

        Raises:
            CorruptDataError: one is missing, or another than what was stored.
            UnavailableError: the medium cannot read or flush one.
        """
        if not spec.image_paths or tree is None:
            return
        values = flatten(tree, "observation")
        for path in spec.image_paths:
            if (reference := str(values.get(path))) not in self._verified:
                self.verify(reference)

    def require(self, reference: str, feature: Feature, field: str) -> None:
        """Check that a reference in a posted step names an image of this episode and of its feature's shape.

        Raises:
            InvalidError: it does not; `field` names it.
            UnavailableError: the medium cannot read it.
        """
        try:
            data = self.read(reference)
        except (NotFoundError, CorruptDataError) as error:
            raise InvalidError(
                f"{field}: this episode holds no whole {reference}; send its bytes", field=field
            ) from error
        _require_shape(data, reference, feature, field)

    def name_images(
        self,
        values: Mapping[str, Leaf],
        spec: EpisodeSpec,
        field: str,
        limit_bytes: int,
        staged: Mapping[str, bytes] | None = None,
    ) -> tuple[dict[str, Leaf], dict[str, bytes]]:
        """Return the values of a posted observation with references in place of images, and its images.

        Nothing is stored yet. `staged` are images that will be stored before these; `field` names the observation.

        Raises:
            TooLargeError: an image has more than `limit_bytes`.
            InvalidError: a reference names no image of this episode, or one of another shape.
            UnavailableError: the medium cannot read one.
        """
        named, found = split_images(values, spec)
        for path in spec.image_paths:
            given, reference = values[path], str(named[path])
            if isinstance(given, str) and (data := (staged or {}).get(reference)) is not None:
                _require_shape(data, reference, spec.observation[path], f"{field}/{path}")
            elif isinstance(given, str):
                self.require(reference, spec.observation[path], f"{field}/{path}")
            elif len(given) > limit_bytes:
                raise TooLargeError(
                    f"{field}/{path}: the image has {len(given)} bytes, the limit is {limit_bytes}; compress it",
                    field=f"{field}/{path}",
                )
        return named, found

    def load(self, values: Mapping[str, Leaf], spec: EpisodeSpec) -> dict[str, Leaf]:
        """Return the values of a stored observation with images in place of references.

        Raises:
            CorruptDataError: an image is missing, or another than what was stored.
            UnavailableError: the medium cannot read it.
        """
        loaded = dict(values)
        for path in spec.image_paths:
            reference = loaded[path]
            if isinstance(reference, str):
                try:
                    loaded[path] = self.read(reference)
                except NotFoundError as error:
                    raise CorruptDataError(f"observation/{path}: {error.detail}") from error
        return loaded

    def _create(self, path: Path, data: bytes) -> bool:
        """Write a new file; False if there is one of that name."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        try:
            fd = os.open(path, flags, 0o640)
        except FileExistsError:
            return False
        except FileNotFoundError:
            self.folder.mkdir(mode=0o750, exist_ok=True)
            fd = os.open(path, flags, 0o640)
        try:
            _write_all(fd, data)
        except OSError:
            path.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
        return True

    def _sync_names(self) -> None:
        fsync_directory(self.folder)
        # Once in each process: the one that made the folder may have died before it flushed the folder's name.
        if not self._parent_synced:
            fsync_directory(self.folder.parent)
            self._parent_synced = True


def _require_shape(data: bytes, reference: str, feature: Feature, field: str) -> None:
    shape = read_image_header(data, field).shape
    if shape != feature.shape:
        raise InvalidError(
            f"{field}: expected an image of shape {list(feature.shape)}, {reference} has {list(shape)}",
            field=field,
        )


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _holds(path: Path, data: bytes) -> bool:
    """Tell whether a file holds just `data`: one that a power cut tore has the name but not the bytes."""
    return path.stat().st_size == len(data) and path.read_bytes() == data


def _overwrite(path: Path, data: bytes) -> None:
    # Not truncated first: where the same bytes are written again, a power cut meanwhile must not lose them.
    fd = os.open(path, os.O_WRONLY)
    try:
        _write_all(fd, data)
        os.ftruncate(fd, len(data))
    finally:
        os.close(fd)


def _flush(path: Path, *, rewrite: bool) -> None:
    """Flush a file's bytes; with `rewrite` they are first written anew, so that the kernel holds them as dirty.

    Raises:
        CorruptDataError: to be rewritten, it no longer reads back as what was stored.
    """
    if rewrite:
        data = path.read_bytes()
        _require_hash(path, data)
        _overwrite(path, data)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fdatasync(fd)
    finally:
        os.close(fd)


def _require_hash(path: Path, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise CorruptDataError(f"{path}: the {len(data)} bytes do not have the hash of their name")


def read_image(root: Path, episode_id: str, name: str) -> bytes:
    """Return an image of an episode under `root` by the name of its file, such as `<sha256>.png`.

    Raises:
        NotFoundError: no such episode or image, or names that can be none.
        CorruptDataError: the file is another than what was stored.
        UnavailableError: the medium cannot read it.
    """
    reference = f"images/{name}"
    if not is_episode_id(episode_id) or not is_reference(reference):
        raise NotFoundError(f"no image {name!r} of an episode {episode_id!r}: steps name images by their hash")
    return ImageStore(root / f"{episode_id}{FOLDER_SUFFIX}").read(reference)


def remove_images(root: Path, episode_id: str) -> None:
    """Remove an episode's images; call it after its log is gone, since a log without its images is damaged.

    Raises:
        OSError: the medium refuses; `sweep_images` goes on at the next start.
    """
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(root / f"{episode_id}{FOLDER_SUFFIX}")


def sweep_images(root: Path) -> None:
    """Remove the images of episodes that were deleted when the process died between log and images.

    Raises:
        OSError: the directory cannot be read, or the medium refuses.
    """
    names = {path.name for path in root.iterdir()}
    for name in sorted(names):
        if not name.endswith(FOLDER_SUFFIX) or not (root / name).is_dir():
            continue
        # The episode may be just beginning again under its old id.
        if time.time() - (root / name).stat().st_mtime < _SETTLED_S:
            continue
        episode_id = name.removesuffix(FOLDER_SUFFIX)
        # `.jsonl.corrupt-1` and the quarantine may refer to them as well.
        kept = any(other.startswith(f"{episode_id}.") and other != name for other in names)
        if not kept and not any((root / "quarantine").glob(f"{episode_id}.*")):
            remove_images(root, episode_id)
