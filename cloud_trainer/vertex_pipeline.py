"""The pipeline upload -> plan -> train -> evaluate -> register for Vertex AI Pipelines, as KFP 2 YAML.

Each step is a container of one image that runs one of our own commands, so that what runs in the cloud is what
runs by hand. A step's files lie on the bucket; `evaluate` sees it as `/gcs/<bucket>`, where Vertex AI mounts it.
"""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kfp import compiler, dsl

from brain_service.errors import InvalidError, UnavailableError

__all__ = ["PipelineOptions", "write_pipeline"]

TRAINER = ["python", "-m", "cloud_trainer"]
BRAIN = ["python", "-m", "brain_service"]


@dataclass(frozen=True)
class PipelineOptions:
    """What is fixed when the pipeline is written; the rest are its parameters."""

    image: str
    name: str = "continuon-brain"
    accelerator: str = ""
    accelerator_count: int = 0


def write_pipeline(path: Path, options: PipelineOptions) -> None:
    """Compile the pipeline to a YAML file.

    Raises:
        InvalidError: the name or the file's ending is wrong; says which.
        UnavailableError: the file cannot be written.
    """
    if path.suffix not in (".yaml", ".yml"):
        raise InvalidError(f"{path}: a pipeline is written to a .yaml file", field="output")
    if bool(options.accelerator) != (options.accelerator_count > 0):
        raise InvalidError("--accelerator and --accelerator-count go together", field="accelerator")
    try:
        compiler.Compiler().compile(_pipeline(options), package_path=str(path))
    except OSError as error:
        raise UnavailableError(f"cannot write {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise InvalidError(f"the pipeline cannot be compiled: {error}", field="name") from error


def _step(name: str, image: str, command: list[str], arguments: list[Any], inputs: list[tuple[str, type]]) -> Any:
    """Return a component that runs a command in a container; a placeholder in `arguments` names an input."""

    def component(*values: Any) -> dsl.ContainerSpec:
        given = dict(zip((name for name, _ in inputs), values, strict=True))
        return dsl.ContainerSpec(
            image=image, command=command, args=[_fill(argument, given) for argument in arguments]
        )

    # KFP takes a component's inputs from its function's signature, and calls it by position.
    component.__name__ = name
    component.__doc__ = f"Run {' '.join([*command[2:], *arguments[:1]])}."
    component.__annotations__ = {**dict(inputs), "return": dsl.ContainerSpec}
    component.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(parameter, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=kind)
            for parameter, kind in inputs
        ],
        return_annotation=dsl.ContainerSpec,
    )
    return dsl.container_component(component)


def _fill(argument: Any, given: dict[str, Any]) -> Any:
    """Put an input's placeholder in the place of its name, in a list as one text."""
    if isinstance(argument, list):
        return dsl.ConcatPlaceholder([_fill(part, given) for part in argument])
    return given.get(argument.removeprefix("$"), argument) if argument.startswith("$") else argument


_RUN = ["gs://", "$bucket", "/runs/", "$run_id"]
_DATA = ["gs://", "$bucket", "/", "$prefix"]


def _steps(image: str) -> dict[str, Any]:
    place: list[tuple[str, type]] = [("bucket", str), ("prefix", str)]
    size: list[tuple[str, type]] = [("preset", str), ("batch_size", int), ("num_steps", int), ("topology", str)]
    run: list[tuple[str, type]] = [("run_id", str)]
    return {
        "upload": _step(
            "upload",
            image,
            BRAIN,
            ["upload", "--local-dir", "$local_dir", "--gcs-bucket", "$bucket", "--gcs-prefix", "$prefix"],
            [("local_dir", str), *place],
        ),
        "plan": _step(
            "plan",
            image,
            TRAINER,
            [
                *("plan", "--topology", "$topology", "--preset", "$preset", "--batch-size", "$batch_size"),
                *("--num-steps", "$num_steps", "--data-path", _DATA),
            ],
            [*place, *size],
        ),
        "train": _step(
            "train",
            image,
            TRAINER,
            [
                *("train", "--data-path", _DATA, "--output-dir", _RUN, "--run-id", "$run_id"),
                *("--preset", "$preset", "--batch-size", "$batch_size", "--num-steps", "$num_steps"),
                *("--learning-rate", "$learning_rate"),
            ],
            [*place, *size[:3], ("learning_rate", float), *run],
        ),
        "evaluate": _step(
            "evaluate",
            image,
            BRAIN,
            [
                *("evaluate", "--data-path", ["/gcs/", "$bucket", "/", "$prefix"]),
                *("--checkpoint-dir", ["/gcs/", "$bucket", "/runs/", "$run_id", "/checkpoints"]),
                *("--report-dir", ["/gcs/", "$bucket", "/runs/", "$run_id", "/evaluation"]),
            ],
            [*place, *run],
        ),
        "register": _step(
            "register",
            image,
            TRAINER,
            [
                *("pipeline", "register", "--run-dir", _RUN, "--project", "$project", "--location", "$location"),
                *("--display-name", "$display_name", "--serving-image", image),
            ],
            [("bucket", str), *run, ("project", str), ("location", str), ("display_name", str)],
        ),
    }


def _pipeline(options: PipelineOptions) -> Any:
    steps = _steps(options.image)

    @dsl.pipeline(  # type: ignore[untyped-decorator]
        name=options.name, description="Upload episodes, plan, train, evaluate and register a model."
    )
    def pipeline(
        project: str,
        location: str,
        bucket: str,
        local_dir: str,
        run_id: str,
        prefix: str = "datasets",
        preset: str = "tpu_optimized",
        batch_size: int = 256,
        num_steps: int = 10_000,
        learning_rate: float = 1e-4,
        topology: str = "v5e:2x2",
        display_name: str = "continuon-brain",
    ) -> None:
        size = {"preset": preset, "batch_size": batch_size, "num_steps": num_steps}
        place = {"bucket": bucket, "prefix": prefix}
        upload = steps["upload"](local_dir=local_dir, **place)
        plan = steps["plan"](topology=topology, **place, **size).after(upload)
        train = steps["train"](run_id=run_id, learning_rate=learning_rate, **place, **size).after(plan)
        # A killed training goes on from its checkpoints: the same command again.
        train.set_retry(num_retries=10)
        if options.accelerator:
            train.set_accelerator_type(options.accelerator).set_accelerator_limit(options.accelerator_count)
        evaluate = steps["evaluate"](run_id=run_id, **place).after(train)
        for step in (upload, plan, train, evaluate):
            # What a step did on the bucket is no output that could be taken from a cache.
            step.set_caching_options(False)
        steps["register"](
            bucket=bucket, run_id=run_id, project=project, location=location, display_name=display_name
        ).after(evaluate).set_caching_options(False)

    return pipeline
