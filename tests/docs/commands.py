"""Shell text cut into whole commands, each with its line, and the programs that a command starts."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass

from tests.docs.markdown import Block

__all__ = ["Command", "programs", "shell_commands", "syntax_error"]

_OPERATORS = frozenset("|&;()<>\n")
_IN_FRONT = frozenset({"sudo", "nice", "time", "exec", "!", "do", "then", "else", "while", "if"})
_NO_PROGRAM = frozenset({"for", "done", "fi"})


@dataclass(frozen=True)
class Command:
    """One command of a shell block, with its continuation lines and its comment."""

    where: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.where}:{self.line}: {self.text}"


def shell_commands(block: Block) -> Iterator[Command]:
    """Yield the block's commands: lines are joined until bash says that what it has is whole."""
    held: list[str] = []
    for number, line in enumerate(block.text.splitlines()):
        if not held and (not line.strip() or line.lstrip().startswith("#")):
            continue
        held.append(line)
        text = "\n".join(held)
        if not line.endswith("\\") and not syntax_error(text):
            yield Command(block.where, block.line + number - len(held) + 1, text)
            held = []
    if held:
        # Never whole: whoever runs it is told by bash what is missing.
        yield Command(block.where, block.line, "\n".join(held))


def syntax_error(text: str) -> str:
    """Return what bash has against the text, or an empty string."""
    return subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, timeout=60).stderr.strip()


def programs(text: str) -> list[list[str]]:
    """Return the words of each program that the text starts, without redirections, assignments and sudo."""
    lexer = shlex.shlex(text.replace("\\\n", " ").replace("$(", " ( "), posix=True, punctuation_chars="|&;()<>\n")
    lexer.whitespace = " \t\r"
    lexer.whitespace_split = True
    lexer.commenters = "#"
    found: list[list[str]] = [[]]
    tokens = list(lexer)
    for before, token in zip(["", *tokens], tokens, strict=False):
        if token and set(token) <= _OPERATORS:
            if not set(token) <= set("<>"):
                found.append([])
        elif not (before and set(before) <= set("<>")):
            found[-1].append(token)
    return [words for words in map(_without_front, found) if words and words[0] not in _NO_PROGRAM]


def _without_front(words: list[str]) -> list[str]:
    while words and (words[0] in _IN_FRONT or re.match(r"\w+=", words[0])):
        words = words[1:]
    return words
