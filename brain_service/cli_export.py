"""`brain export`: a checkpoint becomes a bundle, with a table of what each of its forms weighs and gives."""

import argparse
import sys
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from brain_service import cli_hailo
from brain_service.errors import BrainError
from brain_service.terminal import say, say_json, size_text, table_lines

if TYPE_CHECKING:
    from brain_service.export.bundle import Bundle
    from brain_service.export.manifest import Manifest, Parity

__all__ = ["FROM_BUNDLE", "FormRow", "FromBundle", "add_export_command"]

_ABOUT = """\
Export a checkpoint as a bundle that the daemon serves: MODELS/<model_id>/.

Each form is run over a recorded sequence with its own state fed back and held against the model; one that differs
by more than 1e-4 of the action range (2e-2 when quantised) is refused. The path of the bundle goes to standard
output, the table to standard error. The same checkpoint is the same model; a form that its bundle lacks is added.
"""
_EXAMPLES = """\
exit code: 0 done, 2 failed; what is written is whole

examples:
  brain export --checkpoint-dir ./checkpoints/run1 --output-dir ./models
  brain export --checkpoint-dir ./checkpoints/run1 --output-dir ./models --quantization int8
  brain export --checkpoint-dir ./checkpoints/run1 --output-dir ./models --format jax --step 500
  brain export --checkpoint-dir ./checkpoints/run1 --output-dir ./models --format saved-model
  brain export --checkpoint-path gs://my-robots/runs/1 --output-path ./models --quantization fp16
  brain export --checkpoint-dir ./checkpoints/run1 --output-dir ./models --format hailo \\
               --calibration-dataset ./datasets
  brain export --checkpoint-dir ./checkpoints/run1 --output-dir ./models --json | jq .forms.jax.parity

then:
  curl -X POST http://127.0.0.1:8080/models/<model_id>/activate     # of the daemon whose models these are
"""

Progress = Callable[[int, int, str], None]
Bar = Callable[[str], AbstractContextManager[Callable[..., None]]]


