"""The stand-in for HailoRT has the traps that it is there for: a backend that ignores one must fail its tests."""

import importlib
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fakes.hailo_platform.pyhailort.network import Network, StreamInfo
from tests.fakes.hefs import make_hef
from tests.inference.hailo_chip import PROFILES, Chip, plug_in

NETWORK = Network(
    "brain_step",
    (StreamInfo("in/a", "a", 4, 0.01, 100, 16), StreamInfo("in/b", "b", 4, 0.01, 100, 16)),
    (StreamInfo("out/z", "sum", 4, 0.1, 20, 8), StreamInfo("out/c", "product", 4, 0.02, 200, 16)),
    (
        {"op": "Add", "inputs": ["a", "b"], "output": "sum", "attributes": {}},
        {"op": "Mul", "inputs": ["a", "b"], "output": "product", "attributes": {}},
    ),
    {},
)
CODE = {"4.20": 3, "4.23": 3, "5.2": 5}


@pytest.fixture(params=PROFILES)
def chip(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chip:
    return plug_in(request.param, tmp_path / "chip", monkeypatch)


class Setup:
    """A configured model with good buffers."""

    def __init__(self, chip: Chip, floats: bool = True) -> None:
        self.hailo: Any = importlib.import_module("hailo_platform")
        params = self.hailo.VDevice.create_params()
        params.scheduling_algorithm = self.hailo.HailoSchedulingAlgorithm.ROUND_ROBIN
        self.vdevice = self.hailo.VDevice(params)
        self.model = self.vdevice.create_infer_model(make_hef(2, CODE[chip.profile], words=NETWORK.to_bytes()))
        if floats:
            for stream in (*self.model.inputs, *self.model.outputs):
                stream.set_format_type(self.hailo.FormatType.FLOAT32)
        self.configured = self.model.configure()
        self.inputs = {name: np.full((1, 1, 4), 1.5, np.float32) for name in ("in/a", "in/b")}
        self.outputs = {name: np.zeros((1, 1, 4), np.float32) for name in ("out/z", "out/c")}

    def bindings(self) -> Any:
        return self.configured.create_bindings(self.inputs, self.outputs)

    def error(self, name: str) -> Any:
        """An exception's class, from where most must be imported."""
        return getattr(importlib.import_module("hailo_platform.pyhailort.pyhailort"), name)


def test_numbers_are_quantised_and_written_only_at_completion(chip: Chip) -> None:
    setup = Setup(chip)
    seen: list[Any] = []
    done = threading.Event()

    def callback(*, completion_info: Any) -> None:
        seen.append((completion_info.exception, threading.current_thread() is threading.main_thread()))
        done.set()

    setup.inputs["in/a"][:] = 1.2345
    setup.configured.run_async([setup.bindings()], callback).wait(60_000)
    assert done.is_set() and seen == [(None, False)]
    # Steps of 0.1 and of 0.02: nobody may count on exact floats.
    np.testing.assert_allclose(setup.outputs["out/z"], 2.7, atol=1e-6)
    np.testing.assert_allclose(setup.outputs["out/c"], 1.84, atol=1e-6)
    assert setup.model.output_names == ["out/c", "out/z"]
    assert setup.hailo.HEF(
        make_hef(2, CODE[chip.profile], words=NETWORK.to_bytes())
    ).get_sorted_output_names() == [
        "out/z",
        "out/c",
    ]


def test_run_hides_a_failure_and_copies_memory_all_the_same(chip: Chip) -> None:
    setup = Setup(chip)
    chip.set(job_error=1)
    setup.configured.run([setup.bindings()], 60_000)
    assert setup.outputs["out/z"].any() and not np.allclose(setup.outputs["out/z"], 3.0)


def test_a_wrong_size_kills_the_model_and_a_wrong_type_passes(chip: Chip) -> None:
    setup = Setup(chip)
    setup.inputs["in/a"] = np.full((1, 1, 4), 1, np.int32)
    setup.configured.run([setup.bindings()], 60_000)
    assert not np.allclose(setup.outputs["out/z"], 2.5)
    setup.inputs["in/a"] = np.zeros((1, 1, 4), np.float64)
    with pytest.raises(setup.error("HailoRTInvalidOperationException")):
        setup.configured.run_async([setup.bindings()])
    setup.inputs["in/a"] = np.zeros((1, 1, 4), np.float32)
    with pytest.raises(setup.error("HailoRTInvalidOperationException")):
        setup.configured.run_async([setup.bindings()])


def test_buffers_must_be_contiguous_and_writable(chip: Chip) -> None:
    setup = Setup(chip)
    binding = setup.bindings().input("in/a")
    with pytest.raises(setup.error("HailoRTException"), match="C_CONTIGUOUS"):
        binding.set_buffer(np.zeros((1, 1, 8), np.float32)[..., ::2])
    readonly = np.zeros((1, 1, 4), np.float32)
    readonly.flags.writeable = False
    with pytest.raises(ValueError, match="not writeable"):
        binding.set_buffer(readonly)


def test_a_timeout_leaves_the_job_alive(chip: Chip) -> None:
    setup = Setup(chip)
    chip.set(hang=1)
    job = setup.configured.run_async([setup.bindings()])
    with pytest.raises(setup.error("HailoRTTimeout")):
        job.wait(10)
    poisoned = setup.outputs["out/z"].copy()
    chip.set(thaw=True)
    job.wait(60_000)
    assert (poisoned != setup.outputs["out/z"]).any()


def test_activation_and_the_scheduler_exclude_each_other(chip: Chip) -> None:
    setup = Setup(chip)
    with pytest.raises(setup.error("HailoRTInvalidOperationException")):
        setup.configured.activate()
    setup.configured.__exit__(None, None, None)
    setup.vdevice.release()
    # The keyword makes it forget the params, and the default is another one in each line.
    params = setup.hailo.VDevice.create_params()
    params.scheduling_algorithm = setup.hailo.HailoSchedulingAlgorithm.ROUND_ROBIN
    setup.vdevice = setup.hailo.VDevice(params, device_ids=setup.hailo.Device.scan())
    model = setup.vdevice.create_infer_model(make_hef(2, CODE[chip.profile], words=NETWORK.to_bytes()))
    for stream in (*model.inputs, *model.outputs):
        stream.set_format_type(setup.hailo.FormatType.FLOAT32)
    setup.configured = model.configure()
    if chip.is_old_line:
        with pytest.raises(setup.error("HailoRTNetworkGroupNotActivatedException")):
            setup.configured.run_async([setup.bindings()])
        setup.configured.activate()
    setup.configured.run([setup.bindings()], 60_000)


def test_one_device_one_owner_one_process_and_nothing_after_release(
    chip: Chip, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = Setup(chip)
    with pytest.raises(setup.error("HailoRTException"), match="74"):
        setup.hailo.VDevice()
    with pytest.raises(setup.error("HailoRTInvalidOperationException")):
        setup.model.input()
    with pytest.raises(ValueError, match="str or bytes"):
        setup.vdevice.create_infer_model(Path("model.hef"))
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: -1)
        with pytest.raises(setup.error("HailoRTException"), match="process"):
            setup.vdevice.create_infer_model(b"")
    assert not chip.crimes
    setup.vdevice.release()
    assert "before its configured models" in chip.crimes
    with pytest.raises(setup.error("HailoRTException"), match="released"):
        setup.vdevice.create_infer_model(b"")
    setup.hailo.VDevice().release()


def test_the_old_line_lets_the_status_itself_through(chip: Chip) -> None:
    setup = Setup(chip)
    chip.set(driver=True)
    with pytest.raises(Exception, match="76") as caught:
        setup.hailo.Device.scan()
    assert isinstance(caught.value, setup.error("HailoRTException")) is not chip.is_old_line
    chip.set()
    setup.hailo.Device("0001:01:00.0").control.power_measurement()
    assert "overcurrent protection is off" in chip.crimes
