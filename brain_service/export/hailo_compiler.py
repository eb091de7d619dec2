"""Hailo's Dataflow Compiler, an x86 program that a robot's maker installs: found, run, and its HEF checked.

It runs in processes of its own, with a log and a time limit, by its command line, which is the same for all its
versions that we know of. Where it is not installed the same commands are written down for a machine that has it.
"""

import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brain_service.errors import CorruptDataError, InvalidError, UnavailableError
from brain_service.export.hailo_names import Names, Stream
from brain_service.export.hef import ACCEPTED, verify_hef

__all__ = [
    "ARCHITECTURES",
    "CALIBRATION",
    "GRAPH",
    "SCRIPT",
    "Commands",
    "compile_graph",
    "find_compiler",
    "script",
]

ARCHITECTURES = ("hailo8", "hailo8l", "hailo10h", "hailo15h", "hailo15m")
"""What `--hailo-arch` takes: the compiler's names."""

GRAPH, SCRIPT, CALIBRATION = "model.onnx", "model.alls", "calibration.npz"
_TAIL_LINES = 12


class Commands:
    """The three commands that make a HEF, to be run in the folder that holds the files."""

    def __init__(self, names: Names, arch: str, program: str = "hailo") -> None:
        if arch not in ARCHITECTURES:
            raise InvalidError(f"hailo arch {arch!r} is none of {', '.join(ARCHITECTURES)}", field="hailo_arch")
        self.parsed, self.optimised = f"{names.network}.har", f"{names.network}_optimized.har"
        self.hef = f"{names.network}.hef"
        self.parser = [
            program, "parser", "onnx", GRAPH, "--net-name", names.network, "--har-path", self.parsed,
            "--hw-arch", arch, "--start-node-names", *(stream.tensor for stream in names.inputs),
            "--end-node-names", *(stream.tensor for stream in names.outputs), "-y",
        ]  # fmt: skip
        self.optimize = [
            program, "optimize", self.parsed, "--hw-arch", arch, "--calib-set-path", CALIBRATION,
            "--model-script", SCRIPT, "--output-har-path", self.optimised,
        ]  # fmt: skip
        self.compiler = [program, "compiler", self.optimised, "--hw-arch", arch, "--output-dir", "."]

    def lines(self) -> list[str]:
        """Return the commands as a shell takes them."""
        return [shlex.join(command) for command in (self.parser, self.optimize, self.compiler)]


def script(samples: int) -> str:
    """Return the model script (`.alls`).

    16 bits for weights and activations throughout: the step is a chain of small products that is fed its own
    state, so that precision is what it lacks and time what it has. No weight is compressed, for the same reason.
    The inputs are normalised on the host (see `hailo_names`), so no `normalization` is asked for here.
    """
    return (
        f"model_optimization_config(calibration, batch_size=8, calibset_size={samples})\n"
        "model_optimization_flavor(optimization_level=0, compression_level=0)\n"
        "quantization_param({*}, precision_mode=a16_w16)\n"
        "quantization_param({output_layer*}, precision_mode=a16_w16)\n"
    )


def find_compiler() -> str | None:
    """Return the path of the `hailo` program, None where the Dataflow Compiler is not installed."""
    return shutil.which("hailo")


def compile_graph(
    program: str,
    folder: Path,
    names: Names,
    arch: str,
    *,
    log: Path,
    timeout_s: float,
    calibrate: Callable[[Names], bytes],
) -> tuple[bytes, Names]:
    """Run parser, optimizer and compiler in `folder`, which holds graph and script; return the HEF and the names.

    `calibrate` gives the calibration set for the layers as the parser has named them. What the programs say goes
    to `log`.

    Raises:
        UnavailableError: one of them failed, or all together took longer than `timeout_s`; with its last lines.
        CorruptDataError: what came out is no HEF, or not for this architecture.
    """
    commands = Commands(names, arch, program)
    give_up_s = time.monotonic() + timeout_s
    with log.open("wb") as stream:
        _run(commands.parser, folder, stream, log, give_up_s)
        names = read_names((folder / commands.parsed).read_bytes(), names, str(folder / commands.parsed))
        (folder / CALIBRATION).write_bytes(calibrate(names))
        _run(commands.optimize, folder, stream, log, give_up_s)
        _run(commands.compiler, folder, stream, log, give_up_s)
    path = folder / commands.hef
    if not path.is_file():
        raise UnavailableError(f"the compiler ended well and wrote no {commands.hef}; see {log}")
    hef = path.read_bytes()
    check_hef(hef, arch, str(path))
    return hef, names


def check_hef(data: bytes, arch: str, source: str) -> None:
    """Check a HEF whole, and that a device of this architecture runs it.

    Raises:
        CorruptDataError: it is damaged, or for another device.
    """
    info = verify_hef(data, source)
    if info.architecture not in ACCEPTED[arch.upper()]:
        raise CorruptDataError(
            f"{source}: compiled for {info.architecture}, which a {arch} does not run; it runs "
            f"{', '.join(sorted(ACCEPTED[arch.upper()]))}: compile for --hw-arch {arch}",
            reason="architecture",
        )


def read_names(har: bytes, names: Names, source: str) -> Names:
    """Return the names with the layers that the parser chose, out of its archive (HAR).

    Raises:
        CorruptDataError: the archive does not hold the network, or not with these inputs and outputs.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(har)) as archive:
            (member,) = [each for each in archive.getmembers() if each.name == f"{names.network}.hn"]
            file = archive.extractfile(member)
            layers: dict[str, dict[str, Any]] = json.loads(file.read() if file else b"")["layers"]
        inputs = {
            original: name
            for name, layer in layers.items()
            if layer["type"] == "input_layer"
            for original in layer["original_names"]
        }
        # HailoRT calls an output by the layer behind it.
        behind = [layer["input"][0] for layer in layers.values() if layer["type"] == "output_layer"]
        outputs = {original: name for name in behind for original in layers[name]["original_names"]}
        return replace(
            names,
            inputs=tuple(_named(stream, inputs) for stream in names.inputs),
            outputs=tuple(_named(stream, outputs) for stream in names.outputs),
            read_from_compiler=True,
        )
    except (tarfile.TarError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CorruptDataError(
            f"{source}: no archive of network {names.network} with its inputs and outputs ({error!r}); "
            "parse this bundle's own graph"
        ) from error


def _named(stream: Stream, layers: dict[str, str]) -> Stream:
    return replace(stream, layer=layers[stream.tensor])


def _run(command: Sequence[str], folder: Path, stream: Any, log: Path, give_up_s: float) -> None:
    stream.write(f"$ {shlex.join(command)}\n".encode())
    stream.flush()
    name = f"hailo {command[1]}"
    # A group of its own: the programs start others, and all of them go when the time is over.
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=stream,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        code = process.wait(max(0.0, give_up_s - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"{name} was not done in time; raise --hailo-timeout-s; see {log}") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if code != 0:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-_TAIL_LINES:])
        raise UnavailableError(f"{name} failed with exit code {code}; see {log}:\n{tail}")
