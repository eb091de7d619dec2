"""Cloud TPU queued resources: machines that are waited for in a queue, and that bill until they are deleted.

The name derives from run and attempt, so asking twice gives one. ACTIVE means that the machines are there; how the
training does is for its heartbeat alone to say. A suspended resource was taken back and never returns: it is
deleted and asked for anew under the next attempt. Each host starts the container by its start-up script.
Source: https://cloud.google.com/tpu/docs/queued-resources;
https://cloud.google.com/tpu/docs/reference/rest/v2/projects.locations.queuedResources.
"""

import shlex
import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from brain_service.cloud.credentials import authorized_session
from brain_service.cloud.launchers import Capacity, CapacityPhase, RunRequest
from brain_service.cloud.launchers.labels import (
    ROBOT,
    RUN,
    attempt_of,
    job_environment,
    labels,
    needed,
    unique_name,
)
from brain_service.cloud.machines import runtime_version, tpu_slice
from brain_service.cloud.rest import RestClient, is_stockout
from brain_service.errors import (
    BrainError,
    ConflictError,
    InvalidError,
    NotFoundError,
    TooManyError,
    UnavailableError,
)
from brain_service.settings import CloudSettings

__all__ = ["QueuedResourceLauncher", "queued_resource", "startup_script"]

SERVICE = "tpu.googleapis.com"
# google.cloud.tpu.v2.QueuedResourceState.State; what is not here was added since and is waited out.
_PHASES: Mapping[str, CapacityPhase] = {
    "CREATING": "waiting",
    "ACCEPTED": "waiting",
    "WAITING_FOR_RESOURCES": "waiting",
    "PROVISIONING": "waiting",
    "ACTIVE": "running",
    "SUSPENDING": "preempted",
    "SUSPENDED": "preempted",
    "FAILED": "failed",
    # On its way out, and billing until it is gone.
    "DELETING": "unknown",
}
# google.rpc.Code: INVALID_ARGUMENT, NOT_FOUND, PERMISSION_DENIED, FAILED_PRECONDITION, UNAUTHENTICATED.
_IN_VAIN = (3, 5, 7, 9, 16)
_RESOURCE_EXHAUSTED = 8
# How long a robot has to delete the machines of a run that ended, before they try it themselves.
_LEAVE_S = 1800.0
_ATTRIBUTE = "continuon/exit"
_NAMESPACE = uuid.UUID("1b0d3c1e-7a55-4bd8-9d0c-6d2b8f0f7a10")

_SCRIPT = """#!/bin/bash
# Starts the training on this host of the slice; runs as root at each boot of the machine.
set -u
log() {{ echo "continuon-brain: $*" | tee /dev/kmsg; }}
image={image}
registry="${{image%%/*}}"
# The registry is spoken to as the machine's own service account.
gcloud auth configure-docker "$registry" --quiet >/dev/null 2>&1 || docker-credential-gcr configure-docker \
    --registries="$registry" >/dev/null 2>&1 || log "no credentials for $registry"
for wait_s in 0 5 20 60; do
    sleep "$wait_s"
    docker pull "$image" && break
    log "cannot pull $image"
done
docker rm --force continuon-brain >/dev/null 2>&1
# Ends by itself what nobody may be there to end.
(sleep {max_run_s:.0f} && log "time is up" && docker stop --time=60 continuon-brain) &
watchdog=$!
# The accelerator and the host network for the slice's processes; SIGTERM reaches the trainer, which saves.
docker run --name continuon-brain --privileged --net=host --shm-size=16g --stop-timeout=60 \\
{environment}    --entrypoint python "$image" -m cloud_trainer {arguments}
code=$?
# What the run came to is in its status.json; this only tells that nothing runs here any more.
log "cloud_trainer ended with $code"
curl --silent --retry 5 -X PUT -H "Metadata-Flavor: Google" --data "$code" \
    http://metadata.google.internal/computeMetadata/v1/instance/guest-attributes/{attribute}
kill "$watchdog" 2>/dev/null
# The robot deletes this resource. One that does not come back must not pay for ever: the machine tries it itself.
sleep {leave_s:.0f}
gcloud compute tpus queued-resources delete {name} --project={project} --zone={zone} --force --async --quiet ||
    log "cannot delete {name}: it bills until someone does"
"""


