"""Bundles on their way down: whole or not at all, resumed, and no word of a manifest is believed unchecked."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from brain_service.cloud.download import download_bundle
from brain_service.cloud.patience import OfflineError, RetryPolicy
from brain_service.cloud.signing import SIGNATURE_FILE, make_keys, sign_bundle
from brain_service.errors import (
    BrainError,
    CancelledJobError,
    ConflictError,
    CorruptDataError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    UnavailableError,
)
from brain_service.export.bundle import GOLDEN, ONNX_MODEL, PARAMS, Bundle, add_files
from brain_service.settings import CloudSettings
from tests.export.samples import DRAFT, write_sample
from tests.fakes.gcs_faults import Fault, GcsFaults

LARGE = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A bundle whose compiled step is of some size."""
    return write_sample(tmp_path / "there", {"step.jaxexport": LARGE})


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """Where bundles go."""
    return tmp_path / "models"


def put(gcs: GcsFaults, bucket: str, made: Path) -> str:
    """Upload a bundle as it is and return its place."""
    return gcs.server.upload(made, bucket, f"runs/r1/models/{made.name}")


def content(folder: Path) -> dict[str, bytes]:
    """Return every file's bytes by name."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def rewrite(made: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest and have its checksum hold."""
    document = json.loads((made / "manifest.json").read_bytes())
    del document["checksum"]
    change(document)
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    document["checksum"] = hashlib.sha256(text.encode()).hexdigest()
    (made / "manifest.json").write_text(json.dumps(document))


def nothing_published(models: Path) -> bool:
    """Tell whether no model can be seen."""
    return not [path for path in models.glob("*") if not path.name.startswith(".")]


def test_a_bundle_comes_down_as_it_is_and_only_once(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings
) -> None:
    place, seen = put(gcs, bucket, made), []
    found = download_bundle(place, models, cloud, lambda *told: seen.append(told))
    assert found == made.name
    assert content(models / found) == content(made)
    assert Bundle.open(models / found).manifest.model_id == found
    total = sum(len(data) for name, data in content(made).items() if name != "manifest.json")
    assert seen[-1][:2] == (total, total)
    assert [path.name for path in models.iterdir() if path.is_dir()] == [found]
    gcs.reset()
    assert download_bundle(f"{place}/", models, cloud) == found
    assert gcs.log.count("media") == 2, "the manifest, and whether there is a signature"


def test_a_bundle_in_a_local_folder_is_taken_the_same_way(made: Path, models: Path) -> None:
    assert download_bundle(str(made), models, CloudSettings()) == made.name
    assert content(models / made.name) == content(made)


@pytest.mark.parametrize("action", ["drop", "lose", "status"])
def test_faults_cost_a_retry(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings, action: Any
) -> None:
    place = put(gcs, bucket, made)
    gcs.plan += [Fault(action, "media", skip=skip) for skip in (1, 2)]
    download_bundle(place, models, cloud)
    assert content(models / made.name) == content(made)
    assert gcs.plan == []


def test_a_stopped_download_goes_on_where_it_was(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings
) -> None:
    place, told = put(gcs, bucket, made), []

    def progress(done: int, total: int, name: str) -> None:
        told.append((done, name))

    with pytest.raises(CancelledJobError):
        download_bundle(place, models, cloud, progress, lambda: any(done > 1_000_000 for done, _ in told))
    assert nothing_published(models)
    part = next(models.glob(".*.download/*.part"))
    assert 0 < part.stat().st_size < len(LARGE)
    # What is there already is not fetched again, and what was left of an earlier content is.
    whole = next(path for path in part.parent.iterdir() if path.name in (GOLDEN, PARAMS))
    inode = whole.stat().st_ino
    download_bundle(place, models, cloud)
    assert content(models / made.name) == content(made)
    assert (models / made.name / whole.name).stat().st_ino == inode


def test_leftovers_of_another_content_do_no_harm(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings
) -> None:
    staging = models / f".{made.name}.download"
    staging.mkdir(parents=True)
    for name, data in {
        "step.jaxexport.part": b"other",
        PARAMS: b"x",
        "old.bin": b"y",
        f"{GOLDEN}.part": LARGE,
    }.items():
        (staging / name).write_bytes(data)
    download_bundle(put(gcs, bucket, made), models, cloud)
    assert content(models / made.name) == content(made)


def test_a_file_that_is_missing_short_or_changed_is_named_and_nothing_is_published(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings
) -> None:
    place = put(gcs, bucket, made)
    name = f"runs/r1/models/{made.name}/step.jaxexport"
    for bad in (LARGE[:-1], LARGE + b"x", LARGE[:-1] + b"x"):
        gcs.server.put(bucket, name, bad)
        with pytest.raises(CorruptDataError, match=r"step\.jaxexport: its size or SHA-256"):
            download_bundle(place, models, cloud)
        assert nothing_published(models)
    gcs.server.delete(bucket, name)
    with pytest.raises(CorruptDataError, match=r"lists step\.jaxexport, which is not there"):
        download_bundle(place, models, cloud)
    assert nothing_published(models)
    gcs.server.put(bucket, name, LARGE)
    assert download_bundle(place, models, cloud) == made.name


