"""JSON Schema in few words."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.docs.reference.text import first_paragraph

__all__ = ["fields_of", "kind_of"]

Schema = Mapping[str, Any]

_DEEPEST = 2


def fields_of(schema: Schema, prefix: str = "", deeper: int = _DEEPEST) -> Iterator[tuple[str, str, str, str]]:
    """Yield a row for each field of an object: name, type, default and what it is.

    Those of inner objects follow, `deeper` levels down.
    """
    for choice in _choices(schema):
        inner = choice.get("items", {}) if choice.get("type") == "array" else choice
        required = inner.get("required", ())
        for name, field in inner.get("properties", {}).items():
            where = f"{prefix}{name}"
            default = "required" if name in required else _default(field)
            yield f"`{where}`", kind_of(field), default, first_paragraph(field.get("description", ""))
            if deeper:
                yield from fields_of(field, f"{where}.", deeper - 1)
        if inner.get("properties"):
            return


def kind_of(schema: Schema) -> str:
    """Return what values a schema takes, in few words."""
    kinds = list(dict.fromkeys(_kind(choice) for choice in _choices(schema)))
    return " or ".join(kind for kind in kinds if kind) or "any"


def _choices(schema: Schema) -> list[Schema]:
    found = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
    return (
        [one for choice in found for one in _choices(choice)] if found and "properties" not in schema else [schema]
    )


def _kind(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join("null" if one is None else f"`{one}`" for one in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    named = schema.get("type", "")
    kinds = [named] if isinstance(named, str) else list(named)
    return " or ".join(_bounded(kind, schema) for kind in kinds)


def _bounded(kind: str, schema: Schema) -> str:
    if kind == "array":
        return f"array of {kind_of(schema['items'])}" if "items" in schema else "array"
    if kind not in ("integer", "number"):
        return kind
    words = [
        f"{sign} {_number(schema[name])}"
        for name, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if name in schema
    ]
    return f"{kind} {', '.join(words)}" if words else kind


def _number(value: float) -> str:
    if abs(value) >= 2**62:
        return "2^63 - 1" if value > 0 else "-2^63"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _default(schema: Schema) -> str:
    if "default" not in schema or schema["default"] is None:
        return ""
    value = schema["default"]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
