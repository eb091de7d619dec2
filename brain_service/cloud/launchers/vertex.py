"""Vertex AI custom jobs: a container on a TPU slice that ends, and bills no more, when its process ends.

The service has no key against doubled requests: a job is found by its labels before one is created. It restarts
nothing by itself (`disableRetries`), so that each start of the container is an attempt that is counted and paid
for knowingly. Spot is for slices of one host; Vertex offers no Spot pods.
Source: https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.customJobs;
https://cloud.google.com/vertex-ai/docs/training/understanding-training-service.
"""

import re
from collections.abc import Mapping
from typing import Any

from brain_service.cloud.credentials import authorized_session
from brain_service.cloud.launchers import Capacity, CapacityPhase, RunRequest
from brain_service.cloud.launchers.labels import ROBOT, RUN, attempt_of, job_environment, labels, needed
from brain_service.cloud.machines import tpu_slice
from brain_service.cloud.rest import RestClient, is_stockout
from brain_service.cloud.run_status import EXIT_PREEMPTED
from brain_service.errors import ConfigError, ConflictError, InvalidError, NotFoundError
from brain_service.settings import CloudSettings

__all__ = ["VertexLauncher", "custom_job"]

SERVICE = "aiplatform.googleapis.com"
# google.cloud.aiplatform.v1.JobState; what is not here was added since and is waited out.
_PHASES: Mapping[str, CapacityPhase] = {
    "JOB_STATE_QUEUED": "waiting",
    "JOB_STATE_PENDING": "waiting",
    "JOB_STATE_RUNNING": "running",
    "JOB_STATE_SUCCEEDED": "succeeded",
    "JOB_STATE_FAILED": "failed",
    # On its way out, and billing until it is gone.
    "JOB_STATE_CANCELLING": "unknown",
    "JOB_STATE_CANCELLED": "stopped",
    "JOB_STATE_PAUSED": "waiting",
    "JOB_STATE_EXPIRED": "failed",
    "JOB_STATE_UPDATING": "running",
    # Some workers failed: for one training over all of them that is no success.
    "JOB_STATE_PARTIALLY_SUCCEEDED": "failed",
}
_ENDED = ("succeeded", "failed", "preempted", "stopped")
_PREEMPTED = re.compile(r"preempt|spot vm|reclaimed", re.IGNORECASE)
_EXIT = re.compile(r"non-?zero (?:exit )?status(?: code)?(?: of)?:? (\d+)", re.IGNORECASE)
# google.rpc.Code: INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, UNAUTHENTICATED.
_IN_VAIN = (3, 5, 7, 9, 16)


def custom_job(settings: CloudSettings, request: RunRequest, attempt: int) -> dict[str, Any]:
    """Return the CustomJob to send for an attempt, as JSON.

    Raises:
        ConfigError: a setting that it needs is absent, or Spot was asked for a slice of several hosts.
        InvalidError: the topology does not exist on Vertex.
    """
    topology = tpu_slice(request.topology)
    if topology.generation == "v5p":
        raise InvalidError(
            f"topology {request.topology!r}: Vertex trains on v5e and v6e; take target 'queued_resource' for v5p",
            field="topology",
        )
    if request.spot and topology.hosts > 1:
        raise ConfigError(
            f"{request.topology} has {topology.hosts} hosts, and Vertex AI offers Spot for one host only: set "
            "cloud.spot to false (on demand costs about twice as much), take target 'queued_resource', or take "
            f"{topology.generation}:2x4 or smaller",
            field="spot",
        )
    machine: dict[str, Any] = {"machineType": topology.machine_type, "tpuTopology": topology.shape}
    pool = {
        "machineSpec": machine,
        "replicaCount": str(topology.hosts),
        "containerSpec": {
            "imageUri": needed(settings.image, "image", "the container of the training (deploy/ builds it)"),
            "command": ["python", "-m", "cloud_trainer"],
            "args": list(request.arguments),
            "env": [{"name": name, "value": value} for name, value in job_environment(request, attempt).items()],
        },
    }
    spec: dict[str, Any] = {
        "workerPoolSpecs": [pool],
        "scheduling": {
            "timeout": f"{request.max_run_s:.0f}s",
            "maxWaitDuration": f"{request.max_wait_s:.0f}s",
            "strategy": "SPOT" if request.spot else "STANDARD",
            "restartJobOnWorkerRestart": False,
            "disableRetries": True,
        },
    }
    if settings.service_account:
        spec["serviceAccount"] = settings.service_account
    return {
        "displayName": f"continuon-brain {settings.robot} {request.run_id} {attempt}",
        "labels": labels(settings, request, attempt),
        "jobSpec": spec,
    }


