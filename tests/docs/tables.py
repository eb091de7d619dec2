"""What the runner of the documents does otherwise than a reader would, each with its reason.

Everything that is in no table is run as it stands. A test holds the tables against the documents: no entry without
a use, no command that is neither run nor listed.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from tests.docs import checks
from tests.docs.commands import Command

__all__ = [
    "EXIT_CODES",
    "LANGUAGES",
    "NOT_RUN",
    "OTHER_PYTHON",
    "PROGRAMS_RUN",
    "RUN_ELSEWHERE",
    "SERVERS",
    "SUBSTITUTIONS",
    "NotRun",
    "Substitution",
]

LANGUAGES = frozenset({"sh", "python", "toml", "json", "ini", "dockerfile", "text", "mermaid"})
"""Languages of code blocks. `text` and `mermaid` are drawings, layouts and equations; nothing of them is run."""

PROGRAMS_RUN = frozenset({"brain", "cloud-trainer", "curl", "jq", "cd", "cp", "export", "ls", "sh", "tar"})
"""What a command may start without being listed below; the machine of the tests has it."""

OTHER_PYTHON = re.compile(r"^(import tritonclient|from openpi_client)", re.MULTILINE)
"""Scripts that run in the environment of other people's clients, which refuse our NumPy (tests/api/judges.py)."""


@dataclass(frozen=True)
class Substitution:
    """What is put in the place of a pattern before a command or a script is run."""

    pattern: str
    replacement: str
    reason: str


SUBSTITUTIONS = (
    Substitution(
        r"^make serve$", r"brain serve --data-dir build/demo/brain", "what it does once all is installed"
    ),
    Substitution(r"^make serve DATA=(\S+)$", r"brain serve --data-dir \1", "the same"),
    Substitution(r"--steps \d+", "--steps 4", "a step is like the next one"),
    Substitution(r"--num-steps \d+", "--num-steps 4", "the same"),
    Substitution(r'"steps": ?\d+', '"steps":4', "the same, in a request"),
    Substitution(
        r"brain train\b(?!(?:.|\n)*--steps)",
        "brain train --steps 4",
        "the same, where a command leaves the default",
    ),
    Substitution(r"--min-steps \d+", "--min-steps 2", "the same"),
    Substitution(r"--trials 27", "--trials 2", "a trial is like the next one"),
    Substitution(
        r'"preset":"pi5_optimized"', '"preset":"development"', "a Pi's model takes minutes to compile here"
    ),
    Substitution(r"\./bridge/1\.0\.0", "./datasets/episodes/1.0.0", "somebody else's dataset"),
    Substitution(r"--evaluate-every \d+", "--evaluate-every 2", "a look within those four steps"),
    Substitution(r"--batch-size 256", "--batch-size 8 --preset development", "a slice's batch, on two cores"),
    Substitution(
        r'(deadline_ms"?[:=] ?)\d+',
        r"\g<1>20000",
        "beside other tests a core is away for longer than a robot waits",
    ),
    Substitution(r"sh compile.sh", "PATH=$HAILO_COMPILER:$PATH sh compile.sh", "Hailo's compiler, simulated"),
)

RUN_ELSEWHERE = {
    "docs/robot-developers.md": "tests/docs/test_newcomer_programs.py",
    "docs/seed-map.md": "tests/seed_map/table.py",
}
"""Documents whose blocks another test runs, in its own way: programs with their output."""

SERVERS = (r"brain serve\b",)
"""Commands that a reader leaves running; the next one comes once the daemon answers."""

EXIT_CODES = {
    r"brain datasets report\b": {1, 2},  # a handful of recorded episodes has findings
    r"brain export-hailo\b.*--calibration-dataset": {1},  # prepared; no compiler here
}
"""Exit codes besides 0 that are answers and no failures."""


@dataclass(frozen=True)
class NotRun:
    """Commands that match `pattern` from their beginning are not run; `check` looks at them as far as it can."""

    pattern: str
    reason: str
    check: Callable[[Command], None]

    def matches(self, command: Command) -> bool:
        """Tell whether the command is one of these."""
        return re.match(self.pattern, command.text) is not None


NOT_RUN = (
    NotRun(r"make (demo|test|quick)$", "minutes long, and what CI runs anyway", checks.make_target),
    NotRun(r"\.venv/bin/python -m pytest ", "a part of the tests", checks.file_of_tests),
    NotRun(r"make bench-learning\b", "hours of training", checks.make_target),
    NotRun(
        r"\.venv/bin/python -m tests\.bench\.learning", "hours, or the table of those hours", checks.module_flags
    ),
    NotRun(
        r"\.venv/fleet/bin/python -m cloud_trainer",
        "Beam and KFP have an environment of their own; tests/cloud_trainer/test_fleet*.py run these there",
        checks.taken_by_the_parser,
    ),
    NotRun(r"(git clone|git pull)", "there is no public repository to ask", checks.install_flags),
    NotRun(
        r"sudo deploy/install\.sh",
        "changes this machine; tests/deploy run it on a fake root",
        checks.install_flags,
    ),
    NotRun(
        r"(systemctl|journalctl)", "no systemd runs here; tests/systemd run the units' own lines", checks.units
    ),
    NotRun(r"sudo brain", "asks an installed daemon with the token of its root", checks.taken_by_the_parser),
    NotRun(r"sudo head -n 1 /etc/continuon-brain/tokens", "a file that install.sh makes", checks.install_makes),
    NotRun(
        r"brain train .*--image camera",
        "the robot of these runs has no camera; tests/training learn from images",
        checks.taken_by_the_parser,
    ),
    NotRun(r"tensorboard --logdir", "a viewer, no dependency of ours", checks.event_files_are_named),
    NotRun(
        r"brain lora",
        "needs torch and sixteen episodes; tests/jobs/test_lora_job.py runs these against a daemon",
        checks.taken_by_the_parser,
    ),
    NotRun(r"docker (build|push)", "no Docker daemon and no registry here", checks.dockerfile),
    NotRun(r"deploy/cloud/iam/apply\.sh", "binds roles in a project of Google Cloud", checks.script),
    NotRun(r"gcloud", "needs an account of Google Cloud", checks.json_is_there),
    NotRun(r"curl (.|\n)*googleapis\.com", "Google Cloud; the SDK's proto judges the body", checks.json_is_there),
    NotRun(
        r"cloud-trainer plan",
        "minutes of the TPU's compiler a line; tests/cloud_trainer/test_plan.py compiles smaller ones",
        checks.taken_by_the_parser,
    ),
)
