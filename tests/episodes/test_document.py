"""The checksum of an episode's JSON document: every changed byte is refused, somebody else's document is not."""

import json
from pathlib import Path

import numpy as np
import pytest

from brain_service.episodes.document import encode_document, require_whole
from brain_service.episodes.logger import EpisodeLogger
from brain_service.episodes.reader import read_episodes
from brain_service.errors import CorruptDataError


def test_a_changed_byte_before_the_checksum_is_refused_and_an_edit_can_be_owned_up_to() -> None:
    data = encode_document({"steps": [1, 2, 3], "end": "truncated"})
    assert json.loads(data)["steps"] == [1, 2, 3]
    require_whole(data)
    for place in range(data.index(b',\n  "crc32c"')):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(CorruptDataError, match="remove its last member"):
            require_whole(changed)
    require_whole(b'{"steps": [1, 2]}')
    require_whole(b"")


def test_the_logger_writes_it_and_the_reader_checks_it(tmp_path: Path) -> None:
    with EpisodeLogger(tmp_path, format="json", min_free_bytes=0) as logger:
        logger.start_episode()
        logger.log_step({"state": [0.25]}, {"command": [0.5]}, 1.0)
        path = logger.end_episode()
    (episode,) = read_episodes(path)
    assert np.asarray(episode.observation["state"]).tolist() == [[0.25]]
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.75"))
    with pytest.raises(CorruptDataError, match="checksum"):
        list(read_episodes(path))
