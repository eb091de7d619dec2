"""docs/settings.md: default and allowed values of each setting from the settings model, what it is for by hand."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from brain_service.settings import Settings
from tests.docs.reference.text import cell

__all__ = ["TO_WRITE", "setting_rows", "settings_page"]

TO_WRITE = "(to be written)"
"""What stands where a setting has no sentence yet; a test fails on it."""

_ROW = re.compile(r"^\| `([a-z0-9_.]+)` \|.*\| ([^|]*) \|$")
_HEADS = ("| setting | default | may be | what |", "|---|---|---|---|")
_KINDS = {bool: "true, false", int: "integer", float: "number", str: "text", Path: "path"}
_MARKS = {
    Ge: (">=", "ge"),
    Gt: (">", "gt"),
    Le: ("<=", "le"),
    Lt: ("<", "lt"),
    MultipleOf: ("a multiple of", "multiple_of"),
}


def settings_page(page: str) -> str:
    """Return the page with every table's rows made anew; a table holds the settings of its heading.

    The heading of a group is its name in backticks (`## \\`capture\\`: ...`); the first table is of those without.
    """
    said = {found[1]: found[2] for line in page.splitlines() if (found := _ROW.match(line))}
    groups = {group: list(rows) for group, rows in _groups()}
    lines: list[str] = []
    group = ""
    for line in page.splitlines():
        if found := re.match(r"^## `([a-z_.]+)`", line):
            group = found[1]
        if line == _HEADS[0]:
            lines += [*_HEADS, *(_row(*row, said.get(row[0], TO_WRITE)) for row in groups.pop(group, []))]
        elif not (_ROW.match(line) or line == _HEADS[1]):
            lines.append(line)
    for left, rows in groups.items():
        lines += ["", f"## `{left}`", "", *_HEADS, *(_row(*row, TO_WRITE) for row in rows)]
    return "\n".join(lines).rstrip() + "\n"


def setting_rows() -> Iterator[tuple[str, str, str]]:
    """Yield every setting's full name, default and allowed values."""
    for _, rows in _groups():
        yield from rows


def _row(name: str, default: str, allowed: str, what: str) -> str:
    return f"| `{name}` | {cell(default)} | {cell(allowed)} | {what} |"


def _groups() -> Iterator[tuple[str, Iterator[tuple[str, str, str]]]]:
    yield "", _rows(Settings, "")
    waiting = [("", Settings)]
    while waiting:
        prefix, model = waiting.pop(0)
        for name, field in model.model_fields.items():
            if (inner := _model(field)) is not None:
                yield f"{prefix}{name}", _rows(inner, f"{prefix}{name}.")
                waiting.append((f"{prefix}{name}.", inner))


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    for name, field in model.model_fields.items():
        if _model(field) is None:
            yield f"{prefix}{name}", _default(name, field), _allowed(field)


def _model(field: FieldInfo) -> Any:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _default(name: str, field: FieldInfo) -> str:
    if field.default_factory is not None:
        return f"`<data_dir>/{name.removesuffix('_dir')}`"
    value = field.default
    if value is None:
        return "none"
    if value in ("", ()):
        return "empty"
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if name.endswith("_bytes") and value % 1024**2 == 0:
        return f"`{value}` ({value // 1024**2} MiB)"
    return f"`{value:g}`" if isinstance(value, float) and value < 1e6 else f"`{value}`"


def _allowed(field: FieldInfo) -> str:
    kinds = list(_leaves(field.annotation))
    words = [_KINDS[kind] if isinstance(kind, type) else f"`{kind}`" for kind in kinds if kind is not type(None)]
    bounds = [
        f"{_MARKS[type(mark)][0]} {getattr(mark, _MARKS[type(mark)][1]):.10g}"
        for mark in field.metadata
        if type(mark) in _MARKS
    ]
    return " ".join(
        [", ".join(words), *([" and ".join(bounds)] if bounds else []), *(["or none"] * (type(None) in kinds))]
    )


def _leaves(annotation: Any) -> Iterator[Any]:
    """Yield the types and the literal values that an annotation is made of."""
    inner = [one for one in get_args(annotation) if one is not ...]
    if get_origin(annotation) is Literal or not inner:
        yield from inner or [annotation]
    else:
        for one in inner:
            yield from _leaves(one)
