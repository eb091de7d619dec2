"""The page in a real browser: headless Chromium beside a daemon with the toy model, a session and real jobs."""

import contextlib
import io
import json
import math
import os
import random
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from brain_service.export.bundle import read_manifest, write_bundle
from brain_service.jobs.events import EventLog
from tests.hardware.sysfs import set_battery, set_temperature, set_under_voltage
from tests.inference.toy import build_toy
from tests.processes import Daemon, free_port

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no chromium on this machine", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

pytestmark = pytest.mark.long

BOSS, READER = "boss-token-0123456789", "reader-token-0123456789"
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 60_000
PHONE, DESK = {"width": 360, "height": 760}, {"width": 1280, "height": 900}
SMALL = {"preset": "development", "batch_size": 2, "sequence_length": 8, "evaluate_every": 20}


LOADED_MS = (
    "() => { const t = performance.getEntriesByType('navigation')[0]; return t.loadEventEnd - t.startTime }"
)


@dataclass
class Stage:
    """The daemon, the browser, and the robot's sensors."""

    daemon: Daemon
    browser: Any
    sysfs: Path
    models: tuple[str, str]
    failing: str = ""
    training: str = ""

    def http(self, method: str, path: str, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {BOSS}"}
        answer = httpx.request(method, self.daemon.url + path, headers=headers, timeout=60, **more)
        answer.raise_for_status()
        return answer.json() if answer.content else None


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "tokens").write_text(f"{BOSS} control,operate\n{READER} read\n")
    (folder / "tokens").chmod(0o640)
    second, first = (judged_model(folder, scale, verdict) for scale, verdict in ((1.0, None), (2.0, PROMOTED)))
    sysfs = folder / "sys"
    set_temperature(sysfs, 55)
    set_under_voltage(sysfs, False)
    set_battery(sysfs, 80)
    env = {
        "BRAIN_TOKENS_FILE": str(folder / "tokens"),
        "BRAIN_GATES__SYSFS": str(sysfs),
        "BRAIN_GATES__POLL_INTERVAL_S": "0.2",
        "BRAIN_INFERENCE__BACKENDS": "hailo,cpu",
        "BRAIN_INFERENCE__DEADLINE_MS": "500",
    }
    daemon = Daemon(folder / "brain", port=free_port(), env=env).start()
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, headless=True, args=list(FLAGS))
        built = Stage(daemon, browser, sysfs, (first, second))
        try:
            built.failing = built.http("POST", "/train", json={"dataset": "nothing"})["job_id"]
            for model in (second, first):
                built.http("POST", f"/models/{model}/activate")
            built.training = running_training(folder / "brain")
            yield built
        finally:
            browser.close()
            if daemon.process.poll() is None:
                daemon.stop()


PROMOTED = {"promoted": True, "reason": "no worse than the active model on 12 held-out episodes", "growth": -0.2}


def judged_model(folder: Path, scale: float, promotion: dict[str, Any] | None) -> str:
    """Make a toy bundle with an evaluation as the pipeline writes it; return its id."""
    made = folder / "made"
    source = made / build_toy(made, scale)
    manifest = read_manifest(source)
    error = 0.084 if promotion else 0.106
    figures = {"relative_rmse": error, "baseline_relative_rmse": 0.231, "skill": 1 - (error / 0.231) ** 2}
    evaluation = figures | {"episodes": 12, "steps": 1800, "promotion": promotion}
    files = {name: (source / name).read_bytes() for name in manifest.files}
    draft = replace(manifest, evaluation=evaluation, files={}, model_id="")
    return write_bundle(folder / "brain" / "models", draft, files)


