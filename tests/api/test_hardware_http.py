"""`GET /hardware` of a real daemon."""

import httpx

from tests.processes import Daemon


def test_hardware_is_told_with_the_reason_for_what_is_not_usable(daemon: Daemon) -> None:
    found = httpx.get(f"{daemon.url}/hardware", timeout=180).json()
    assert found.keys() == {"backends", "best_for_training", "best_for_inference", "trainers"}
    assert found["backends"]["cpu"]["available"]
    assert all(entry["available"] or entry["reason"] for entry in found["backends"].values())
