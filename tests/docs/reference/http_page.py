"""docs/api.md: the OpenAPI document of a daemon, as a page to read."""

import asyncio
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from brain_service.api.app import create_app
from brain_service.api.auth import scope_for
from brain_service.api.services import open_services
from brain_service.settings import load_settings
from tests.docs.reference.schemas import fields_of, kind_of
from tests.docs.reference.text import anchor, first_paragraph, prose, table

__all__ = ["http_page", "openapi_document"]

Json = Mapping[str, Any]

_METHODS = ("get", "post", "put", "patch", "delete")
_TITLES = {
    "episodes": "Record and read back",
    "inference": "Drive",
    "jobs": "Learn: jobs",
    "models": "Models",
    "status": "Health",
    "dashboard": "Status",
    "audit": "Audit",
    "open inference protocol": "Open Inference Protocol",
}
"""The page's sections, in order, by tag; a tag that is not here would be missing, which a test sees."""

_MANY = 8
"""A table of answers with so many rows is not shown twice."""

_PROBLEM = "application/problem+json"

_HEAD = """\
# The HTTP API

Made by `make docs` from the OpenAPI document that a daemon gives out (`GET /openapi.json`); a test fails when it
is stale. Programs to begin with: [robot-developers.md](robot-developers.md).

## In all of them

- Bodies are JSON; `/infer` and `/episodes/{episode_id}/steps` take msgpack too (`application/msgpack`). There is
  no prefix: the paths are what you type.
- Where the daemon has a tokens file, a request needs a token with the scope that stands at its path, as
  `Authorization: Bearer <token>`; `operate` and `control` include `read`.
- `Idempotency-Key` makes a repeated creation harmless: the same key gives the same answer.
- Every answer carries `X-Request-ID`, by which the daemon's log knows the request.
- An error is a problem document (RFC 9457, `application/problem+json`). `detail` names the bad value, the valid
  ones and the next step; `field` the place in the body.

"""

_WEBSOCKETS = (
    ("/episodes/{episode_id}/stream", "`control`", "record: [capture.md](capture.md#websocket)"),
    ("/infer/stream", "`control`", "drive: [protocols.md](protocols.md#ws-inferstream)"),
    ("/", "`control`", "drive with `openpi-client`: [protocols.md](protocols.md#ws--openpi)"),
)


def openapi_document() -> Json:
    """Return the OpenAPI document of a daemon on an empty directory; nothing is served and no job runs."""

    async def ask(folder: Path) -> Json:
        settings = load_settings({"data_dir": folder}, environ={})
        async with open_services(settings, safe_mode="only the OpenAPI document is asked for") as services:
            return create_app(services).openapi()

    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(ask(Path(folder)))


def http_page() -> str:
    """Return the page."""
    document = openapi_document()
    operations = [
        (path, method, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
        if method in _METHODS
    ]
    everywhere = set.intersection(*({*_problems(operation)} for _, _, operation in operations))
    lines = [*_HEAD.splitlines(), *_meanings(document, everywhere), "## All paths", ""]
    for tag, title in _TITLES.items():
        mine = [one for one in operations if one[2]["tags"][0] == tag]
        lines += [f"**{title}**", "", *_overview(mine)]
    lines += [
        "**WebSockets**",
        "",
        *table(("path", "scope", "for"), ((f"`WS {a}`", b, c) for a, b, c in _WEBSOCKETS)),
    ]
    shown: dict[str, str] = {}
    for tag, title in _TITLES.items():
        lines += [f"## {title}", ""]
        for path, method, operation in operations:
            if operation["tags"][0] == tag:
                lines += _operation(path, method, operation, everywhere, shown)
    return "\n".join(lines).rstrip() + "\n"


def _overview(operations: Sequence[tuple[str, str, Json]]) -> list[str]:
    rows = (
        (
            f"[`{method.upper()} {path}`](#{anchor(_heading(path, method))})",
            _scope(path, method),
            first_paragraph(operation.get("description", "")),
        )
        for path, method, operation in operations
    )
    return table(("path", "scope", "what"), rows)


def _heading(path: str, method: str) -> str:
    return f"{method.upper()} {path}"


def _scope(path: str, method: str) -> str:
    scope = scope_for(method.upper(), path)
    return f"`{scope}`" if scope else "none"


def _operation(
    path: str, method: str, operation: Json, everywhere: set[str], shown: dict[str, str]
) -> Iterator[str]:
    """Yield an operation's part; `shown` holds the tables of answers that stand above, each with its heading."""
    yield from (f"### {_heading(path, method)}", "", prose(operation.get("description", "")), "")
    yield from table(
        ("parameter", "in", "type", "what"),
        (
            (
                f"`{one['name']}`{' (required)' if one.get('required') and one['in'] != 'path' else ''}",
                one["in"],
                kind_of(one["schema"]),
                one.get("description", one["schema"].get("description", "")),
            )
            for one in operation.get("parameters", ())
            if one["in"] != "path" or one.get("description")
        ),
    )
    yield from _body(operation.get("requestBody", {}).get("content", {}))
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            yield from _answer(status, answer, _heading(path, method), shown)
    own = sorted({*_problems(operation)} - everywhere)
    if own:
        yield from (f"Problems: {', '.join(own)}.", "")


def _body(content: Json) -> Iterator[str]:
    for media_type, described in content.items():
        schema = described["schema"]
        # What else may be sent has the fields of the JSON.
        rows = list(fields_of(schema) if media_type == "application/json" else fields_of(schema, deeper=0))
        said = " ".join(prose(schema.get("description", "")).split())
        if rows:
            yield from (f"Body, `{media_type}`:{' ' + said if said else ''}", "")
            yield from table(("field", "type", "default", "what"), rows)
        else:
            yield from (f"Body, `{media_type}`: {said or kind_of(schema)}", "")


def _answer(status: str, answer: Json, heading: str, shown: dict[str, str]) -> Iterator[str]:
    headers = f", with `{'`, `'.join(answer['headers'])}`" if answer.get("headers") else ""
    content = {kind: one.get("schema", {}) for kind, one in answer.get("content", {}).items()}
    rows = [row for schema in content.values() for row in fields_of(schema)]
    kinds = ", ".join(f"`{kind}`" for kind in content)
    said = f"Answer {status}{f', {kinds}' if kinds else ''}{headers}"
    lines = table(("field", "type", "what"), ((name, kind, what) for name, kind, _, what in rows))
    known = shown.setdefault("\n".join(lines), heading)
    if len(rows) >= _MANY and known != heading:
        yield from (f"{said}: the fields of [{known}](#{anchor(known)}).", "")
    else:
        yield from (f"{said}{':' if rows else '.'}", "", *lines)


def _problems(operation: Json) -> list[str]:
    return [status for status, answer in operation["responses"].items() if _PROBLEM in answer.get("content", {})]


def _meanings(document: Json, everywhere: set[str]) -> Iterator[str]:
    """Yield what each status of a problem means, and the members of a problem document."""
    found: dict[str, str] = {}
    schema: Json = {}
    for item in document["paths"].values():
        for operation in item.values():
            for status in _problems(operation):
                answer = operation["responses"][status]
                found[status], schema = answer["description"], answer["content"][_PROBLEM]["schema"]
    yield from ("### Problems", "")
    yield from table(
        ("status", "means", "where"),
        (
            (status, said, "any" if status in everywhere else "where it stands")
            for status, said in sorted(found.items())
        ),
    )
    yield from table(
        ("member of a problem", "type", "what"), ((name, kind, what) for name, kind, _, what in fields_of(schema))
    )