@pytest.fixture
def opened(stage: Stage) -> Iterator[Any]:
    """Open the page with a token; whatever the browser complains about fails the test."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def opener(token: str = BOSS, viewport: dict[str, int] = DESK, **more: Any) -> Any:
        context = stage.browser.new_context(viewport=viewport, **more)
        contexts.append(context)
        if token:
            # As the page keeps it, before its script runs.
            context.add_init_script(f"sessionStorage.setItem('continuon-brain.token', {json.dumps(token)})")
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console", lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.goto(stage.daemon.url + "/")
        if token:
            page.locator("#link[data-link=live]").wait_for()
            page.locator("#about", has_text="0.1").wait_for(state="attached")
        return page

    yield opener
    for context in contexts:
        context.close()
    # A refused request is the daemon's answer, which the page shows.
    unexpected = [said for said in complaints if not re.search(r"Failed to load resource|ERR_CONNECTION", said)]
    assert unexpected == []


def wait_text(page: Any, selector: str, text: str | re.Pattern[str], timeout_ms: int = PATIENCE_MS) -> None:
    playwright.expect(page.locator(selector)).to_contain_text(text, timeout=timeout_ms)


def test_the_page_loads_within_a_second_and_shows_how_it_is(opened: Any, stage: Stage) -> None:
    page, loads_ms = opened(), []
    for _ in range(3):
        page.reload()
        page.locator("#link[data-link=live]").wait_for()
        loads_ms.append(page.evaluate(LOADED_MS))
    assert 0 < min(loads_ms) < 1000, loads_ms
    wait_text(page, "#model-name", stage.models[0])
    wait_text(page, "#model-why", "in use")
    wait_text(page, "#model-why", "hailo")
    wait_text(page, "#machine", "55 °C")
    wait_text(page, f"tr[data-key='{stage.models[0]}']", re.compile(r"8.4 %.*23.1 %.*0.87.*promoted", re.DOTALL))
    wait_text(page, f"tr[data-key='{stage.models[1]}']", "no rival")
    wait_text(page, "#events", f"model {stage.models[0]} serves")
    sent = page.evaluate("() => performance.getEntriesByType('resource').map(entry => new URL(entry.name).origin)")
    assert set(sent) <= {stage.daemon.url}


def test_a_live_session_makes_it_acting_with_its_latency(opened: Any, stage: Stage) -> None:
    page, stop = opened(), threading.Event()

    def drive() -> None:
        session = stage.http("POST", "/sessions", json={})["session_id"]
        while not stop.is_set():
            seen = {"arm": {"joints": [0.1, 0.2]}, "load": 0.5}
            stage.http("POST", "/infer", json={"session_id": session, "observation": seen})
            time.sleep(0.02)
        stage.http("DELETE", f"/sessions/{session}")

    robot = threading.Thread(target=drive)
    robot.start()
    try:
        wait_text(page, "#state-word", "Acting")
        wait_text(page, "#latency-note", re.compile(r"p99 takes [\d.]+ % of the deadline"))
        wait_text(page, "#sessions", "acting")
        assert page.title().startswith("Acting")
        picture(page, "dashboard", full_page=True)
    finally:
        stop.set()
        robot.join()
    playwright.expect(page.locator("#state-word")).not_to_have_text("Acting", timeout=PATIENCE_MS)


def test_a_token_is_asked_for_kept_in_the_tab_and_a_wrong_one_is_told(opened: Any) -> None:
    page = opened(token="")
    dialog = page.locator("#token")
    dialog.wait_for()
    page.locator("#token-value").fill("wrong-token-0123456789")
    page.keyboard.press("Enter")
    wait_text(page, "#token-problem", "not in the tokens file")
    page.locator("#token-value").fill(READER)
    page.keyboard.press("Enter")
    page.locator("#link[data-link=live]").wait_for()
    assert not dialog.is_visible()
    page.reload()
    page.locator("#link[data-link=live]").wait_for()
    assert page.evaluate("() => localStorage.length + document.cookie.length") == 0
    assert READER not in page.url


def test_a_reader_sees_everything_and_is_told_why_it_may_not_act(opened: Any) -> None:
    page = opened(READER)
    wait_text(page, "#readonly", "operate")
    for button in ("#rollback", "#train", "#pause"):
        playwright.expect(page.locator(button)).to_have_attribute("aria-disabled", "true")
    page.locator("#pause").focus()  # still reachable, so that its reason can be read
    page.keyboard.press("Enter")
    wait_text(page, "#learning-problem", "scope operate")


def test_roll_back_asks_first_and_is_seen(opened: Any, stage: Stage) -> None:
    page = opened()
    first, second = stage.models
    page.locator("#rollback").click()
    wait_text(page, "#ask-text", second)
    page.keyboard.press("Escape")
    assert not page.locator("#ask").is_visible()
    wait_text(page, "#model-name", first)
    page.locator("#rollback").click()
    page.locator("#ask-yes").click()
    wait_text(page, "#model-name", second)
    wait_text(page, "#events", f"model {second} serves")
    page.get_by_role("button", name=f"Serve model {first}").click()
    page.locator("#ask-yes").click()
    wait_text(page, "#model-name", first)


def running_training(data_dir: Path) -> str:
    """Put a job beside the daemon's own as a trainer elsewhere is seen: its row, and the events that it writes."""
    job_id = "20260101T000000-elsewhere"
    stages = [{"name": "health", "status": "done"}, {"name": "train", "status": "running", "details": "step 600"}]
    row = (
        job_id,
        json.dumps({"target": "vertex"}),
        json.dumps(stages),
        time.time_ns(),
        time.time_ns() - 60 * 10**9,
    )
    with contextlib.closing(sqlite3.connect(data_dir / "brain.db", timeout=10)) as connection:
        connection.execute(
            "INSERT INTO jobs (job_id, kind, params, stages, created_ns, started_ns, state, progress, attempt)"
            " VALUES (?, 'train', ?, ?, ?, ?, 'running', 0.5, 1)",
            row,
        )
        connection.commit()
    folder = data_dir / "jobs" / job_id
    folder.mkdir(parents=True)
    rng, held = random.Random(7), {}
    with EventLog(folder / "events.jsonl") as events:
        for step in range(1, 601):
            loss = 2.1 * math.exp(-step / 130) + 0.35 + rng.gauss(0, 0.02)
            if step % 100 == 0:
                held = {"held_out_loss": loss + 0.06, "held_out_step": step}
            if step % 3 == 0:
                events.append("metrics", step=step, steps=1200, loss=loss, steps_per_s=9.5, **held)
    return job_id


