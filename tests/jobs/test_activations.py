"""Activations: a job asks, the daemon answers, and neither waits for one that is gone."""

import threading
from pathlib import Path

import pytest

from brain_service.errors import NotFoundError
from brain_service.jobs.table import JobTable


@pytest.fixture
def table(tmp_path: Path) -> JobTable:
    table = JobTable(tmp_path / "brain.db")
    table.create("pipeline", {})
    return table


def running_job(table: JobTable) -> str:
    job = table.claim_next()
    assert job is not None
    return job.job_id


@pytest.mark.parametrize(("ok", "state"), [(True, "done"), (False, "failed")])
def test_the_job_gets_the_daemons_answer(table: JobTable, ok: bool, state: str) -> None:
    request = table.request_activation("abc", running_job(table))

    def daemon() -> None:
        (pending,) = table.pending_activations()
        table.resolve_activation(pending.activation_id, ok, "golden check")

    answering = threading.Thread(target=daemon)
    answering.start()
    answer = table.wait_activation(request, 30)
    answering.join()
    assert (answer.model_id, answer.state, answer.detail) == ("abc", state, "golden check")
    assert table.pending_activations() == ()


def test_a_restarted_job_finds_its_waiting_request_again(table: JobTable) -> None:
    job_id = running_job(table)
    assert table.request_activation("abc", job_id) == table.request_activation("abc", job_id)
    assert len(table.pending_activations()) == 1
    assert table.request_activation("def", job_id) != table.request_activation("abc", job_id)


def test_nobody_answers_a_request_that_timed_out(table: JobTable) -> None:
    request = table.request_activation("abc", running_job(table))
    assert table.wait_activation(request, 0).state == "withdrawn"
    assert table.pending_activations() == ()
    table.resolve_activation(request, True, "")
    assert table.wait_activation(request, 0).state == "withdrawn"


def test_a_stopped_job_withdraws_its_request(table: JobTable) -> None:
    request = table.request_activation("abc", running_job(table))
    assert table.wait_activation(request, 30, should_stop=lambda: True).state == "withdrawn"


def test_an_ended_job_leaves_no_request_behind(table: JobTable) -> None:
    job_id = running_job(table)
    table.request_activation("abc", job_id)
    table.finish(job_id, "cancelled")
    assert table.pending_activations() == ()


def test_an_unknown_request_is_an_error(table: JobTable) -> None:
    with pytest.raises(NotFoundError):
        table.wait_activation(77, 1)
