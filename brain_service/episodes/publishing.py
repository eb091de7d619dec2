"""An ended log becomes one JSON document, `<episode_id>.json`, where a logger is told so (`format="json"`).

The document is published before its log is removed. A crash between the two leaves both: readers then take the
document, and the next logger removes the log.
"""

from pathlib import Path
from typing import Any

import orjson

from brain_service.durable import fsync_directory, write_atomic
from brain_service.episodes.document import encode_document
from brain_service.episodes.log import io_problem
from brain_service.episodes.log_format import SCHEMA_VERSION, decode_line

__all__ = ["is_published", "publish_document"]

_HEAD_BYTES = 4096


def is_published(path: Path) -> bool:
    """Tell whether a log has outlived its own document; another file of that name is none.

    Raises:
        UnavailableError: the medium cannot read it.
    """
    target = path.with_suffix(".json")
    try:
        with target.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise io_problem(error, f"read {target}") from error
    own_id = b'"episode_id": %b' % orjson.dumps(path.stem)
    return head.startswith(b'{\n  "schema_version": ') and own_id in head


def publish_document(path: Path) -> Path:
    """Replace an ended log by one JSON document of the same content and return its path.

    Raises:
        CorruptDataError: the log is damaged.
        UnavailableError: the medium refuses; the log stays.
    """
    target = path.with_suffix(".json")
    try:
        with path.open("rb") as file:
            header, *steps, end = (decode_line(line) for line in file)
        document: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "metadata": {"episode_id": header["episode_id"], "created_ns": header["created_ns"]}
            | header["metadata"],
            "features": header["features"] or (steps[0]["features"] if steps else None),
            "steps": [{k: v for k, v in step.items() if k not in ("type", "features")} for step in steps],
            "end": end["reason"],
        }
        if "final_observation" in end:
            document["final_observation"] = end["final_observation"]
        write_atomic(target, encode_document(document))
        path.unlink()
        fsync_directory(path.parent)
    except OSError as error:
        raise io_problem(error, f"write {target}") from error
    return target
