"""`--token-file`: all commands that ask a daemon read it in one way, and say what is wrong before they ask."""

from pathlib import Path

import pytest

from brain_service.cli import main
from brain_service.cli_token import read_token

COMMANDS = (["health"], ["pipeline", "--url", "http://127.0.0.1:9"])


@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "begins with no token"),
        (b" \n\n", "begins with no token"),
        (b"# operator\nsecret operate\n", "begins with no token"),
        (b"\xff\xfe\x00", "is no text"),
        ("gehëim".encode(), "characters outside ASCII"),
        (None, "cannot be read (No such file or directory)"),
    ],
    ids=["empty", "blank", "comment", "binary", "accent", "absent"],
)
def test_a_file_without_a_token_is_one_line_that_names_it(
    command: list[str], content: bytes | None, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "robot.token"
    if content is not None:
        path.write_bytes(content)
    assert main([*command, "--token-file", str(path)]) == 2
    said = capsys.readouterr().err.strip()
    assert str(path) in said
    assert complaint in said
    assert len(said.splitlines()) == 1


def test_a_line_of_the_tokens_file_will_do(tmp_path: Path) -> None:
    path = tmp_path / "robot.token"
    path.write_text("\ufeffsecret operate arm-7\n")
    assert read_token(path) == "secret"
    assert read_token(None) == ""
