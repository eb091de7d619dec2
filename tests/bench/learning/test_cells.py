"""A cell is run once, is a file, and shows up in the table; what was not run says so."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from brain_service.training.config import TrainConfig
from tests.bench.learning import cell as cells
from tests.bench.learning.cell import Cell, read_cell, run_cell
from tests.bench.learning.fit import fit
from tests.bench.learning.models import make_policy
from tests.bench.learning.published import publish, read_published
from tests.bench.learning.report import write_report
from tests.bench.learning.tasks import TASKS


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    task = TASKS["pendulum"]
    train = {**task.train, "steps": 4, "batch_size": 2}
    monkeypatch.setattr(cells, "TASKS", {"pendulum": replace(task, demonstrations=3, episodes=2, train=train)})


@pytest.mark.usefixtures("tiny")
def test_a_cell_is_a_file_that_is_found_again_until_its_settings_change(tmp_path: Path) -> None:
    cell = Cell("pendulum", "mlp", 0)
    assert read_cell(tmp_path, cell) is None
    document = run_cell(tmp_path, cell)
    assert read_cell(tmp_path, cell) == json.loads(json.dumps(document))
    assert len(document["scores"]) == len(document["references"]["expert"]) == 2
    assert document["curve"][-1][0] == 4
    assert read_cell(tmp_path, replace(cell, steps_scale=0.5)) is None
    assert read_cell(tmp_path, replace(cell, seed=1)) is None
    again = run_cell(tmp_path, cell)
    assert (again["scores"], again["curve"]) == (document["scores"], document["curve"])

    published = tmp_path / "published.json"
    publish(published, {cell: document})
    others = [replace(cell, steps_scale=0.5), replace(cell, seed=1), Cell("pendulum", "gru", 0)]
    ((found, line),) = read_published(published, [*others, cell]).items()
    assert found == cell
    np.testing.assert_allclose(line["scores"], document["scores"], atol=1e-4)
    # What was taken up can be published again.
    content = published.read_bytes()
    publish(published, {found: line})
    assert published.read_bytes() == content

    text = write_report(tmp_path, {("pendulum", "mlp", 0): document}, ["pendulum", "reach"])
    rows = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ") for line in text.splitlines()[2:]}
    assert rows["reach"].count("not run") == 5
    assert rows["pendulum"].count("not run") == 4
    assert "(1 seed)" in rows["pendulum"][6]
    assert (tmp_path / "learning.svg").read_text().count("<svg") == 1
    (row,) = json.loads((tmp_path / "table.json").read_text())
    assert row["score"]["low"] <= row["score"]["value"] <= row["score"]["high"]


def test_training_ends_when_what_is_held_out_is_learned() -> None:
    task = replace(TASKS["repeat-previous"], demonstrations=40, floor=100.0, lengths=((8, 0.5), (16, 0.5)))
    policy = make_policy("mlp", 4, 1, action_kind="discrete", action_choices=4)
    config = TrainConfig(steps=200, batch_size=2, warmup_steps=1)
    fitted = fit(task, policy, task.collect(0, 40), config)
    # A look every 20 steps, one for each of the two lengths.
    assert fitted.curve[-1][0] == 40
