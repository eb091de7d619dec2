"""What a TPU machine has and this one has not: docker, gcloud and a metadata server, as far as a start-up script
asks.

`docker run` runs the image's program with this interpreter; nothing is pulled, everything else succeeds.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

_WITH_VALUE = ("--name", "--env", "-e", "--entrypoint", "--volume", "-v")


def docker(words: list[str]) -> int:
    """Run `docker run`'s program; any other command of docker succeeds."""
    if words[:1] != ["run"]:
        return 0
    env, entrypoint, rest = dict(os.environ), "", words[1:]
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word in _WITH_VALUE:
            value = rest.pop(0)
            if word in ("--env", "-e"):
                name, _, content = value.partition("=")
                env[name] = content
            if word == "--entrypoint":
                entrypoint = value
    program = [sys.executable if entrypoint == "python" else entrypoint, *rest[1:]]
    # As dockerd does it: the client waits for the container, whatever the machine tells it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    code = subprocess.Popen(program, env=env).wait()
    return 128 - code if code < 0 else code


def curl(words: list[str]) -> int:
    """Keep what is put to the metadata server; refuse to go anywhere else."""
    if not any("metadata.google.internal/computeMetadata/v1/instance/guest-attributes/" in word for word in words):
        return 7
    for flag in ("--data", "-d"):
        if flag in words:
            Path(os.environ["FAKE_ATTRIBUTES"]).write_text(words[words.index(flag) + 1])
    return 0


if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    sys.exit({"docker": docker, "curl": curl}.get(name, lambda _: 0)(arguments))
