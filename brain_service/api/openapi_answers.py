"""What the OpenAPI document says of the answers of every operation, and of each that is a problem."""

from typing import Any

__all__ = ["answers", "state_problems"]

Schema = dict[str, Any]

_PROBLEM: Schema = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {
            "type": "string",
            "pattern": "^urn:continuon-brain:problem:",
            "description": "The kind of problem, for programs.",
        },
        "title": {"type": "string", "description": "The same, for people."},
        "status": {"type": "integer", "description": "The HTTP status."},
        "detail": {"type": "string", "description": "The bad value, the valid ones and the next step."},
        "field": {"type": "string", "description": "The place in the body or the parameter that is wrong."},
        "next_step_index": {"type": "integer", "minimum": 0, "description": "The step an episode expects."},
        "next_step": {"type": "integer", "minimum": 0, "description": "The step that a session expects."},
        "error": {"type": "string", "description": "Below /v2: the detail once more, as that protocol wants it."},
        "retry_after_s": {"type": "number", "description": "When to try again, in seconds."},
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
