"""What the trainer takes from the environment.

The cluster that a job runs on is jax.distributed's matter: it reads those variables itself.
"""

import os

__all__ = ["metric_file", "trial_id"]

# Where Vertex AI looks for a trial's metrics.
_METRIC_FILE = "/tmp/hypertune/output.metrics"


def trial_id() -> str:
    """Return the number that Vertex AI gave this hyperparameter trial, "0" outside of one."""
    return os.environ.get("CLOUD_ML_TRIAL_ID", "0")


def metric_file() -> str:
    """Return the path of the file that this trial's metrics are read from."""
    return os.environ.get("CLOUD_ML_HP_METRIC_FILE", _METRIC_FILE)
