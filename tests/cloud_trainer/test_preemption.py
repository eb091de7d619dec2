import os
import signal
from collections.abc import Iterator

import pytest

from cloud_trainer.exits import exit_code
from cloud_trainer.preemption import SIGNALS, PreemptedError, SignalAction, leave_at_once, stop_point


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """The handlers of this process, put back after the test."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_with_nothing_to_save_a_signal_ends_what_runs(number: signal.Signals) -> None:
    leave_at_once()
    with pytest.raises(PreemptedError, match=number.name) as caught:
        os.kill(os.getpid(), number)
        signal.pause()
    assert exit_code(caught.value) == 75


def test_a_handler_that_python_does_not_see_can_be_put_back() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    before = SignalAction()
    leave_at_once()
    with pytest.raises(PreemptedError):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    before.put_back()
    os.kill(os.getpid(), signal.SIGTERM)  # ignored again, or this test does not come back


def test_without_a_service_there_is_no_point_to_stop_at() -> None:
    ask = stop_point()
    assert [ask(step) for step in range(3)] == [False] * 3
