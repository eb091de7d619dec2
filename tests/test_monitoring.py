"""deploy/monitoring: valid for Prometheus, its rules tested, and every expression about metrics that exist."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from brain_service.database import Database
from brain_service.jobs.rows import SCHEMA, VERSION
from tests.hardware.sysfs import set_temperature, set_under_voltage, write
from tests.inference.toy import build_toy
from tests.processes import running_daemon

FOLDER = Path(__file__).parent.parent / "deploy" / "monitoring"
DASHBOARD = json.loads((FOLDER / "grafana-dashboard.json").read_text())
NAME = re.compile(r"\b(?:brain|process)_[a-z0-9_]+\b")
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def expressions() -> list[str]:
    """Return every expression of the alert rules and of the dashboard."""
    rules = re.findall(
        r"^ +expr: (?:>-\n((?: {10,}.*\n)+)|(.*))", (FOLDER / "alerts.yml").read_text(), re.MULTILINE
    )
    panels = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]
    variables = [each["query"] for each in DASHBOARD["templating"]["list"] if each["type"] == "query"]
    return [many or one for many, one in rules] + panels + variables


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a daemon on a robot: it acts, trains, is hot and badly fed, as files and rows tell it."""
    folder = tmp_path_factory.mktemp("monitored")
    set_temperature(folder / "sys", 61.0)
    set_under_voltage(folder / "sys", alarm=True)
    write(folder / "sys/devices/platform/soc/soc:firmware/get_throttled", "4")
    data_dir = folder / "brain"
    model_id = build_toy(data_dir / "models")
    (data_dir / "models" / "active").symlink_to(model_id)
    env = {"BRAIN_GATES__SYSFS": str(folder / "sys"), "BRAIN_INFERENCE__BACKENDS": "cpu"}
    with running_daemon(data_dir, env=env) as daemon, httpx.Client(base_url=daemon.url, timeout=30) as http:
        give_up_s = time.monotonic() + 60
        while http.get("/readyz?for=inference").status_code != 200:
            assert time.monotonic() < give_up_s
            time.sleep(0.1)
        session = http.post("/sessions", json={}).json()["session_id"]
        seen = {"arm": {"joints": [0.1, 0.2]}, "load": 0.5}
        http.post(
            "/infer", json={"session_id": session, "observation": seen, "deadline_ms": 20_000}
        ).raise_for_status()
        database = Database(data_dir / "brain.db", SCHEMA, VERSION)
        with database.transaction() as connection:
            row = ("t", "train", "{}", "running", 1)
            connection.execute(
                "INSERT INTO jobs (job_id, kind, params, state, created_ns) VALUES (?, ?, ?, ?, ?)", row
            )
        database.close()
        event = {"kind": "metrics", "step": 5, "steps": 10, "loss": 0.5, "steps_per_s": 2.0}
        write(data_dir / "jobs/t/events.jsonl", json.dumps(event))
        yield http.get("/metrics").text


def test_every_expression_asks_for_metrics_that_exist(page: str) -> None:
    found = {family.name: family for family in text_string_to_metric_families(page)}
    names = {sample.name for family in found.values() for sample in family.samples}
    # `sum` never occurs without `count`, nor a WebSocket without someone at its other end.
    asked = {name for expression in expressions() for name in NAME.findall(expression)}
    assert len(asked) > 40
    assert asked - names - {"brain_http_websockets"} == set()


def test_labels_that_expressions_choose_by_exist(page: str) -> None:
    for expression in expressions():
        for name, chosen in re.findall(r"\b((?:brain|process)_[a-z0-9_]+)\{([^}]*)\}", expression):
            labels = {part.split("=")[0].strip("~! ") for part in chosen.split(",")} - {"instance", "job", "le"}
            for label in labels:
                assert re.search(rf"^{name}\{{[^}}]*\b{label}=", page, re.MULTILINE), f"{name} has no {label}"


def test_what_the_robot_is_shows(page: str) -> None:
    values: dict[str, Any] = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if not sample.labels or sample.labels == {"reason": "throttled"}
    }
    assert values["brain_temperature_celsius"] == 61
    assert (values["brain_under_voltage"], values["brain_throttled"]) == (1, 1)
    assert (values["brain_training_step"], values["brain_training_loss"]) == (5, 0.5)


def test_each_alert_has_a_severity_a_summary_and_a_fix_and_is_tested() -> None:
    text = (FOLDER / "alerts.yml").read_text()
    alerts = re.findall(r"- alert: (\w+)", text)
    assert len(alerts) == len(set(alerts)) >= 12
    for part in ("severity: ", "summary: ", "fix: "):
        assert text.count(part) == len(alerts), part
    tested = (FOLDER / "alerts_test.yml").read_text()
    for alert in alerts:
        assert f"alertname: {alert}, exp_alerts: []" in tested, f"{alert} is quiet while all is well"
        assert f'alertname="{alert}"' in tested, f"{alert} fires on its fault"


def test_the_dashboard_is_whole() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) >= 20
    for panel in panels:
        assert panel["title"]
        assert panel["type"] == "row" or panel["targets"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
    assert "http" not in (FOLDER / "grafana-dashboard.json").read_text().replace("brain_http_", "")


@promtool
def test_promtool_takes_the_configuration() -> None:
    done = subprocess.run(
        ["promtool", "check", "config", str(FOLDER / "prometheus.yml")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "rules found" in done.stdout


@promtool
def test_promtool_runs_the_rules_on_faults_and_on_none(tmp_path: Path) -> None:
    command = ["promtool", "test", "rules", str(FOLDER / "alerts_test.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # The test can fail: a rule that is never true is found.
    for file in ("alerts.yml", "alerts_test.yml"):
        shutil.copy(FOLDER / file, tmp_path)
    rules = tmp_path / "alerts.yml"
    rules.write_text(
        rules.read_text().replace("brain_temperature_celsius >= 80", "brain_temperature_celsius >= 800")
    )
    broken = subprocess.run([*command[:-1], str(tmp_path / "alerts_test.yml")], capture_output=True, text=True)
    assert broken.returncode != 0