def startup_script(settings: CloudSettings, request: RunRequest, attempt: int) -> str:
    """Return the script that each host runs at boot.

    Raises:
        ConfigError: `cloud.image` is not set.
    """
    image = needed(settings.image, "image", "the container of the training (deploy/ builds it)")
    variables = job_environment(request, attempt)
    return _SCRIPT.format(
        image=shlex.quote(image),
        environment="".join(f"    --env {shlex.quote(f'{k}={v}')} \\\n" for k, v in variables.items()),
        arguments=shlex.join(request.arguments),
        max_run_s=request.max_run_s,
        leave_s=_LEAVE_S,
        name=unique_name(settings, request.run_id, attempt),
        project=settings.project,
        zone=settings.zone,
        attribute=_ATTRIBUTE,
    )


def queued_resource(settings: CloudSettings, request: RunRequest, attempt: int) -> dict[str, Any]:
    """Return the QueuedResource to send for an attempt, as JSON.

    Raises:
        ConfigError: a setting that it needs is absent.
        InvalidError: the topology does not exist.
    """
    project = needed(settings.project, "project", "the Google Cloud project that pays")
    topology = tpu_slice(request.topology)
    node: dict[str, Any] = {
        "acceleratorType": topology.accelerator_type,
        "runtimeVersion": runtime_version(topology, settings.runtime_version),
        "metadata": {
            "startup-script": startup_script(settings, request, attempt),
            # Where the script leaves the exit code.
            "enable-guest-attributes": "TRUE",
        },
        "labels": labels(settings, request, attempt),
        "networkConfig": {"enableExternalIps": True},
    }
    if settings.service_account:
        node["serviceAccount"] = {
            "email": settings.service_account,
            "scope": ["https://www.googleapis.com/auth/cloud-platform"],
        }
    spec = {
        "parent": f"projects/{project}/locations/{settings.zone}",
        "nodeId": unique_name(settings, request.run_id, attempt),
        "node": node,
    }
    return {
        "tpu": {"nodeSpec": [spec]},
        "spot" if request.spot else "guaranteed": {},
        "queueingPolicy": {"validUntilDuration": f"{request.max_wait_s:.0f}s"},
    }


