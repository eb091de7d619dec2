"""One stored episode: its columns and metadata as the flat `tf.train.Example` that TFDS writes and reads.

Names below an episode are joined with `/`, values are flattened over time, booleans and integers become int64,
text becomes UTF-8 bytes, an image is the bytes of its PNG or JPEG file.
Source: `tensorflow_datasets.core.example_serializer`.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import orjson

from brain_service.datasets.columns import Column, Columns
from brain_service.datasets.example import Values, decode_example, encode_parts
from brain_service.episodes.disclosure import Safety, Share
from brain_service.episodes.reader import Episode
from brain_service.errors import CorruptDataError, InvalidError
from brain_service.spec import Feature

__all__ = [
    "METADATA_FEATURES",
    "decode_episode",
    "encode_episode",
    "encode_episode_parts",
    "episode_fields",
    "episode_metadata",
]

METADATA_FEATURES: dict[str, Feature] = {
    "created_ns": Feature("int64"),
    "end": Feature("text"),
    "environment_id": Feature("text"),
    "episode_id": Feature("text"),
    "metadata_json": Feature("text"),
    "robot_id": Feature("text"),
    "safety_intended_audience": Feature("text"),
    "safety_pending_review": Feature("bool"),
    "safety_pii_attested": Feature("bool"),
    "safety_pii_cleared": Feature("bool"),
    "safety_pii_redacted": Feature("bool"),
    "share_license": Feature("text"),
    "share_public": Feature("bool"),
    "share_slug": Feature("text"),
    "share_title": Feature("text"),
    "xr_mode": Feature("text"),
}
"""`episode_metadata`: scalars only, since some loaders take nothing else; `metadata_json` holds all the rest.

Of the safety and share records the scalars stand here as well, so that a loader can filter by them; where an
episode has no such record they are the seed's defaults: nothing attested, a review pending, not public.
"""

Metadata = dict[str, str | int]
_EMPTY: Metadata = {name: "" if feature.dtype == "text" else 0 for name, feature in METADATA_FEATURES.items()}


def episode_metadata(episode: Episode) -> Metadata:
    """Return the stored metadata of an episode; what has no field of its own is kept in `metadata_json`.

    Raises:
        InvalidError: the metadata holds something JSON has no form for.
    """
    rest = dict(episode.metadata)
    created_ns = rest.pop("created_ns", None)
    if not isinstance(created_ns, int) or created_ns.bit_length() > 63:
        created_ns = int(episode.timestamp_ns[0])
    known = {name: str(rest.pop(name, None) or "") for name in ("environment_id", "robot_id", "xr_mode")}
    rest.pop("episode_id", None)
    try:
        kept = orjson.dumps(rest, option=orjson.OPT_SORT_KEYS | orjson.OPT_SERIALIZE_NUMPY, default=str)
    except TypeError as error:
        raise InvalidError(f"metadata has no JSON form: {error}", field="metadata") from error
    return {
        "created_ns": created_ns,
        "end": episode.end or "open",
        "episode_id": episode.episode_id,
        "metadata_json": kept.decode(),
        **known,
        **_scalars(rest.get("safety"), Safety, "safety"),
        **_scalars(rest.get("share"), Share, "share"),
    }


def _scalars(document: Any, kind: type[Safety] | type[Share], prefix: str) -> Metadata:
    """Return the members of a record that are scalars; a record that is none counts as not given."""
    try:
        record = kind() if document is None else msgspec.convert(document, kind)
    except msgspec.ValidationError:
        record = kind()
    names = (name for name in METADATA_FEATURES if name.startswith(f"{prefix}_"))
    return {name: getattr(record, name.removeprefix(f"{prefix}_")) or _EMPTY[name] for name in names}


def encode_episode(columns: Columns, metadata: Metadata) -> bytes:
    """Return the serialised example of an episode; equal episodes give equal bytes.

    Raises:
        InvalidError: a text has no UTF-8 form; names the feature.
    """
    return b"".join(encode_episode_parts(columns, metadata))


def encode_episode_parts(columns: Columns, metadata: Metadata) -> list[bytes | memoryview]:
    """Return what `encode_episode` does as parts to be written one after another; float arrays are not copied.

    Raises:
        InvalidError: a text has no UTF-8 form; names the feature.
    """
    values: dict[str, Values] = {f"steps/{name}": _flat(column, name) for name, column in columns.items()}
    for name, value in metadata.items():
        flat = np.array([value], np.int64) if isinstance(value, int) else [_utf8(value, name)]
        values[f"episode_metadata/{name}"] = flat
    return encode_parts(values)


def _flat(column: Column, name: str) -> Values:
    if isinstance(column, list):
        # Most texts of an episode are the same at every step.
        texts: set[str | bytes] = set(column)
        made = {text: text if isinstance(text, bytes) else _utf8(text, name) for text in texts}
        return [made[text] for text in column]
    return column.reshape(-1)


def _utf8(text: str, name: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidError(f"{name}: {text!r} has no UTF-8 form ({error.reason})", field=name) from error


def decode_episode(data: bytes, features: Mapping[str, Feature], length: int, name: str) -> Columns:
    """Parse an episode of `length` steps into columns of the features' shapes and dtypes.

    `name` stands for the record in errors.

    Raises:
        CorruptDataError: not an example, or a feature is missing, no UTF-8 text, or of another length or kind.
    """
    wanted = {f"steps/{path}" for path in features}
    return episode_fields(decode_example(data, name, wanted), features, length, name)


def episode_fields(
    values: Mapping[str, Values], features: Mapping[str, Feature], length: int, name: str
) -> Columns:
    """Return the columns of an episode whose example is decoded already, as `decode_episode` does.

    They are by path, in the features' shapes and dtypes.

    Raises:
        CorruptDataError: a feature is missing, no UTF-8 text, or of another length or kind.
    """
    return {path: _column(values, path, feature, length, name) for path, feature in features.items()}


def _column(values: Mapping[str, Values], path: str, feature: Feature, length: int, name: str) -> Column:
    flat: Any = values.get(f"steps/{path}")
    expected = length * int(np.prod(feature.shape, dtype=np.int64)) if feature.is_numeric else length
    kind = np.ndarray if feature.is_numeric else list
    if not isinstance(flat, kind) or len(flat) != expected:
        found = "nothing" if flat is None else f"{len(flat)} of kind {type(flat).__name__}"
        raise CorruptDataError(
            f"{name}: steps/{path} should hold {expected} values of {feature.dtype}, found {found}; "
            "convert the episodes again"
        )
    if feature.dtype == "image":
        return list(flat)
    if feature.dtype == "text":
        try:
            texts = {text: text.decode() for text in set(flat)}
        except UnicodeDecodeError as error:
            raise CorruptDataError(f"{name}: steps/{path} is no UTF-8 text: {error}") from error
        return [texts[text] for text in flat]
    return np.asarray(flat).reshape(length, *feature.shape).astype(feature.dtype, copy=False)
