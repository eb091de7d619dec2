"""The daemon's watch over activations goes on, whatever the job table or a model does to it."""

import asyncio
from pathlib import Path
from typing import Any

from brain_service.api.activation import watch_activations
from brain_service.errors import UnavailableError
from brain_service.inference.router import InferenceRouter
from brain_service.jobs.job import Activation
from brain_service.jobs.table import JobTable
from brain_service.settings import InferenceSettings


class _FullCard(JobTable):
    """A job table on a medium that refuses the first reads and the first write."""

    refusals = 2

    def _refuse(self) -> None:
        if self.refusals:
            self.refusals -= 1
            raise UnavailableError("cannot write brain.db (database or disk is full)")

    def pending_activations(self) -> tuple[Activation, ...]:
        if self.refusals > 1:
            self._refuse()
        return super().pending_activations()

    def resolve_activation(self, *arguments: Any) -> None:
        self._refuse()
        super().resolve_activation(*arguments)


def test_a_table_that_fails_for_a_while_loses_no_request(tmp_path: Path) -> None:
    async def scenario() -> None:
        table = _FullCard(tmp_path / "brain.db")
        job = table.create("pipeline", {})
        table.claim_next()
        request = table.request_activation("0123456789abcdef", job.job_id)
        router = InferenceRouter(tmp_path / "models", InferenceSettings(), tmp_path / "cache")
        watching = asyncio.create_task(watch_activations(table, router, 0.01))
        answer = await asyncio.to_thread(table.wait_activation, request, 30)
        assert (answer.state, table.refusals) == ("failed", 0)
        assert "no model" in answer.detail
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        table.close()

    asyncio.run(scenario())
