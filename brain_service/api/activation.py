"""Carries out the activations that finished jobs ask for: the daemon alone swaps models."""

import asyncio
import logging

from brain_service.errors import BrainError
from brain_service.inference.router import InferenceRouter
from brain_service.jobs.job import Activation
from brain_service.jobs.table import JobTable

__all__ = ["watch_activations"]

log = logging.getLogger(__name__)


async def watch_activations(jobs: JobTable, router: InferenceRouter, poll_interval_s: float) -> None:
    """Activate what jobs request until cancelled; the outcome, with its reason, goes back to the job.

    A job table that cannot be read or written for a while (a full card) is asked again: the requests wait in it.
    """
    while True:
        try:
            for request in await asyncio.to_thread(jobs.pending_activations):
                await _carry_out(request, jobs, router)
        except BrainError as error:
            log.warning("cannot look for activations", extra={"reason": error.detail})
        await asyncio.sleep(poll_interval_s)


async def _carry_out(request: Activation, jobs: JobTable, router: InferenceRouter) -> None:
    try:
        await router.activate(request.model_id, by_itself=True)
    except BrainError as error:
        log.warning("activation refused", extra={"model_id": request.model_id, "reason": error.detail})
        await asyncio.to_thread(jobs.resolve_activation, request.activation_id, False, error.detail)
    else:
        log.info("model activated", extra={"model_id": request.model_id, "job_id": request.job_id})
        await asyncio.to_thread(jobs.resolve_activation, request.activation_id, True, "")
