"""Signatures of bundles: who may vouch, for which bytes, and what is said where nobody does."""

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import given
from hypothesis import strategies as st

from brain_service.cloud.signing import SIGNATURE_FILE, make_keys, sign_bundle, verify_signature
from brain_service.errors import ConfigError, ConflictError, ForbiddenError, NotFoundError
from tests.export.samples import write_sample


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A private and a public key."""
    return make_keys(tmp_path_factory.mktemp("keys") / "new")


def test_keys_are_made_once_and_the_private_one_is_for_nobody_else(tmp_path: Path) -> None:
    private, public = make_keys(tmp_path / "keys")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"BEGIN PRIVATE KEY" in private.read_bytes()
    assert b"BEGIN PUBLIC KEY" in public.read_bytes()
    before = private.read_bytes()
    with pytest.raises(ConflictError, match="there already"):
        make_keys(tmp_path / "keys")
    assert private.read_bytes() == before


@given(data=st.binary(max_size=200), place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_law_a_signature_fits_its_bytes_and_no_others(
    keys: tuple[Path, Path], data: bytes, place: int, bit: int
) -> None:
    signature = sign_bundle(data, keys[0])
    verify_signature(data, signature, keys[1])
    flipped = bytearray(data + signature)
    flipped[place % len(flipped)] ^= 1 << bit
    with pytest.raises(ForbiddenError):
        verify_signature(bytes(flipped[: len(data)]), bytes(flipped[len(data) :]), keys[1])


def test_the_signature_of_a_folder_is_that_of_its_manifest(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    bundle = write_sample(tmp_path)
    signature = sign_bundle(bundle, keys[0])
    assert (bundle / SIGNATURE_FILE).read_bytes() == signature
    verify_signature((bundle / "manifest.json").read_bytes(), signature, keys[1])
    with pytest.raises(NotFoundError, match="no bundle"):
        sign_bundle(tmp_path / "none", keys[0])


def test_a_missing_short_or_foreign_signature_is_refused(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    other, _ = make_keys(tmp_path)
    with pytest.raises(ForbiddenError, match=r"models/x has no manifest\.sig.*brain keys --sign"):
        verify_signature(b"m", None, keys[1], "models/x")
    for signature in (b"", b"x" * 64, sign_bundle(b"m", other), sign_bundle(b"m", keys[0])[:-1]):
        with pytest.raises(ForbiddenError, match="another key's"):
            verify_signature(b"m", signature, keys[1])


def test_a_file_that_is_no_such_key_is_named(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    curve = generate_private_key(SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    for name, data in (("text", b"hello"), ("empty", b""), ("curve", curve)):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ConfigError, match=f"{tmp_path / name} is no Ed25519 private key.*brain keys --out"):
            sign_bundle(b"m", tmp_path / name)
        with pytest.raises(ConfigError, match="is no Ed25519 public key"):
            verify_signature(b"m", b"", tmp_path / name)
    with pytest.raises(ConfigError, match="is no Ed25519 public key"):
        verify_signature(b"m", b"", keys[0])
    with pytest.raises(ConfigError, match="cannot read the public key"):
        verify_signature(b"m", b"", tmp_path / "none")
