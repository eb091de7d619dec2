"""What the trainer takes from the environment, and what it sets there for the libraries below it.

The cluster that a job runs on is jax.distributed's matter: it reads those variables itself.
"""

import os

__all__ = ["metric_file", "prepare_libraries", "trial_id"]

# Where Vertex AI looks for a trial's metrics.
_METRIC_FILE = "/tmp/hypertune/output.metrics"


def trial_id() -> str:
    """Return the number that Vertex AI gave this hyperparameter trial, "0" outside of one."""
    return os.environ.get("CLOUD_ML_TRIAL_ID", "0")


def metric_file() -> str:
    """Return the path of the file that this trial's metrics are read from."""
    return os.environ.get("CLOUD_ML_HP_METRIC_FILE", _METRIC_FILE)


def prepare_libraries() -> None:
    """Set what the libraries below read from the environment and from their own settings; the user's word wins."""
    # Where TensorFlow is installed too, etils would use its client of the bucket, which no setting redirects.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Else gcsfs asks a control service for each bucket's kind: a permission more, and a minute where none answers.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Other processes write to the same folders: what gcsfs remembers of a listing is wrong a moment later.
    import fsspec.config

    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
