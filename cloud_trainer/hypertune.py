"""The metric file of a hyperparameter trial, as Vertex AI reads it.

One JSON object a line: the metric's id with its value as text, `global_step` as text, `timestamp` in seconds and
`trial`. The agent in the container looks at the file now and then, so it is replaced whole and stays short.
Source: github.com/GoogleCloudPlatform/cloudml-hypertune, `hypertune.py` (the package itself is not maintained).
"""

import json
import os
import time
from pathlib import Path

from brain_service.errors import UnavailableError
from cloud_trainer.environment import metric_file, trial_id

__all__ = ["report"]

_MOST_LINES = 100


def report(metric: str, value: float, step: int) -> None:
    """Tell the tuning service a metric's value at a training step.

    The file is `$CLOUD_ML_HP_METRIC_FILE`, or else the one that Vertex AI looks at.

    Raises:
        UnavailableError: it cannot be written.
    """
    path = Path(metric_file())
    line = {
        "timestamp": time.time(),
        "trial": trial_id(),
        metric: str(float(value)),
        "global_step": str(int(step)),
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        before = path.read_text().splitlines() if path.exists() else []
        lines = [*before[1 - _MOST_LINES :], json.dumps(line, sort_keys=True)]
        temporary.write_text("".join(f"{text}\n" for text in lines))
        temporary.replace(path)
    except OSError as error:
        raise UnavailableError(f"cannot write the metric file {path}: {error.strerror or error}") from error
