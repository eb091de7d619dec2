"""The runner of the documents itself: it can fail, and says where."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.commands import Command, programs, shell_commands
from tests.docs.markdown import Block, Document
from tests.docs.parsing import WrongCommandError, parse
from tests.docs.run import DocumentFailedError, Run
from tests.docs.shell import PORT, Shell, ShellDiedError, own_network
from tests.docs.test_commands import test_a_command_is_run_or_listed_as_not_run as listed

PAGE = """\
A page.

```sh
NAME=arm         # kept for the next command
printf '{"name": "%s", "parts": [{"id": 1}]}' $NAME
```

```json
{"name": "leg", "parts": [{"id": 7}]}
```

```python
# part.py
print("made")
```

```toml
# space.toml
answer = 42
```

```sh
grep -q 42 space.toml && python3 part.py
```
"""


@pytest.fixture(params=[True, False], ids=["own network", "shared network"])
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shell]:
    """A shell of either kind in an empty folder."""
    if request.param and not own_network():
        pytest.skip("this kernel gives no namespaces")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/usr/bin/python3")
    environment = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    with Shell(tmp_path, environment, scripts=tmp_path / "scripts", isolated=request.param) as started:
        yield started


def test_a_page_is_followed_in_one_shell(shell: Shell) -> None:
    run = Run(shell)
    run.document(Document.parse("docs/page.md", PAGE))
    assert run.answer == "made\n"


@pytest.mark.parametrize(
    ("right", "wrong", "told"),
    [
        ("printf '{", "no-such-program '{", r"docs/page\.md:5: no-such-program"),
        ('"parts": [{"id": 7}]', '"size": 3', r"docs/page\.md:9: the real answer has no \.size"),
        ('{"id": 7}', '{"weight_kg": 7}', r"has no \.parts\[0\]\.weight_kg"),
        ('print("made")', "import nothing_like_it", r"docs/page\.md:13\b(.|\n)*nothing_like_it"),
        ("grep -q 42", "grep -q 43", r"docs/page\.md:23: grep"),
        ("NAME=arm ", 'echo \'{"state": "failed"}\'', r"docs/page\.md:4: (.|\n)*a job failed"),
    ],
)
def test_a_slip_is_found_and_its_line_named(shell: Shell, right: str, wrong: str, told: str) -> None:
    assert right in PAGE
    with pytest.raises(DocumentFailedError, match=told):
        Run(shell).document(Document.parse("docs/page.md", PAGE.replace(right, wrong)))


def test_a_command_that_nobody_lists_is_found() -> None:
    with pytest.raises(AssertionError, match=r"docs/page\.md:4: kubectl apply(.|\n)*list it"):
        listed(Command("docs/page.md", 4, "kubectl apply -f robot.yaml"))


@pytest.mark.parametrize(
    "command",
    ["brain train --steps 5", "brain trian", "brain health --prot 1", "cloud-trainer plan --topolgy v5e:2x2"],
)
def test_a_wrong_command_line_is_refused(command: str) -> None:
    with pytest.raises(WrongCommandError):
        parse(command.split())


def test_a_mention_needs_no_options_but_knows_them() -> None:
    parse(["brain", "train"], mention=True)
    parse(["brain", "datasets", "prune", "NAME", "--keep", "N"], mention=True)
    for words in (["brain", "train", "--stepps"], ["brain", "datasets", "prun"]):
        with pytest.raises(WrongCommandError):
            parse(words, mention=True)


def test_commands_are_cut_where_bash_would(tmp_path: Path) -> None:
    text = "# first\na 'b\n c' \\\n  d | sudo -n e\nfor x in 1 2; do\n  f $x >g\ndone\n"
    first, second = shell_commands(Block("docs/page.md", 10, "sh", text))
    assert (first.line, second.line) == (11, 14)
    assert programs(first.text) == [["a", "b\n c", "d"], ["-n", "e"]]
    assert programs(second.text) == [["f", "$x"]]
    assert programs("V=1 brain ls --x 'a b' && X=$(curl -s u | jq -r .y)  # brain no") == [
        ["brain", "ls", "--x", "a b"], ["curl", "-s", "u"], ["jq", "-r", ".y"],
    ]  # fmt: skip


def test_the_documents_port_is_the_daemons(shell: Shell) -> None:
    shell.run(f"python3 -m http.server {PORT} --bind 127.0.0.1 >/dev/null 2>&1 &")
    asked = f"curl -s --retry 60 --retry-delay 1 --retry-all-errors http://127.0.0.1:{PORT}/"
    assert "scripts" in shell.run(asked).stdout
    assert (shell.port == PORT) == shell.isolated


def test_a_command_that_does_not_end_is_not_waited_for(shell: Shell) -> None:
    with pytest.raises(ShellDiedError, match=r"not done after 0\.2 s"):
        shell.run("sleep 60", timeout_s=0.2)
    with pytest.raises(ShellDiedError, match="had ended before"):
        shell.run("true")


def test_a_command_that_ends_the_shell_is_named(shell: Shell) -> None:
    with pytest.raises(ShellDiedError, match="it ended the shell: exit 3"):
        shell.run("exit 3")
