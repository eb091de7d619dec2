"""A bundle on disk: whole or refused, the same content in one place, and never half-written."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.errors import CorruptDataError, NotFoundError, UnavailableError
from brain_service.export.bundle import (
    GOLDEN,
    JAX_STEP,
    MANIFEST,
    ONNX_MODEL,
    PARAMS,
    Bundle,
    FileEntry,
    Golden,
    Parity,
    add_files,
    is_model_id,
    read_manifest,
    write_bundle,
)
from tests.export.samples import DRAFT, files, golden, write_sample


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = write_sample(tmp_path / "models")
    bundle = Bundle.open(path)
    assert is_model_id(path.name) and bundle.manifest.model_id == path.name
    assert {item.name for item in path.iterdir()} == {MANIFEST, PARAMS, JAX_STEP, GOLDEN}
    assert bundle.read(PARAMS) == files()[PARAMS]
    for name, array in vars(golden()).items():
        np.testing.assert_array_equal(getattr(bundle.golden(), name), array)
    with pytest.raises(NotFoundError, match="holds golden"):
        bundle.read("model.onnx")


def test_the_same_content_is_one_bundle(tmp_path: Path) -> None:
    path = write_sample(tmp_path)
    before = path.stat().st_mtime_ns
    assert write_sample(tmp_path) == path and path.stat().st_mtime_ns == before
    assert write_sample(tmp_path, {PARAMS: b"others"}) != path
    # The compiled forms may differ between compilers; the model is the same.
    assert write_sample(tmp_path, {JAX_STEP: b"compiled elsewhere"}) == path


def test_a_harmed_bundle_is_replaced_by_a_new_export(tmp_path: Path) -> None:
    path = write_sample(tmp_path)
    (path / PARAMS).write_bytes(b"broken")
    assert write_sample(tmp_path) == path
    Bundle.open(path)
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


@given(st.sampled_from([MANIFEST, PARAMS, JAX_STEP, GOLDEN]), st.data())
def test_any_flipped_bit_is_noticed_or_means_the_same(name: str, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_sample(Path(folder))
        whole = Bundle.open(path).manifest
        content = bytearray((path / name).read_bytes())
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        (path / name).write_bytes(content)
        try:
            bundle = Bundle.open(path)
        except CorruptDataError as error:
            assert name in error.detail
        else:
            # 1e-7 and 1E-7 are one number.
            assert name == MANIFEST and bundle.manifest == whole


@pytest.mark.parametrize("name", [MANIFEST, PARAMS, JAX_STEP, GOLDEN])
def test_a_missing_or_short_file_is_named(tmp_path: Path, name: str) -> None:
    path = write_sample(tmp_path)
    (path / name).write_bytes((path / name).read_bytes()[:-2])
    with pytest.raises(CorruptDataError, match=name):
        Bundle.open(path)
    (path / name).unlink()
    with pytest.raises(CorruptDataError, match=name):
        Bundle.open(path)


def test_a_file_that_changes_after_the_check_is_not_read(tmp_path: Path) -> None:
    bundle = Bundle.open(write_sample(tmp_path))
    (bundle.path / PARAMS).write_bytes(b"x" * len(files()[PARAMS]))
    with pytest.raises(CorruptDataError, match="changed while it was in use"):
        bundle.read(PARAMS)
    (bundle.path / PARAMS).unlink()
    with pytest.raises(CorruptDataError, match="cannot be read"):
        bundle.read(PARAMS)


def test_no_bundle_and_no_bundle_of_that_name(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        Bundle.open(tmp_path / "none")
    first, second = write_sample(tmp_path), write_sample(tmp_path, {PARAMS: b"others"})
    (second / MANIFEST).write_bytes((first / MANIFEST).read_bytes())
    with pytest.raises(CorruptDataError, match=PARAMS):
        Bundle.open(second)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "a/b", MANIFEST])
def test_a_manifest_never_leads_outside_its_folder(tmp_path: Path, name: str) -> None:
    # Its checksum holds, as that of a hostile author would.
    document = DRAFT.with_files({PARAMS: FileEntry.of(b""), name: FileEntry.of(b"")}, PARAMS).to_json()
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (tmp_path / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(CorruptDataError, match="not a file name inside"):
        read_manifest(tmp_path)


def test_a_folder_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    with pytest.raises(UnavailableError, match="free space or fix"):
        write_sample(tmp_path / "models")
    assert [item.name for item in tmp_path.iterdir()] == ["models"]


def test_a_draft_that_cannot_be_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CorruptDataError, match="action_horizon"):
        write_bundle(tmp_path, dataclasses.replace(DRAFT, action_horizon=-1), files())
    with pytest.raises(CorruptDataError, match="action is float32"):
        write_bundle(tmp_path, dataclasses.replace(DRAFT, action_horizon=1), files())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not an archive", np.zeros(3).tobytes()])
def test_golden_vectors_that_cannot_be(data: bytes) -> None:
    with pytest.raises(CorruptDataError, match=GOLDEN):
        Golden.from_bytes(data, DRAFT)


def test_golden_vectors_are_never_unpickled() -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **vars(golden()) | {"action": np.array([Path("payload")], object)})
    with pytest.raises(CorruptDataError, match="allow_pickle=False"):
        Golden.from_bytes(buffer.getvalue(), DRAFT)


def test_an_empty_golden_sequence_proves_nothing() -> None:
    with pytest.raises(CorruptDataError, match=GOLDEN):
        Golden.from_bytes(golden(0).to_bytes(), DRAFT)


@pytest.mark.parametrize("text", ["", "active", "../../etc", "0123456789ABCDEF", "0123456789abcde", "0" * 17])
def test_what_is_no_model_id(text: str) -> None:
    assert not is_model_id(text)


WITH_ONNX = dataclasses.replace(
    DRAFT,
    parity={"jax": Parity(2e-5, 1e-4), "onnx": Parity(3e-6, 1e-4)},
    measured={"jax": {"drift": 1.0}, "onnx": {"drift": 2e-5, "step_us": 100.0}},
)


def test_a_form_that_a_bundle_lacks_is_added_and_what_it_has_stays(tmp_path: Path) -> None:
    path = write_sample(tmp_path)
    before = Bundle.open(path)
    times = {item.name: item.stat().st_mtime_ns for item in path.iterdir() if item.name != MANIFEST}
    more = files() | {JAX_STEP: b"compiled elsewhere", ONNX_MODEL: b"a graph"}
    assert write_bundle(tmp_path, WITH_ONNX, more) == path.name
    after = Bundle.open(path)
    assert {name: (path / name).stat().st_mtime_ns for name in times} == times
    assert after.read(ONNX_MODEL) == b"a graph" and after.read(JAX_STEP) == files()[JAX_STEP]
    # Of what was there the old figures hold: they were measured on these very bytes.
    assert after.manifest.parity == {"jax": DRAFT.parity["jax"], "onnx": Parity(3e-6, 1e-4)}
    assert after.manifest.measured["onnx"]["step_us"] == 100.0
    assert after.manifest.created_ns == before.manifest.created_ns
    # Whoever opened it before reads on.
    assert before.read(JAX_STEP) == files()[JAX_STEP]


def test_a_form_may_bring_a_folder(tmp_path: Path) -> None:
    added = add_files(Bundle.open(write_sample(tmp_path)), {"hailo/model.hef": b"hef"}, DRAFT)
    assert Bundle.open(added.path).read("hailo/model.hef") == b"hef"
    assert Bundle.open(added.path).manifest == added.manifest
    assert add_files(added, {"hailo/model.hef": b"other"}, DRAFT) is added


def test_a_form_whose_parity_cannot_be_is_not_added(tmp_path: Path) -> None:
    bundle = Bundle.open(write_sample(tmp_path))
    loose = dataclasses.replace(DRAFT, parity={"onnx": Parity(0.0, 0.5)})
    with pytest.raises(CorruptDataError, match="above the cap"):
        add_files(bundle, {ONNX_MODEL: b"a graph"}, loose)
    assert not (bundle.path / ONNX_MODEL).exists() and Bundle.open(bundle.path) == bundle


@contextlib.contextmanager
def small_files_only() -> Iterator[None]:
    """Make every write beyond 64 kB fail, as a full medium does: half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


BIG = os.urandom(1 << 17)


def test_a_medium_that_fills_up_half_way_leaves_no_bundle(tmp_path: Path) -> None:
    with small_files_only(), pytest.raises(UnavailableError, match="free space or fix"):
        write_sample(tmp_path, {JAX_STEP: BIG})
    assert not list(tmp_path.iterdir())


def test_a_medium_that_fills_up_half_way_leaves_the_bundle_as_it_was(tmp_path: Path) -> None:
    path = write_sample(tmp_path)
    before = {item.name: item.read_bytes() for item in path.iterdir()}
    more = files() | {ONNX_MODEL: b"a graph", "other.bin": BIG}
    with small_files_only(), pytest.raises(UnavailableError, match=r"cannot add .*other.bin"):
        write_bundle(tmp_path, WITH_ONNX, more)
    assert {item.name: item.read_bytes() for item in path.iterdir()} == before
    Bundle.open(path)
