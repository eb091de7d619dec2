"""The circuit breaker against a clock that the test turns."""

from brain_service.inference.breaker import Breaker


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def state(breaker: Breaker) -> str:
    return breaker.state


def test_it_rests_longer_after_each_failure_and_never_longer_than_half_a_minute() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    rests = []
    for _ in range(10):
        breaker.fail("died")
        assert state(breaker) == "open"
        rests.append(breaker.wait_s)
        clock.now_s += breaker.wait_s
        assert breaker.wait_s == 0.0
        breaker.attempt()
        assert state(breaker) == "half-open" and breaker.wait_s == 0.0
        # It comes up, and dies at once again.
        breaker.succeed()
        clock.now_s += 1.0
    assert rests[0] == 0.0 and rests == sorted(rests) and rests[-1] == rests[-2] == 30.0


def test_a_failure_after_long_service_begins_with_the_shortest_rest() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    for _ in range(5):
        breaker.fail("died")
        breaker.attempt()
    breaker.succeed()
    clock.now_s += 3600.0
    breaker.fail("died")
    assert breaker.wait_s == 0.0 and breaker.failures == 1


def test_what_an_attempt_will_not_mend_rests_for_minutes() -> None:
    clock = Clock()
    breaker = Breaker(clock)
    breaker.attempt()
    breaker.fail("other numbers", lasting=True)
    assert breaker.wait_s >= 60.0 and breaker.reason == "other numbers"
    clock.now_s += breaker.wait_s
    assert breaker.wait_s == 0.0
