"""What the OpenAPI document says of bodies that FastAPI does not parse, and of every answer that is a problem."""

from collections.abc import Mapping
from typing import Any

from brain_service.episodes.header import CONTROL_ROLES

__all__ = [
    "ACTED",
    "APPENDED",
    "CREATE",
    "CREATED",
    "END",
    "ENDED",
    "EPISODE_ID",
    "IDEMPOTENCY_KEY",
    "INFER",
    "STEPS",
    "STEPS_PAGE",
    "V2_INFER",
    "V2_INFERRED",
    "V2_MODEL",
    "answers",
    "body",
    "state_parameters_plainly",
    "state_problems",
]

Schema = dict[str, Any]

_INT64_NS = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1}
_INDEX = {"type": "integer", "minimum": 0, "maximum": 2**63 - 1}

EPISODE_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"

IDEMPOTENCY_KEY = r"^[ -~]{1,255}$"

_VALUES: Schema = {
    "type": "object",
    "description": (
        "Named values, nested as the spec is: numbers, arrays of numbers of one shape, booleans, text, and in an "
        "observation images: the bytes of a PNG or JPEG (in JSON as base64), or `images/<sha256>.png` once stored."
    ),
    "minProperties": 1,
    "additionalProperties": True,
}

_NONE_OR_MORE: Schema = {name: value for name, value in _VALUES.items() if name != "minProperties"}

_FEATURES: Schema = {
    "type": "object",
    "description": "The declared spec: maps of `{dtype, shape}`, nested by name.",
    "required": ["observation", "action"],
    "properties": {
        "observation": {"type": "object", "minProperties": 1},
        "action": {"type": "object", "minProperties": 1},
    },
}

CREATE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "episode_id": {"type": ["string", "null"], "pattern": EPISODE_ID, "description": "Omitted: made up here."},
        "environment_id": {"type": "string", "maxLength": 256, "default": "default"},
        "xr_mode": {"type": "string", "maxLength": 256, "default": "trainer"},
        "control_role": {
            "type": "string",
            "enum": [*CONTROL_ROLES, "human_teleop", "human_supervisor", "human_dev_xr"],
        },
        "tags": {"type": "array", "maxItems": 256, "items": {"type": "string", "maxLength": 256}},
        "robot_id": {"type": ["string", "null"], "maxLength": 256},
        "language_instruction": {"type": "string", "maxLength": 4096},
        "safety": {"type": ["object", "null"], "description": "The seed's `safety` record."},
        "share": {"type": ["object", "null"], "description": "The seed's `share` record."},
        "metadata": {"type": "object", "description": "Anything else, as plain JSON."},
        "features": {"oneOf": [_FEATURES, {"type": "null"}]},
        "durability": {"enum": ["interval", "step", "episode", None]},
    },
}

_STEP: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["observation", "action"],
    "properties": {
        "step_index": {"anyOf": [_INDEX, {"type": "null"}], "description": "Omitted: the next one."},
        "observation": _VALUES,
        "action": _VALUES,
        "reward": {"type": "number", "default": 0.0},
        "is_terminal": {"type": "boolean", "default": False},
        "timestamp_ns": {"anyOf": [_INT64_NS, {"type": "null"}], "description": "Omitted: the time of receipt."},
        "control_role": {"type": ["string", "null"]},
        "executed_action": {"anyOf": [_NONE_OR_MORE, {"type": "null"}]},
        "policy": {"type": ["object", "null"]},
        "step_metadata": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "properties": {
                "timestamp_ns": {"anyOf": [_INT64_NS, {"type": "null"}]},
                "step_index": {"anyOf": [_INDEX, {"type": "null"}]},
                "timestamp": {"type": ["number", "null"], "description": "Seconds since the epoch."},
                "control_role": {"type": ["string", "null"]},
                "policy": {"type": ["object", "null"]},
            },
        },
        "episode_id": {"type": ["string", "null"]},
    },
}