class QueuedResourceLauncher:
    """Queued resources of one project and zone."""

    settle_s = 0.0

    def __init__(self, settings: CloudSettings) -> None:
        """Ask nothing yet.

        Raises:
            ConfigError: no project is set, or there are no credentials.
        """
        project = needed(settings.project, "project", "the Google Cloud project that pays")
        endpoint = settings.tpu_endpoint or f"https://{SERVICE}"
        self._settings = settings
        self._since: dict[str, int] = {}
        self._parent = f"projects/{project}/locations/{settings.zone}/queuedResources"
        self._client = RestClient(
            authorized_session(settings, endpoint), endpoint, service=SERVICE, project=project
        )

    def find(self, run_id: str) -> list[Capacity]:
        """Return a run's resources, newest first."""
        return [found for found in self._mine() if found.run_id == run_id]

    def create(self, request: RunRequest, attempt: int) -> Capacity:
        """Ask for the attempt's machines; what has the name already is returned.

        Raises:
            ConflictError: the name is another run's.
            UnavailableError: what had the name is being deleted.
            BrainError: as `RestClient`.
        """
        name = unique_name(self._settings, request.run_id, attempt)
        body = queued_resource(self._settings, request, attempt)
        key = {"queuedResourceId": name, "requestId": str(uuid.uuid5(_NAMESPACE, f"{self._parent}/{name}"))}
        full = f"{self._parent}/{name}"
        try:
            self._client.post(f"/v2/{self._parent}", body, key, again=True)
        except ConflictError:
            found = self.look(full)
            if found is None:
                raise UnavailableError(f"{full} is being deleted; trying again") from None
            if found.run_id != request.run_id:
                raise ConflictError(f"{full} exists and is not of run {request.run_id}; delete it first") from None
            return found
        # The answer is an operation; the resource itself says how it is.
        return self.look(full) or Capacity(
            name=full, run_id=request.run_id, phase="waiting", detail="asked for", attempt=attempt
        )

    def look(self, name: str) -> Capacity | None:
        """Return the named resource as it is, None where it is gone."""
        try:
            found = self._capacity(self._client.get(f"/v2/{name}"))
        except NotFoundError:
            return None
        if found.phase != "running":
            return found
        return replace(found, exit_code=self._exit_code(name), running_since_ns=self._since_ns(name))

    def _since_ns(self, name: str) -> int | None:
        """Return when the machines came, which the resource itself does not tell."""
        if name not in self._since:
            try:
                node = self._client.get(f"/v2/{name.replace('/queuedResources/', '/nodes/')}")
            except BrainError:
                return None
            since_ns = self._client.local_ns(node.get("createTime"))
            if since_ns is None:
                return None
            self._since[name] = since_ns
        return self._since[name]

    def _exit_code(self, name: str) -> int | None:
        """Return what a host's script told of its exit; the worst where several did, None where none did."""
        node = name.replace("/queuedResources/", "/nodes/")
        try:
            told = self._client.post(f"/v2/{node}:getGuestAttributes", {"queryPath": _ATTRIBUTE}, again=True)
            codes = [
                int(item["value"])
                for host in told.get("guestAttributes", [])
                for item in host["queryValue"]["items"]
                if f"{item.get('namespace')}/{item.get('key')}" == _ATTRIBUTE
            ]
        except (BrainError, KeyError, TypeError, ValueError, AttributeError):
            # A hint that spares waiting for the stall timeout, no more.
            return None
        return max(codes, default=None)

    def stop(self, name: str) -> None:
        """Delete the resource with its machines, in whatever state it is."""
        key = {"force": "true", "requestId": str(uuid.uuid5(_NAMESPACE, f"delete {name}"))}
        try:
            self._client.delete(f"/v2/{name}", key)
        except NotFoundError:
            return
        except (ConflictError, InvalidError):
            # Refused where the deletion is under way already.
            found = self.look(name)
            if found is not None and not found.detail.startswith("DELETING"):
                raise

    def owned(self) -> list[Capacity]:
        """Return this robot's resources that nobody deletes yet; a failed one still counts against the quota."""
        return [found for found in self._mine() if not found.detail.startswith("DELETING")]

    def _mine(self) -> list[Capacity]:
        listed = self._client.pages(f"/v2/{self._parent}", "queuedResources", {"pageSize": "100"})
        mine = [item for item in listed if _labels(item).get(ROBOT) == self._settings.robot]
        return sorted(map(self._capacity, mine), key=lambda found: found.created_ns or 0, reverse=True)

    def _capacity(self, resource: Mapping[str, Any]) -> Capacity:
        state, found = _mapping(resource.get("state")), _labels(resource)
        named = str(state.get("state", ""))
        error = _mapping(_mapping(state.get("failedData")).get("error"))
        message = str(error.get("message", ""))
        phase = _PHASES.get(named, "unknown")
        if phase == "failed" and is_stockout(message):
            phase = "preempted"
        return Capacity(
            name=str(resource.get("name", "")),
            run_id=str(found.get(RUN, "")),
            phase=phase,
            detail=f"{named or 'no state'}{f': {message}' if message else ''}",
            created_ns=self._client.local_ns(resource.get("createTime")),
            attempt=attempt_of(found),
            problem=_problem(error, message) if phase == "failed" else None,
        )


def _problem(error: Mapping[str, Any], message: str) -> dict[str, Any] | None:
    if error.get("code") in _IN_VAIN:
        return InvalidError(f"Cloud TPU gave the request up: {message}").problem()
    if error.get("code") == _RESOURCE_EXHAUSTED and "quota" in message.lower():
        return TooManyError(f"Cloud TPU gave the request up: {message}; ask for more quota").problem()
    return None


def _labels(resource: Mapping[str, Any]) -> Mapping[str, Any]:
    specs = _mapping(resource.get("tpu")).get("nodeSpec")
    first = specs[0] if isinstance(specs, list) and specs else {}
    return _mapping(_mapping(_mapping(first).get("node")).get("labels"))


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