class VertexLauncher:
    """Custom jobs of one project and region."""

    def __init__(self, settings: CloudSettings, *, settle_s: float = 15.0) -> None:
        """Ask nothing yet.

        Raises:
            ConfigError: no project is set, or there are no credentials.
        """
        project = needed(settings.project, "project", "the Google Cloud project that pays")
        endpoint = settings.vertex_endpoint or f"https://{settings.region}-{SERVICE}"
        self._settings = settings
        self._parent = f"/v1/projects/{project}/locations/{settings.region}/customJobs"
        self._settle_s = settle_s
        self._client = RestClient(
            authorized_session(settings, endpoint), endpoint, service=SERVICE, project=project
        )

    @property
    def settle_s(self) -> float:
        """Seconds that a created job may take to be listed."""
        return self._settle_s

    def find(self, run_id: str) -> list[Capacity]:
        """Return a run's jobs, newest first."""
        return self._list(f'labels.{RUN}="{run_id}"', run_id)

    def create(self, request: RunRequest, attempt: int) -> Capacity:
        """Create the attempt's job, unless it is listed already."""
        body = custom_job(self._settings, request, attempt)
        for found in self.find(request.run_id):
            if found.attempt == attempt:
                return found
        return self._capacity(self._client.post(self._parent, body))

    def look(self, name: str) -> Capacity | None:
        """Return the named job as it is, None where it was deleted."""
        try:
            return self._capacity(self._client.get(f"/v1/{name}"))
        except NotFoundError:
            return None

    def stop(self, name: str) -> None:
        """Cancel the job; one that has ended stays as it is."""
        found = self.look(name)
        if found is None or found.phase in _ENDED:
            return
        try:
            self._client.post(f"/v1/{name}:cancel", {}, again=True)
        except (NotFoundError, ConflictError):
            return
        except InvalidError:
            # FAILED_PRECONDITION: it ended in between.
            ended = self.look(name)
            if ended is not None and ended.phase not in _ENDED:
                raise

    def owned(self) -> list[Capacity]:
        """Return this robot's jobs that have not ended."""
        return [
            found for found in self._list(f'labels.{ROBOT}="{self._settings.robot}"') if found.phase not in _ENDED
        ]

    def _list(self, query: str, run_id: str | None = None) -> list[Capacity]:
        jobs = self._client.pages(self._parent, "customJobs", {"filter": query, "pageSize": "100"})
        mine = [job for job in jobs if self._is_mine(job, run_id)]
        return sorted(map(self._capacity, mine), key=lambda found: found.created_ns or 0, reverse=True)

    def _is_mine(self, job: Mapping[str, Any], run_id: str | None) -> bool:
        """Judge for itself: a filter that a service read otherwise must not hand out another robot's job."""
        found = _mapping(job.get("labels"))
        return found.get(ROBOT) == self._settings.robot and (run_id is None or found.get(RUN) == run_id)

    def _capacity(self, job: Mapping[str, Any]) -> Capacity:
        state, error, found = str(job.get("state", "")), _mapping(job.get("error")), _mapping(job.get("labels"))
        message = str(error.get("message", ""))
        exit_code = _exit_code(message)
        phase = _PHASES.get(state, "unknown")
        if phase == "failed" and (
            exit_code == EXIT_PREEMPTED or _PREEMPTED.search(message) or is_stockout(message)
        ):
            phase = "preempted"
        problem = None
        if (
            state == "JOB_STATE_FAILED"
            and phase == "failed"
            and exit_code is None
            and error.get("code") in _IN_VAIN
        ):
            problem = InvalidError(f"Vertex AI gave the job up: {message}").problem()
        return Capacity(
            name=str(job.get("name", "")),
            run_id=str(found.get(RUN, "")),
            phase=phase,
            detail=f"{state or 'no state'}{f': {message}' if message else ''}",
            created_ns=self._client.local_ns(job.get("createTime")),
            running_since_ns=self._client.local_ns(job.get("startTime")),
            ended_ns=self._client.local_ns(job.get("endTime")),
            attempt=attempt_of(found),
            exit_code=0 if phase == "succeeded" else exit_code,
            problem=problem,
        )


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _exit_code(message: str) -> int | None:
    found = _EXIT.search(message)
    return int(found[1]) if found else None
