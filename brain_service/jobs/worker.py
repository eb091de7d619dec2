"""`python -m brain_service.jobs.worker`: carries out one job in a process of its own, then exits.

It says how the job ended in the job table. Where it cannot (killed, out of memory), the runner does.
"""

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from brain_service.errors import BrainError, CancelledJobError, UnavailableError
from brain_service.jobs.context import JobContext, ParkedJob
from brain_service.jobs.events import EventLog
from brain_service.jobs.folder import JobFolder
from brain_service.jobs.job import LANES, Lane
from brain_service.jobs.pipeline import run_stages
from brain_service.jobs.table import JobTable
from brain_service.jobs.waits import EXIT_STOPPED
from brain_service.logs import JOB_ID, setup_logging
from brain_service.processes import become_background, die_with_parent
from brain_service.settings import Settings, load_settings

__all__ = ["main", "problem_of"]

# By name: run with -m, this module is __main__.
log = logging.getLogger("brain_service.jobs.worker")

NETWORK_NICE = 10


def main(arguments: list[str] | None = None) -> int:
    """Run the job named on the command line and return the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m brain_service.jobs.worker", description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="the daemon's data directory")
    parser.add_argument("--job-id", required=True, help="a job that the runner has claimed")
    parser.add_argument("--lane", choices=LANES, default="work", help="which stages to carry out before parking")
    parser.add_argument("--runner-pid", type=int, help="the parent that this process must not outlive")
    options = parser.parse_args(arguments)
    if options.runner_pid is not None:
        die_with_parent(options.runner_pid)
    settings = load_settings({"data_dir": options.data_dir})
    if options.lane == "network":
        # Little work, but in time: what bills must be stopped also while a training takes every idle moment.
        os.nice(NETWORK_NICE)
    elif settings.jobs.background:
        become_background()
    setup_logging(settings.log_level, "text")
    JOB_ID.set(options.job_id)
    # The checkpoint library tells every file it opens; what went wrong is enough.
    logging.getLogger().setLevel(logging.WARNING)
    logging.getLogger("brain_service").setLevel(settings.log_level.upper())
    table = JobTable(settings.database)
    try:
        return _carry_out(settings, table, options.job_id, options.lane)
    finally:
        table.close()


def _carry_out(settings: Settings, table: JobTable, job_id: str, lane: Lane) -> int:
    folder = JobFolder(settings.jobs_dir, job_id)
    folder.create()
    context: JobContext | None = None
    with EventLog(folder.events) as events:
        try:
            context = JobContext(settings, table, table.get(job_id), events)
            # From here on a stop is a request; before, SIGTERM simply ends the process.
            signal.signal(signal.SIGTERM, context.request_stop)
            run_stages(context, lane)
        except ParkedJob as parked:
            table.park(job_id, parked.lane, parked.wait_s)
            return 0
        except CancelledJobError:
            log.info("stopped on request")
            return EXIT_STOPPED
        except Exception as error:  # noqa: BLE001  the one boundary between a job and its process
            traceback.print_exc()
            problem = problem_of(error, job_id)
            if context is not None:
                context.fail_stage(str(problem["detail"]))
            table.finish(job_id, "failed", error=problem)
            return 1
        finally:
            if context is not None:
                context.close()
        table.finish(job_id, "succeeded", result=context.result)
    return 0


def problem_of(error: Exception, job_id: str) -> Mapping[str, Any]:
    """Return the problem document a client sees: what failed, never how the stack looked."""
    if isinstance(error, BrainError):
        return error.problem()
    if isinstance(error, OSError):
        where = f" on {error.filename}" if error.filename else ""
        return UnavailableError(
            f"the system refused{where}: {error.strerror or error}; check free space and permissions"
        ).problem()
    return BrainError(
        f"the job failed unexpectedly: {type(error).__name__}: {error}; GET /jobs/{job_id}/log has the details"
    ).problem()


if __name__ == "__main__":
    sys.exit(main())
