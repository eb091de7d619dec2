"""The Hailo form: cut, calibrated and compiled by a stand-in; without a compiler, the commands and no HEF."""

import io
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

from brain_service.errors import BrainError, CorruptDataError, InvalidError, NotFoundError, UnavailableError
from brain_service.export.attach import attach_files
from brain_service.export.bundle import HEF, ONNX_MODEL, Bundle
from brain_service.export.hailo import STATUS, HailoOptions, export_hailo
from brain_service.export.hailo_calibration import HostedGraph, measure_parity
from brain_service.export.hailo_compiler import CALIBRATION, GRAPH, SCRIPT, Commands
from brain_service.export.hailo_graph import cut_graph
from brain_service.export.hailo_names import HAILO_NAMES, Names
from brain_service.export.hef import verify_hef
from tests.export.hailo_toy import install_compiler, toy_graph, write_recordings, write_toy
from tests.fakes.hefs import make_hef
from tests.inference.harness import is_gone


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy bundle, and no compiler anywhere."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return write_toy(tmp_path / "models")


@pytest.fixture
def compiler(tmp_path: Path, toy: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = install_compiler(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return program


def names_of(bundle: Bundle) -> Names:
    return Names.from_bytes(bundle.read(HAILO_NAMES), HAILO_NAMES)


def status_of(bundle: Bundle) -> dict[str, object]:
    document: dict[str, object] = json.loads(bundle.read(STATUS))
    return document


def test_the_scaling_at_both_ends_goes_to_the_host_and_the_numbers_stay(toy: Path) -> None:
    bundle = Bundle.open(toy)
    graph, names = cut_graph(bundle.read(ONNX_MODEL), bundle.manifest)
    streams = {stream.role: stream for stream in names.inputs}
    assert list(streams) == ["total", "count", "observation", "previous_action", "previous_reward", "is_first"]
    assert [step.operator for step in streams["observation"].host] == ["Mul", "Sub", "Mul"]
    assert [stream.role for stream in names.outputs] == ["total", "count", "action"]
    assert [step.operator for step in names.outputs[2].host] == ["Mul"]
    assert names.outputs[2].host[0].values == (5.0,) * 4
    model = onnx.load_from_string(graph)
    rows = [
        [axis.dim_value for axis in info.type.tensor_type.shape.dim]
        for info in (*model.graph.input, *model.graph.output)
    ]
    assert all(axes[0] == 1 and len(axes) == 2 for axes in rows)
    assert [node.name for node in model.graph.node] == [node.output[0] for node in model.graph.node]
    assert measure_parity(HostedGraph(graph, names), bundle.golden(), bundle.manifest) <= 1e-6


def test_the_map_of_streams_reads_back_and_a_damaged_one_is_refused(toy: Path) -> None:
    bundle = Bundle.open(toy)
    _, names = cut_graph(bundle.read(ONNX_MODEL), bundle.manifest)
    assert Names.from_bytes(names.to_bytes(), "n") == names
    for damaged in (b"", b"[]", b'{"network": 1}', names.to_bytes().replace(b'"Mul"', b'"Pow"')):
        with pytest.raises(CorruptDataError, match="n: no map of streams"):
            Names.from_bytes(damaged, "n")


def test_a_graph_of_another_step_is_refused(toy: Path) -> None:
    manifest = Bundle.open(toy).manifest
    with pytest.raises(CorruptDataError, match="cannot be read"):
        cut_graph(b"no graph", manifest)
    model = onnx.load_from_string(toy_graph())
    del model.graph.output[0]
    with pytest.raises(CorruptDataError, match="the step has"):
        cut_graph(model.SerializeToString(), manifest)


def test_without_the_compiler_there_are_the_commands_and_no_hef(toy: Path, recordings: Path) -> None:
    result = export_hailo(toy, HailoOptions(arch="hailo8l", calibration_dataset=recordings))
    bundle = Bundle.open(toy)
    assert not result.compiled and "not installed" in result.detail
    assert HEF not in bundle.manifest.files and not (toy / HEF).exists() and "hailo" not in bundle.manifest.parity
    status = status_of(bundle)
    assert status["compiled"] is False and "not compiled" in str(status["detail"])
    assert status["commands"] == list(result.commands) and len(result.commands) == 3
    shell = bundle.read("hailo/compile.sh").decode()
    assert all(command in shell for command in result.commands)
    assert bundle.manifest.model_id == toy.name


def test_the_calibration_set_is_what_the_device_will_be_fed(toy: Path, recordings: Path) -> None:
    export_hailo(toy, HailoOptions(calibration_dataset=recordings))
    bundle = Bundle.open(toy)
    layers = {stream.role: stream.layer for stream in names_of(bundle).inputs}
    with np.load(io.BytesIO(bundle.read(f"hailo/{CALIBRATION}"))) as archive:
        sets = {name: archive[name] for name in archive.files}
    assert set(sets) == set(layers.values())
    assert all(rows.dtype == np.float32 and rows.shape[1:3] == (1, 1) for rows in sets.values())
    count = len(sets[layers["total"]])
    assert count >= 1024 and {len(rows) for rows in sets.values()} == {count}
    firsts = sets[layers["is_first"]][:, 0, 0, 0] == 1
    state, sample = sets[layers["total"]][:, 0, 0], sets[layers["observation"]][:, 0, 0]
    assert firsts[0] and firsts.sum() == count // 32
    # Fed back: the leaky sum of what was observed before, zero where an episode begins.
    assert not state[firsts].any()
    following = np.flatnonzero(~firsts)
    expected = np.where(firsts[following - 1, None], 0, 0.5 * state[following - 1]) + sample[following - 1, :2]
    np.testing.assert_allclose(state[following], expected, atol=1e-6)
    assert f"calibset_size={count}" in bundle.read(f"hailo/{SCRIPT}").decode()


def test_with_the_compiler_the_hef_is_checked_and_attached(toy: Path, compiler: Path, recordings: Path) -> None:
    before = Bundle.open(toy)
    result = export_hailo(toy, HailoOptions(arch="hailo8", calibration_dataset=recordings))
    bundle = Bundle.open(toy)
    assert result.compiled and bundle.manifest.model_id == before.manifest.model_id
    assert verify_hef(bundle.read(HEF), HEF).architecture == "HAILO8"
    assert status_of(bundle)["compiled"] is True
    names = names_of(bundle)
    # The stand-in numbers the layers behind outputs backwards: what was read is its word, not a guess.
    assert names.read_from_compiler and names.outputs[0].layer.endswith("3")
    parity = bundle.manifest.parity["hailo"]
    assert parity.measured <= 1e-6 and parity.bound == 2e-2
    assert bundle.read(ONNX_MODEL) == before.read(ONNX_MODEL)
    assert [path.name for path in toy.parent.iterdir() if path.name.startswith(".")] == []
    log = toy.with_name(f"{toy.name}.hailo.log").read_text()
    assert all(f"$ {compiler} {command}" in log for command in ("parser onnx", "optimize", "compiler"))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("parser-fails", UnavailableError, r"hailo parser failed with exit code 1; see .*\.hailo\.log"),
        ("empty-hef", CorruptDataError, "an empty file is no HEF"),
        ("other-arch", CorruptDataError, "compiled for HAILO10H, which a hailo8l does not run"),
    ],
)
def test_a_compiler_that_fails_leaves_what_is_needed_to_try_again(
    fault: str,
    error: type[BrainError],
    message: str,
    toy: Path,
    compiler: Path,
    recordings: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HAILO_FAKE_COMPILER", fault)
    with pytest.raises(error, match=message):
        export_hailo(toy, HailoOptions(calibration_dataset=recordings))
    bundle = Bundle.open(toy)
    assert HEF not in bundle.manifest.files and status_of(bundle)["compiled"] is False
    assert f"hailo/{GRAPH}" in bundle.manifest.files


def test_a_compiler_that_hangs_is_killed_with_its_children(toy: Path, compiler: Path, recordings: Path) -> None:
    pids = compiler.with_name("pids")
    compiler.write_text(f"#!/bin/sh\nsleep 600 &\necho $$ $! > {pids}.new\nmv {pids}.new {pids}\nwait\n")
    with pytest.raises(UnavailableError, match="was not done in time"):
        export_hailo(toy, HailoOptions(calibration_dataset=recordings, timeout_s=5.0))
    started = [int(pid) for pid in pids.read_text().split()]
    assert len(started) == 2
    give_up = time.monotonic() + 60
    while not all(is_gone(pid) for pid in started):
        assert time.monotonic() < give_up, "it outlives its time"
        time.sleep(0.01)


def test_a_hef_from_elsewhere_needs_no_dataset_and_takes_the_names_beside_it(
    toy: Path, recordings: Path, tmp_path: Path
) -> None:
    export_hailo(toy, HailoOptions(calibration_dataset=recordings))
    # Another machine: the bundle's folder, the commands in it, and the compiler.
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(toy / "hailo", elsewhere)
    path = f"{install_compiler(tmp_path / 'far').parent}:{os.environ['PATH']}"
    subprocess.run(["sh", "compile.sh"], cwd=elsewhere, env={**os.environ, "PATH": path}, check=True)
    result = export_hailo(toy, HailoOptions(hef_source=elsewhere / "brain_step.hef"))
    bundle = Bundle.open(toy)
    assert result.compiled and "elsewhere" in result.detail
    assert bundle.read(HEF) == (elsewhere / "brain_step.hef").read_bytes()
    assert names_of(bundle).read_from_compiler
    # The HEF alone will do: the outputs are then taken in the order in which they were asked for.
    (elsewhere / "brain_step.har").unlink()
    export_hailo(toy, HailoOptions(hef_source=elsewhere / "brain_step.hef"))
    assert not names_of(Bundle.open(toy)).read_from_compiler
    # Preparing again touches no HEF that is there.
    again = export_hailo(toy, HailoOptions(calibration_dataset=recordings))
    assert again.compiled and Bundle.open(toy).read(HEF) == bundle.read(HEF)
    assert status_of(Bundle.open(toy))["compiled"] is True


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (make_hef()[:-1], "truncated"),
        (make_hef()[:-1] + b"!", "checksum"),
        (b"ELF" + make_hef(), "magic"),
        (make_hef(code=0), "architecture"),
        (make_hef(code=5), "architecture"),
    ],
)
def test_a_bad_hef_from_elsewhere_changes_nothing(data: bytes, reason: str, toy: Path, tmp_path: Path) -> None:
    source = tmp_path / "given.hef"
    source.write_bytes(data)
    with pytest.raises(CorruptDataError) as caught:
        export_hailo(toy, HailoOptions(arch="hailo8l", hef_source=source))
    assert caught.value.members["reason"] == reason and "given.hef" in caught.value.detail
    assert HEF not in Bundle.open(toy).manifest.files


