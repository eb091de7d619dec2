"""A document carried out: its shell commands in one shell, its scripts beside them, in the order of the page."""

import json
import re
from typing import Any

from tests.api.judges import judges_python
from tests.docs.commands import Command, shell_commands
from tests.docs.markdown import Block, Document
from tests.docs.shell import Done, Shell
from tests.docs.tables import EXIT_CODES, NOT_RUN, OTHER_PYTHON, SERVERS, SUBSTITUTIONS

__all__ = ["DocumentFailedError", "Run", "as_run"]


class DocumentFailedError(AssertionError):
    """A command of a document did not do what the document says."""


def as_run(text: str) -> str:
    """Return the text with what is substituted."""
    for each in SUBSTITUTIONS:
        text = re.sub(each.pattern, each.replacement, text, flags=re.MULTILINE)
    return text


class Run:
    """The commands of one document in one shell; `answer` is what the last of them printed."""

    def __init__(self, shell: Shell) -> None:
        self._shell = shell
        self._served = ("", "")
        self.answer = ""

    def document(self, document: Document) -> None:
        """Run every block.

        Raises:
            DocumentFailedError: a command, a script or an answer is not as the document has it.
        """
        for block in document.blocks:
            if block.language == "sh":
                for command in shell_commands(block):
                    self.command(command)
            elif block.language == "python":
                self._script(block)
            elif block.language == "toml":
                self._settings(block)
            elif block.language == "json":
                self._compare(block)

    def emulate_cloud(self) -> None:
        """Start Google Cloud, simulated, and have every later command find it.

        Raises:
            DocumentFailedError: it does not start.
        """
        done = self._shell.run(
            "python -m tests.docs.emulators datasets cloud.sh >cloud.log 2>&1 &\n"
            "for _ in $(seq 600); do [ -e cloud.sh ] && break; sleep 0.1; done; . ./cloud.sh"
        )
        if done.code != 0:
            raise DocumentFailedError(
                _report("the emulators", "", done) + self._shell.run("tail cloud.log").stdout
            )

    def command(self, command: Command) -> None:
        """Run one command, unless it is listed as one that is not run.

        Raises:
            DocumentFailedError: its exit code is none of those that it may have.
        """
        if any(each.matches(command) for each in NOT_RUN):
            return
        text = as_run(command.text)
        if any(re.match(pattern, text) for pattern in SERVERS):
            self.serve(text)
            return
        done = self._shell.run(text)
        allowed = {0}.union(*(codes for pattern, codes in EXIT_CODES.items() if re.search(pattern, text)))
        if done.code not in allowed:
            raise DocumentFailedError(_report(str(command), text, done))
        if _FAILED_JOB.search(done.stdout):
            raise DocumentFailedError(_report(f"{command}\na job failed", text, done))
        self.answer = done.stdout

    def serve(self, text: str, ready: str = "livez") -> None:
        """Start a daemon in the background and wait until it is `ready`; the next one takes its place.

        Raises:
            DocumentFailedError: it does not.
        """
        asked = f"curl -s --retry 120 --retry-delay 1 --retry-all-errors 'localhost:8080/{ready}'"
        self._served = (text, ready)
        self._shell.run('if [ -n "$SERVER" ]; then kill $SERVER; wait $SERVER; fi')
        # Named, so that it can be replaced where another one must be taken.
        port = "" if "--port" in text else " --port 8080"
        done = self._shell.run(f"{text.split(' #')[0].rstrip()}{port} >server.log 2>&1 & SERVER=$!; {asked}")
        if done.code != 0:
            log = self._shell.run("tail -n 30 server.log").stdout
            raise DocumentFailedError(_report("the daemon", text, done) + log)

    def _script(self, block: Block) -> None:
        text = self._shell.with_port(as_run(block.text))
        name = _file_name(text) or f"script{block.line}.py"
        python = judges_python() if OTHER_PYTHON.search(text) else "python"
        done = self._shell.run(f"cat >{name} <<'END OF SCRIPT'\n{text}\nEND OF SCRIPT\n{python} {name}")
        if done.code != 0:
            raise DocumentFailedError(_report(str(block), text, done))
        self.answer = done.stdout

    def _settings(self, block: Block) -> None:
        """A block that begins with `# name.toml` is that file; the daemon is started again with its own."""
        if name := _file_name(block.text):
            text = self._shell.with_port(block.text)
            self._shell.run(f"cat >{name} <<'END OF SETTINGS'\n{text}\nEND OF SETTINGS")
            if name == "brain.toml" and self._served[0]:
                self.serve(*self._served)

    def _compare(self, block: Block) -> None:
        """A document's answer has no key that the real one lacks; without one it is JSON at least."""
        shown = json.loads(block.text)
        try:
            real = json.loads(self.answer)
        except ValueError:
            return
        if missing := list(_missing(shown, real)):
            raise DocumentFailedError(f"{block}: the real answer has no {', '.join(missing)}:\n{self.answer}")


_FAILED_JOB = re.compile(r'"state": ?"(failed|cancelled)"')


def _file_name(text: str) -> str:
    found = re.match(r"# (\w+\.(?:py|toml))\n", text)
    return found[1] if found else ""


def _missing(shown: Any, real: Any, path: str = "") -> list[str]:
    if isinstance(shown, dict):
        if not isinstance(real, dict):
            return [path or "object"]
        lacking = [f"{path}.{key}" for key in shown if key not in real]
        return lacking + [
            name for key in shown if key in real for name in _missing(shown[key], real[key], f"{path}.{key}")
        ]
    if isinstance(shown, list) and shown and isinstance(real, list) and real:
        return _missing(shown[0], real[0], f"{path}[0]")
    return []


def _report(where: str, text: str, done: Done) -> str:
    return f"{where}\nrun as: {text}\nexit code {done.code}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
