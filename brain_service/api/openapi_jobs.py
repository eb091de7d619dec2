"""What the OpenAPI document says of jobs and of who trains."""

from typing import Any, get_args

from brain_service.jobs.job import STATES, StageStatus

__all__ = ["JOB", "JOB_QUEUED", "TRAINERS"]

Schema = dict[str, Any]

_TRAINER = {"enum": ["jax", "pytorch"], "description": "Who trains."}
_NS = {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1, "description": "Nanoseconds since the epoch."}
_NS_OR_NONE = {"anyOf": [_NS, {"type": "null"}], "description": "Nanoseconds since the epoch; null: not yet."}


def _choice(trainer: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["trainer", "reason", "alternatives"],
        "properties": {
            "trainer": trainer,
            "reason": {"type": "string", "description": "Why this one."},
            "alternatives": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["trainer", "available", "reason"],
                    "properties": {
                        "trainer": _TRAINER,
                        "available": {"type": "boolean", "description": "Whether it computes here."},
                        "reason": {
                            "type": "string",
                            "description": "What it runs on, or why not and the next step.",
                        },
                    },
                },
            },
        },
    }


TRAINERS = _choice({"enum": ["jax", "pytorch", None], "description": "null: nothing trains here."})
"""Of `GET /hardware`."""

_STAGE: Schema = {
    "type": "object",
    "required": ["name", "status", "details", "duration_s", "command", "started_ns"],
    "properties": {
        "name": {"type": "string", "description": "What is done."},
        "status": {"enum": list(get_args(StageStatus)), "description": "How far it is."},
        "details": {"type": "string", "description": "What came of it, in a sentence."},
        "duration_s": {"type": ["number", "null"], "description": "Seconds since `started_ns`, waits included."},
        "command": {"type": ["string", "null"], "description": "Runs the same by hand."},
        "started_ns": _NS_OR_NONE,
    },
}

JOB: Schema = {
    "type": "object",
    "required": ["job_id", "kind", "state", "progress", "stages", "result", "error", "params", "trainer"],
    "properties": {
        "job_id": {"type": "string", "description": "Names its folder, and a training's run."},
        "kind": {"type": "string", "description": "The path that it was asked for with."},
        "state": {"enum": list(STATES), "description": "The last three are final."},
        "progress": {"type": "number", "minimum": 0, "maximum": 1, "description": "It never falls."},
        "stages": {"type": "array", "items": _STAGE},
        "result": {"type": "object", "description": "Grows by the finished stages."},
        "error": {"type": ["object", "null"], "description": "The problem document of a failed job."},
        "created_ns": _NS,
        "started_ns": _NS_OR_NONE,
        "finished_ns": _NS_OR_NONE,
        "attempt": {"type": "integer", "minimum": 0, "description": "Starts so far."},
        "params": {"type": "object", "description": "As asked for, defaults filled in."},
        "cancel_requested": {"type": "boolean", "description": "Until its process is gone."},
        "trainer": {
            "anyOf": [
                _choice(
                    {"enum": ["jax", "pytorch", None], "description": "null: decided when it starts to train."}
                ),
                {"type": "null"},
            ],
            "description": "Who trains and why; null: nothing is trained.",
        },
    },
}

JOB_QUEUED: Schema = {
    "description": "Queued",
    "content": {"application/json": {"schema": JOB}},
    "headers": {"Location": {"required": True, "schema": {"type": "string"}}},
}
