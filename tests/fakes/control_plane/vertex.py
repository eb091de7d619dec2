"""`/v1/projects/*/locations/*/customJobs`: create, get, list by labels, cancel."""

import re
import time
from collections.abc import Mapping
from typing import Any

from tests.fakes.control_plane.errors import ApiError
from tests.fakes.control_plane.plane import Plane
from tests.fakes.control_plane.resource import Resource

__all__ = ["handle_vertex"]

_PATH = re.compile(r"/v1/(projects/[^/]+/locations/[^/]+)/customJobs(?:/([^/:]+))?(?::(\w+))?$")
_LABEL = re.compile(r"""labels\.([\w-]+)\s*=\s*"?([\w-]*)"?$""")
_MACHINES = re.compile(r"(ct5lp-hightpu|ct6e-standard)-[148]t$|n1-standard-\d+$|e2-standard-\d+$")


def handle_vertex(plane: Plane, method: str, path: str, query: Mapping[str, str], body: Any) -> dict[str, Any]:
    """Answer a request."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise ApiError(404, f"Method not found: {method} {path}")
    parent, job, verb = found.groups()
    if method == "POST" and job is None:
        return _create(plane, parent, body)
    if method == "GET" and job is None:
        return _list(plane, parent, query)
    resource = plane.resources.get(f"{parent}/customJobs/{job}")
    if resource is None or resource.kind != "vertex":
        raise ApiError(404, f"The CustomJob {parent}/customJobs/{job} does not exist.")
    if method == "GET" and verb is None:
        resource.looks += 1
        return resource.told(plane.ahead_s)
    if method == "POST" and verb == "cancel":
        if resource.is_live:
            plane.cancel(resource)
            return {}
        raise ApiError(
            400, f"CustomJob {job} is in a final state and cannot be cancelled.", status="FAILED_PRECONDITION"
        )
    raise ApiError(404, f"Method not found: {method} {path}")


def _create(plane: Plane, parent: str, body: Any) -> dict[str, Any]:
    pools = body.get("jobSpec", {}).get("workerPoolSpecs", []) if isinstance(body, dict) else []
    if not body.get("displayName") or not pools:
        raise ApiError(400, "List of found errors: 1.Field: custom_job.display_name; Message: Required field.")
    machine = pools[0].get("machineSpec", {}).get("machineType", "")
    if not _MACHINES.match(machine):
        raise ApiError(400, f'Machine type "{machine}" is not supported.')
    hosts = int(pools[0].get("replicaCount", 1))
    if hosts > 1 and body["jobSpec"].get("scheduling", {}).get("strategy") in ("SPOT", 4):
        raise ApiError(400, "Using Spot VMs with TPU Pods is not supported.")
    now_s = time.time()
    number = 1_000_000_000_000_000_000 + sum(plane.book["creations"].values())
    resource = Resource(
        kind="vertex",
        name=f"{parent}/customJobs/{number}",
        body=body,
        life={},
        created_s=now_s,
        changed_s=now_s,
    )
    plane.add(resource)
    return resource.told(plane.ahead_s)


def _list(plane: Plane, parent: str, query: Mapping[str, str]) -> dict[str, Any]:
    wanted: dict[str, str] = {}
    for term in filter(None, re.split(r"\s+AND\s+", query.get("filter", ""))):
        label = _LABEL.fullmatch(term.strip())
        if label is None:
            raise ApiError(400, f"Invalid filter: {term}")
        wanted[label[1]] = label[2]
    lag_s = plane.script.get("list_lag_s", 0)
    jobs = [
        one
        for one in plane.resources.values()
        if one.kind == "vertex"
        and one.name.startswith(f"{parent}/")
        and time.time() - one.created_s >= lag_s
        and wanted.items() <= one.labels.items()
    ]
    start = int(query.get("pageToken") or 0)
    size = min(int(query.get("pageSize") or 100), plane.script.get("page_size", 100))
    page: dict[str, Any] = {}
    if jobs[start : start + size]:
        page["customJobs"] = [one.told(plane.ahead_s) for one in jobs[start : start + size]]
    if len(jobs) > start + size:
        page["nextPageToken"] = str(start + size)
    return page
