"""Carries out the activations that finished jobs ask for: the daemon alone swaps models."""

import asyncio
import logging

from brain_service.errors import BrainError
from brain_service.inference.router import InferenceRouter
from brain_service.jobs.table import JobTable

__all__ = ["watch_activations"]

log = logging.getLogger(__name__)


async def watch_activations(jobs: JobTable, router: InferenceRouter, poll_interval_s: float) -> None:
    """Activate what jobs request until cancelled; the outcome, with its reason, goes back to the job."""
    while True:
        for request in await asyncio.to_thread(jobs.pending_activations):
            try:
                await router.activate(request.model_id)
            except BrainError as error:
                log.warning("activation refused", extra={"model_id": request.model_id, "reason": error.detail})
                await asyncio.to_thread(jobs.resolve_activation, request.activation_id, False, error.detail)
            else:
                log.info("model activated", extra={"model_id": request.model_id, "job_id": request.job_id})
                await asyncio.to_thread(jobs.resolve_activation, request.activation_id, True, "")
        await asyncio.sleep(poll_interval_s)
