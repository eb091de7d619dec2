"""docs/python-api.md: the packages' public names with signatures and docstrings, read from the source."""

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.docs.reference.text import cell, first_paragraph, prose, table

__all__ = ["PACKAGES", "python_page"]

_SOURCE = Path(__file__).parent.parent.parent.parent

PACKAGES: Mapping[str, str] = {
    "brain_service": "The seed's names",
    "brain_service.client": "For a robot's controller",
    "brain_service.episodes": "Episodes",
    "brain_service.datasets": "Datasets",
    "brain_service.model": "The model",
    "brain_service.training": "Training",
    "brain_service.export": "Bundles",
    "brain_service.inference": "Inference",
    "brain_service.hardware": "The machine",
}
"""The packages that somebody outside the daemon imports. The others (`api`, `jobs`, ...) are the daemon itself."""

_HEAD = """\
# The Python API

Made by `make docs` from the packages' `__all__` and docstrings; a test fails when it is stale. Everything is
imported from the package that heads its section. `brain_service.errors` holds what they raise;
`brain_service.client` has errors of its own.
"""

Function = ast.FunctionDef | ast.AsyncFunctionDef
Shown = ast.ClassDef | Function


@dataclass(frozen=True)
class _Found:
    """A public name: the module that defines it, and the statement that does."""

    module: str
    node: ast.stmt
    said: str = ""


def python_page() -> str:
    """Return the page."""
    lines = [*_HEAD.splitlines(), ""]
    shown: dict[str, str] = {}
    for package, title in PACKAGES.items():
        tree = _parse(package)
        lines += [f"## {title}: `{package}`", "", prose(ast.get_docstring(tree) or ""), ""]
        for name in _public(tree):
            found = _find(package, name)
            known = shown.setdefault(f"{found.module}.{name}", package)
            lines += _describe(name, found) if known == package else [f"**`{name}`**: see `{known}`.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _parse(module: str) -> ast.Module:
    path = _SOURCE / module.replace(".", "/")
    return ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text())


def _public(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [str(name) for name in ast.literal_eval(node.value)]
    raise AssertionError("every package has its __all__")


def _find(module: str, name: str) -> _Found:
    """Follow a name through the imports to the module that defines it."""
    body = _parse(module).body
    for before, node in zip([None, *body], body, strict=False):
        if isinstance(node, Shown) and node.name == name:
            return _Found(module, node)
        if isinstance(node, ast.Assign | ast.AnnAssign):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if ast.unparse(target) == name:
                after = body[body.index(node) + 1] if node is not body[-1] else before
                return _Found(module, node, _literal(after))
    for imported in ast.walk(_parse(module)):
        if isinstance(imported, ast.ImportFrom) and any(
            (one.asname or one.name) == name for one in imported.names
        ):
            assert imported.module is not None
            return _find(imported.module, name)
    raise AssertionError(f"{module} exports {name} and does not define it")


def _literal(node: ast.stmt | None) -> str:
    """Return the text of a statement that is a text alone, as stands below a documented constant."""
    is_text = (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    )
    return str(ast.literal_eval(node.value)) if is_text and isinstance(node, ast.Expr) else ""


def _describe(name: str, found: _Found) -> Iterator[str]:
    node = found.node
    yield from (f"### `{name}`", "")
    if isinstance(node, ast.Assign | ast.AnnAssign):
        yield from (prose(found.said) or f"`{ast.unparse(node)}`", "")
        return
    assert isinstance(node, Shown)
    if isinstance(node, ast.ClassDef):
        yield from _describe_class(node, found.module)
    else:
        yield from _signature(node)
        yield from _docstring(node)


def _describe_class(node: ast.ClassDef, module: str) -> Iterator[str]:
    bases = [base for base in (_base(base, module) for base in node.bases) if base is not None]
    is_error = any(ast.unparse(base).endswith(("Error", "Exception")) for base in node.bases)
    if is_error:
        yield from (f"{prose(ast.get_docstring(node) or '')} (a `{ast.unparse(node.bases[0])}`)", "")
        return
    init = next((one for one in _functions(node) if one.name == "__init__"), None)
    if init is not None:
        yield from _signature(init, node.name)
    yield from (prose(ast.get_docstring(node) or ""), "")
    if init is not None and ast.get_docstring(init):
        yield from (prose(ast.get_docstring(init) or ""), "")
    yield from table(("field", "type", "default", "what"), _fields(node))
    methods = {
        one.name: one for each in [*bases, node] for one in _functions(each) if not one.name.startswith("_")
    }
    yield from table(
        ("member", "what"),
        (
            (f"`{_head(one)}`", first_paragraph(ast.get_docstring(one) or "") + _raised(one))
            for one in methods.values()
            # Flax's own hook is nobody's to call.
            if ast.get_docstring(one) and one.name != "setup"
        ),
    )


def _base(base: ast.expr, module: str) -> ast.ClassDef | None:
    """Return the class that a class builds on where it is one of ours that nobody imports by name."""
    name = ast.unparse(base)
    if not name.startswith("_"):
        return None
    node = _find(module, name).node
    return node if isinstance(node, ast.ClassDef) else None


def _functions(node: ast.ClassDef) -> list[Function]:
    return [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]


def _fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str, str]]:
    for one, after in zip(node.body, [*node.body[1:], None], strict=True):
        if (
            isinstance(one, ast.AnnAssign)
            and isinstance(one.target, ast.Name)
            and not one.target.id.startswith("_")
        ):
            default = "" if one.value is None else f"`{ast.unparse(one.value)}`"
            yield f"`{one.target.id}`", f"`{_plain(one.annotation)}`", default, first_paragraph(_literal(after))


