"""Who may see an episode: the `safety` and `share` records of the seed's schema, and plain JSON in a header.

    safety  {content_rating{audience, violence, language}, intended_audience, pii_attested, pii_cleared,
            pii_redacted, pending_review, pii_attestation{pii_present, faces_present, name_present, consent}}
    share   {public, slug, title, license, tags}

Every member is optional and unknown ones are kept: the records travel with the episode, and whoever shares it
decides by them. A record that is not there attests nothing.
Source: the public prototype of the seed, `rlds-schema.md` (v1.1) and its episode logger.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec
import numpy as np
import orjson

from brain_service.errors import InvalidError
from brain_service.structs import prepared

__all__ = ["Safety", "Share", "plain_json", "read_record"]

MAX_RECORD_BYTES = 16 * 1024
# Deep enough for any record a person wrote; far below where Python's stack and the JSON writer give up.
MAX_DEPTH = 16

_Word = Annotated[str, msgspec.Meta(max_length=256)]
_Words = Annotated[list[_Word], msgspec.Meta(max_length=256)]
_INT64 = range(-(2**63), 2**64)


class ContentRating(msgspec.Struct):
    """How fit the content is for whom, in the seed's words: audience `general`, violence `none`, and so on."""

    audience: _Word = ""
    violence: _Word = ""
    language: _Word = ""


class PiiAttestation(msgspec.Struct):
    """What personal data a person says the episode holds, and whether those shown agreed."""

    pii_present: bool = False
    faces_present: bool = False
    name_present: bool = False
    consent: bool = False


@prepared
class Safety(msgspec.Struct):
    """The `safety` record; the defaults are the seed's: nothing attested, a review pending."""

    content_rating: ContentRating | None = None
    intended_audience: _Word = ""
    pii_attested: bool = False
    pii_cleared: bool = False
    pii_redacted: bool = False
    pending_review: bool = True
    pii_attestation: PiiAttestation | None = None


@prepared
class Share(msgspec.Struct):
    """The `share` record; an episode without one is private."""

    public: bool = False
    slug: _Word | None = None
    title: _Word | None = None
    license: _Word | None = None
    tags: _Words = []


_Record = TypeVar("_Record", Safety, Share)


def read_record(document: Any, kind: type[_Record], field: str) -> tuple[dict[str, Any], _Record]:
    """Return a record as plain JSON, as it was given, and its known members with their defaults.

    Raises:
        InvalidError: no map, over 16 KiB, or a known member has the wrong type; `field` (`safety`) begins the
            name of the wrong member.
    """
    plain = plain_json(document, field)
    if not isinstance(plain, dict):
        raise InvalidError(f"{field}: a record is an object, not {type(document).__name__}", field=field)
    size_bytes = len(orjson.dumps(plain))
    if size_bytes > MAX_RECORD_BYTES:
        raise InvalidError(
            f"{field}: the record has {size_bytes} bytes, the limit is {MAX_RECORD_BYTES}", field=field
        )
    try:
        return plain, msgspec.convert(plain, kind)
    except msgspec.ValidationError as error:
        where = str(error).partition(" - at `$")[2].rstrip("`").replace("[", "/").replace("]", "")
        raise InvalidError(f"{field}: {error}", field=f"{field}{where.replace('.', '/')}") from error


def plain_json(value: Any, field: str) -> Any:
    """Return `value` as what JSON reads back: maps, lists, text, finite numbers, booleans, None.

    NumPy values become numbers and lists, dataclasses maps, dates text.

    Raises:
        InvalidError: NaN, an infinity, an integer beyond 64 bits, text without UTF-8 form, a name that is no
            text, more than 16 levels, or an object that has no JSON form; the error names the member.
    """
    try:
        built = msgspec.to_builtins(value, builtin_types=(bytes, bytearray, memoryview), enc_hook=_from_numpy)
    except (TypeError, NotImplementedError, RecursionError) as error:
        raise InvalidError(f"{field}: no JSON form: {error}", field=field) from error
    _require_json(built, field, MAX_DEPTH)
    return built


def _from_numpy(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise NotImplementedError(f"{type(value).__name__} is none of JSON's kinds")


def _require_json(value: Any, field: str, depth: int) -> None:
    if depth < 0:
        raise InvalidError(f"{field} is nested deeper than {MAX_DEPTH} levels; flatten it", field=field)
    if isinstance(value, Mapping):
        for name, child in value.items():
            if not isinstance(name, str):
                raise InvalidError(f"{field}: the name {name!r} is no text", field=field)
            _require_text(name, field)
            _require_json(child, f"{field}/{name}", depth - 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for place, child in enumerate(value):
            _require_json(child, f"{field}/{place}", depth - 1)
    elif isinstance(value, str):
        _require_text(value, field)
    elif isinstance(value, float):
        if not np.isfinite(value):
            raise InvalidError(f"{field}: {value!r} has no JSON form", field=field)
    elif isinstance(value, int):
        if value not in _INT64:
            raise InvalidError(f"{field}: {value} is an integer beyond 64 bits; send it as text", field=field)
    elif value is not None:
        raise InvalidError(f"{field}: {type(value).__name__} has no JSON form", field=field)


def _require_text(text: str, field: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidError(f"{field}: the text has no UTF-8 form ({error.reason})", field=field) from error
