"""What the documents name exists: links and headings, files, settings, metrics, ways over HTTP, Python names."""

import importlib
import pkgutil
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath

import pytest
from fastapi import APIRouter
from pydantic import BaseModel

import brain_service.api
from brain_service.settings import PREFIX, Settings
from tests.docs.markdown import PROJECT, Document, documents

every_document = pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
ROOTS = {path.parent.name for path in (PROJECT / "brain_service").glob("*/__init__.py")}
SOURCES = frozenset({".py", ".sh", ".service", ".socket", ".slice", ".conf", ".rules", ".md", ".yml"})
"""Endings of files that are this project's own; others may be what a command writes."""
WRITTEN = frozenset({".json", ".jsonl", ".html", ".onnx", ".npz", ".toml", ".hef", ".alls"})
"""Endings of files that commands write."""
NOT_OURS = {
    "/observation": "a topic of an MCAP file",
    "/action": "a topic of an MCAP file",
    "/step": "a topic of an MCAP file",
    "/tmp": "of the machine",
    "compile.sh": "written by `brain export-hailo`",
    "continuon-brain.sock": "made by systemd",
}
MADE_HERE = frozenset({".venv", "build"})
"""Folders that `make` writes: git lists nothing under them, whether they are there or not."""
ABSOLUTE = re.compile(r"/(etc|opt|var|usr|dev|boot|run|sys|proc|home|root|tmp|src|gcs|observation|action|step)\b")
METHODS = ("GET", "POST", "DELETE", "WS")
SEEDS_OWN = "the seed"
"""Column of files and names that are not here: those of the document that the project grew out of."""


@cache
def files() -> frozenset[str]:
    """Return every file of the project, as git has it."""
    done = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=PROJECT, capture_output=True, text=True
    )
    return frozenset(done.stdout.splitlines()) or frozenset(
        str(path.relative_to(PROJECT)) for path in PROJECT.rglob("*") if path.is_file()
    )


@every_document
def test_links_lead_somewhere(document: Document) -> None:
    for link in document.links:
        place, _, anchor = link.target.partition("#")
        if re.match(r"[a-z]+:", place):
            continue
        target = (PROJECT / document.name).parent / place if place else PROJECT / document.name
        assert target.exists(), f"{document.name}:{link.line}: {link.target}"
        if anchor and target.suffix == ".md":
            name = str(target.resolve().relative_to(PROJECT))
            anchors = {each.name: each.anchors for each in documents()}[name]
            assert anchor in anchors, f"{document.name}:{link.line}: {name} has no heading #{anchor}"


@every_document
def test_files_are_there(document: Document) -> None:
    for span in document.spans:
        if span.column == SEEDS_OWN:
            continue
        for path in _own_paths(span.text):
            assert _is_file(path, document), f"{document.name}:{span.line}: no file {path}"


def _own_paths(text: str) -> Iterator[str]:
    if not re.fullmatch(r"[\w./{},*<>-]+", text) or text in NOT_OURS or re.search(r"[<>]|^/|^gs:", text):
        return
    braces = re.fullmatch(r"(.*)\{([\w,]+)\}(.*)", text)
    for path in [f"{braces[1]}{each}{braces[3]}" for each in braces[2].split(",")] if braces else [text]:
        first = path.split("/")[0]
        if first in MADE_HERE:
            continue
        if PurePosixPath(path).suffix in SOURCES or (first not in ("", ".") and (PROJECT / first).is_dir()):
            yield path.rstrip("/")


def _is_file(path: str, document: Document) -> bool:
    pattern = re.compile(r"(.*/)?" + re.escape(path).replace(r"\*", "[^/]*") + r"(/.*)?")
    return any(pattern.fullmatch(name) for name in files())


def _settings(model: type[BaseModel] = Settings, prefix: str = "") -> Iterator[str]:
    for name, info in model.model_fields.items():
        kind = info.annotation
        yield prefix + name
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield f"{prefix}{name}.*"
            yield from _settings(kind, f"{prefix}{name}.")


SETTINGS = frozenset(_settings())
GROUPS = frozenset(name.split(".")[0] for name in SETTINGS if "." in name)


