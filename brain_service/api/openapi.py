"""What the OpenAPI document says of bodies that FastAPI does not parse."""

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
    "body",
    "state_parameters_plainly",
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


def _text(description: str, *, default: str) -> Schema:
    return {"type": "string", "maxLength": 256, "default": default, "description": description}


CREATE: Schema = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        "episode_id": {"type": ["string", "null"], "pattern": EPISODE_ID, "description": "Omitted: made up here."},
        "environment_id": _text("Where it happens; a filter of the catalogue.", default="default"),
        "xr_mode": _text("How the robot is operated, in words of your own.", default="trainer"),
        "control_role": {
            "type": "string",
            "enum": [*CONTROL_ROLES, "human_teleop", "human_supervisor", "human_dev_xr"],
            "description": "Who acts, for steps that do not say; `expert` and `intervention` are imitated.",
        },
        "tags": {"type": "array", "maxItems": 256, "items": {"type": "string", "maxLength": 256}},
        "robot_id": {"type": ["string", "null"], "maxLength": 256, "description": "Which robot."},
        "language_instruction": {
            "type": "string",
            "maxLength": 4096,
            "description": "What it was told to do; each step of the dataset carries it.",
        },
        "safety": {"type": ["object", "null"], "description": "The seed's `safety` record."},
        "share": {"type": ["object", "null"], "description": "The seed's `share` record."},
        "metadata": {"type": "object", "description": "Anything else, as plain JSON."},
        "features": {"oneOf": [_FEATURES, {"type": "null"}]},
        "durability": {
            "enum": ["interval", "step", "episode", None],
            "description": "When a step is on the medium; omitted: as `capture.durability` says.",
        },
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
        "reward": {"type": "number", "default": 0.0, "description": "What followed the action."},
        "is_terminal": {
            "type": "boolean",
            "default": False,
            "description": "The episode ended with this action; no step may follow.",
        },
        "timestamp_ns": {"anyOf": [_INT64_NS, {"type": "null"}], "description": "Omitted: the time of receipt."},
        "control_role": {"type": ["string", "null"], "description": "Who acted; omitted: the episode's."},
        "executed_action": {
            "anyOf": [_NONE_OR_MORE, {"type": "null"}],
            "description": "What the actuators did, where that differs from what was commanded.",
        },
        "policy": {"type": ["object", "null"], "description": "Which model acted, and how."},
        "step_metadata": {
            "type": ["object", "null"],
            "additionalProperties": False,
            "description": "The same members in the seed's place.",
            "properties": {
                "timestamp_ns": {"anyOf": [_INT64_NS, {"type": "null"}]},
                "step_index": {"anyOf": [_INDEX, {"type": "null"}]},
                "timestamp": {"type": ["number", "null"], "description": "Seconds since the epoch."},
                "control_role": {"type": ["string", "null"]},
                "policy": {"type": ["object", "null"]},
            },
        },
        "episode_id": {"type": ["string", "null"], "description": "If given, that of the path."},
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
        "reason": {
            "enum": ["terminated", "truncated", None],
            "description": "Omitted: `terminated` where the last step was terminal, else `truncated`.",
        },
        "final_observation": {
            "anyOf": [_NONE_OR_MORE, {"type": "null"}],
            "description": "What was seen after the last action.",
        },
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
    "properties": {
        "steps": {"type": "integer", "description": "How many it has."},
        "durable_through": {"type": "integer", "description": "The index of the last one."},
    },
}

_INFER: Schema = {
    "type": "object",
    "additionalProperties": False,
    "required": ["session_id", "observation"],
    "properties": {
        "session_id": {"type": "string", "description": "Of `POST /sessions`."},
        "observation": _VALUES,
        "step": {"anyOf": [_INDEX, {"type": "null"}], "description": "Omitted: the next one."},
        "reward": {
            "type": ["number", "null"],
            "description": "Of the step before. Omitted: as the mean reward of the model's training.",
        },
        "executed_action": {"anyOf": [_VALUES, {"type": "null"}], "description": "Of the step before."},
        "deadline_ms": {
            "type": ["number", "null"],
            "exclusiveMinimum": 0,
            "maximum": 60_000,
            "description": "From receipt; a later answer is a 504. Omitted: `inference.deadline_ms`.",
        },
        "record": {"type": ["string", "null"], "description": "The episode that this step goes into."},
        "why": {"type": "boolean", "default": False, "description": "Have the answer say where it comes from."},
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
        "step": _INDEX | {"description": "Which step of the session this is."},
        "model_id": {"type": "string", "description": "The model that computed it."},
        "model_since_step": _INDEX | {"description": "Since which step it has."},
        "backend": {"type": "string", "description": "What the model ran on."},
        "state_step": _INDEX | {"description": "How many steps its state had seen."},
        "timings_us": {
            "type": "object",
            "additionalProperties": {"type": "number"},
            "description": "`queue`, `compute` and `total`, in microseconds.",
        },
        "warnings": {"type": "array", "items": {"type": "string"}, "description": "What is not as it should be."},
        "why": {"type": "object", "description": "Where it comes from, if asked for."},
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