def test_a_training_elsewhere_is_shown_like_one_here(opened: Any, stage: Stage) -> None:
    page = opened()
    plot = page.locator("#learning-plot svg")
    plot.wait_for()
    assert re.match(
        r"Loss [\d.]+ at step 3, [\d.]+ at step 600, lowest .*held-out", plot.get_attribute("aria-label")
    )
    wait_text(page, "#learning-figures", "600 / 1200")
    wait_text(page, "#learning-figures", re.compile(r"\d (s|min|h|days)left"))  # an ETA
    row = f"[data-key='{stage.training}']"
    wait_text(page, row, "Vertex AI")
    wait_text(page, row, re.compile(r"50 %, about \d+ (s|min) left"))
    wait_text(page, "#state-word", "Training")
    assert page.locator("#learning-table tbody tr").count() >= 10
    picture(opened(color_scheme="dark"), "dashboard-dark", full_page=True)
    page.get_by_role("button", name=f"Cancel train {stage.training}").click()
    page.locator("#ask-yes").click()
    wait_text(page, row, "stopping")


def test_a_failed_job_and_a_refused_wish_tell_why(opened: Any, stage: Stage) -> None:
    page = opened()
    wait_text(page, f"[data-key='{stage.failing}']", "no dataset")
    wait_text(page, "#events", "train failed")
    page.locator("#train").click()
    page.locator("#training-kind").select_option("train")
    page.locator("#training-form").evaluate("form => { form.noValidate = true }")
    page.locator("#training-steps").fill("2000000000")
    page.locator("#training-form [type=submit]").click()
    wait_text(page, "#training-problem", "steps")  # the daemon's own words, beside the button
    picture(page, "dashboard-refused")
    page.locator("#training-steps").fill("7")
    page.locator("#training-form [type=submit]").click()
    playwright.expect(page.locator("#training")).to_be_hidden()
    asked = stage.http("GET", "/jobs?limit=1")["jobs"][0]["job_id"]
    page.get_by_role("button", name=f"Cancel train {asked}").click()
    page.locator("#ask-yes").click()
    wait_text(page, f"[data-key='{asked}']", re.compile("cancelled|stopping|failed"))


