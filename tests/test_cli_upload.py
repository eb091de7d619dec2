"""`brain upload` and `brain keys` as a person meets them. Simulated: fake-gcs-server behind the proxy."""

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.cli import main
from brain_service.cloud.signing import PUBLIC_KEY, SIGNATURE_FILE, verify_signature
from brain_service.datasets.convert import convert_directory_to_tfrecord
from tests.datasets.recording import record_many
from tests.export.samples import write_sample
from tests.fakes.gcs_faults import Fault, GcsFaults, Hold, faulty_gcs

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def running() -> Iterator[GcsFaults]:
    """A server with the bucket `robots`."""
    with faulty_gcs() as faults:
        faults.server.make_bucket("robots")
        yield faults


@pytest.fixture
def gcs(running: GcsFaults, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GcsFaults:
    """The server as the environment names it to a command, and a home of its own for it."""
    running.reset()
    monkeypatch.setenv("BRAIN_CLOUD__STORAGE_ENDPOINT", running.url)
    monkeypatch.setenv("BRAIN_DATA_DIR", str(tmp_path / "brain"))
    monkeypatch.setenv("BRAIN_CLOUD__CHUNK_BYTES", str(256 * 1024))
    return running


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `arm/1.0.0`, `arm/1.0.1` and `leg/1.0.0`."""
    root = tmp_path_factory.mktemp("upload")
    for name, count in (("arm", 1), ("leg", 1), ("arm", 2)):
        record_many(root / f"{name}{count}", range(5, 5 + count))
        convert_directory_to_tfrecord(root / f"{name}{count}", root / "datasets", name=name, val_fraction=0.0)
    return root / "datasets"


def upload(*arguments: str | Path) -> int:
    """Run the command."""
    return main(["upload", *map(str, arguments)])


def test_help_shows_examples(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("upload", "keys"):
        with pytest.raises(SystemExit) as done:
            main([command, "--help"])
        assert done.value.code == 0
        assert f"brain {command}" in capsys.readouterr().out.partition("examples:")[2]


@pytest.mark.parametrize(
    ("part", "places"),
    [("", ["arm/1.0.1", "leg/1.0.0"]), ("arm", ["arm/1.0.1"]), ("arm/1.0.0", ["arm/1.0.0"])],
    ids=["root", "dataset", "version"],
)
def test_datasets_go_by_name_and_version_and_only_once(
    gcs: GcsFaults, datasets: Path, capsys: pytest.CaptureFixture[str], part: str, places: list[str]
) -> None:
    prefix = f"p/{part or 'root'}"
    arguments = ("--local-dir", datasets / part, "--gcs-bucket", "robots", "--gcs-prefix", prefix)
    assert upload(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [f"gs://robots/{prefix}/{place}/" for place in places]
    expected = {
        f"{prefix}/{place}/{path.name}": path.read_bytes()
        for place in places
        for path in (datasets / place).iterdir()
    }
    assert gcs.objects("robots", f"{prefix}/") == expected
    assert upload(*arguments, "--json") == 0
    reports = json.loads(capsys.readouterr().out)
    assert [(report["sent"], report["sent_bytes"]) for report in reports] == [(0, 0)] * len(places)
    assert sum(report["skipped"] for report in reports) == len(expected)


def test_any_folder_goes_as_it_is_and_the_settings_say_where(
    gcs: GcsFaults, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_sample(tmp_path)
    monkeypatch.setenv("BRAIN_CLOUD__BUCKET", "robots")
    monkeypatch.setenv("BRAIN_CLOUD__PREFIX", "fleet/arm-7")
    assert upload("--local-dir", bundle) == 0
    assert "gs://robots/fleet/arm-7/  4 files sent" in capsys.readouterr().out
    found = gcs.objects("robots", "fleet/")
    assert found == {f"fleet/arm-7/{path.name}": path.read_bytes() for path in bundle.iterdir()}
    assert gcs.commits[-1] == "fleet/arm-7/manifest.json"
    assert upload("--list") == 0
    assert "done     gs://robots/fleet/arm-7  4 of 4 files" in capsys.readouterr().out
    assert upload("--list", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "done"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--gcs-bucket", "robots"], "--local-dir is missing"),
        (["--local-dir", "/nowhere/at/all", "--gcs-bucket", "robots"], "no directory at /nowhere/at/all"),
        (["--local-dir", "."], "set cloud.bucket"),
        (["--local-dir", ".", "--gcs-bucket", "gs://a/b"], "give a bare name"),
        (["--local-dir", "FOLDER", "--gcs-bucket", "robots", "--gcs-prefix", "a/../b"], "rename it"),
        (["--local-dir", "FOLDER", "--gcs-bucket", "no-such-bucket"], "404 .*check cloud.bucket"),
        (["--local-dir", "EMPTY", "--gcs-bucket", "robots"], "holds no file"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_next_step(
    gcs: GcsFaults, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    (tmp_path / "FOLDER").mkdir()
    (tmp_path / "FOLDER" / "file").write_bytes(b"x")
    (tmp_path / "EMPTY").mkdir()
    places = {"FOLDER": str(tmp_path / "FOLDER"), "EMPTY": str(tmp_path / "EMPTY")}
    assert upload(*(places.get(word, word) for word in arguments)) == 2
    problem = capsys.readouterr().err
    assert len(problem.splitlines()) == 1
    assert problem.startswith("brain upload: ")
    assert re.search(says, problem), problem


def test_a_refusal_stays_in_the_queue_with_its_reason(
    gcs: GcsFaults, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "file").write_bytes(b"x")
    gcs.plan.append(Fault("status", "insert", code=403, reason="forbidden", message="no objects.create"))
    assert upload("--local-dir", tmp_path / "one", "--gcs-bucket", "robots", "--gcs-prefix", "r") == 2
    assert "no objects.create" in capsys.readouterr().err
    assert upload("--list") == 0
    state, reason = capsys.readouterr().out.splitlines()
    assert state.startswith("failed   gs://robots/r  0 of 1 files")
    assert "403 no objects.create" in reason


@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGKILL])
def test_after_ctrl_c_or_a_kill_the_same_command_goes_on(
    gcs: GcsFaults, tmp_path: Path, with_signal: signal.Signals
) -> None:
    (tmp_path / "big").mkdir()
    data = bytes(range(256)) * 6000
    (tmp_path / "big" / "shard").write_bytes(data)
    command = [sys.executable, "-m", "brain_service", "upload", "--local-dir", str(tmp_path / "big")]
    command += ["--gcs-bucket", "robots", "--gcs-prefix", f"big-{with_signal}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    gcs.hold = hold = Hold(5, done=True)
    # A shell that runs this in the background has Ctrl-C ignored, which children inherit.
    heed = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, heed)
    with process:
        assert hold.reached.wait(30)
        process.send_signal(with_signal)
        time.sleep(0.05)
        gcs.hold = None
        hold.release.set()
        _, problem = process.communicate(timeout=30)
    if with_signal == signal.SIGINT:
        assert process.returncode == 2
        assert "interrupted" in problem
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=60)
    report = json.loads(done.stdout) if done.stdout.startswith("[") else done.stdout
    assert "1 files sent" in str(report)
    assert gcs.objects("robots", f"big-{with_signal}/") == {f"big-{with_signal}/shard": data}
    assert gcs.log.count("begin") == 1, "the session of the first one went on"


def test_keys_are_made_and_sign(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "--output-dir", str(tmp_path / "keys")]) == 0
    assert "cloud.public_key" in capsys.readouterr().out
    assert stat.S_IMODE((tmp_path / "keys" / "bundle_key.pem").stat().st_mode) == 0o600
    assert main(["keys", "--output-dir", str(tmp_path / "keys")]) == 2
    assert "choose another folder" in capsys.readouterr().err
    bundle = write_sample(tmp_path / "models")
    assert main(["keys", "--output-dir", str(tmp_path / "keys"), "--sign", str(bundle)]) == 0
    assert bundle.name in capsys.readouterr().out
    manifest, signature = (bundle / "manifest.json").read_bytes(), (bundle / SIGNATURE_FILE).read_bytes()
    verify_signature(manifest, signature, tmp_path / "keys" / PUBLIC_KEY)
    (bundle / "params.safetensors").write_bytes(b"damaged")
    assert main(["keys", "--output-dir", str(tmp_path / "keys"), "--sign", str(bundle)]) == 2
    assert "params.safetensors" in capsys.readouterr().err
