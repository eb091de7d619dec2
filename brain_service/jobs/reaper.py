"""`python -m brain_service.jobs.reaper`: stops what bills in the cloud and belongs to no job any more, then exits.

Jobs see to their own runs. This is for what no job sees: a machine that was asked for just before the power went,
a job that was deleted, a database that was lost.
"""

import argparse
import contextlib
import logging
import os
import sys
from pathlib import Path

from brain_service.cloud.runs import CloudRuns
from brain_service.errors import BrainError
from brain_service.jobs.references import run_id_of
from brain_service.jobs.table import JobTable
from brain_service.logs import setup_logging
from brain_service.settings import Settings, load_settings

__all__ = ["main", "reap"]

# By name: run with -m, this module is __main__.
log = logging.getLogger("brain_service.jobs.reaper")

NICE = 10


def reap(settings: Settings) -> list[str]:
    """Stop the runs of jobs that have ended or are gone, then all capacity of this robot without a run.

    Returns the names of the capacity; what cannot be reached now is left for the next time.

    Raises:
        UnavailableError: the database fails.
    """
    with contextlib.closing(JobTable(settings.database)) as table:
        going_on = table.unfinished()
    with contextlib.closing(CloudRuns(settings.database, settings.cloud)) as runs:
        for run_id in runs.unfinished():
            if run_id not in {run_id_of(job_id) for job_id in going_on}:
                log.warning("run %s goes on without its job; it is stopped", run_id)
                runs.stop(run_id)
        return runs.reap()


def main(arguments: list[str] | None = None) -> int:
    """Reap once for a data directory and return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m brain_service.jobs.reaper", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the daemon's data directory")
    options = parser.parse_args(arguments)
    os.nice(NICE)
    settings = load_settings({"data_dir": options.data_dir})
    setup_logging(settings.log_level, settings.log_format)
    try:
        for name in reap(settings):
            log.warning("stopped %s: it billed and belonged to no run", name)
    except BrainError as error:
        log.warning("cannot look for what bills: %s", error.detail)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