STEPS: Mapping[str, Schema] = {
    "application/json": {"anyOf": [_STEP, {"type": "array", "items": _STEP, "minItems": 1}]},
    "application/x-ndjson": {"type": "string", "description": "One step a line."},
    "application/msgpack": {
        "type": "string",
        "format": "binary",
        "description": "A step or an array of steps; a value may be `{__ndarray__: true, dtype, shape, data}`.",
    },
    "multipart/form-data": {
        "type": "object",
        "description": "Part `step` or `steps` (JSON), and an image a part, named by its path in the step.",
        "oneOf": [
            {"required": ["step"], "properties": {"step": _STEP}},
            {"required": ["steps"], "properties": {"steps": {"type": "array", "items": _STEP, "minItems": 1}}},
        ],
    },
}

END: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "reason": {"enum": ["terminated", "truncated", None]},
        "final_observation": {"anyOf": [_NONE_OR_MORE, {"type": "null"}]},
    },
}

CREATED: Schema = {
    "type": "object",
    "required": ["episode_id"],
    "properties": {"episode_id": {"type": "string", "pattern": EPISODE_ID}},
}

STEPS_PAGE: Schema = {
    "type": "object",
    "required": ["episode_id", "start", "steps"],
    "properties": {
        "episode_id": {"type": "string", "pattern": EPISODE_ID},
        "start": {"type": "integer", "minimum": 0},
        "steps": {"type": "array", "items": {"type": "object"}, "description": "None: there are no more."},
    },
}

APPENDED: Schema = {
    "type": "object",
    "required": ["step_index", "durable_through"],
    "properties": {
        "step_index": {"type": "integer", "description": "The last accepted step of this body."},
        "durable_through": {"type": "integer", "minimum": -1, "description": "The highest step on the medium."},
    },
}

ENDED: Schema = {
    "type": "object",
    "required": ["steps", "durable_through"],
    "properties": {"steps": {"type": "integer"}, "durable_through": {"type": "integer"}},
}

_INFER: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["session_id", "observation"],
    "properties": {
        "session_id": {"type": "string"},
        "observation": _VALUES,
        "step": {"anyOf": [_INDEX, {"type": "null"}], "description": "Omitted: the next one."},
        "reward": {"type": "number", "default": 0.0, "description": "Of the step before."},
        "executed_action": {"anyOf": [_VALUES, {"type": "null"}], "description": "Of the step before."},
        "deadline_ms": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 60_000},
        "record": {"type": ["string", "null"], "description": "The episode that this step goes into."},
    },
}

INFER: Mapping[str, Schema] = {
    "application/json": _INFER,
    "application/msgpack": {
        "type": "string",
        "format": "binary",
        "description": "The same; a value may be `{__ndarray__: true, dtype, shape, data}`.",
    },
}

ACTED: Schema = {
    "type": "object",
    "required": ["action", "step", "model_id", "backend", "state_step", "timings_us", "warnings"],
    "properties": {
        "action": {"type": "object", "description": "Under the names and shapes that training saw."},
        "step": _INDEX,
        "model_id": {"type": "string"},
        "backend": {"type": "string"},
        "state_step": _INDEX,
        "timings_us": {"type": "object", "additionalProperties": {"type": "number"}},
        "warnings": {"type": "array", "items": {"type": "string"}},
    },
}

_TENSOR: Schema = {
    "type": "object",
    "required": ["name", "datatype", "shape"],
    "properties": {
        "name": {"type": "string"},
        "datatype": {"type": "string"},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        "parameters": {"type": "object", "description": "`binary_data_size`: its bytes follow the JSON."},
        "data": {"type": "array", "description": "Row-major, flat or nested."},
    },
}

_V2_INFER: Schema = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": {"type": "string"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "parameters": {
            "type": "object",
            "description": (
                "`sequence_id`, `sequence_start`, `sequence_end`, `step`, `timeout` (microseconds), `record`, "
                "`binary_data_output`, `priority`."
            ),
        },
    },
}

V2_INFER: Mapping[str, Schema] = {
    "application/json": _V2_INFER,
    "application/octet-stream": {
        "type": "string",
        "format": "binary",
        "description": "The JSON, of `Inference-Header-Content-Length` bytes, then the binary tensors.",
    },
}

