"""A command line of `brain` or `cloud-trainer`, parsed by the program's own parser and not carried out."""

import argparse
import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from typing import Any

import brain_service.cli
import cloud_trainer.cli

__all__ = ["PROGRAMS", "WrongCommandError", "parse"]

PROGRAMS = {"brain": brain_service.cli.main, "cloud-trainer": cloud_trainer.cli.main}


class WrongCommandError(Exception):
    """The parser refuses the words; the message is its own."""


class _ParsedError(Exception):
    def __init__(self, options: argparse.Namespace, rest: list[str]) -> None:
        super().__init__()
        self.options = options
        self.rest = rest


def parse(words: Sequence[str], *, mention: bool = False) -> tuple[argparse.Namespace, list[str]]:
    """Parse a command line and return its options, and what the program hands on to another one.

    A `mention` names a command and some of its options in a sentence: nothing is required of it then.

    Raises:
        WrongCommandError: the program does not know a word, or misses one.
    """
    with _stopped_after_parsing(relaxed=mention):
        try:
            PROGRAMS[words[0]](list(words[1:]))
        except _ParsedError as parsed:
            return parsed.options, parsed.rest
        except SystemExit as done:
            if done.code in (0, None):
                return argparse.Namespace(), []
            raise WrongCommandError(f"{' '.join(words)}: exit {done.code}") from done
    return argparse.Namespace(), []


@contextlib.contextmanager
def _stopped_after_parsing(*, relaxed: bool) -> Iterator[None]:
    """Have every parser raise `_ParsedError` instead of returning, and `WrongCommandError` instead of exiting."""
    parser = argparse.ArgumentParser
    before = parser.parse_args, parser.parse_known_args, parser.error
    inside = False

    def known(
        self: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: Any = None, **more: Any
    ) -> tuple[argparse.Namespace, list[str]]:
        nonlocal inside
        if inside:
            return before[1](self, args, namespace, **more)
        inside = True
        try:
            raise _ParsedError(*before[1](_relaxed(self) if relaxed else self, args, namespace, **more))
        finally:
            inside = False

    def all_known(self: argparse.ArgumentParser, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        try:
            return known(self, args, namespace)
        except _ParsedError as parsed:
            if parsed.rest:
                self.error(f"unrecognized arguments: {' '.join(parsed.rest)}")
            raise

    def error(self: argparse.ArgumentParser, message: str) -> None:
        raise WrongCommandError(f"{self.prog}: {message}")

    try:
        parser.parse_args, parser.parse_known_args = all_known, known  # type: ignore[method-assign, assignment]
        parser.error = error  # type: ignore[method-assign, assignment]
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        parser.parse_args, parser.parse_known_args, parser.error = before  # type: ignore[method-assign]


def _relaxed(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Return a copy that requires nothing and takes any word, or none, for a value."""
    made = copy.deepcopy(parser)
    waiting = [made]
    while waiting:
        one = waiting.pop()
        one._mutually_exclusive_groups.clear()
        for action in one._actions:
            action.required = False
            action.type = None
            if action.option_strings and action.nargs is None:
                action.nargs = "?"
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.values()
            elif not action.option_strings and action.nargs in (None, "+"):
                action.nargs = "?" if action.nargs is None else "*"
    return made