@every_document
def test_settings_and_python_names_exist(document: Document) -> None:
    """`group.name` is a setting; where a group and a package have the same name, either will do."""
    for span in document.spans:
        if span.column == SEEDS_OWN:
            continue
        where = f"{document.name}:{span.line}: {span.text}"
        if found := re.match(rf"{PREFIX}([A-Z_]+)(?:=|$)", span.text):
            name = found[1].lower().replace("__", ".")
            assert name in SETTINGS or name in {"config", "token", "test"}, where
        dotted = re.match(r"([a-z_]+(?:\.\w+)*(?:\.\*)?)(?:$| ?= ?|\()", span.text)
        if dotted is None or "." not in dotted[1]:
            continue
        first = dotted[1].split(".")[0]
        if PurePosixPath(span.text).suffix in SOURCES | WRITTEN or first not in GROUPS | ROOTS | {
            "brain_service",
            "cloud_trainer",
        }:
            continue
        assert dotted[1] in SETTINGS or _is_python(dotted[1]), f"{where}: neither a setting nor a name of Python"


@every_document
def test_tables_of_settings_list_settings(document: Document) -> None:
    """In a column headed `setting`, a name without a group is of the group of the head or of the one before."""
    groups: list[str] = []
    for span in document.spans:
        if not span.column.startswith("setting") or " " in span.text:
            continue
        if found := re.findall(r"`([\w.]+)\.`", span.column):
            groups = found
        name = span.text
        known = name in SETTINGS or any(f"{group}.{name}" in SETTINGS for group in groups)
        assert known, f"{document.name}:{span.line}: no setting {name}"
        if "." in name:
            groups = [name.rsplit(".", 1)[0]]


def _is_python(name: str) -> bool:
    name = re.sub(r"^client\.(?=[a-z])", "client.BrainClient.", name)
    for top in ("", "brain_service.", "cloud_trainer."):
        parts = (top + name).split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found: object = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for attribute in parts[cut:]:
                found = getattr(found, attribute, None)
            if found is not None:
                return True
            break
    return False


@cache
def routes() -> frozenset[tuple[str, str]]:
    """Return the method and path of each way into the daemon, parameters as `{}`."""
    found = {("GET", "/openapi.json"), ("WS", "/"), ("WS", "/infer/stream"), ("WS", "/episodes/{}/stream")}
    for module in pkgutil.iter_modules(brain_service.api.__path__):
        router = getattr(importlib.import_module(f"brain_service.api.{module.name}"), "router", None)
        if isinstance(router, APIRouter):
            for route in router.routes:
                path = re.sub(r"\{\w+\}", "{}", getattr(route, "path", ""))
                found |= {(method, path) for method in getattr(route, "methods", ())}
    return frozenset(found)


@every_document
def test_ways_over_http_exist(document: Document) -> None:
    for span in document.spans:
        if found := re.match(rf"(?:({'|'.join(METHODS)}) )?(/[\w/{{}}.<>-]*)(?:[?]|$| \{{)", span.text):
            method, path = found[1], re.sub(r"\{\w+\}|<\w+>", "{}", found[2])
            if (method is None and (ABSOLUTE.match(path) or path == "/end")) or path.startswith("/v2/..."):
                continue
            known = [(each, way) for each, way in routes() if way == path]
            assert known, f"{document.name}:{span.line}: no way {path}"
            assert method is None or (method, path) in known, (
                f"{document.name}:{span.line}: {path} takes no {method}"
            )


@every_document
def test_metrics_exist(document: Document) -> None:
    """A name that a document writes with a unit or a total is in the code that makes the page of metrics."""
    source = "".join(path.read_text() for path in (PROJECT / "brain_service" / "api").glob("*.py"))
    for span in document.spans:
        if found := re.fullmatch(r"(brain_\w+?)(?:_bucket|_sum|_count)?(?:\{.*\})?", span.text):
            name = found[1]
            assert (PROJECT / name).is_dir() or f'"{name}"' in source, (
                f"{document.name}:{span.line}: no metric {name}"
            )


def test_the_tables_can_tell_what_is_wrong() -> None:
    """Each of these is a slip of a document, and is found."""
    wrong = Document.parse(
        "docs/wrong.md",
        "[there](nowhere.md)\n\n`brain_service/nothing.py`\n\n`capture.sync_intervall_s`\n\n`POST /episode`\n\n"
        "`brain_no_such_total`\n\n| setting | what |\n|---|---|\n| `hosts` | x |\n",
    )
    for test in (
        test_links_lead_somewhere,
        test_files_are_there,
        test_settings_and_python_names_exist,
        test_ways_over_http_exist,
        test_metrics_exist,
        test_tables_of_settings_list_settings,
    ):
        with pytest.raises(AssertionError, match=r"docs/wrong\.md"):
            test(wrong)