def _set(name: str, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: (
        document["files"].setdefault(name, {"size_bytes": 1, "sha256": "0" * 64}).update(values)
    )


BAD_MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], None], type[BrainError], str]] = {
    "above": (_set("../../etc/cron.d/x"), CorruptDataError, "not a file name"),
    "absolute": (_set("/etc/passwd"), CorruptDataError, "not a file name"),
    "hidden": (_set(".ssh"), CorruptDataError, "not a file name"),
    "itself": (_set("manifest.json"), CorruptDataError, "not a file name"),
    "signature": (_set(SIGNATURE_FILE), CorruptDataError, "no export does"),
    "negative": (_set(PARAMS, size_bytes=-1), CorruptDataError, "size -1"),
    "text": (_set(PARAMS, size_bytes="9"), CorruptDataError, "size '9'"),
    "absurd": (_set(PARAMS, size_bytes=10**15), UnavailableError, "free space"),
    "digest": (_set(PARAMS, sha256="../x"), CorruptDataError, "SHA-256 '../x'"),
    "many": (
        lambda document: document["files"].update({f"f{n}": document["files"][PARAMS] for n in range(2000)}),
        CorruptDataError,
        "lists 200",
    ),
    "other": (lambda document: document.update(model_id="0" * 16), CorruptDataError, "model 0000000000000000"),
    "config": (lambda document: document["config"].update(rate=0.2), CorruptDataError, "its content is that of"),
}


@pytest.mark.parametrize("name", BAD_MANIFESTS)
def test_a_manifest_that_is_not_sound_publishes_nothing(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings, name: str
) -> None:
    change, kind, says = BAD_MANIFESTS[name]
    rewrite(made, change)
    with pytest.raises(kind, match=says):
        download_bundle(put(gcs, bucket, made), models, cloud)
    assert nothing_published(models)
    assert sorted(path.name for path in models.parent.iterdir()) == ["models", "there"]


def test_a_half_or_garbled_manifest_is_named_by_its_place(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings
) -> None:
    data = (made / "manifest.json").read_bytes()
    for bad in (data[: len(data) // 2], b"", b"[]", data.replace(b"run-1", b"run-2")):
        (made / "manifest.json").write_bytes(bad)
        with pytest.raises(CorruptDataError, match=f"gs://{bucket}/runs/r1/models/{made.name}/manifest.json"):
            download_bundle(put(gcs, bucket, made), models, cloud)
        assert nothing_published(models)


def test_a_source_that_is_no_bundle_says_so(
    gcs: GcsFaults, bucket: str, models: Path, cloud: CloudSettings, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match=f"no bundle at gs://{bucket}/models/{'0' * 16}"):
        download_bundle(f"gs://{bucket}/models/{'0' * 16}", models, cloud)
    with pytest.raises(NotFoundError, match="no bundle at gs://no-such-bucket"):
        download_bundle(f"gs://no-such-bucket/models/{'0' * 16}", models, cloud)
    with pytest.raises(NotFoundError, match="no bundle"):
        download_bundle(str(tmp_path / "models" / ("0" * 16)), models, cloud)
    for source in (f"gs://{bucket}/models/best", f"gs://{bucket}", f"s3://x/{'0' * 16}"):
        with pytest.raises(InvalidError):
            download_bundle(source, models, cloud)


def test_a_damaged_bundle_that_is_here_is_not_replaced(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings
) -> None:
    place = put(gcs, bucket, made)
    download_bundle(place, models, cloud)
    (models / made.name / PARAMS).write_bytes(b"damaged")
    with pytest.raises(ConflictError, match="not replaced: remove"):
        download_bundle(place, models, cloud)
    assert (models / made.name / PARAMS).read_bytes() == b"damaged"


def test_with_a_key_only_what_was_signed_as_it_is_comes_in(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path / "keys")
    stranger, _ = make_keys(tmp_path / "stranger")
    wary = cloud.model_copy(update={"public_key": public})

    def refused(says: str) -> None:
        with pytest.raises(ForbiddenError, match=says):
            download_bundle(put(gcs, bucket, made), models, wary)
        assert list(models.rglob("*.safetensors*")) == [], "nothing but the manifest was asked for"
        assert nothing_published(models)

    refused(r"has no manifest\.sig")
    sign_bundle(made, stranger)
    refused("another key's")
    other = write_sample(tmp_path / "other", {PARAMS: b"others" * 9})
    sign_bundle(other, private)
    shutil.copy(other / SIGNATURE_FILE, made / SIGNATURE_FILE)
    refused("another model's or config's")
    sign_bundle(made, private)
    good = (made / "manifest.json").read_bytes()
    rewrite(made, lambda document: document["config"].update(rate=0.2))
    refused("another model's or config's")
    (made / "manifest.json").write_bytes(good)
    assert download_bundle(put(gcs, bucket, made), models, wary) == made.name
    assert content(models / made.name) == content(made)


def test_a_form_that_was_added_needs_a_new_signature(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings, tmp_path: Path
) -> None:
    private, public = make_keys(tmp_path / "keys")
    wary = cloud.model_copy(update={"public_key": public})
    sign_bundle(made, private)
    add_files(Bundle.open(made), {ONNX_MODEL: b"onnx"}, DRAFT)
    with pytest.raises(ForbiddenError):
        download_bundle(put(gcs, bucket, made), models, wary)
    sign_bundle(made, private)
    download_bundle(put(gcs, bucket, made), models, wary)
    assert ONNX_MODEL in Bundle.open(models / made.name).manifest.files


def test_without_a_key_a_signature_is_kept_and_not_asked_for(
    gcs: GcsFaults, bucket: str, made: Path, models: Path, cloud: CloudSettings
) -> None:
    (made / SIGNATURE_FILE).write_bytes(b"whatever")
    download_bundle(put(gcs, bucket, made), models, cloud)
    assert (models / made.name / SIGNATURE_FILE).read_bytes() == b"whatever"


def test_without_a_network_it_says_when_to_come_again(models: Path, cloud: CloudSettings) -> None:
    away = cloud.model_copy(update={"storage_endpoint": "http://127.0.0.1:9"})
    with pytest.raises(OfflineError, match="check the network") as raised:
        download_bundle(f"gs://robots/models/{'0' * 16}", models, away, policy=RetryPolicy(3, 0.001))
    assert raised.value.retry_after_s > 0
