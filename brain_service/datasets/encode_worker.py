"""A process that encodes capture files for a conversion: names come in on standard input, answers go out.

    python -m brain_service.datasets.encode_worker FOLDER PROFILE PART

A line in is a file's name as JSON; a line out is its `EncodedSource`, or a `Failure` that ends the conversion.
It ends when its input does, so it outlives no converter.
"""

import sys
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from brain_service.datasets.columns import Profile
from brain_service.datasets.encoding import EncodedSource, encode_source
from brain_service.errors import UnavailableError
from brain_service.structs import prepared

__all__ = ["Answer", "Failure", "main"]


@prepared
class Failure(msgspec.Struct, frozen=True, tag=True):
    """Why nothing can be converted now: the medium fails. `errno` is 0 where `detail` says it all."""

    errno: int
    detail: str


@prepared
class Answer(msgspec.Struct, frozen=True, tag=True):
    """What a file held."""

    source: EncodedSource


def main(arguments: list[str], names: BinaryIO, answers: BinaryIO) -> int:
    """Answer each name of `names` until it ends; returns the exit code."""
    folder, profile, part = arguments
    with Path(part).open("wb") as file:
        for line in names:
            answer: Answer | Failure
            try:
                name = msgspec.json.decode(line, type=str)
                answer = Answer(encode_source(Path(folder) / name, cast(Profile, profile), file))
                # The converter reads the records as soon as it has the last answer.
                file.flush()
            except UnavailableError as error:
                answer = Failure(0, error.detail)
            except OSError as error:
                answer = Failure(error.errno or 0, error.strerror or str(error))
            answers.write(msgspec.json.encode(answer) + b"\n")
            answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin.buffer, sys.stdout.buffer))
