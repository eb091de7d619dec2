"""Every byte of every kind of file, changed and cut: detected, or reported as an episode without an end."""

from pathlib import Path

import pytest

from tests.faults.flips import FILES, damage_every_byte


@pytest.mark.soak
@pytest.mark.parametrize("kind", FILES)
def test_no_damaged_byte_is_silently_accepted(tmp_path: Path, kind: str) -> None:
    damage = damage_every_byte(kind, tmp_path, masks=2)
    assert damage.violations == []
    assert damage.refused > damage.cases / 2
    assert damage.harmless <= 20


@pytest.mark.long
def test_no_damaged_byte_of_a_compressed_log_is_silently_accepted(tmp_path: Path) -> None:
    damage = damage_every_byte("a compressed log", tmp_path, recover_every=50)
    assert damage.violations == []
    assert damage.refused == damage.cases
