"""The step on a Hailo: its numbers, its failures and its warnings, in every version of HailoRT that we know of."""

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brain_service.errors import BrainError, CorruptDataError, UnavailableError
from brain_service.export.attach import attach_files
from brain_service.export.bundle import HEF, Bundle
from brain_service.export.hailo_names import HAILO_NAMES, Names
from brain_service.inference.backends import hailo
from brain_service.inference.backends.hailo import _Job, require_buffer
from brain_service.inference.backends.hailo_errors import no_device_free, status_of, translate
from tests.export.hailo_toy import CompiledToys
from tests.fakes.hefs import make_hef
from tests.inference.hailo_chip import PROFILES, Chip, Driver, opened, plug_in

CAP = 2e-2


@pytest.fixture(params=PROFILES)
def chip(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chip:
    # A stalled machine is no hung device; where one is wanted the test says so.
    monkeypatch.setattr(hailo, "JOB_TIMEOUT_MS", 20_000)
    return plug_in(request.param, tmp_path / "chip", monkeypatch)


ONE_VERSION = pytest.mark.parametrize("chip", ["4.23"], indirect=True)
"""Where versions do not differ and waiting takes seconds."""


@pytest.fixture
def bundle(chip: Chip, compiled: CompiledToys) -> Bundle:
    return compiled.bundle(chip.profile)


def refusal(bundle: Bundle) -> BrainError:
    with pytest.raises(BrainError) as caught, opened(bundle):
        pass
    return caught.value


def test_the_numbers_are_the_models_but_quantised(chip: Chip, bundle: Bundle) -> None:
    with opened(bundle) as policy:
        assert policy.name == "hailo (simulated)" and policy.buckets == (1,)
        driver = Driver(policy, bundle)
        found = driver.worst()
        assert 0 < found <= CAP
        # Seven steps since the reset, counted in a state that was fed back and quantised at each of them.
        assert abs(driver.carry[0, 2] - 7) < 0.05
    assert not chip.crimes


def test_without_the_compilers_word_outputs_are_taken_in_the_order_asked_for(
    chip: Chip, bundle: Bundle, tmp_path: Path
) -> None:
    copy = tmp_path / "models" / bundle.path.name
    shutil.copytree(bundle.path, copy)
    names = Names.from_bytes(bundle.read(HAILO_NAMES), "n")
    outputs = tuple(replace(stream, layer="") for stream in names.outputs)
    guessed = replace(names, outputs=outputs, read_from_compiler=False)
    again = attach_files(Bundle.open(copy), {HAILO_NAMES: guessed.to_bytes()}, {})
    with opened(again) as policy:
        assert Driver(policy, again).worst() <= CAP


@pytest.mark.parametrize("fault", ["job_error", "transient"])
def test_a_step_that_fails_once_is_done_again_on_a_fresh_model(fault: str, chip: Chip, bundle: Bundle) -> None:
    with opened(bundle) as policy:
        driver = Driver(policy, bundle)
        assert driver.worst(3) <= CAP
        chip.set(**{fault: 1})
        assert driver.worst() <= CAP
    assert not chip.crimes


@ONE_VERSION
def test_what_a_hung_job_still_writes_reaches_nobody(
    chip: Chip, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hailo, "JOB_TIMEOUT_MS", 1000)
    with opened(bundle) as policy:
        driver = Driver(policy, bundle)
        chip.set(hang=1)
        assert driver.worst(1) <= CAP
        (hung,) = policy._quarantine
        late = [port.buffer for port in hung.keep[2]]
        assert not {id(buffer) for buffer in late} & {id(port.buffer) for port in policy._outputs}
        before = [buffer.copy() for buffer in late]
        chip.set(thaw=True)
        wait_until(lambda: hung.finished)
        # It did write, into what was set aside for it.
        assert any((a != b).any() for a, b in zip(before, late, strict=True))
        assert driver.worst() <= CAP
        policy._configure()
        assert policy._quarantine == []


@ONE_VERSION
@pytest.mark.parametrize(
    ("fault", "message"),
    [("job_error", "for the second time.*aborted"), ("hang", "for the second time.*did not answer in time")],
)
def test_a_step_that_fails_twice_is_an_error_with_the_next_step(
    fault: str, message: str, chip: Chip, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hailo, "JOB_TIMEOUT_MS", 500)
    with opened(bundle) as policy:
        driver = Driver(policy, bundle)
        carry = driver.carry.copy()
        chip.set(**{fault: 2})
        with pytest.raises(UnavailableError, match=message):
            driver.step()
        np.testing.assert_array_equal(driver.carry, carry)
        chip.set(thaw=True)


def test_a_removed_device_is_not_asked_again(chip: Chip, bundle: Bundle) -> None:
    with opened(bundle) as policy:
        driver = Driver(policy, bundle)
        driver.step()
        chip.set(remove=1)
        with pytest.raises(UnavailableError, match=r"check its seat") as caught:
            driver.step()
        assert caught.value.members["hailo_status"] == (62 if chip.is_old_line else 96)
        assert policy.telemetry()["temperature_c"] is None
    assert "no device found" in refusal(bundle).detail


def test_no_device_and_a_busy_one_are_told_apart(chip: Chip, bundle: Bundle) -> None:
    chip.set(no_device=True)
    assert "no device found; check its seat" in refusal(bundle).detail
    chip.set()
    with opened(bundle):
        error = refusal(bundle)
    assert isinstance(error, UnavailableError) and "held by another process; `lsof /dev/hailo0`" in error.detail
    assert error.members["hailo_status"] == 74
    # Freed again.
    with opened(bundle):
        pass


def test_a_driver_of_another_version_is_named_although_no_hailort_exception_comes(
    chip: Chip, bundle: Bundle
) -> None:
    chip.set(driver=True)
    error = refusal(bundle)
    assert error.members["hailo_status"] == 76 and "driver and library are of different versions" in error.detail


def test_each_line_of_hailort_drives_its_own_devices_only(
    chip: Chip, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAILO_FAKE_ARCH", "HAILO10H" if chip.is_old_line else "HAILO8")
    assert "runs only" in refusal(bundle).detail
    monkeypatch.setattr(hailo, "check_device", lambda *_: None)
    assert "HailoRT 4 drives the Hailo-8 and 8L only" in refusal(bundle).detail


def test_a_hef_for_another_device_is_refused_before_and_by_hailort(
    chip: Chip, bundle: Bundle, compiled: CompiledToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = compiled.bundle("5.2" if chip.is_old_line else "4.23")
    assert "compiled for HAILO" in refusal(other).detail and "--hailo-arch" in refusal(other).detail
    monkeypatch.setattr(hailo, "check_device", lambda *_: None)
    error = refusal(other)
    assert error.members["hailo_status"] == (26 if chip.profile == "4.20" else 93)
    assert "for another device" in error.detail


def test_a_hef_that_hailort_finds_damaged_or_too_new(
    chip: Chip, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "models" / bundle.path.name
    shutil.copytree(bundle.path, copy)
    code = 3 if chip.is_old_line else 5
    damaged = attach_files(Bundle.open(copy), {HEF: make_hef(2, code)[:-1] + b"!"}, {})
    error = refusal(damaged)
    if chip.profile == "4.20":
        assert error.members["hailo_status"] == 26
    else:
        assert isinstance(error, CorruptDataError) and error.members["hailo_status"] == 91
    newer = attach_files(damaged, {HEF: make_hef(3, code)}, {})
    if chip.profile == "4.20":
        assert "HailoRT 4.20.0 reads versions 0 to 2" in refusal(newer).detail
        monkeypatch.setattr(hailo, "check_runtime", lambda *_: None)
        assert refusal(newer).members["hailo_status"] == 26


def test_a_hef_of_another_graph_is_refused_by_its_streams(chip: Chip, bundle: Bundle, tmp_path: Path) -> None:
    copy = tmp_path / "models" / bundle.path.name
    shutil.copytree(bundle.path, copy)
    names = Names.from_bytes(bundle.read(HAILO_NAMES), "n")
    wrong = replace(names, inputs=(replace(names.inputs[0], layer="other/input_layer1"), *names.inputs[1:]))
    error = refusal(attach_files(Bundle.open(copy), {HAILO_NAMES: wrong.to_bytes()}, {}))
    assert isinstance(error, CorruptDataError) and "compiled from another graph" in error.detail
    swapped = replace(
        names,
        inputs=(
            replace(names.inputs[0], layer=names.inputs[1].layer),
            replace(names.inputs[1], layer=names.inputs[0].layer),
            *names.inputs[2:],
        ),
    )
    error = refusal(attach_files(Bundle.open(copy), {HAILO_NAMES: swapped.to_bytes()}, {}))
    assert isinstance(error, CorruptDataError) and "has shape" in error.detail
    # Neither keeps the device.
    with opened(bundle):
        pass
    assert not chip.crimes


def test_without_hailort_the_message_names_the_package(
    compiled: CompiledToys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "hailo_platform", None)
    error = refusal(compiled.bundle("4.23"))
    assert isinstance(error, UnavailableError)
    assert "apt: hailo-all" in error.detail and "inference.hailo_python" in error.detail


def test_heat_is_reported_and_power_is_never_measured(chip: Chip, bundle: Bundle) -> None:
    with opened(bundle) as policy:
        cool = policy.telemetry()
        assert (
            cool["temperature_c"] == 55.0 and cool["warning"] is None and cool["runtime"].startswith(chip.profile)
        )
        assert cool["architecture"] == ("HAILO8L" if chip.is_old_line else "HAILO10H")
        chip.set(temperature_c=97.5)
        assert "halves its clock near 104" in str(policy.telemetry()["warning"])
        chip.set(temperature_c=105.0)
        assert "has halved its clock" in str(policy.telemetry()["warning"])
        # Throttled, it still gives the same numbers.
        assert Driver(policy, bundle).worst() <= CAP
    assert not chip.crimes


def test_a_fork_may_not_use_the_device(chip: Chip, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(bundle) as policy:
        driver = Driver(policy, bundle)
        monkeypatch.setattr("brain_service.inference.backends.hailo.os.getpid", lambda: -1)
        with pytest.raises(UnavailableError, match="fork"):
            driver.step()
        policy.close()
        monkeypatch.undo()


def test_closing_twice_is_closing_once(chip: Chip, bundle: Bundle) -> None:
    with opened(bundle) as policy:
        policy.close()
    assert not chip.crimes


def test_a_buffer_that_hailort_would_take_silently_is_refused() -> None:
    good = np.zeros((1, 1, 4), np.float32)
    require_buffer("s", good, (1, 1, 4))
    readonly = good.copy()
    readonly.flags.writeable = False
    for bad in (
        good.reshape(1, 4, 1),
        good.view(np.int32),
        np.zeros((1, 1, 8), np.float32)[..., ::2],
        readonly,
        np.zeros((1, 1, 2), np.float64),
    ):
        with pytest.raises(UnavailableError, match="must be a writable, contiguous float32"):
            require_buffer("s", bad, (1, 1, 4))


def test_a_callback_never_raises_whatever_it_is_given() -> None:
    job = _Job(None)
    job.done(completion_info=object())
    # What cannot be read is no success.
    assert job.finished and isinstance(job.error, AttributeError)


def test_codes_are_found_wherever_hailort_puts_them() -> None:
    class HailoRTStatusException(Exception):  # noqa: N818  its real name
        pass

    class HailoRTTimeout(Exception):  # noqa: N818  its real name
        pass

    assert status_of(HailoRTStatusException("76")) == 76
    wrapped = RuntimeError("Invalid HEF. See hailort.log")
    wrapped.__cause__ = HailoRTStatusException(26)
    assert status_of(wrapped) == 26
    assert status_of(HailoRTTimeout("Received a timeout")) == 4
    assert status_of(RuntimeError("libhailort failed with error: 74 (HAILO_OUT_OF_PHYSICAL_DEVICES)")) == 74
    assert status_of(RuntimeError("something else")) is None
    assert status_of(HailoRTStatusException("no number")) is None
    unknown = translate(ValueError("odd"), "a step")
    assert isinstance(unknown, UnavailableError) and "ValueError: odd" in unknown.detail
    for code in (2, 4, 6, 26, 36, 61, 62, 63, 64, 73, 76, 79, 91, 92, 93, 96, 97):
        assert "see hailort.log, and" not in translate(HailoRTStatusException(code), "a step").detail, code
    assert "frigate" in no_device_free(["0001:01:00.0"]).detail


def wait_until(condition: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.01)
