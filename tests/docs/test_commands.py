"""Every command and every block of every document, looked at without running it: a second's work, done daily."""

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from brain_service.settings import load_settings
from cloud_trainer.tuning.space import read_space
from tests.docs.commands import Command, programs, shell_commands, syntax_error
from tests.docs.markdown import PROJECT, Block, Document, documents
from tests.docs.parsing import PROGRAMS, WrongCommandError, parse
from tests.docs.run import as_run
from tests.docs.tables import (
    EXIT_CODES,
    LANGUAGES,
    NOT_RUN,
    PROGRAMS_RUN,
    RUN_ELSEWHERE,
    SERVERS,
    SUBSTITUTIONS,
    NotRun,
)

BLOCKS = [block for document in documents() for block in document.blocks]
COMMANDS = [command for block in BLOCKS if block.language == "sh" for command in shell_commands(block)]
SPANS = [span for document in documents() for span in document.spans]


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of these languages."""
    return [block for block in BLOCKS if block.language in languages]


def test_the_documents_are_found() -> None:
    assert len(documents()) > 25
    assert documents()[0].name == "README.md"
    assert len(COMMANDS) > 60
    assert len(blocks("python")) > 5


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_every_block_says_what_it_is(document: Document) -> None:
    for block in document.blocks:
        assert block.language in LANGUAGES, (
            f"{block}: a fence with one of {sorted(LANGUAGES)}, not {block.language or 'without a word'!r}"
        )


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_a_command_is_run_or_listed_as_not_run(command: Command) -> None:
    assert syntax_error(command.text) == "", str(command)
    if any(each.matches(command) or each.pattern == command.text for each in NOT_RUN):
        return
    if any(re.match(each.pattern, command.text) for each in SUBSTITUTIONS):
        return
    for words in programs(command.text):
        assert words[0] in PROGRAMS_RUN, (
            f"{command}\nnobody runs {words[0]}: list it in tests/docs/tables.py, with the reason"
        )
        assert words[0] in PROGRAMS or shutil.which(words[0]) or words[0] in {"cd", "export", "python"}


@pytest.mark.parametrize("entry", NOT_RUN, ids=lambda entry: entry.pattern)
def test_what_is_not_run_is_used_and_checked(entry: NotRun) -> None:
    used = [command for command in COMMANDS if entry.matches(command)]
    assert used, f"no document has a command like {entry.pattern}"
    assert len(entry.reason) > 10
    for command in used:
        entry.check(command)


def test_no_table_has_an_entry_without_a_use() -> None:
    run = [each.text for each in COMMANDS if not any(entry.matches(each) for entry in NOT_RUN)]
    text = "\n".join([*run, *(block.text for block in blocks("python"))])
    for pattern in [*(each.pattern for each in SUBSTITUTIONS), *SERVERS, *EXIT_CODES]:
        assert re.search(pattern, text, re.MULTILINE) or pattern in SERVERS, f"no document needs {pattern}"
    for name, test in RUN_ELSEWHERE.items():
        assert (PROJECT / name).name in (PROJECT / test).read_text(), f"{test} does not run {name}"
    for name in PROGRAMS_RUN:
        assert re.search(rf"\b{re.escape(name)}\b", text), f"no document runs {name}"


@pytest.mark.parametrize("words", [["serve"], ["serve", "DATA=/somewhere"]])
def test_make_serve_is_what_is_run_for_it(words: list[str]) -> None:
    told = subprocess.run(
        ["make", "--dry-run", "--old-file=.venv/.runtime", *words],
        cwd=PROJECT,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.splitlines()[-1] == f".venv/bin/{as_run(' '.join(['make', *words]))}"


def own(command: str) -> list[list[str]]:
    """Return the calls of our own programs in a command."""
    return [words for words in programs(command) if words[0] in PROGRAMS]


@pytest.mark.parametrize("command", [each for each in COMMANDS if own(each.text)], ids=str)
def test_our_programs_take_the_command(command: Command) -> None:
    for words in own(command.text):
        parse(words)


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_our_programs_know_what_a_sentence_names(document: Document) -> None:
    for span in document.spans:
        words = re.sub(r"[\[\]|]", " ", span.text.replace("...", "X")).split()
        if words and words[0] in PROGRAMS and "{" not in span.text:
            try:
                parse(words, mention=True)
            except WrongCommandError as error:
                raise AssertionError(f"{document.name}:{span.line}: {error}") from error


def examples() -> list[tuple[str, list[list[str]]]]:
    """Return the calls of our programs in each text of examples that a --help of ours shows."""
    found = []
    for path in [*PROJECT.glob("brain_service/cli*.py"), *PROJECT.glob("cloud_trainer/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and re.search(r"EXAMPLES$", ast.unparse(node.targets[0])):
                where = str(path.relative_to(PROJECT))
                block = Block(where, node.lineno, "sh", _examples(ast.literal_eval(node.value)))
                calls = [words for command in shell_commands(block) for words in own(command.text)]
                found.append((f"{where}:{node.lineno}", calls))
    return found


def _examples(text: str) -> str:
    """Return the lines that begin with one of our programs, and those that go on with them."""
    text = text.replace("python -m cloud_trainer", "cloud-trainer")
    kept = re.findall(rf"^  (?:{'|'.join(PROGRAMS)}|sudo brain) (?:.*\\\n)*.*$", text, re.MULTILINE)
    return "\n".join(kept)


@pytest.mark.parametrize(("where", "calls"), examples(), ids=[where for where, _ in examples()])
def test_our_programs_take_their_own_examples(where: str, calls: list[list[str]]) -> None:
    assert calls, f"{where}: no example"
    for words in calls:
        parse(words)


@pytest.mark.parametrize("document", documents(), ids=lambda document: document.name)
def test_other_commands_that_a_sentence_names_exist(document: Document) -> None:
    """Targets of make, modules of `python -m` and files of pytest."""
    targets = set(re.findall(r"^([a-z-]+):.*## ", (PROJECT / "Makefile").read_text(), re.MULTILINE))
    for text, line in [(span.text, span.line) for span in document.spans] + [
        (words, block.line)
        for block in document.blocks
        if block.language == "sh"
        for command in shell_commands(block)
        for words in [" ".join(each) for each in programs(command.text)]
    ]:
        where = f"{document.name}:{line}: {text}"
        if found := re.match(r"make ([a-z-]+)", text):
            assert found[1] in targets, where
        if found := re.match(r"(?:\S*/)?python3? -m ([\w.]+)", text):
            assert find_spec(found[1]) is not None, where
            if found[1] == "tests.bench":
                for name in re.findall(r"\bbench_\w+", text):
                    assert find_spec(f"tests.bench.{name}") is not None, where
        if found := re.match(r"pytest (tests/\S+)", text):
            assert list(PROJECT.glob(found[1])), where


@pytest.mark.parametrize("block", blocks("python"), ids=str)
def test_a_script_is_python_and_imports_what_exists(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "brain_service":
            module = importlib.import_module(node.module)
            for name in node.names:
                assert hasattr(module, name.name), f"{block}: {node.module} has no {name.name}"


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_settings_are_taken_by_the_daemon(block: Block, tmp_path: Path) -> None:
    """A search's space names the settings of a training instead, in a table each."""
    file = tmp_path / "block.toml"
    file.write_text(block.text)
    if all(isinstance(table, dict) and "type" in table for table in tomllib.loads(block.text).values()):
        assert read_space(file)
    else:
        load_settings(config=file, environ={})


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_json(block: Block) -> None:
    json.loads(block.text)