def test_bad_options_are_refused_with_the_next_step(toy: Path, recordings: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidError, match="'hailo9' is none of hailo8"):
        export_hailo(toy, HailoOptions(arch="hailo9", calibration_dataset=recordings))
    with pytest.raises(InvalidError, match="--calibration-dataset"):
        export_hailo(toy, HailoOptions())
    with pytest.raises(NotFoundError, match=r"none\.hef"):
        export_hailo(toy, HailoOptions(hef_source=tmp_path / "none.hef"))
    few = write_recordings(tmp_path / "few", episodes=4)
    with pytest.raises(InvalidError, match="train split has 96 steps, calibration needs 1024"):
        export_hailo(toy, HailoOptions(calibration_dataset=few))
    with pytest.raises(CorruptDataError, match="differs from the golden vectors"):
        export_hailo(
            write_toy(tmp_path / "other", 2.0, toy_graph(1.0)), HailoOptions(calibration_dataset=recordings)
        )


def test_a_bundle_without_its_onnx_form_is_told_how_to_get_it(tmp_path: Path) -> None:
    from tests.export.samples import write_sample

    with pytest.raises(InvalidError, match="--format onnx first"):
        export_hailo(write_sample(tmp_path), HailoOptions())


def test_attaching_is_one_step_and_a_full_disk_leaves_the_bundle(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = Bundle.open(toy)
    attached = attach_files(bundle, {"hailo/a.txt": b"one"}, {})
    assert attached.read("hailo/a.txt") == b"one" and attached.manifest.model_id == bundle.manifest.model_id
    # Who opened it before goes on: the files that stay are the same.
    assert bundle.read(ONNX_MODEL) == attached.read(ONNX_MODEL)
    replaced = attach_files(attached, {"hailo/a.txt": b"two"}, {})
    assert replaced.read("hailo/a.txt") == b"two"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("brain_service.export.attach.write_manifest", full)
    with pytest.raises(UnavailableError, match="No space left"):
        attach_files(replaced, {"hailo/b.txt": b"three"}, {})
    assert Bundle.open(toy).manifest == replaced.manifest
    assert [path.name for path in toy.parent.iterdir()] == [toy.name]


def test_the_commands_are_those_of_the_compilers_command_line(toy: Path) -> None:
    bundle = Bundle.open(toy)
    _, names = cut_graph(bundle.read(ONNX_MODEL), bundle.manifest)
    parser, optimize, compiler = Commands(names, "hailo8l").lines()
    assert parser.startswith(
        "hailo parser onnx model.onnx --net-name brain_step --har-path brain_step.har --hw-arch"
    )
    assert "--start-node-names total count again " in parser and parser.endswith(" -y")
    assert "--calib-set-path calibration.npz --model-script model.alls" in optimize
    assert compiler == "hailo compiler brain_step_optimized.har --hw-arch hailo8l --output-dir ."
