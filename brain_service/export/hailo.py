"""The Hailo form of a bundle: all that the Dataflow Compiler needs, and the HEF where there is one.

hailo/model.onnx       the graph for the device (see `hailo_graph`)
hailo/model.alls       the compiler's script
hailo/calibration.npz  what the device will be fed, over recorded episodes, by layer
hailo/names.json       which stream carries what, and the host's arithmetic
hailo/compile.sh       the exact commands
hailo/status.json      compiled or not, and why
hailo/model.hef        only when it was compiled, here or elsewhere
"""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from brain_service.datasets.dataset import open_dataset
from brain_service.errors import CorruptDataError, InvalidError, NotFoundError
from brain_service.export.attach import attach_files
from brain_service.export.bundle import HEF, ONNX_MODEL, Bundle
from brain_service.export.hailo_calibration import (
    MIN_SAMPLES,
    HostedGraph,
    calibration_bytes,
    calibration_set,
    measure_parity,
)
from brain_service.export.hailo_compiler import (
    CALIBRATION,
    GRAPH,
    SCRIPT,
    Commands,
    check_hef,
    compile_graph,
    find_compiler,
    read_names,
    script,
)
from brain_service.export.hailo_graph import cut_graph
from brain_service.export.hailo_names import HAILO_NAMES, Names
from brain_service.export.hef import verify_hef
from brain_service.export.manifest import HAILO_PARITY_CAP, PARITY_CAP, Parity

__all__ = ["HailoOptions", "HailoResult", "export_hailo"]

FOLDER = "hailo"
STATUS = "hailo/status.json"
_COMPILE = "compile.sh"


@dataclass(frozen=True, slots=True)
class HailoOptions:
    """How to compile: the device, and where the compiler or a HEF made elsewhere is.

    `calibration_dataset` is a dataset of the model's training. `hef_source` is a HEF that was compiled from this
    bundle's `hailo/` folder; `har_source` the parser's archive beside it, which names the outputs.
    """

    arch: str = "hailo8l"
    calibration_dataset: Path | None = None
    hef_source: Path | None = None
    har_source: Path | None = None
    samples: int = MIN_SAMPLES
    timeout_s: float = 7200.0


@dataclass(frozen=True, slots=True)
class HailoResult:
    """The bundle as it is now, whether it holds a HEF, and what is to be done where it does not."""

    bundle: Bundle
    compiled: bool
    detail: str
    commands: tuple[str, ...]


def export_hailo(path: Path, options: HailoOptions) -> HailoResult:
    """Add the Hailo form to the bundle at `path`; a HEF that it holds already is kept until there is a new one.

    Raises:
        InvalidError: no ONNX form, no dataset to calibrate with, too few steps, an unknown architecture, or the
            model sees images.
        CorruptDataError: the graph, the HEF or what the compiler made does not hold; nothing is changed.
        UnavailableError: the compiler failed or took too long; the files for it are in the bundle.
    """
    bundle = Bundle.open(path)
    if ONNX_MODEL not in bundle.manifest.files:
        raise InvalidError(
            f"{path}: holds no {ONNX_MODEL}, from which Hailo's form is made; export it with --format onnx first",
            field="format",
        )
    if bundle.manifest.image is not None:
        raise InvalidError(
            f"{path}: its model sees the image {bundle.manifest.image.path!r}; calibration set and streams of "
            "Hailo's form hold vectors only. Serve it from its ONNX form, or train with image 'none'",
            field="format",
        )
    graph, names = cut_graph(bundle.read(ONNX_MODEL), bundle.manifest)
    hosted = HostedGraph(graph, names)
    parity = measure_parity(hosted, bundle.golden(), bundle.manifest)
    bound = PARITY_CAP[bundle.manifest.quantisation]
    if not parity <= bound:
        raise CorruptDataError(
            f"{path}: the graph cut for Hailo differs from the golden vectors by {parity:.1e} of the action "
            f"range, the bound is {bound:.0e}; export the bundle's ONNX form again"
        )
    commands = Commands(names, options.arch)
    if options.hef_source is not None:
        return _attach_hef(bundle, options, names, parity, commands)
    return _prepare(bundle, options, hosted, graph, parity, commands)


