"""Work that takes minutes, each in a process of its own: the job table, the runner, the worker, the stages.

The daemon imports `table`, `kinds`, `events` and `runner`; none of them loads JAX. The stages do, in a worker.
"""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.jobs.events import read_events
    from brain_service.jobs.folder import JobFolder
    from brain_service.jobs.hold import Hold
    from brain_service.jobs.job import Activation, Job, JobPage, StageReport
    from brain_service.jobs.kinds import KINDS, parse_params
    from brain_service.jobs.runner import RunnerProcess
    from brain_service.jobs.table import JobTable

__all__ = [
    "KINDS",
    "Activation",
    "Hold",
    "Job",
    "JobFolder",
    "JobPage",
    "JobTable",
    "RunnerProcess",
    "StageReport",
    "parse_params",
    "read_events",
]

__getattr__ = lazy_names(
    __name__,
    {
        "KINDS": "kinds",
        "Activation": "job",
        "Hold": "hold",
        "Job": "job",
        "JobFolder": "folder",
        "JobPage": "job",
        "JobTable": "table",
        "RunnerProcess": "runner",
        "StageReport": "job",
        "parse_params": "kinds",
        "read_events": "events",
    },
)
