"""Holds error answers against RFC 9457 and against what we promise of them."""

from typing import Any

import httpx


def assert_problem(answer: httpx.Response, status: int, field: str | None = None) -> dict[str, Any]:
    """Return the problem document of an error answer: typed, explained, without a traceback."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert {"type", "title", "status", "detail"} <= problem.keys()
    assert problem["status"] == status
    assert problem["type"].startswith("urn:continuon-brain:problem:")
    assert problem["detail"]
    assert "Traceback" not in answer.text
    if field is not None:
        assert problem["field"] == field
    return problem