def _attach_hef(
    bundle: Bundle, options: HailoOptions, names: Names, parity: float, commands: Commands
) -> HailoResult:
    """Attach a HEF that was compiled elsewhere, after checking it."""
    assert options.hef_source is not None
    hef = _read(options.hef_source)
    check_hef(hef, options.arch, str(options.hef_source))
    har = options.har_source or options.hef_source.with_name(commands.parsed)
    if options.har_source is not None or har.is_file():
        names = read_names(_read(har), names, str(har))
    detail = f"compiled elsewhere, from {options.hef_source.name}"
    files = {HEF: hef, HAILO_NAMES: names.to_bytes(), STATUS: _status(options.arch, detail, commands, hef)}
    attached = attach_files(bundle, files, {"hailo": Parity(parity, HAILO_PARITY_CAP)})
    return HailoResult(attached, True, detail, tuple(commands.lines()))


def _prepare(
    bundle: Bundle, options: HailoOptions, hosted: HostedGraph, graph: bytes, parity: float, commands: Commands
) -> HailoResult:
    """Write what the compiler needs into the bundle, and compile where it is installed."""
    if options.calibration_dataset is None:
        raise InvalidError(
            "the compiler needs recorded inputs to choose its scales; give --calibration-dataset",
            field="calibration_dataset",
        )
    rows = calibration_set(hosted, open_dataset(options.calibration_dataset), bundle.manifest, options.samples)
    count = len(next(iter(rows.values())))
    files = {
        GRAPH: graph,
        SCRIPT: script(count).encode(),
        CALIBRATION: calibration_bytes(rows, hosted.names),
        _COMPILE: _shell(commands),
    }
    reason = "not compiled: the Dataflow Compiler (program `hailo`) is not installed here"
    status = _status(options.arch, reason, commands, None)
    if HEF in bundle.manifest.files:
        status = bundle.read(STATUS)
    # In the bundle before the compiler runs: hours later it may fail, and this is what is needed to try again.
    prepared = {f"{FOLDER}/{name}": data for name, data in files.items()} | {STATUS: status}
    if HEF not in bundle.manifest.files:
        prepared[HAILO_NAMES] = hosted.names.to_bytes()
    bundle = attach_files(bundle, prepared, {})
    program = find_compiler()
    if program is None:
        return HailoResult(bundle, HEF in bundle.manifest.files, reason, tuple(commands.lines()))
    with tempfile.TemporaryDirectory(prefix="brain-hailo-") as folder:
        for name in (GRAPH, SCRIPT):
            (Path(folder) / name).write_bytes(files[name])
        hef, names = compile_graph(
            program,
            Path(folder),
            hosted.names,
            options.arch,
            log=bundle.path.resolve().with_name(f"{bundle.manifest.model_id}.hailo.log"),
            timeout_s=options.timeout_s,
            calibrate=lambda named: calibration_bytes(rows, named),
        )
    detail = "compiled here"
    made = {
        HEF: hef,
        HAILO_NAMES: names.to_bytes(),
        f"{FOLDER}/{CALIBRATION}": calibration_bytes(rows, names),
        STATUS: _status(options.arch, detail, commands, hef),
    }
    attached = attach_files(bundle, made, {"hailo": Parity(parity, HAILO_PARITY_CAP)})
    return HailoResult(attached, True, detail, tuple(commands.lines()))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise NotFoundError(f"{path}: cannot be read: {error.strerror}; give the path of the file") from error


def _shell(commands: Commands) -> bytes:
    lines = ["#!/bin/sh", "# Run in this folder, where Hailo's Dataflow Compiler is installed.", "set -eu"]
    return "\n".join([*lines, *commands.lines(), ""]).encode()


def _status(arch: str, detail: str, commands: Commands, hef: bytes | None) -> bytes:
    """Return `status.json`. The parity of a HEF is no part of it: the worker measures that on the device."""
    document: dict[str, object] = {
        "compiled": hef is not None,
        "arch": arch,
        "detail": detail,
        "commands": commands.lines(),
    }
    if hef is not None:
        info = verify_hef(hef, HEF)
        described: Mapping[str, object] = {
            "header_version": info.version,
            "architecture": info.architecture,
            "compiler_version": info.sdk_version,
            "size_bytes": info.size_bytes,
        }
        document["hef"] = described
    return json.dumps(document, indent=1).encode() + b"\n"