def _head(node: Function) -> str:
    """Return a member as it is used: an attribute, or a call with its parameters."""
    if any(ast.unparse(one).rsplit(".", 1)[-1] in ("property", "cached_property") for one in node.decorator_list):
        return f"{node.name}: {_plain(node.returns)}"
    front = "await " if isinstance(node, ast.AsyncFunctionDef) and not _is_context(node) else ""
    return f"{front}{node.name}({_parameters(node)})"


def _is_context(node: Function) -> bool:
    return any("contextmanager" in ast.unparse(one) for one in node.decorator_list)


def _signature(node: Function, name: str = "") -> Iterator[str]:
    front = "await " if isinstance(node, ast.AsyncFunctionDef) else ""
    returns = f" -> {_plain(node.returns)}" if node.returns is not None and not name else ""
    one = f"{front}{name or node.name}({_parameters(node)}){returns}"
    if len(one) > 100:
        inner = "".join(f"    {each},\n" for each in _each_parameter(node))
        one = f"{front}{name or node.name}(\n{inner}){returns}"
    yield from ("```text", one, "```", "")


def _parameters(node: Function) -> str:
    return ", ".join(_each_parameter(node))


def _each_parameter(node: Function) -> list[str]:
    arguments = node.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    found = [
        _parameter(*pair) for pair in zip(positional, defaults, strict=True) if pair[0].arg not in ("self", "cls")
    ]
    if arguments.vararg is not None:
        found.append(f"*{_parameter(arguments.vararg, None)}")
    elif arguments.kwonlyargs:
        found.append("*")
    found += [_parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    if arguments.kwarg is not None:
        found.append(f"**{_parameter(arguments.kwarg, None)}")
    return found


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    kind = f": {_plain(argument.annotation)}" if argument.annotation is not None else ""
    given = "" if default is None else f"{' = ' if kind else '='}{ast.unparse(default)}"
    return f"{argument.arg}{kind}{given}"


def _plain(annotation: ast.expr | None) -> str:
    return "" if annotation is None else ast.unparse(annotation).strip("'\"")


def _docstring(node: Function) -> Iterator[str]:
    yield from (prose(ast.get_docstring(node) or ""), "")
    if raised := _raised(node):
        yield from (raised.strip(), "")


def _raised(node: Function) -> str:
    """Return a docstring's `Raises:` as a sentence."""
    text = (ast.get_docstring(node) or "").partition("Raises:\n")[2].partition("\n\n")[0]
    return f" Raises {cell(text)}" if text.strip() else ""
