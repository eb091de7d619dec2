"""What all launchers share: slices and their prices, names, and that none of them weighs much."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.cloud.launchers.table import TARGETS, launcher_for
from brain_service.cloud.machines import runtime_version, tpu_slice
from brain_service.cloud.moments import elapsed_s, moment
from brain_service.cloud.prices import PriceList
from brain_service.errors import ConfigError, InvalidError
from tests.cloud.launching import cloud_settings

HEAVY = (
    "google.cloud.aiplatform",
    "google.cloud.aiplatform_v1",
    "google.cloud.tpu",
    "google.cloud.tpu_v2",
    "grpc",
)


def test_importing_the_launchers_brings_no_sdk_along() -> None:
    program = (
        "import sys\nimport brain_service.cloud.runs\n"
        "from brain_service.cloud.credentials import authorized_session\n"
        "from brain_service.settings import CloudSettings\n"
        "authorized_session(CloudSettings(), 'http://127.0.0.1:1')\n"
        "print(*sorted(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "brain_service.cloud.launchers.vertex" in loaded
    assert not set(loaded) & {*HEAVY, "jax", "numpy", "tensorflow", "torch", "brain_service.jobs"}


def test_each_target_has_its_launcher(tmp_path: Path) -> None:
    settings = cloud_settings("http://127.0.0.1:1")
    found = {target: type(launcher_for(target, settings, tmp_path)).__name__ for target in TARGETS}
    assert found == {
        "process": "LocalLauncher",
        "vertex": "VertexLauncher",
        "queued_resource": "QueuedResourceLauncher",
    }
    with pytest.raises(InvalidError, match="process, vertex, queued_resource"):
        launcher_for("gke", settings, tmp_path)
    with pytest.raises(ConfigError, match=r"cloud\.project"):
        launcher_for("vertex", cloud_settings("http://127.0.0.1:1", project=None), tmp_path)


@pytest.mark.parametrize("topology", ["v5e:3x3", "v5e:2x2x1", "v6e:32x32", "v5p:2x2", "v4:2x2x1", "v5e", ""])
def test_a_slice_that_nobody_sells(topology: str) -> None:
    with pytest.raises(InvalidError, match="topology"):
        tpu_slice(topology)


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"),
    [("v5e:1x1", 1, 1), ("v5e:2x4", 8, 1), ("v5e:4x4", 16, 4), ("v6e:16x16", 256, 64), ("v5p:2x2x1", 4, 1)],
)
def test_a_slice_has_chips_and_hosts(topology: str, chips: int, hosts: int) -> None:
    found = tpu_slice(topology)
    assert (found.chips, found.hosts) == (chips, hosts)


def test_the_machine_image_fits_the_generation() -> None:
    v6e = tpu_slice("v6e:2x2")
    assert runtime_version(v6e, "v2-alpha-tpuv5-lite") == "v2-alpha-tpuv6e", "another generation's default"
    assert runtime_version(v6e, "v2-nightly") == "v2-nightly", "what someone chose"


@given(
    topology=st.sampled_from(["v5e:1x1", "v5e:4x4", "v6e:2x2", "v5p:2x2x2"]),
    running_s=st.floats(0, 1e6),
    spot=st.booleans(),
)
def test_cost_grows_with_time_and_chips_and_spot_is_cheaper(topology: str, running_s: float, spot: bool) -> None:
    prices, found = PriceList(), tpu_slice(topology)
    cost_usd = prices.cost_usd(found, running_s, spot=spot)
    assert 0 <= cost_usd <= prices.cost_usd(found, running_s, spot=False)
    assert prices.cost_usd(found, running_s + 60, spot=spot) > cost_usd
    assert cost_usd == pytest.approx(running_s / 3600 * prices.cost_usd(found, 3600, spot=spot))


def test_the_list_is_dated_and_may_be_another() -> None:
    assert len(PriceList().as_of) == len("2025-11")
    assert PriceList().cost_usd(tpu_slice("v5e:2x2"), 3600, spot=False) == pytest.approx(4 * 1.20)
    assert PriceList().cost_usd(tpu_slice("v6e:2x2"), 3600, spot=False) == pytest.approx(4 * 2.70)
    assert PriceList().cost_usd(tpu_slice("v5p:2x2x1"), 3600, spot=False) == pytest.approx(4 * 4.20)
    cheaper = PriceList(usd_per_chip_hour={"v5e": 0.5}, as_of="ours")
    assert cheaper.cost_usd(tpu_slice("v5e:2x2"), 3600, spot=False) == pytest.approx(2.0)
    with pytest.raises(InvalidError, match="no list price for v6e"):
        cheaper.cost_usd(tpu_slice("v6e:2x2"), 1, spot=False)


def test_time_passes_whatever_the_clock_is_set_to() -> None:
    boot, uptime_ns, then_ns = moment().split(":")
    set_back = f"{boot}:{uptime_ns}:{int(then_ns) + 10**18}"
    assert 0 <= elapsed_s(set_back) < 1
    before_restart = f"another-boot:{10**18}:{int(then_ns) - 5 * 10**9}"
    assert 5 <= elapsed_s(before_restart) < 6
    from_the_future = f"another-boot:0:{int(then_ns) + 10**12}"
    assert elapsed_s(from_the_future) == 0
