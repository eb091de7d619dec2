"""Nested maps of named values, and the same flat: `{path: leaf}` in sorted path order.

Paths join names with `/` (`observation/arm/joints`), see `spec`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from brain_service.errors import InvalidError

__all__ = ["flatten", "join_path", "reject_folders", "unflatten"]

# Far beyond any robot, and far below where Python's stack and the JSON writer give up.
_MAX_DEPTH = 64


def flatten(tree: Any, field: str) -> dict[str, Any]:
    """Flatten nested maps into `{path: leaf}` in sorted path order; `field` names the tree in errors.

    Raises:
        InvalidError: `tree` is not a map, is empty or nested too deeply, or a name is empty or stands twice.
    """
    found: dict[str, Any] = {}

    def visit(node: Any, path: str) -> None:
        if isinstance(node, Mapping):
            if not node:
                raise InvalidError(
                    f"{field}: {path or 'the map'} is empty; name at least one feature", field=field
                )
            for name, child in node.items():
                visit(child, join_path(path, name, field))
        elif path in found:
            raise InvalidError(f"{field}/{path} is given twice", field=f"{field}/{path}")
        else:
            found[path] = node

    if not isinstance(tree, Mapping):
        raise InvalidError(
            f'{field}: give a map of named arrays such as {{"state": [0.1, 0.2]}}, not {type(tree).__name__}',
            field=field,
        )
    visit(tree, "")
    return dict(sorted(found.items()))


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild nested maps from `{path: leaf}`: the inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree


def join_path(path: str, name: Any, field: str) -> str:
    """Return the path of a name in the map at `path` (empty: the outermost); `field` names the tree in errors.

    Raises:
        InvalidError: it is no feature name, or stands too deep.
    """
    if not isinstance(name, str) or not name or name.startswith("/") or name.endswith("/") or "//" in name:
        raise InvalidError(f"{field}: {name!r} is not a feature name; use non-empty text", field=field)
    joined = f"{path}/{name}" if path else name
    if joined.count("/") >= _MAX_DEPTH:
        raise InvalidError(f"{field} is nested deeper than {_MAX_DEPTH} maps; flatten it", field=field)
    return joined


def reject_folders(paths: Iterable[str], field: str) -> None:
    """Refuse a value that also holds others: `unflatten` could not nest them.

    Raises:
        InvalidError: `a` and `a/b` are both in `paths`.
    """
    known = set(paths)
    for path in sorted(known):
        parent = path.rpartition("/")[0]
        while parent:
            if parent in known:
                raise InvalidError(
                    f"{field}: {parent!r} is a value and also holds {path!r}; rename one", field=f"{field}/{path}"
                )
            parent = parent.rpartition("/")[0]
