"""`/v2/projects/*/locations/*/queuedResources`: create, get, list and delete as long-running operations."""

import re
import time
from collections.abc import Mapping
from typing import Any

from tests.fakes.control_plane.errors import ApiError
from tests.fakes.control_plane.plane import Plane
from tests.fakes.control_plane.resource import Resource, stamp

__all__ = ["handle_tpu"]

_PARENT = r"/v2/(projects/[^/]+/locations/[^/]+)"
_RESOURCES = re.compile(rf"{_PARENT}/queuedResources(?:/([^/:]+))?$")
_OPERATION = re.compile(rf"{_PARENT}/operations/(create|delete)-([^/:]+)$")
_MACHINE = re.compile(rf"{_PARENT}/nodes/([^/:]+)$")
_NODE = re.compile(rf"{_PARENT}/nodes/([^/:]+):getGuestAttributes$")
_TYPES = re.compile(r"(v5litepod|v6e|v5p|v4)-\d+$")
_KIND = "type.googleapis.com/google.cloud.tpu.v2."


def handle_tpu(plane: Plane, method: str, path: str, query: Mapping[str, str], body: Any) -> dict[str, Any]:
    """Answer a request."""
    if (found := _OPERATION.fullmatch(path)) and method == "GET":
        return _operation(plane, *found.groups())
    if (found := _NODE.fullmatch(path)) and method == "POST":
        return _attributes(plane, found[2])
    if (found := _MACHINE.fullmatch(path)) and method == "GET":
        return _node(plane, *found.groups())
    found = _RESOURCES.fullmatch(path)
    if found is None:
        raise ApiError(404, f"Method not found: {method} {path}")
    parent, name = found.groups()
    if method == "POST" and name is None:
        return _create(plane, parent, query, body)
    if method == "GET" and name is None:
        return _list(plane, parent, query)
    resource = plane.resources.get(f"{parent}/queuedResources/{name}")
    if resource is None:
        raise ApiError(404, f"Resource '{parent}/queuedResources/{name}' was not found")
    if method == "GET":
        resource.looks += 1
        return resource.told(plane.ahead_s)
    if method == "DELETE":
        return _delete(plane, parent, resource, query)
    raise ApiError(404, f"Method not found: {method} {path}")


def _create(plane: Plane, parent: str, query: Mapping[str, str], body: Any) -> dict[str, Any]:
    name = query.get("queuedResourceId", "")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", name):
        raise ApiError(400, f"Invalid queued resource id {name!r}.")
    specs = body.get("tpu", {}).get("nodeSpec", []) if isinstance(body, dict) else []
    if len(specs) != 1 or not specs[0].get("nodeId") or specs[0].get("parent") != parent:
        raise ApiError(400, "A node spec with parent and node id is required.")
    node = specs[0].get("node", {})
    if not _TYPES.fullmatch(node.get("acceleratorType", "")) or not node.get("runtimeVersion"):
        raise ApiError(400, "Accelerator type and runtime version are required.")
    full = f"{parent}/queuedResources/{name}"
    there = plane.resources.get(full)
    if there is not None:
        if query.get("requestId") and query["requestId"] == there.request_id:
            return _operation(plane, parent, "create", name)
        raise ApiError(409, f"Resource '{full}' already exists")
    now_s = time.time()
    plane.add(
        Resource(
            kind="queued_resource",
            name=full,
            body=body,
            life={},
            created_s=now_s,
            changed_s=now_s,
            request_id=query.get("requestId", ""),
        )
    )
    return _operation(plane, parent, "create", name)


def _delete(plane: Plane, parent: str, resource: Resource, query: Mapping[str, str]) -> dict[str, Any]:
    name = resource.name.rpartition("/")[2]
    if resource.phase in ("running", "pending", "going") and query.get("force") not in ("true", "True"):
        raise ApiError(400, f"QueuedResource {name} has running nodes; use force.", status="FAILED_PRECONDITION")
    if resource.phase != "cancelling":
        plane.cancel(resource)
    return _operation(plane, parent, "delete", name)


def _operation(plane: Plane, parent: str, verb: str, name: str) -> dict[str, Any]:
    full = f"{parent}/queuedResources/{name}"
    resource = plane.resources.get(full)
    done = (resource is None) if verb == "delete" else True
    told: dict[str, Any] = {
        "name": f"{parent}/operations/{verb}-{name}",
        "metadata": {
            "@type": f"{_KIND}OperationMetadata",
            "createTime": stamp(plane.ahead_s + resource.created_s if resource else time.time()),
            "target": full,
            "verb": verb,
            "apiVersion": "v2",
        },
        "done": done,
    }
    if done and verb == "create" and resource is not None:
        told["response"] = {"@type": f"{_KIND}QueuedResource", **resource.told(plane.ahead_s)}
    elif done:
        told["response"] = {"@type": "type.googleapis.com/google.protobuf.Empty"}
    return told


def _list(plane: Plane, parent: str, query: Mapping[str, str]) -> dict[str, Any]:
    lag_s = plane.script.get("list_lag_s", 0)
    found = [
        one
        for one in plane.resources.values()
        if one.kind == "queued_resource"
        and one.name.startswith(f"{parent}/")
        and time.time() - one.created_s >= lag_s
    ]
    start = int(query.get("pageToken") or 0)
    size = min(int(query.get("pageSize") or 100), plane.script.get("page_size", 100))
    page: dict[str, Any] = {"queuedResources": [one.told(plane.ahead_s) for one in found[start : start + size]]}
    if len(found) > start + size:
        page["nextPageToken"] = str(start + size)
    return page


def _node(plane: Plane, parent: str, name: str) -> dict[str, Any]:
    resource = plane.resources.get(f"{parent}/queuedResources/{name}")
    if resource is None or resource.started_s is None or resource.ended_s is not None:
        raise ApiError(404, f"Resource '{parent}/nodes/{name}' was not found")
    return {
        **resource.body["tpu"]["nodeSpec"][0]["node"],
        "name": f"{parent}/nodes/{name}",
        "state": "READY",
        "createTime": stamp(resource.started_s + plane.ahead_s),
        "queuedResource": resource.name,
    }


def _attributes(plane: Plane, node: str) -> dict[str, Any]:
    code = plane.guest_attribute(node)
    if code is None:
        return {"guestAttributes": []}
    item = {"namespace": "continuon", "key": "exit", "value": code}
    return {"guestAttributes": [{"queryPath": "continuon/", "queryValue": {"items": [item]}}]}
