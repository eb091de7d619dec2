import jax
import pytest

from brain_service.errors import InvalidError
from cloud_trainer.distributed import Cluster, Hosts, check_topology


@pytest.mark.parametrize(
    "given",
    [
        {"coordinator_address": "10.0.0.1:1234"},
        {"num_processes": 2, "process_id": 0},
        {"coordinator_address": "10.0.0.1:1234", "num_processes": 2, "process_id": 2},
        {"coordinator_address": "10.0.0.1:1234", "num_processes": 2, "process_id": -1},
    ],
)
def test_processes_that_cannot_meet_are_refused(given: dict[str, object]) -> None:
    with pytest.raises(InvalidError, match="process"):
        Cluster(**given)  # type: ignore[arg-type]


def test_one_process_needs_nobody() -> None:
    hosts = Hosts()
    assert (hosts.first, hosts.count) == (True, 1)
    assert hosts.first_says("x", lambda: "made") == "made"
    hosts.wait_for_all("x")
    hosts.tell_end(2, None)
    hosts.linger()


@pytest.mark.parametrize("topology", ["v5e:1x1", "v6e:4x4", "v5p:2x2x2"])
def test_a_slice_that_is_not_there_is_told(topology: str) -> None:
    assert jax.devices()[0].platform == "cpu"
    found = check_topology(topology)
    assert found is not None
    assert found.endswith(f"in place of {topology}")
