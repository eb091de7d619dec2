"""`brain export-hailo`: the Hailo form of a bundle, compiled here, prepared for elsewhere, or taken from there."""

import argparse
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from brain_service.errors import ConfigError, InvalidError

if TYPE_CHECKING:
    from brain_service.export.bundle import Bundle
    from brain_service.export.hailo import HailoResult

__all__ = ["add_arguments", "add_export_hailo_command", "make", "require", "tell"]

EXAMPLES = """\
exit code: 0 compiled, 1 prepared but not compiled, 2 failed

examples:
  brain export-hailo ./models/0123456789abcdef --hailo-arch hailo8l --calibration-dataset ./datasets
  brain export-hailo ./models/0123456789abcdef --hailo-arch hailo8l --hef-source ./brain_step.hef
  brain export-hailo --checkpoint-path ./models --output-dir ./models-hailo --calibration-dataset ./datasets

The first compiles where Hailo's Dataflow Compiler (x86) is installed, and elsewhere prepares <bundle>/hailo/,
whose compile.sh runs there; the second takes what came of it. The third takes the only bundle in ./models, leaves
it as it is, and adds the form to a copy.
"""


def add_export_hailo_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export-hailo` to the parser of `brain`."""
    summary = "Add the form for a Hailo AI HAT+ to a bundle that holds an ONNX form."
    added = commands.add_parser(
        "export-hailo",
        help=summary,
        description=summary,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.add_argument("bundle", type=Path, nargs="?", metavar="MODEL", help="a bundle, or the folder of one")
    added.add_argument("--checkpoint-path", type=Path, metavar="MODEL", help="the same")
    added.add_argument(
        "--output-dir",
        type=Path,
        metavar="MODELS",
        help="copy it to <model_id>/ in here first (default: add to it)",
    )
    added.set_defaults(run=_run)
    add_arguments(added)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the Hailo form asks for."""
    parser.add_argument(
        "--hailo-arch",
        choices=["hailo8", "hailo8l", "hailo10h", "hailo15h", "hailo15m"],
        default="hailo8l",
        help="the device: AI HAT+ 13 TOPS is hailo8l, 26 TOPS hailo8, HAT+ 2 hailo10h (default: %(default)s)",
    )
    parser.add_argument(
        "--calibration-dataset", type=Path, metavar="DIR", help="the model's training dataset, 1024 steps or more"
    )
    parser.add_argument("--hef-source", type=Path, metavar="HEF", help="compiled elsewhere from this bundle")
    parser.add_argument(
        "--har-source", type=Path, metavar="HAR", help="the parser's archive (default: beside the HEF, if there)"
    )
    parser.add_argument(
        "--hailo-timeout-s",
        type=float,
        default=7200.0,
        metavar="S",
        help="for the compiler (default: %(default)s)",
    )


def require(options: argparse.Namespace) -> None:
    """Check what can be checked before anything is made.

    Raises:
        ConfigError: a package is missing.
        InvalidError: there is neither a dataset to calibrate with nor a HEF.
    """
    missing = [name for name in ("onnx", "onnxruntime", "xxhash") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"the Hailo form needs {', '.join(missing)}; pip install {' '.join(missing)}")
    if options.calibration_dataset is None and options.hef_source is None:
        raise InvalidError(
            "give --calibration-dataset DIR to compile or prepare, or --hef-source HEF of one compiled elsewhere",
            field="calibration_dataset",
        )


def make(bundle: "Bundle", options: argparse.Namespace) -> "HailoResult":
    """Add the Hailo form to a bundle as the options say; see `export_hailo`.

    Raises:
        BrainError: as `export_hailo`.
    """
    from brain_service.export.hailo import HailoOptions, export_hailo

    wanted = HailoOptions(
        arch=options.hailo_arch,
        calibration_dataset=options.calibration_dataset,
        hef_source=options.hef_source,
        har_source=options.har_source,
        timeout_s=options.hailo_timeout_s,
    )
    return export_hailo(bundle.path, wanted)


def tell(result: "HailoResult", options: argparse.Namespace) -> None:
    """Say on standard error what became of it and, where it was not compiled, the next steps."""
    lines = [result.detail]
    if not result.compiled:
        lines += [
            f"where the compiler is, in a copy of {result.bundle.path / 'hailo'}:",
            *(f"  {each}" for each in result.commands),
            f"then: brain export-hailo {result.bundle.path} --hailo-arch {options.hailo_arch} --hef-source ...",
        ]
    sys.stderr.write("\n".join([*lines, ""]))


def _run(options: argparse.Namespace) -> int:
    require(options)
    result = make(_bundle(options), options)
    sys.stdout.write(f"{result.bundle.path}\n")
    tell(result, options)
    return 0 if result.compiled else 1


def _bundle(options: argparse.Namespace) -> "Bundle":
    """Return the bundle that gets the form: the named one, or a copy of it in `--output-dir`.

    Raises:
        InvalidError: none is named, or a folder of several.
        BrainError: it does not verify, or cannot be copied.
    """
    from brain_service.export.bundle import MANIFEST, Bundle, is_model_id, write_bundle

    path: Path | None = options.bundle or options.checkpoint_path
    if path is None:
        raise InvalidError("name a bundle: brain export-hailo MODEL ...", field="bundle")
    if path.is_dir() and not (path / MANIFEST).is_file():
        found = sorted(each.name for each in path.iterdir() if is_model_id(each.name))
        if len(found) != 1:
            raise InvalidError(
                f"{path} holds {len(found)} bundles{': ' * bool(found)}{', '.join(found)}; name one of them",
                field="bundle",
            )
        path = path / found[0]
    bundle = Bundle.open(path)
    if options.output_dir is None:
        return bundle
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return Bundle.open(options.output_dir / write_bundle(options.output_dir, bundle.manifest, files))
