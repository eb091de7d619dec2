"""Google Cloud for a document, simulated: a bucket server and the control planes, in the shell's own network.

    python -m tests.docs.emulators DATASETS VARIABLES

puts the datasets of the folder where documents expect some, writes the variables that lead our programs here as
shell text into the file VARIABLES, and serves until it is killed.
"""

import shlex
import signal
import sys
import tempfile
from pathlib import Path

from brain_service.durable import write_atomic
from tests.fakes.control_plane import running_control_plane
from tests.fakes.gcs import fake_gcs

__all__ = ["BUCKETS"]

BUCKETS = ("bucket", "fleet", "my-robots")
"""The buckets that documents name."""


def main() -> None:
    """Serve until a signal comes."""
    datasets, variables = map(Path, sys.argv[1:])
    with fake_gcs() as gcs, tempfile.TemporaryDirectory() as state:
        for bucket in BUCKETS:
            gcs.make_bucket(bucket)
        gcs.upload(datasets, "bucket", "datasets")
        for robot in ("r7", "r8"):
            gcs.upload(datasets / "episodes", "fleet", f"{robot}/episodes")
        # The fake cloud's machines are this one: one device, and no libtpu to wait for.
        environment = gcs.environment() | {"EPATH_USE_TF": "false", "JAX_PLATFORMS": "cpu"}
        with running_control_plane(Path(state) / "plane", run=True, env=environment) as plane:
            settings = {
                "STORAGE_ENDPOINT": gcs.url,
                "VERTEX_ENDPOINT": plane.url,
                "TPU_ENDPOINT": plane.url,
                "POLL_INTERVAL_S": "0.5",
                "TOPOLOGY": "v5e:1x1",
            }
            told = gcs.environment() | {f"BRAIN_CLOUD__{name}": value for name, value in settings.items()}
            text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in told.items())
            write_atomic(variables, text.encode())
            signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
