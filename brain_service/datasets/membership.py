"""Which episodes make up a version: those of its sources that agree, each id once.

The answer depends on the sources alone, not on the order in which they came: a conversion that builds on an
earlier version decides as one that reads everything anew.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from brain_service.datasets.encoding import EncodedSource
from brain_service.datasets.manifest import EpisodeEntry, LeftOut, Manifest, Rival
from brain_service.spec import EpisodeSpec

__all__ = ["Decision", "Member", "Record", "decide", "members_of_manifest", "members_of_source", "spec_difference"]


@dataclass(frozen=True)
class Record:
    """A framed record on disk. `shard` names the shard of the earlier version that it lies in, "" if it is new."""

    file: Path
    shard: str
    offset_bytes: int
    size_bytes: int
    sha256: str
    length: int
    end: str
    roles: dict[str, int]
    image_kinds: dict[str, list[str]]


@dataclass(frozen=True)
class Member:
    """An episode of a source that may be in the version; `record` is None where it has to be read first.

    `gone` says that its source is no longer there. `spec_key` is its spec as JSON text, equal for equal specs.
    """

    source: str
    place: int
    episode_id: str
    spec_key: bytes
    gone: bool
    record: Record | None

    @property
    def order(self) -> tuple[bool, str, int]:
        """Where it stands among the others; of an id twice, the first counts, and a source that is there."""
        return self.gone, self.source, self.place


@dataclass(frozen=True)
class Decision:
    """The episodes of a version in order, their spec (None where there are none), and the others."""

    members: list[Member]
    spec: EpisodeSpec | None
    left_out: list[LeftOut]

    @property
    def unread(self) -> set[str]:
        """The sources of episodes that belong in and have no record yet."""
        return {member.source for member in self.members if member.record is None}


def spec_key(spec: dict[str, Any]) -> bytes:
    """Return a spec as JSON text that is equal for equal specs."""
    return orjson.dumps(spec, option=orjson.OPT_SORT_KEYS)


def members_of_source(source: EncodedSource) -> list[Member]:
    """Return the episodes that were just read from a source."""
    return [
        Member(
            source.file,
            episode.place,
            episode.episode_id,
            spec_key(episode.spec),
            gone=False,
            record=Record(
                Path(episode.part),
                "",
                episode.offset_bytes,
                episode.size_bytes,
                episode.sha256,
                episode.length,
                episode.end,
                episode.roles,
                episode.image_kinds,
            ),
        )
        for episode in source.episodes
    ]


def members_of_manifest(folder: Path, manifest: Manifest, sources: set[str], gone: set[str]) -> list[Member]:
    """Return the episodes that an earlier version knows of these `sources`, and of those that are `gone`.

    The latter bring only what the version holds: what it left out cannot be read any more.
    """
    key = spec_key(manifest.spec)
    found = [
        Member(
            entry.source,
            entry.place,
            entry.episode_id,
            key,
            gone=entry.source in gone,
            record=_record(folder, entry),
        )
        for entries in manifest.splits.values()
        for entry in entries
        if entry.source in sources or entry.source in gone
    ]
    found += [
        Member(
            left.file, left.rival.place, left.rival.episode_id, spec_key(left.rival.spec), gone=False, record=None
        )
        for left in manifest.quarantined
        if left.rival is not None and left.file in sources
    ]
    return found


def _record(folder: Path, entry: EpisodeEntry) -> Record:
    return Record(
        folder / entry.shard,
        entry.shard,
        entry.offset_bytes,
        entry.size_bytes,
        entry.sha256,
        entry.length,
        entry.end,
        entry.roles,
        entry.image_kinds,
    )


def decide(members: Sequence[Member], held: EpisodeSpec | None) -> Decision:
    """Choose each id once, and of these the episodes of the most frequent spec (the earliest of equals).

    While the version holds episodes whose sources are gone, their spec `held` stays: another one would drop them.
    """
    first: dict[str, Member] = {}
    left_out: list[LeftOut] = []
    for member in sorted(members, key=lambda member: member.order):
        kept = first.setdefault(member.episode_id, member)
        if kept is not member and not member.gone:
            reason = f"episode_id {member.episode_id!r} was already read from {kept.source}"
            left_out.append(LeftOut(member.source, reason, _rival(member)))
    if not first:
        return Decision([], None, left_out)
    stays = held is not None and any(member.gone for member in first.values())
    counts = Counter(member.spec_key for member in first.values())
    chosen = spec_key(held.to_json()) if held is not None and stays else counts.most_common(1)[0][0]
    spec = EpisodeSpec.from_json(orjson.loads(chosen))
    found = []
    for member in first.values():
        if member.spec_key == chosen:
            found.append(member)
            continue
        difference = spec_difference(EpisodeSpec.from_json(orjson.loads(member.spec_key)), spec)
        reason = (
            f"its features differ from those of most episodes: {difference}; "
            "convert it by itself under another dataset name"
        )
        left_out.append(LeftOut(member.source, reason, _rival(member)))
    return Decision(found, spec, left_out)


def _rival(member: Member) -> Rival:
    return Rival(member.episode_id, member.place, orjson.loads(member.spec_key))


def spec_difference(found: EpisodeSpec, expected: EpisodeSpec) -> str:
    """Return which features two specs do not share, and what each has; "" where they are the same."""
    parts = []
    for part in ("observation", "action"):
        mine, most = getattr(found, part), getattr(expected, part)
        for path in sorted(mine.keys() | most.keys()):
            if mine.get(path) != most.get(path):
                texts = [
                    f"{feature.dtype} {list(feature.shape)}" if feature else "nothing"
                    for feature in (mine.get(path), most.get(path))
                ]
                parts.append(f"{part}/{path} is {texts[0]}, not {texts[1]}")
    return ", ".join(parts)
