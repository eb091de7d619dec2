"""A run's curves: lines that survive a kill, and event files as TensorFlow's own reader sees them."""

from pathlib import Path

import pytest

from brain_service.errors import UnavailableError
from brain_service.training.loop import train
from brain_service.training.metrics import MetricsLog, read_metrics
from tests.training.tasks import tiny

NAMES = {"loss", "action", "next_observation", "reward", "value", "learning_rate", "gradient_norm"}
PACE = {"steps_per_s", "input_wait_share"}


def test_a_run_writes_its_parts_every_few_steps_and_at_the_end(dataset: Path, tmp_path: Path) -> None:
    train(dataset, tmp_path / "run", tiny(log_every=4))
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [4, 6]
    assert all(set(line) >= NAMES | PACE for line in lines)
    assert all(0.0 <= line["input_wait_share"] <= 1.0 for line in lines)
    # Two steps of warm-up to the peak, then the cosine down.
    assert 0 < lines[1]["learning_rate"] < lines[0]["learning_rate"] <= tiny().learning_rate


def test_steps_that_are_made_again_are_written_once_and_a_torn_line_goes(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, 0) as log:
        for step in (1, 2, 3):
            log.write(step, {"loss": float(step)})
    with (tmp_path / "logs" / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 4, "lo')
    with MetricsLog(tmp_path, 2) as log:
        log.write(3, {"loss": 30.0})
    assert [(line["step"], line["loss"]) for line in read_metrics(tmp_path)] == [(1, 1.0), (2, 2.0), (3, 30.0)]


@pytest.mark.long
def test_tensorflows_own_reader_finds_every_value(tmp_path: Path) -> None:
    from tensorflow.compat.v1.train import summary_iterator

    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": 0.5, "gradient_norm": 2.0})
    with MetricsLog(tmp_path, 1) as log:
        log.write(2, {"loss": 0.25})
    files = sorted((tmp_path / "logs").glob("events.out.tfevents.*"), key=lambda path: path.stat().st_mtime_ns)
    assert len(files) == 2
    events = [event for file in files for event in summary_iterator(str(file))]
    assert events[0].file_version == "brain.Event:2"
    found = [(event.step, value.tag, value.simple_value) for event in events for value in event.summary.value]
    assert found == [(1, "loss", 0.5), (1, "gradient_norm", 2.0), (2, "loss", 0.25)]
    # TensorBoard drops what an earlier start wrote from this step on.
    starts = [event.step for event in events if event.HasField("session_log")]
    assert starts == [1, 2]


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(UnavailableError, match="make room"):
        MetricsLog(tmp_path, 0)
