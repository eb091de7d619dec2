"""`brain export-hailo` as an operator types it."""

import os
from pathlib import Path

import pytest

from brain_service.cli import main
from brain_service.export.bundle import HEF, Bundle
from tests.export.hailo_toy import install_compiler, write_recordings, write_toy


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("recordings"))


def test_prepared_compiled_and_brought_back(
    tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    toy = write_toy(tmp_path / "models")
    assert main(["export-hailo", str(toy), "--calibration-dataset", str(recordings)]) == 1
    said = capsys.readouterr()
    assert said.out == f"{toy}\n"
    assert "not compiled" in said.err and "hailo parser onnx model.onnx" in said.err and "--hef-source" in said.err

    monkeypatch.setenv("PATH", f"{install_compiler(tmp_path / 'bin').parent}:{os.environ['PATH']}")
    assert main(["export-hailo", str(toy), "--calibration-dataset", str(recordings)]) == 0
    assert "compiled here" in capsys.readouterr().err

    hef = tmp_path / "far.hef"
    hef.write_bytes(Bundle.open(toy).read(HEF))
    again = write_toy(tmp_path / "again")
    assert main(["export-hailo", str(again), "--hailo-arch", "hailo8", "--hef-source", str(hef)]) == 0
    assert Bundle.open(again).read(HEF) == hef.read_bytes()
    # A Hailo-8 runs what was compiled for an 8L; not the other way round, nor any other.
    assert main(["export-hailo", str(again), "--hailo-arch", "hailo10h", "--hef-source", str(hef)]) == 2
    assert "which a hailo10h does not run" in capsys.readouterr().err


def test_neither_dataset_nor_hef(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export-hailo", str(write_toy(tmp_path))]) == 2
    assert "give --calibration-dataset DIR" in capsys.readouterr().err


def test_a_missing_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    assert main(["export-hailo", str(tmp_path), "--calibration-dataset", "d"]) == 2
    assert "needs onnxruntime; pip install onnxruntime" in capsys.readouterr().err


def test_the_only_bundle_of_a_folder_is_copied_and_stays_as_it_is(
    tmp_path: Path, recordings: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", f"{install_compiler(tmp_path / 'bin').parent}:{os.environ['PATH']}")
    toy, out = write_toy(tmp_path / "models"), tmp_path / "hailo"
    before = (toy / "manifest.json").read_bytes()
    words = ["export-hailo", "--checkpoint-path", str(toy.parent), "--output-dir", str(out)]
    assert main([*words, "--calibration-dataset", str(recordings)]) == 0
    assert capsys.readouterr().out == f"{out / toy.name}\n"
    assert HEF in Bundle.open(out / toy.name).manifest.files
    assert (toy / "manifest.json").read_bytes() == before and HEF not in Bundle.open(toy).manifest.files

    other = write_toy(tmp_path / "models", scale=0.5)
    assert main([*words, "--calibration-dataset", str(recordings)]) == 2
    said = capsys.readouterr().err
    assert toy.name in said and other.name in said and "name one of them" in said


def test_no_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrated = ["--calibration-dataset", "d"]
    assert main(["export-hailo", *calibrated]) == 2
    assert "name a bundle" in capsys.readouterr().err
    assert main(["export-hailo", str(tmp_path), *calibrated]) == 2
    assert f"{tmp_path} holds 0 bundles; name one of them" in capsys.readouterr().err
    assert main(["export-hailo", str(tmp_path / "none"), *calibrated]) == 2
    assert "no bundle at" in capsys.readouterr().err
