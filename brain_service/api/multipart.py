"""`multipart/form-data` bodies of steps: the JSON of a step and its images as parts beside it.

    step                        JSON of one step, without its images
    observation/camera          the bytes of a PNG or JPEG, under the path of its feature

or, for a batch, `steps` (a JSON array) and `steps/<n>/observation/camera`. It is what `curl -F` and every HTTP
library can send; the equivalent msgpack body goes the way of all others.
Source: RFC 7578.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from python_multipart import MultipartParser
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import parse_options_header

from brain_service.errors import InvalidError, MalformedError, TooLargeError

__all__ = ["parse_multipart"]

MAX_PARTS = 10_000
_MAX_NAME_LENGTH = 1024
# Beyond it the parsing is moved to a thread: it must not hold the event loop for longer than a step takes.
_INLINE_BYTES = 64 * 1024
_JSON_PARTS = ("step", "steps")


@dataclass(slots=True)
class _Part:
    headers: list[tuple[bytearray, bytearray]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)


@dataclass(slots=True)
class _Form:
    """What the parser tells of a form, call by call."""

    parts: list[_Part] = field(default_factory=list)
    ended: bool = False

    def begin(self) -> None:
        """Begin a part.

        Raises:
            TooLargeError: it is one too many.
        """
        if len(self.parts) == MAX_PARTS:
            raise TooLargeError(f"the form has more than {MAX_PARTS} parts; split it")
        self.parts.append(_Part())

    def begin_header(self) -> None:
        """Begin a header of the last part."""
        self.parts[-1].headers.append((bytearray(), bytearray()))

    def take_header_name(self, data: bytes, start: int, end: int) -> None:
        """Add bytes to the name of the last header."""
        self.parts[-1].headers[-1][0].extend(data[start:end])

    def take_header_value(self, data: bytes, start: int, end: int) -> None:
        """Add bytes to the value of the last header."""
        self.parts[-1].headers[-1][1].extend(data[start:end])

    def take_data(self, data: bytes, start: int, end: int) -> None:
        """Add bytes to the content of the last part."""
        self.parts[-1].data.extend(memoryview(data)[start:end])

    def end(self) -> None:
        """Note that the last boundary was there."""
        self.ended = True


async def parse_multipart(content_type: str, body: bytes) -> bytes:
    """Return the msgpack body that stands for a form; `content_type` is the header with its boundary.

    Raises:
        MalformedError: the header has no boundary, the form is cut short or garbled, or a JSON part is no JSON.
        InvalidError: a part is missing, unknown, given twice or belongs to no step; the error names it.
        TooLargeError: more than 10,000 parts.
    """
    if len(body) <= _INLINE_BYTES:
        return _to_msgpack(_read_parts(content_type, body))
    return await asyncio.to_thread(lambda: _to_msgpack(_read_parts(content_type, body)))


def _read_parts(content_type: str, body: bytes) -> dict[str, bytes]:
    """Return the parts by name, in their order.

    Raises:
        MalformedError: no boundary, no end, a part without a name, or garbled framing.
        InvalidError: two parts of one name.
        TooLargeError: more than 10,000 parts.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise MalformedError("multipart/form-data needs a boundary in its Content-Type; let the library set it")
    form = _Form()
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": form.begin,
                "on_header_begin": form.begin_header,
                "on_header_field": form.take_header_name,
                "on_header_value": form.take_header_value,
                "on_part_data": form.take_data,
                "on_end": form.end,
            },
        )
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise MalformedError(f"the body is no multipart form: {error}") from error
    if not form.ended:
        raise MalformedError("the form ends before its last boundary: it was cut short")
    found: dict[str, bytes] = {}
    for place, part in enumerate(form.parts):
        name = _part_name(part, place)
        if name in found:
            raise InvalidError(f"the part {name!r} is given twice", field=name)
        found[name] = bytes(part.data)
    return found


def _part_name(part: _Part, place: int) -> str:
    headers = {bytes(name).strip().lower(): bytes(value) for name, value in part.headers}
    name = parse_options_header(headers.get(b"content-disposition"))[1].get(b"name")
    if not name or len(name) > _MAX_NAME_LENGTH:
        raise MalformedError(
            f"part {place} has no name of 1-{_MAX_NAME_LENGTH} bytes in its Content-Disposition; "
            "name it 'step', 'steps' or by the path of its image"
        )
    return name.decode(errors="replace")


def _to_msgpack(parts: Mapping[str, bytes]) -> bytes:
    given = [name for name in _JSON_PARTS if name in parts]
    if len(given) != 1:
        found = ", ".join(list(parts)[:10]) or "nothing"
        raise InvalidError(
            f"a form holds one part 'step' (JSON of a step) or 'steps' (a JSON array); it holds {found}",
            field="step",
        )
    document = _decode_json(given[0], parts[given[0]])
    for name, data in parts.items():
        if name not in _JSON_PARTS:
            _place(document, name, data)
    try:
        return msgspec.msgpack.encode(document)
    except (OverflowError, ValueError, RecursionError) as error:
        raise InvalidError(
            f"{given[0]}: an integer beyond 64 bits, or too deep: {error}", field=given[0]
        ) from error


def _decode_json(name: str, data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise MalformedError(f"the part {name!r} is no JSON: {error}", field=name) from error


def _place(document: Any, name: str, data: bytes) -> None:
    """Put an image under its path into its step.

    Raises:
        InvalidError: the name is no path of an image, or its step is not there; names the part.
    """
    path = name
    if isinstance(document, list):
        prefix, _, path = name.removeprefix("steps/").partition("/")
        if not (name.startswith("steps/") and prefix.isascii() and prefix.isdigit() and len(prefix) <= 9):
            raise InvalidError(
                f"the part {name!r} belongs to no step; name it 'steps/<n>/observation/<path>'", field=name
            )
        if int(prefix) >= len(document):
            raise InvalidError(f"the part {name!r} is of step {prefix}, the array has {len(document)}", field=name)
        document = document[int(prefix)]
    part, _, path = path.partition("/")
    if part != "observation" or not path:
        raise InvalidError(f"the part {name!r} is no image; name it 'observation/<path>'", field=name)
    if not isinstance(document, dict):
        raise InvalidError(f"the part {name!r} belongs to a step that is no JSON object", field=name)
    observation = document.setdefault("observation", {})
    if not isinstance(observation, dict):
        raise InvalidError(f"the part {name!r} belongs to an observation that is no JSON object", field=name)
    if path in observation:
        raise InvalidError(f"{name} is given in the JSON and as a part", field=name)
    observation[path] = data
