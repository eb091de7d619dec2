"""The same search as a HyperparameterTuningJob of Vertex AI, in the JSON of its REST interface.

    POST https://{region}-aiplatform.googleapis.com/v1/projects/{project}/locations/{region}/hyperparameterTuningJobs

A trial's settings come to its container as `--name=value` after the arguments here; `tune trial` takes them there.
Source: google.cloud.aiplatform.v1 `HyperparameterTuningJob`, `StudySpec` and `CustomJobSpec`, in proto3 JSON.
"""

from dataclasses import dataclass
from typing import Any

from brain_service.errors import InvalidError
from cloud_trainer.tuning.process import METRIC
from cloud_trainer.tuning.space import Parameter, Space

__all__ = ["VertexOptions", "tuning_job"]


@dataclass(frozen=True)
class VertexOptions:
    """Where and how the trials run. `timeout_s` is of each trial."""

    image: str
    data_path: str
    output_dir: str
    steps: int
    look_every: int
    machine_type: str = "ct5lp-hightpu-4t"
    tpu_topology: str = "2x2"
    service_account: str = ""
    timeout_s: int = 86_400
    extra: tuple[str, ...] = ()


def tuning_job(
    name: str, space: Space, trials: int, parallel: int, options: VertexOptions, *, halving: bool, seed: int
) -> dict[str, Any]:
    """Return the job as JSON. Vertex AI has no ASHA: `halving` stops a trial below the median of the others.

    Raises:
        InvalidError: a place is not on a bucket, where the trials' machines could see it.
    """
    for field, place in (("data_path", options.data_path), ("output_dir", options.output_dir)):
        if not place.startswith("gs://"):
            raise InvalidError(
                f"{place} lies on this machine, where no trial sees it; give a gs:// place", field=field
            )
    study: dict[str, Any] = {
        "metrics": [{"metricId": METRIC, "goal": "MINIMIZE"}],
        "parameters": [_parameter(parameter) for parameter in space.parameters],
        "measurementSelectionType": "BEST_MEASUREMENT" if halving else "LAST_MEASUREMENT",
    }
    if halving:
        study["medianAutomatedStoppingSpec"] = {"useElapsedDuration": False}
    else:
        study["algorithm"] = "RANDOM_SEARCH"
    return {
        "displayName": name,
        "studySpec": study,
        "maxTrialCount": trials,
        "parallelTrialCount": parallel,
        "maxFailedTrialCount": max(1, trials // 4),
        "trialJobSpec": _job(options, seed),
        "labels": {"continuon-brain": "tune"},
    }


def _parameter(parameter: Parameter) -> dict[str, Any]:
    found: dict[str, Any] = {"parameterId": parameter.name}
    if parameter.type == "categorical":
        return found | {"categoricalValueSpec": {"values": [str(value) for value in parameter.values]}}
    scale = "UNIT_LOG_SCALE" if parameter.scale == "log" else "UNIT_LINEAR_SCALE"
    found["scaleType"] = scale
    if parameter.type == "discrete":
        return found | {"discreteValueSpec": {"values": sorted(float(value) for value in parameter.values)}}
    if parameter.type == "integer":
        # int64 is text in proto3 JSON.
        bounds = {"minValue": str(int(parameter.min)), "maxValue": str(int(parameter.max))}
        return found | {"integerValueSpec": bounds}
    return found | {"doubleValueSpec": {"minValue": parameter.min, "maxValue": parameter.max}}


def _job(options: VertexOptions, seed: int) -> dict[str, Any]:
    machine = {"machineType": options.machine_type}
    if options.tpu_topology:
        machine["tpuTopology"] = options.tpu_topology
    arguments = [
        *("tune", "trial"),
        *("--data-path", options.data_path),
        *("--output-dir", options.output_dir),
        *("--num-steps", str(options.steps)),
        *("--val", str(options.look_every)),
        *("--seed", str(seed)),
        *options.extra,
    ]
    job: dict[str, Any] = {
        "workerPoolSpecs": [
            {
                "machineSpec": machine,
                "replicaCount": "1",
                "containerSpec": {
                    "imageUri": options.image,
                    "command": ["python", "-m", "cloud_trainer"],
                    "args": arguments,
                },
            }
        ],
        # A trial that is preempted goes on from its checkpoint.
        "scheduling": {"timeout": f"{options.timeout_s}s", "restartJobOnWorkerRestart": True},
        "baseOutputDirectory": {"outputUriPrefix": options.output_dir},
    }
    if options.service_account:
        job["serviceAccount"] = options.service_account
    return job