V2_INFERRED: Schema = {
    "type": "object",
    "required": ["model_name", "model_version", "outputs"],
    "properties": {
        "model_name": {"type": "string"},
        "model_version": {"type": "string"},
        "id": {"type": "string"},
        "outputs": {"type": "array", "items": _TENSOR},
        "parameters": {"type": "object"},
    },
}

V2_MODEL: Schema = {
    "type": "object",
    "required": ["name", "versions", "platform", "inputs", "outputs"],
    "properties": {
        "name": {"type": "string"},
        "versions": {"type": "array", "items": {"type": "string"}},
        "platform": {"type": "string"},
        "inputs": {"type": "array", "items": _TENSOR},
        "outputs": {"type": "array", "items": _TENSOR},
    },
}

_PROBLEM: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "pattern": "^urn:continuon-brain:problem:"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "field": {"type": "string"},
        "next_step_index": {"type": "integer", "minimum": 0},
        "next_step": {"type": "integer", "minimum": 0},
        "error": {"type": "string", "description": "Below /v2: the detail once more, as that protocol wants it."},
        "retry_after_s": {"type": "number"},
        "request_id": {"type": "string", "description": "As in `X-Request-ID`: what the log calls this request."},
    },
}

_MEANING = {
    400: "The body cannot be parsed",
    401: "No known token",
    403: "The token lacks the scope, or a foreign web page asks",
    404: "No such episode or model",
    408: "The request came too slowly",
    409: "It contradicts the present state: a gap, another body, an ended or open episode, a lost session",
    413: "Over a limit of size",
    415: "No media type of these",
    422: "A value is wrong; `field` names it, and nothing was written",
    429: "Over a limit of number or rate",
    431: "The head of the request has no end",
    500: "What is stored is damaged",
    503: "The part that would answer cannot do so now: a full medium, no model, a worker being started",
    504: "The action would have come after its deadline; the state is unchanged",
}
_EVERYWHERE = (401, 403, 408, 431, 503)
_RETRY_AFTER = {"Retry-After": {"description": "Seconds", "schema": {"type": "integer", "minimum": 1}}}


def answers(
    *problems: int, success: int = 200, schema: Schema | None = None, location: bool = False
) -> dict[int | str, Schema]:
    """Return the answers of an operation: its success, and the problems it knows beside those of every request."""
    found: dict[int | str, Schema] = {}
    if schema is not None:
        found[success] = {"description": "Done", "content": {"application/json": {"schema": schema}}}
        if location:
            found[success]["headers"] = {"Location": {"required": True, "schema": {"type": "string"}}}
    for status in sorted({*problems, *_EVERYWHERE}):
        found[status] = {
            "description": _MEANING[status],
            "content": {"application/problem+json": {"schema": _PROBLEM}},
        }
        if status in (429, 503):
            found[status]["headers"] = _RETRY_AFTER
    return found


def state_problems(document: Schema) -> None:
    """State the problems of operations that name none of their own: every status that an answer may have.

    FastAPI's own word on a wrong parameter goes: here that is a problem document as any other.
    """
    known = answers(*_MEANING)
    for operations in document["paths"].values():
        for operation in operations.values():
            responses = operation["responses"]
            if not any("application/problem+json" in answer.get("content", {}) for answer in responses.values()):
                responses.pop("422", None)
                operation["responses"] = {str(status): answer for status, answer in known.items()} | responses


def body(schemas: Mapping[str, Schema], *, required: bool) -> Schema:
    """Return what goes into `openapi_extra` for a body of one of several media types."""
    content = {media_type: {"schema": schema} for media_type, schema in schemas.items()}
    return {"requestBody": {"required": required, "content": content}}


def state_parameters_plainly(document: Schema) -> None:
    """Take `null` out of the parameters' schemas: in a URL or a header a parameter is text or absent."""
    for operations in document["paths"].values():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                schema = parameter["schema"]
                choices = [choice for choice in schema.get("anyOf", ()) if choice != {"type": "null"}]
                if len(choices) == 1:
                    del schema["anyOf"]
                    schema.update(choices[0])
