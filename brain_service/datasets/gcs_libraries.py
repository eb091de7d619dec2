"""Settings of the libraries that reach `gs://`, which they read when they are imported."""

import os

__all__ = ["prepare_gcs_libraries"]


def prepare_gcs_libraries() -> None:
    """Set up etils (Orbax's files) and gcsfs for a bucket that others write to as well; the user's word wins.

    Comes before anything that imports Orbax or opens a bucket.
    """
    # Where TensorFlow is installed too, etils would use its client of the bucket, which no setting redirects.
    os.environ.setdefault("EPATH_USE_TF", "false")
    # Else gcsfs asks a control service for each bucket's kind: a permission more, and a minute where none answers.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    # Other processes write to the same folders: what gcsfs remembers of a listing is wrong a moment later.
    import fsspec.config

    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
