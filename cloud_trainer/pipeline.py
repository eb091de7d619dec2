"""`cloud-trainer pipeline`: the Vertex pipeline upload -> plan -> train -> evaluate -> register as YAML."""

import argparse
import sys
from pathlib import Path

from brain_service.errors import ConfigError
from cloud_trainer.vertex_model import Registration, register

__all__ = ["main"]

EXAMPLES = """\
examples:
  cloud-trainer pipeline --output pipeline.yaml --image europe-docker.pkg.dev/my-project/brain/job:1
  cloud-trainer pipeline register --run-dir gs://fleet/runs/r1 --project my-project --location europe-west4 \\
      --display-name arm --serving-image europe-docker.pkg.dev/my-project/brain/job:1

`register` is what the last step runs: it makes a finished run's bundle a model of Vertex AI, once.
"""


def main(arguments: list[str]) -> int:
    """Write the pipeline, or register a model, and return the exit code.

    Raises:
        BrainError: an option is wrong, KFP is not installed, or the service refuses; tells which and why.
    """
    if arguments[:1] == ["register"]:
        return _register(arguments[1:])
    options = pipeline_parser().parse_args(arguments)
    try:
        from cloud_trainer.vertex_pipeline import PipelineOptions, write_pipeline
    except ModuleNotFoundError as error:
        if error.name != "kfp":
            raise
        raise ConfigError(
            "pipeline needs kfp, which lives in an environment of its own: make fleet, then "
            ".venv/fleet/bin/python -m cloud_trainer pipeline"
        ) from error
    made = PipelineOptions(options.image, options.name, options.accelerator, options.accelerator_count)
    write_pipeline(options.output, made)
    sys.stdout.write(f"{options.output}\n")
    return 0


def pipeline_parser() -> argparse.ArgumentParser:
    """Return the parser of the command itself."""
    parser = argparse.ArgumentParser(
        prog="cloud-trainer pipeline",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", type=Path, required=True, help="YAML file to write")
    add("--image", required=True, help="container image of all steps")
    add("--name", default="continuon-brain", help="of the pipeline (default: %(default)s)")
    add("--accelerator", default="", help="of the training, as Vertex AI calls it (default: none)")
    add("--accelerator-count", type=int, default=0, help="how many of them")
    return parser


def register_parser() -> argparse.ArgumentParser:
    """Return the parser of `register`."""
    parser = argparse.ArgumentParser(
        prog="cloud-trainer pipeline register", description="Make a finished run's bundle a model of Vertex AI."
    )
    add = parser.add_argument
    add("--run-dir", required=True, help="output directory of the run, on a bucket")
    add("--project", required=True, help="project of the model")
    add("--location", required=True, help="region of the model, such as europe-west4")
    add("--display-name", default="continuon-brain", help="of the model (default: %(default)s)")
    add("--serving-image", required=True, help="container image that serves it")
    add("--api-endpoint", default="", help="another address of Vertex AI, without credentials")
    return parser


def _register(arguments: list[str]) -> int:
    options = register_parser().parse_args(arguments)
    registration = Registration(
        run_dir=options.run_dir,
        project=options.project,
        location=options.location,
        display_name=options.display_name,
        serving_image=options.serving_image,
        endpoint=options.api_endpoint,
    )
    sys.stdout.write(f"{register(registration)}\n")
    return 0
