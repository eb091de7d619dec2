"""The first line of a capture log: what the episode is, who acts in it, and what its steps look like."""

import difflib
import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import msgspec
import orjson

from brain_service.episodes.disclosure import Safety, Share, plain_json, read_record
from brain_service.episodes.log_format import SCHEMA_VERSION
from brain_service.errors import InvalidError
from brain_service.spec import EpisodeSpec
from brain_service.structs import prepared

__all__ = [
    "CONTROL_ROLES",
    "Durability",
    "EpisodeHeader",
    "body_digest",
    "is_episode_id",
    "new_episode_id",
    "parse_role",
]

CONTROL_ROLES = ("expert", "intervention", "policy")
"""Who chose a step's action; imitation uses the first two, so that a policy never clones itself."""

_SEED_ROLES = {"human_teleop": "expert", "human_supervisor": "expert", "human_dev_xr": "expert"}

Durability = Literal["interval", "step", "episode"]

_NAMED_METADATA = frozenset(
    ("environment_id", "xr_mode", "control_role", "tags", "robot_id", "language_instruction", "safety", "share")
)

_Name = Annotated[str, msgspec.Meta(max_length=256)]
_Tags = Annotated[list[_Name], msgspec.Meta(max_length=256)]
_Sentence = Annotated[str, msgspec.Meta(max_length=4096)]

_EPISODE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def is_episode_id(text: str) -> bool:
    """Tell whether `text` is a file-name-safe id: letters, digits, `.`, `_`, `-`; at most 128, no dot first."""
    return _EPISODE_ID.fullmatch(text) is not None


def new_episode_id(created_ns: int) -> str:
    """Return an id that sorts by creation second (UTC), such as `20261122T201500-3f9a1c`."""
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(created_ns // 1_000_000_000))
    return f"{stamp}-{secrets.token_hex(3)}"


def body_digest(body: Mapping[str, Any]) -> str:
    """Return the SHA-256 in hex of the JSON that `body` was read from, whatever its order and spaces."""
    return hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS)).hexdigest()


def parse_role(name: str, field: str) -> str:
    """Return the control role, with the seed's names mapped to ours; `field` names it in errors.

    Raises:
        InvalidError: `name` is no role.
    """
    role = _SEED_ROLES.get(name, name)
    if role not in CONTROL_ROLES:
        known = ", ".join((*CONTROL_ROLES, *_SEED_ROLES))
        raise InvalidError(f"{field}: {name!r} is none of {known}", field=field)
    return role


@prepared
class _CreateBody(msgspec.Struct, forbid_unknown_fields=True):
    episode_id: str | None = None
    environment_id: _Name = "default"
    xr_mode: _Name = "trainer"
    control_role: _Name = "expert"
    tags: _Tags = []
    robot_id: _Name | None = None
    language_instruction: _Sentence = ""
    safety: Any = None
    share: Any = None
    metadata: dict[str, Any] = {}
    features: dict[str, Any] | None = None
    durability: Durability | None = None


