"""A stand-in for the `hailo` program of the Dataflow Compiler: checks what it is given, writes archives and a HEF.

    python -m tests.fakes.hailo_compiler parser onnx M --hw-arch A ... -y
    python -m tests.fakes.hailo_compiler optimize M.har --calib-set-path X.npz --model-script S ...
    python -m tests.fakes.hailo_compiler compiler M_optimized.har ...

Its HEFs run on `tests/fakes/hailo_platform` only. `HAILO_FAKE_COMPILER` makes it misbehave: parser-fails, hangs,
empty-hef, other-arch, narrow-outputs (8 bits where 16 were asked for, as a version of the real one does silently).
"""

import argparse
import io
import json
import os
import re
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from tests.fakes.hailo_platform.pyhailort.network import Network, StreamInfo, evaluate
from tests.fakes.hefs import make_hef

ARCHITECTURES = {"hailo8": 0, "hailo8l": 3, "hailo15m": 4, "hailo10h": 5, "hailo15h": 103}
REJECTED = {
    "ConstantOfShape", "Einsum", "Erf", "Expand", "Gather", "NonZero", "ReduceSum", "ScatterND", "Split", "Squeeze"
}  # fmt: skip
COMMANDS = (
    r"model_optimization_config\(calibration, batch_size=\d+, calibset_size=\d+\)",
    r"model_optimization_flavor\(optimization_level=-?\d+, compression_level=\d\)",
    r"quantization_param\((?:[\w/]+|\{[\w/*]+\}), precision_mode=a(?:8|16)_w(?:8|16|4)\)",
)
MARGIN = 0.5
"""Room beyond what calibration saw, as a share of it, at either end of a stream's range."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="hailo")
    commands = parser.add_subparsers(dest="command", required=True)
    parse = commands.add_parser("parser")
    parse.add_argument("framework", choices=["onnx", "tf", "tf2"])
    parse.add_argument("model_path", type=Path)
    parse.add_argument("--net-name", required=True)
    parse.add_argument("--har-path", type=Path, required=True)
    parse.add_argument("--start-node-names", nargs="+", required=True)
    parse.add_argument("--end-node-names", nargs="+", required=True)
    parse.add_argument("-y", action="store_true", required=True)
    optimise = commands.add_parser("optimize")
    optimise.add_argument("har", type=Path)
    optimise.add_argument("--calib-set-path", type=Path, required=True)
    optimise.add_argument("--model-script", type=Path)
    optimise.add_argument("--output-har-path", type=Path, required=True)
    compiler = commands.add_parser("compiler")
    compiler.add_argument("har", type=Path)
    compiler.add_argument("--output-dir", type=Path, default=Path())
    for command in (parse, optimise, compiler):
        command.add_argument("--hw-arch", choices=ARCHITECTURES, default="hailo8")
    options = parser.parse_args()
    print(f"[info] Current Time (simulated compiler), arch {options.hw_arch}")
    run = {"parser": _parse, "optimize": _optimise, "compiler": _compile}[options.command]
    run(options, os.environ.get("HAILO_FAKE_COMPILER", ""))
    return 0


def _parse(options: argparse.Namespace, fault: str) -> None:
    if fault == "parser-fails":
        sys.exit("hailo_sdk_client.model_translator.exceptions.ParsingWithRecommendationException: unsupported")
    while fault == "hangs":
        time.sleep(0.05)
    model = onnx.load(options.model_path)
    onnx.checker.check_model(model, full_check=True)
    (opset,) = (entry.version for entry in model.opset_import if entry.domain == "")
    if not 11 <= opset <= 18:
        sys.exit(f"opset {opset} is not supported")
    if bad := sorted({node.op_type for node in model.graph.node} & REJECTED):
        sys.exit(f"unsupported operations: {', '.join(bad)}")
    starts = {info.name: _row_size(info) for info in model.graph.input}
    if list(starts) != options.start_node_names:
        sys.exit(f"start nodes {options.start_node_names} are not the inputs {list(starts)}")
    made_by = {node.name: node for node in model.graph.node}
    layers: dict[str, Any] = {}
    for place, (name, size) in enumerate(starts.items(), 1):
        layers[f"{options.net_name}/input_layer{place}"] = {
            "type": "input_layer", "input": [], "output_shapes": [[-1, 1, 1, size]], "original_names": [name],
        }  # fmt: skip
    for place, name in enumerate(options.end_node_names, 1):
        node = made_by.get(name) or sys.exit(f"there is no node {name!r}")
        # Numbered backwards, so that no order of names is that of the request.
        layer = f"{options.net_name}/{node.op_type.lower()}{len(options.end_node_names) - place + 1}"
        layers[layer] = {"type": node.op_type.lower(), "input": [], "original_names": [node.name]}
        layers[f"{options.net_name}/output_layer{place}"] = {
            "type": "output_layer", "input": [layer], "original_names": ["out"],
        }  # fmt: skip
    _write_har(options.har_path, options.net_name, layers, {"onnx": options.model_path.read_bytes()})


def _row_size(info: Any) -> int:
    axes = [axis.dim_value for axis in info.type.tensor_type.shape.dim]
    if len(axes) != 2 or axes[0] != 1 or axes[1] < 1:
        sys.exit(f"input {info.name} has shape {axes}; this program takes [1, n]")
    return int(axes[1])


def _optimise(options: argparse.Namespace, fault: str) -> None:
    name, layers, blobs = _read_har(options.har)
    wide = _read_script(options.model_script) if options.model_script else False
    calibration = np.load(options.calib_set_path)
    inputs = {each: layer for each, layer in layers.items() if layer["type"] == "input_layer"}
    if set(calibration.files) != set(inputs):
        sys.exit(f"calibration set has {sorted(calibration.files)}, the input layers are {sorted(inputs)}")
    counts = set()
    for layer, about in inputs.items():
        rows = calibration[layer]
        if rows.dtype != np.float32 or list(rows.shape[1:]) != about["output_shapes"][0][1:]:
            sys.exit(f"{layer}: calibration is {rows.dtype}{rows.shape}, expected {about['output_shapes']}")
        counts.add(len(rows))
    if len(counts) != 1 or max(counts) < 1024:
        print("[warning] Reducing optimization level to 0: there are less than 1024 samples")
    blobs["ranges"] = json.dumps(_ranges(blobs["onnx"], layers, calibration)).encode()
    blobs["bits"] = b"16" if wide and fault != "narrow-outputs" else b"8"
    _write_har(options.output_har_path, name, layers, blobs)


def _read_script(path: Path) -> bool:
    """Check every line; return whether the whole network is asked for in 16 bits."""
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    for line in lines:
        if not any(re.fullmatch(command, line) for command in COMMANDS):
            sys.exit(f"model script: cannot parse {line!r}")
    return "quantization_param({*}, precision_mode=a16_w16)" in lines


def _ranges(model_bytes: bytes, layers: dict[str, Any], calibration: Any) -> dict[str, tuple[float, float]]:
    nodes, constants = _nodes(model_bytes)
    streams = _streams(layers)
    found: dict[str, list[Any]] = {tensor: [] for tensor in streams.values()}
    inputs = {layer: tensor for layer, tensor in streams.items() if layers[layer]["type"] == "input_layer"}
    # A share of the rows, and none that keeps time with a counter in the state: nobody waits for a stand-in.
    for row in range(0, len(calibration[next(iter(inputs))]), 7):
        values = {tensor: calibration[layer][row].reshape(1, -1) for layer, tensor in inputs.items()}
        known = evaluate(nodes, constants, values)
        for tensor, seen in found.items():
            seen.append((known[tensor].min(), known[tensor].max()))
    ranges = {}
    for tensor, seen in found.items():
        low, high = np.min(seen, axis=0)[0], np.max(seen, axis=0)[1]
        room = MARGIN * max(high - low, 1e-3)
        ranges[tensor] = (float(low - room), float(high + room))
    return ranges


def _compile(options: argparse.Namespace, fault: str) -> None:
    name, layers, blobs = _read_har(options.har)
    if "ranges" not in blobs:
        sys.exit("the archive is not optimized; run `hailo optimize` first")
    ranges, bits = json.loads(blobs["ranges"]), int(blobs["bits"])
    nodes, constants = _nodes(blobs["onnx"])
    streams = []
    for layer, tensor in _streams(layers).items():
        low, high = ranges[tensor]
        scale = (high - low) / (2**bits - 1)
        streams.append(
            (layers[layer]["type"], StreamInfo(layer, tensor, 0, scale, float(round(-low / scale)), bits))
        )
    sizes = _sizes(blobs["onnx"])
    known = [(kind, StreamInfo(**{**vars(each), "size": sizes[each.tensor]})) for kind, each in streams]
    network = Network(
        name,
        tuple(each for kind, each in known if kind == "input_layer"),
        tuple(each for kind, each in known if kind != "input_layer"),
        nodes,
        constants,
    )
    code = ARCHITECTURES["hailo10h" if fault == "other-arch" else options.hw_arch]
    hef = b"" if fault == "empty-hef" else make_hef(2, code, "3.33.0", network.to_bytes())
    (options.output_dir / f"{name}.hef").write_bytes(hef)


def _streams(layers: dict[str, Any]) -> dict[str, str]:
    """Return the tensor of each input layer and of each layer behind an output, in order."""
    inputs = [name for name, layer in layers.items() if layer["type"] == "input_layer"]
    outputs = [layer["input"][0] for layer in layers.values() if layer["type"] == "output_layer"]
    return {name: layers[name]["original_names"][0] for name in [*inputs, *outputs]}


def _nodes(model_bytes: bytes) -> tuple[tuple[dict[str, Any], ...], dict[str, Any]]:
    graph = onnx.load_from_string(model_bytes).graph
    nodes = tuple(
        {
            "op": node.op_type,
            "inputs": list(node.input),
            "output": node.output[0],
            "attributes": {
                each.name: list(each.ints) if each.type == onnx.AttributeProto.INTS else each.i
                for each in node.attribute
            },
        }
        for node in graph.node
    )
    return nodes, {each.name: numpy_helper.to_array(each) for each in graph.initializer}


def _sizes(model_bytes: bytes) -> dict[str, int]:
    graph = onnx.load_from_string(model_bytes).graph
    return {
        info.name: int(np.prod([axis.dim_value for axis in info.type.tensor_type.shape.dim]))
        for info in [*graph.input, *graph.output]
    }


def _write_har(path: Path, name: str, layers: dict[str, Any], blobs: dict[str, bytes]) -> None:
    hn = json.dumps({"name": name, "layers": layers}).encode()
    with tarfile.open(path, "w") as archive:
        for member, data in {f"{name}.hn": hn, **blobs}.items():
            about = tarfile.TarInfo(member)
            about.size = len(data)
            archive.addfile(about, io.BytesIO(data))


def _read_har(path: Path) -> tuple[str, dict[str, Any], dict[str, bytes]]:
    with tarfile.open(path) as archive:
        files = {each.name: archive.extractfile(each) for each in archive.getmembers()}
        blobs = {name: file.read() for name, file in files.items() if file}
    (hn,) = (name for name in blobs if name.endswith(".hn"))
    document = json.loads(blobs.pop(hn))
    return document["name"], document["layers"], blobs


if __name__ == "__main__":
    sys.exit(main())
