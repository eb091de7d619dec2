"""Datasets of any size, written straight as shards and manifest: conversion would take the benchmark's time."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from brain_service.datasets.columns import episode_columns
from brain_service.datasets.manifest import EpisodeEntry, Manifest, ShardEntry, write_manifest
from brain_service.datasets.record import encode_episode, episode_metadata
from brain_service.datasets.tfrecord import frame
from brain_service.episodes.episode import Episode
from brain_service.spec import EpisodeSpec, Feature

__all__ = ["write_dataset"]


def write_dataset(
    folder: Path, lengths: Sequence[int], *, observation: int = 3, action: int = 2, shards: int = 1
) -> Path:
    """Write one `train` split of random episodes of these lengths, in so many shards; return its folder.

    The observation at step t of episode n starts with (n, t), so that every step can be told from every other.
    """
    spec = EpisodeSpec({"state": Feature("float32", (observation,))}, {"command": Feature("float32", (action,))})
    folder.mkdir(parents=True)
    entries: list[EpisodeEntry] = []
    made: list[ShardEntry] = []
    for shard in range(shards):
        name = f"{folder.parent.name}-train.tfrecord-{shard:05d}-of-{shards:05d}"
        chosen = range(shard * len(lengths) // shards, (shard + 1) * len(lengths) // shards)
        with (folder / name).open("wb") as file:
            for index in chosen:
                episode = _episode(index, lengths[index], spec)
                record = frame(encode_episode(episode_columns(episode, "oxe"), episode_metadata(episode)))
                entries.append(
                    EpisodeEntry(
                        episode_id=episode.episode_id,
                        length=len(episode),
                        shard=name,
                        offset_bytes=file.tell(),
                        size_bytes=len(record),
                        sha256=hashlib.sha256(record).hexdigest(),
                        end="terminated",
                        source="",
                        roles={"expert": len(episode)},
                    )
                )
                file.write(record)
            size_bytes = file.tell()
        digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
        made.append(ShardEntry(name, "train", len(chosen), size_bytes, digest))
    manifest = Manifest(
        name=folder.parent.name,
        version=folder.name,
        profile="oxe",
        spec=spec.to_json(),
        control_period_s=0.02,
        splits={"train": entries},
        shards=made,
        sources=[],
        source_digest="",
        quarantined=[],
        skipped_open=[],
    )
    write_manifest(folder, manifest)
    return folder


def _episode(index: int, length: int, spec: EpisodeSpec) -> Episode:
    rng = np.random.default_rng(index)
    state = rng.standard_normal((length, *spec.observation["state"].shape), dtype=np.float32)
    state[:, 0], state[:, 1] = index, np.arange(length)
    return Episode(
        episode_id=f"e{index:05d}",
        metadata={"environment_id": "written"},
        spec=spec,
        observation={"state": state},
        action={"command": rng.standard_normal((length, *spec.action["command"].shape), dtype=np.float32)},
        reward=rng.standard_normal(length, dtype=np.float32),
        is_terminal=np.arange(length) == length - 1,
        timestamp_ns=10**18 + 20_000_000 * np.arange(length, dtype=np.int64),
        control_role=["expert"] * length,
        executed_action=None,
        final_observation=None,
        end="terminated",
    )