@dataclass(frozen=True, slots=True)
class EpisodeHeader:
    """First line of a capture log. `control_role` is the role of steps that name none.

    `metadata` is what the caller adds; `features` is the declared spec, or None if the first step fixes it.
    `safety` and `share` are as they were given, see `disclosure`.
    `idempotency_key` names the request that created it and `body_sha256` that request's body.
    """

    episode_id: str
    created_ns: int
    environment_id: str = "default"
    xr_mode: str = "trainer"
    control_role: str = "expert"
    tags: tuple[str, ...] = ()
    robot_id: str | None = None
    language_instruction: str = ""
    safety: Mapping[str, Any] | None = None
    share: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    features: EpisodeSpec | None = None
    durability: Durability | None = None
    schema_version: str = SCHEMA_VERSION
    idempotency_key: str | None = None
    body_sha256: str | None = None

    @staticmethod
    def parse(body: Mapping[str, Any]) -> "EpisodeHeader":
        """Check the body of `POST /episodes`, fill in the id and the creation time.

        Raises:
            InvalidError: an unknown name (with the nearest known one), a wrong type, role, id or feature, a value
                beyond its bound or beyond JSON, or metadata under the name of a member.
        """
        known = _CreateBody.__struct_fields__
        for name in body:
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known)}"
                raise InvalidError(f"unknown member {name!r}; {hint} Free ones go into 'metadata'", field=name)
        try:
            given = msgspec.convert(dict(body), _CreateBody)
        except msgspec.ValidationError as error:
            where = str(error).rpartition("$.")[2].rstrip("`").replace("[", "/").replace("]", "")
            raise InvalidError(f"episode: {error}", field=where.replace(".", "/")) from error
        if given.episode_id is not None and not is_episode_id(given.episode_id):
            raise InvalidError(
                f"episode_id {given.episode_id!r}: use 1-128 letters, digits, '.', '_', '-', no dot first",
                field="episode_id",
            )
        for name in given.metadata:
            if name in _NAMED_METADATA:
                raise InvalidError(
                    f"metadata/{name} hides the episode's own {name!r}; give it there, or rename it",
                    field=f"metadata/{name}",
                )
        created_ns = time.time_ns()
        return EpisodeHeader(
            episode_id=given.episode_id or new_episode_id(created_ns),
            created_ns=created_ns,
            environment_id=given.environment_id,
            xr_mode=given.xr_mode,
            control_role=parse_role(given.control_role, "control_role"),
            tags=tuple(given.tags),
            robot_id=given.robot_id,
            language_instruction=given.language_instruction,
            safety=None if given.safety is None else read_record(given.safety, Safety, "safety")[0],
            share=None if given.share is None else read_record(given.share, Share, "share")[0],
            metadata=plain_json(given.metadata, "metadata"),
            features=None if given.features is None else EpisodeSpec.from_json(given.features),
            durability=given.durability,
        )

    def all_metadata(self) -> dict[str, Any]:
        """Return the named members and the caller's additions as one map, as readers and replies show it.

        `safety` and `share` are in it where they were given.
        """
        records = {"safety": self.safety, "share": self.share}
        return dict(self.metadata) | {
            "environment_id": self.environment_id,
            "xr_mode": self.xr_mode,
            "control_role": self.control_role,
            "tags": list(self.tags),
            "robot_id": self.robot_id,
            "language_instruction": self.language_instruction,
            **{name: dict(record) for name, record in records.items() if record is not None},
        }

    def record(self) -> dict[str, Any]:
        """Return the header as its log record."""
        creation = {"idempotency_key": self.idempotency_key, "body_sha256": self.body_sha256}
        return {
            "type": "episode",
            "schema_version": self.schema_version,
            "episode_id": self.episode_id,
            "created_ns": self.created_ns,
            "durability": self.durability,
            "metadata": self.all_metadata(),
            "features": None if self.features is None else self.features.to_json(),
        } | (creation if self.idempotency_key is not None else {})

    @staticmethod
    def from_record(record: Mapping[str, Any]) -> "EpisodeHeader":
        """Rebuild the header from its log record.

        Raises:
            InvalidError: a member is missing or wrong, or the schema is of another major version.
        """
        version = str(record.get("schema_version"))
        if record.get("type") != "episode" or version.partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
            raise InvalidError(
                f"not an episode header of schema {SCHEMA_VERSION}: type {record.get('type')!r}, version {version}"
            )
        try:
            metadata = dict(record["metadata"])
            features = record["features"]
            return EpisodeHeader(
                episode_id=record["episode_id"],
                created_ns=int(record["created_ns"]),
                environment_id=metadata.pop("environment_id"),
                xr_mode=metadata.pop("xr_mode"),
                control_role=metadata.pop("control_role"),
                tags=tuple(metadata.pop("tags")),
                robot_id=metadata.pop("robot_id"),
                language_instruction=metadata.pop("language_instruction"),
                # Before these were members, a caller could keep anything under their names.
                safety=metadata.pop("safety") if isinstance(metadata.get("safety"), Mapping) else None,
                share=metadata.pop("share") if isinstance(metadata.get("share"), Mapping) else None,
                metadata=metadata,
                features=None if features is None else EpisodeSpec.from_json(features),
                durability=record["durability"],
                schema_version=version,
                idempotency_key=record.get("idempotency_key"),
                body_sha256=record.get("body_sha256"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidError(f"the episode header lacks or garbles {error}") from error