def test_learning_is_paused_and_heat_and_supply_are_told(opened: Any, stage: Stage) -> None:
    page = opened()
    page.locator("#pause").click()
    wait_text(page, "#pause", "Resume learning")
    wait_text(page, "#learning-note", "paused on the page")
    wait_text(page, "#state-word", "Paused")
    page.locator("#pause").click()
    wait_text(page, "#pause", "Pause learning")
    playwright.expect(page.locator("#state-word")).not_to_have_text("Paused", timeout=PATIENCE_MS)
    set_temperature(stage.sysfs, 82)
    set_under_voltage(stage.sysfs, True)
    wait_text(page, "#state-reason", "under-voltage")
    wait_text(page, "#events", "the supply is too weak")
    playwright.expect(page.locator("#state")).to_have_attribute("data-level", "warn")
    picture(page, "dashboard-degraded")
    picture(opened(READER, PHONE, color_scheme="dark"), "dashboard-phone")
    set_temperature(stage.sysfs, 55)
    set_under_voltage(stage.sysfs, False)
    wait_text(page, "#events", "strong enough again")


@pytest.mark.slow
def test_a_real_training_rests_goes_on_and_is_cancelled_from_the_page(opened: Any, stage: Stage) -> None:
    page = opened()
    record(stage)
    job_id = stage.http("POST", "/train", json=SMALL | {"steps": 1_000_000})["job_id"]
    row = f"[data-key='{job_id}']"
    # In idle time, after JAX was loaded and compiled: on a busy machine that takes minutes.
    wait_text(page, "#learning-figures", "/ 1000000", 400_000)
    wait_text(page, "#learning-note", "held-out loss")
    page.locator("#pause").click()
    wait_text(page, row, "train: paused: paused on the page")
    step = stage.http("GET", "/status")["learning"]["curve"]["step"]
    time.sleep(1.5)
    assert stage.http("GET", "/status")["learning"]["curve"]["step"] == step
    page.locator("#pause").click()
    playwright.expect(page.locator(row)).not_to_contain_text("paused", timeout=PATIENCE_MS)
    wait_text(page, "#learning-figures", re.compile(r"\d (s|min|h|days)left"))
    page.get_by_role("button", name=f"Cancel train {job_id}").click()
    page.locator("#ask-yes").click()
    wait_text(page, row, "cancelled")


def record(stage: Stage) -> None:
    """Record four short episodes."""
    for number in range(4):
        episode = stage.http("POST", "/episodes", json={})["episode_id"]
        batch = [
            {
                "observation": {"joints": [math.sin(0.3 * (i + number)), math.cos(0.3 * (i + number))]},
                "action": {"command": [math.sin(0.3 * (i + number) + 0.5)]},
                "is_terminal": i == 39,
            }
            for i in range(40)
        ]
        stage.http("POST", f"/episodes/{episode}/steps", json=batch)
        stage.http("POST", f"/episodes/{episode}/end", json={"reason": "terminated"})


def picture(page: Any, name: str, **more: Any) -> None:
    """Take a picture for the documentation, where the environment names a folder for it."""
    if (folder := os.environ.get("DASHBOARD_PICTURES")) is not None:
        page.evaluate("() => scrollTo(0, 0)")
        taken = Image.open(io.BytesIO(page.screenshot(**more))).convert("RGB")
        # A palette: what is looked at in the documentation weighs little.
        taken.quantize(160).save(Path(folder) / f"{name}.png", optimize=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [PHONE, DESK], ids=["phone", "desk"])
