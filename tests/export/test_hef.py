"""HEF files: read in every version, refused with the reason when damaged, held against device and runtime."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.errors import CorruptDataError, UnavailableError
from brain_service.export.hef import check_device, check_runtime, parse_hef, verify_hef
from tests.fakes.hefs import field, make_hef

VERSIONS = (0, 1, 2, 3)
HEADER_BYTES = {0: 32, 1: 28, 2: 44, 3: 56}


def reason(data: bytes) -> str:
    with pytest.raises(CorruptDataError) as caught:
        verify_hef(data, "here.hef")
    assert caught.value.detail.startswith("here.hef: ")
    return str(caught.value.members["reason"])


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read(version: int) -> None:
    extra = b"additional" if version == 3 else b""
    data = make_hef(version, code=3, sdk="3.31.0", words=b"w" * 100, extra=extra)
    info = verify_hef(data, "here.hef")
    assert (info.version, info.architecture, info.sdk_version) == (version, "HAILO8L", "3.31.0")
    assert (info.header_bytes, info.size_bytes) == (HEADER_BYTES[version], len(data))
    # Version 0 holds its words in the description.
    assert info.ccw_bytes == (0 if version == 0 else 100 + len(extra))
    assert parse_hef(data, "here.hef") == info


@pytest.mark.parametrize("version", VERSIONS)
@given(place=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_no_flipped_bit_goes_unseen(version: int, place: int, bit: int) -> None:
    data = bytearray(make_hef(version))
    place %= len(data)
    reserved = {0: (12, 16), 1: (24, 28), 2: (28, 44), 3: (28, 32)}[version]
    # Nobody's checksum covers what is reserved or padding in the header itself, nor is it read.
    if reserved[0] <= place < reserved[1] or (version == 3 and 40 <= place < 56):
        return
    data[place] ^= 1 << bit
    assert reason(bytes(data)) in ("magic", "version", "truncated", "size", "checksum", "description")


@pytest.mark.parametrize("version", VERSIONS)
def test_every_cut_is_truncated(version: int) -> None:
    data = make_hef(version)
    assert reason(b"") == "empty"
    for size in (1, 3, 11, 12, HEADER_BYTES[version] - 1, HEADER_BYTES[version], len(data) - 1):
        assert reason(data[:size]) == "truncated", size
    assert reason(data + b"\0") == "size"


def test_what_is_no_hef_or_of_another_version_is_told_apart() -> None:
    assert reason(b"PK\x03\x04" + b"\0" * 100) == "magic"
    data = bytearray(make_hef(3))
    data[4:8] = struct.pack(">I", 4)
    assert reason(bytes(data)) == "version"
    # Sizes hold and the bytes are those that were hashed, but the description is none.
    for description in (b"", field(2, b"no header"), b"\x0a\x7fcut", b"\x0b"):
        body = struct.pack(">III", 0x01484546, 1, len(description)) + struct.pack(">IQI", 0, 0, 0) + description
        with pytest.raises(CorruptDataError) as caught:
            parse_hef(body, "h")
        assert caught.value.members["reason"] == "description", description


@pytest.mark.parametrize(
    ("device", "runs"),
    [
        ("hailo8", {0, 1, 2, 3}),
        ("hailo8l", {3}),
        ("hailo10h", {5, 103}),
        ("hailo15h", {5, 103}),
        ("hailo15m", {4}),
    ],
)
def test_a_device_runs_its_own_family(device: str, runs: set[int]) -> None:
    for code in (0, 1, 2, 3, 4, 5, 103, 106):
        info = parse_hef(make_hef(code=code), "h")
        if code in runs:
            check_device(info, device, "h")
        else:
            with pytest.raises(UnavailableError, match=rf"runs only .*--hailo-arch {device}"):
                check_device(info, device, "h")


def test_an_unknown_device_is_named() -> None:
    with pytest.raises(UnavailableError, match="'hailo9' is none of HAILO8"):
        check_device(parse_hef(make_hef(), "h"), "hailo9", "h")


@pytest.mark.parametrize(
    ("runtime", "newest"), [("4.19.0", 2), ("4.20.0", 2), ("4.21.0", 3), ("4.23.0", 3), ("5.2.0", 3)]
)
def test_a_runtime_reads_versions_up_to_its_own(runtime: str, newest: int) -> None:
    for version in VERSIONS:
        info = parse_hef(make_hef(version), "h")
        if version <= newest:
            check_runtime(info, runtime, "h")
        else:
            with pytest.raises(UnavailableError, match=f"HailoRT {runtime} reads versions 0 to {newest}"):
                check_runtime(info, runtime, "h")
    with pytest.raises(UnavailableError, match="not of the form"):
        check_runtime(info, "newest", "h")
