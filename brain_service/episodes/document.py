"""One JSON document an episode, as `EpisodeLogger(format="json")` publishes it; its last member is a checksum.

    {"schema_version": ..., "metadata": ..., "features": ..., "steps": [...], "end": ...,
      "crc32c": "1c2d3e4f"
    }

The checksum is the CRC-32C of the bytes before the comma that leads it in. A document without one is somebody
else's and is read as it is.
"""

import re
from collections.abc import Mapping
from typing import Any

import google_crc32c
import orjson

from brain_service.errors import CorruptDataError

__all__ = ["encode_document", "require_whole"]

_CHECKSUM = re.compile(rb',\n  "crc32c": "([0-9a-f]{8})"\n\}\Z')


def encode_document(document: Mapping[str, Any]) -> bytes:
    """Return the document as indented JSON with its checksum; it must have a member."""
    body = orjson.dumps(document, option=orjson.OPT_INDENT_2).removesuffix(b"\n}")
    return b'%b,\n  "crc32c": "%08x"\n}' % (body, google_crc32c.value(body))


def require_whole(data: bytes) -> None:
    """Check the checksum of a document that has one.

    Raises:
        CorruptDataError: it does not hold.
    """
    found = _CHECKSUM.search(data[-32:])
    if found is None:
        return
    body = data[: len(data) - len(found[0])]
    if b"%08x" % google_crc32c.value(body) != found[1]:
        raise CorruptDataError(
            f"checksum {google_crc32c.value(body):08x} where the document says {found[1].decode()}; "
            "if it was edited on purpose, remove its last member, crc32c"
        )