def test_it_fits_and_every_text_has_contrast(opened: Any, viewport: dict[str, int], scheme: str) -> None:
    page = opened(READER if scheme == "dark" else BOSS, viewport, color_scheme=scheme)
    page.locator("#learning-plot svg").wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= viewport["width"]
    poor = page.evaluate(CONTRAST)
    assert poor == []
    for level in ("ok", "warn", "bad"):
        page.locator("#state").evaluate("(node, level) => { node.dataset.level = level }", level)
        assert page.evaluate(CONTRAST) == [], level
    small = page.evaluate(
        "() => [...document.querySelectorAll('button')].filter(b => b.offsetParent && b.offsetHeight < 32).length"
    )
    assert small == 0, "a finger needs room"


CONTRAST = r"""() => {
  const channels = (text) => text.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (node) => {
    for (; node; node = node.parentElement) {
      const [r, g, b, a = 1] = channels(getComputedStyle(node).backgroundColor);
      if (a > 0) return [r, g, b];
    }
    return [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let text = walker.nextNode(); text; text = walker.nextNode()) {
    const node = text.parentElement;
    if (!text.data.trim() || !node.getClientRects().length || node.closest("dialog:not([open])")) continue;
    const style = getComputedStyle(node);
    const ink = channels(node.closest("svg") ? style.fill : style.color).slice(0, 3);
    const [high, low] = [light(ink), light(ground(node))].sort((a, b) => b - a);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.push(`${text.data.trim().slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return poor;
}"""


def test_everything_is_reached_by_keyboard_and_seen_to_be(opened: Any) -> None:
    page = opened()
    page.locator("#learning-plot svg").wait_for()
    wanted = page.evaluate(
        "() => [...document.querySelectorAll('button, summary, a[href], [tabindex=\"0\"]')]"
        ".filter(n => n.checkVisibility() && !n.closest('dialog')).length"
    )
    page.evaluate("() => document.body.focus()")
    seen = []
    for _ in range(wanted):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
    assert len({name for name, _ in seen}) == wanted, seen
    assert all(outline >= 2 for _, outline in seen), seen
    page.locator("#rollback").focus()
    page.keyboard.press("Enter")
    page.locator("#ask[open]").wait_for()
    page.keyboard.press("Escape")
    assert page.evaluate("() => document.activeElement.id") == "rollback"  # focus comes back


FOCUSED = """() => {
  const node = document.activeElement;
  const box = node.getBoundingClientRect();
  const name = `${node.id} ${node.textContent.slice(0, 30)} ${node.getAttribute("aria-label")}`;
  return [`${name} ${box.x},${box.y + scrollY}`, parseFloat(getComputedStyle(node).outlineWidth)];
}"""


def test_what_is_drawn_is_said_too(opened: Any) -> None:
    page = opened(reduced_motion="reduce")
    page.locator("#learning-plot svg").wait_for()
    nameless = page.evaluate(
        """() => [...document.querySelectorAll("input, select, button, [role=img], section")]
          .filter(n => n.id !== "ask-yes")
          .filter(n => !(n.labels?.length || n.textContent.trim() || n.getAttribute("aria-label")
                         || n.getAttribute("aria-labelledby"))).map(n => n.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    assert page.locator("#state [aria-live=polite] #state-word").count() == 1
    assert page.locator("#learning-table tbody tr").count() >= 2
    assert page.locator(".dot").evaluate("node => getComputedStyle(node).animationName") == "none"
    assert page.locator("html").get_attribute("lang") == "en"


def test_a_lost_connection_is_told_with_the_time_and_mends_itself(opened: Any, stage: Stage) -> None:
    page = opened()
    stage.daemon.kill()
    page.locator("#link[data-link=lost]").wait_for()
    wait_text(page, "#lost", re.compile(r"Connection lost, last seen \d\d:\d\d:\d\d"))
    wait_text(page, "#state-word", "Unknown")
    assert page.evaluate(CONTRAST) == []
    page.locator("#pause").click()
    wait_text(page, "#learning-problem", "cannot be reached")
    picture(page, "dashboard-lost")
    stage.daemon.start()
    page.locator("#link[data-link=live]").wait_for()
    assert not page.locator("#lost").is_visible()
    wait_text(page, "#events", "the daemon started")