class FormRow(NamedTuple):
    """One form in the table; what was not measured is None."""

    size_bytes: int | None
    parity: "Parity | None" = None
    drift: float | None = None
    step_us: float | None = None
    path: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object."""
        return {
            "size_bytes": self.size_bytes,
            "parity": self.parity and self.parity.measured,
            "bound": self.parity and self.parity.bound,
            "drift": self.drift,
            "step_us": self.step_us,
            "path": self.path and str(self.path),
        }


@dataclass(frozen=True, slots=True)
class FromBundle:
    """A format that is made from a finished bundle: its flags, what it needs, and what makes it.

    `require` raises before anything is made where a tool is missing; `make` returns the format's row.
    """

    add_arguments: Callable[[argparse.ArgumentParser], None]
    require: Callable[[argparse.Namespace], None]
    make: Callable[["Bundle", argparse.Namespace, Progress], FormRow]


def add_export_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", bar: Bar) -> None:
    """Add `export` to the parser of `brain`; `bar` shows progress."""
    added = commands.add_parser(
        "export",
        help="Export a checkpoint as a bundle that the daemon serves.",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    added.set_defaults(run=lambda options: _export(options, bar))
    added.add_argument(
        *("--checkpoint-dir", "--checkpoint-path"),
        required=True,
        metavar="RUN",
        help="checkpoints of one run, or the output directory of the cloud's trainer; local or gs://",
    )
    added.add_argument(
        *("--output-dir", "--output-path"),
        type=Path,
        required=True,
        metavar="MODELS",
        help="<model_id>/ is made in here",
    )
    added.add_argument("--step", type=int, help="of the run (default: its best by held-out loss, else the newest)")
    added.add_argument(
        "--quantization",
        choices=["none", "fp16", "int8"],
        default="none",
        help="how the weights of matrices are stored (default: %(default)s)",
    )
    added.add_argument(
        "--format",
        nargs="+",
        choices=["jax", "onnx", *FROM_BUNDLE, "all"],
        metavar="FORMAT",
        help=f"jax, onnx, {', '.join(FROM_BUNDLE)} or all; jax is always made (default: jax, and onnx where its "
        "packages are installed)",
    )
    added.add_argument("--json", action="store_true", help="print figures and paths as JSON")
    for form in FROM_BUNDLE.values():
        form.add_arguments(added)


def _export(options: argparse.Namespace, bar: Bar) -> int:
    wanted = _wanted(options)
    if options.checkpoint_dir.startswith("gs://"):
        from brain_service.datasets.gcs_libraries import prepare_gcs_libraries

        prepare_gcs_libraries()
    from brain_service.export.bundle import Bundle
    from brain_service.export.forms import FORMS, default_forms
    from brain_service.export.jax_step import export_jax

    asked = options.format or default_forms()
    # The form for a Hailo is compiled from the graph.
    asked = {*asked, "onnx"} if "hailo" in wanted else asked
    forms = list(FORMS) if "all" in asked else [name for name in FORMS if name in asked]
    with bar("exporting") as report:
        path = export_jax(
            options.checkpoint_dir,
            options.output_dir,
            step=options.step,
            quantisation=options.quantization,
            forms=forms,
            progress=report,
        )
        bundle = Bundle.open(path)
        rows = {name: FROM_BUNDLE[name].make(bundle, options, report) for name in wanted}
        # Making them may have added files.
        manifest = Bundle.open(path).manifest
    rows = _bundle_rows(manifest, {name: form.file for name, form in FORMS.items()}) | rows
    if options.json:
        say_json(_document(path, manifest, rows))
        return 0
    sys.stderr.write(
        "\n".join([f"model {manifest.model_id}, quantisation {manifest.quantisation}", *_table(rows), ""])
    )
    say(str(path))
    for name in wanted:
        if rows[name].path is not None:
            say(str(rows[name].path))
    return 0


def _wanted(options: argparse.Namespace) -> list[str]:
    """Return the formats to make from the bundle; `all` leaves out what lacks a tool or an argument, and says so.

    Raises:
        BrainError: one that was named lacks it.
    """
    asked, found = set(options.format or ()), []
    for name, form in FROM_BUNDLE.items():
        if not {name, "all"} & asked:
            continue
        try:
            form.require(options)
        except BrainError as error:
            if name in asked:
                raise
            sys.stderr.write(f"brain export: without {name}: {error.detail}\n")
        else:
            found.append(name)
    return found


def _bundle_rows(manifest: "Manifest", files: Mapping[str, str]) -> dict[str, FormRow]:
    """Return the rows of what the bundle holds, in its own words."""
    from brain_service.export.bundle import PARAMS

    rows = {"parameters": FormRow(manifest.files[PARAMS].size_bytes)}
    for form, file in files.items():
        if file in manifest.files:
            figures = manifest.measured.get(form, {})
            rows[form] = FormRow(
                manifest.files[file].size_bytes,
                manifest.parity.get(form),
                figures.get("drift"),
                figures.get("step_us"),
            )
    if "switch" in manifest.parity:
        rows["switch"] = FormRow(None, manifest.parity["switch"])
    return rows


def _document(path: Path, manifest: "Manifest", rows: Mapping[str, FormRow]) -> dict[str, Any]:
    return {
        "path": str(path),
        "model_id": manifest.model_id,
        "quantization": manifest.quantisation,
        "forms": {name: row.to_json() for name, row in rows.items()},
    }


def _table(rows: Mapping[str, FormRow]) -> list[str]:
    heads = ("form", "size", "parity", "bound", "drift", "step")
    return table_lines([heads, *(_cells(name, row) for name, row in rows.items())], right=heads[1:])


def _cells(name: str, row: FormRow) -> tuple[str, ...]:
    return (
        name,
        "-" if row.size_bytes is None else size_text(row.size_bytes),
        "-" if row.parity is None else f"{row.parity.measured:.1e}",
        "-" if row.parity is None else f"{row.parity.bound:.0e}",
        "-" if row.drift is None else f"{row.drift:.1e}",
        "-" if row.step_us is None else f"{row.step_us:.0f} us",
    )


def _add_saved_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--saved-model-dir",
        type=Path,
        metavar="DIR",
        help="where the SavedModel goes (default: MODELS/<model_id>.saved-model)",
    )


def _require_saved_model(options: argparse.Namespace) -> None:  # noqa: ARG001  as every format
    from brain_service.export.saved_model import require_tensorflow

    require_tensorflow()


def _make_saved_model(bundle: "Bundle", options: argparse.Namespace, progress: Progress) -> FormRow:
    from brain_service.export.manifest import Parity
    from brain_service.export.saved_model import export_saved_model

    progress(0, 1, "writing the SavedModel")
    folder = options.saved_model_dir or bundle.path.with_name(f"{bundle.path.name}.saved-model")
    made = export_saved_model(bundle, folder)
    progress(1, 1, "done")
    size_bytes = sum(entry["size_bytes"] for entry in made["files"].values())
    return FormRow(size_bytes, Parity(**made["parity"]), None, made["step_us"], folder)


def _make_hailo(bundle: "Bundle", options: argparse.Namespace, progress: Progress) -> FormRow:
    from brain_service.export.bundle import HEF

    progress(0, 1, "compiling for the Hailo")
    made = cli_hailo.make(bundle, options)
    progress(1, 1, "done")
    cli_hailo.tell(made, options)
    manifest = made.bundle.manifest
    size_bytes = manifest.files[HEF].size_bytes if HEF in manifest.files else None
    return FormRow(size_bytes, manifest.parity.get("hailo"), path=bundle.path / "hailo")


FROM_BUNDLE: Mapping[str, FromBundle] = {
    "saved-model": FromBundle(_add_saved_model_arguments, _require_saved_model, _make_saved_model),
    "hailo": FromBundle(cli_hailo.add_arguments, cli_hailo.require, _make_hailo),
}
"""Formats beyond the bundle's own forms, by the name that `--format` takes."""
