"""More forms for a published bundle: the folder is written anew and takes the other's place in one step.

A bundle's files never change, and its id does not depend on its compiled forms. So a form that is made later, or
on another machine, gives a new folder under the same name.
"""

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from brain_service.durable import exchange_directory
from brain_service.errors import UnavailableError
from brain_service.export.bundle import PARAMS, Bundle, FileEntry, Manifest, Parity, write_manifest

__all__ = ["attach_files"]


def attach_files(bundle: Bundle, files: Mapping[str, bytes], parity: Mapping[str, Parity]) -> Bundle:
    """Publish the bundle with these files and parity figures added, or put in place of those of the same name.

    Files that stay are linked, not copied. Blocking.

    Raises:
        CorruptDataError: the manifest would not hold together.
        UnavailableError: the medium is full or read-only; the bundle is as it was.
    """
    kept = {name: entry for name, entry in bundle.manifest.files.items() if name not in files}
    manifest = replace(bundle.manifest, parity={**bundle.manifest.parity, **parity}).with_files(
        kept | {name: FileEntry.of(data) for name, data in files.items()}, PARAMS
    )
    Manifest.from_json(manifest.to_json(), "manifest draft")
    final = bundle.path.resolve()
    temporary = final.with_name(f".{final.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        for name in manifest.files:
            (temporary / name).parent.mkdir(exist_ok=True)
            if name in files:
                (temporary / name).write_bytes(files[name])
            else:
                _link(final / name, temporary / name)
        write_manifest(temporary, manifest)
        exchange_directory(temporary, final)
    except OSError as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(temporary)
        raise UnavailableError(f"cannot add to bundle {final}: {error}; free space or fix the folder") from error
    return Bundle.open(bundle.path)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # FAT, on some cards, knows no links.
        shutil.copyfile(source, target)
