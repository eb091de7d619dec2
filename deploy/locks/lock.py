"""Write the lock files: exact versions for Python 3.11 and 3.13 in one file, with no index host in it.

`dev` is resolved first; `runtime` and `demo` are then held to its versions, so that what the tests ran is
what a robot installs. Run it through `make lock`.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent.parent


def compile_lock(name: str, *arguments: str, source: str = "pyproject.toml") -> None:
    """Resolve `source` into `<name>.txt`.

    Raises:
        CalledProcessError: no set of versions satisfies both Pythons; uv has printed which requirement fails.
    """
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", source, "--universal", "--upgrade"),
        *("--python-version", "3.11", "--no-emit-index-url", "--no-emit-find-links", "--no-header"),
        *("--no-annotate", "--quiet", "--output-file", str((HERE / f"{name}.txt").relative_to(PROJECT))),
    ]
    subprocess.run([*command, *arguments], cwd=PROJECT, check=True)


if __name__ == "__main__":
    compile_lock("dev", "--extra", "dev")
    compile_lock("demo", "--extra", "demo", "--constraints", "deploy/locks/dev.txt")
    compile_lock("runtime", "--constraints", "deploy/locks/dev.txt")
    compile_lock("tpu", "--extra", "tpu", "--constraints", "deploy/locks/dev.txt")
    # By itself: Apache Beam refuses what the others need.
    compile_lock("fleet", source="deploy/locks/fleet.in")
