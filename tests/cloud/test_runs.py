"""A run from its intent to its end, over the wire: taken up, stopped in time, told rightly, and paid for once."""

import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from brain_service.cloud.launchers import Launcher
from brain_service.cloud.launchers.queued_resource import QueuedResourceLauncher
from brain_service.cloud.launchers.vertex import VertexLauncher
from brain_service.cloud.prices import PriceList
from brain_service.cloud.run_status import STATUS_FILE
from brain_service.cloud.runs import CloudRuns, RunView
from brain_service.errors import ConfigError, ConflictError, InvalidError, NotFoundError
from tests.cloud.launching import cloud_settings, heartbeat, request
from tests.fakes.control_plane import ControlPlane

Target = Literal["vertex", "queued_resource"]
both = pytest.mark.parametrize("target", ["vertex", "queued_resource"])


class Robot:
    """One robot's runs against the fake services, with an output directory on this machine."""

    def __init__(self, plane: ControlPlane, folder: Path, run_id: str) -> None:
        self.plane = plane
        self.folder = folder
        self.run_id = run_id
        self.out = folder / "out"
        self.more: dict[str, Any] = {"robot": run_id}
        self._runs: CloudRuns | None = None

    @property
    def runs(self) -> CloudRuns:
        if self._runs is None:
            settings = cloud_settings(self.plane.url, **self.more)
            launchers: dict[str, Launcher] = {
                "vertex": VertexLauncher(settings, settle_s=0.3),
                "queued_resource": QueuedResourceLauncher(settings),
            }
            self._runs = CloudRuns(self.folder / "brain.db", settings, launchers)
        return self._runs

    def restart(self) -> None:
        """Forget all but the database."""
        if self._runs is not None:
            self._runs.close()
        self._runs = None

    def begin(self, target: str, **more: Any) -> None:
        self.runs.begin(request(target, self.run_id, output_dir=str(self.out), **more))

    def until(self, found: Callable[[RunView], object], what: str = "", timeout_s: float = 20.0) -> RunView:
        give_up = time.monotonic() + timeout_s
        while time.monotonic() < give_up:
            view = self.runs.advance(self.run_id)
            if found(view):
                return view
            time.sleep(0.03)
        raise AssertionError(f"waited for {what or 'a state'}, last seen: {view}")

    def is_(self, state: str) -> RunView:
        return self.until(lambda view: view.state == state, state)

    def beat(self, **more: Any) -> None:
        heartbeat(self.out, self.run_id, **more)

    @property
    def mine(self) -> list[dict[str, Any]]:
        resources = self.plane.report()["resources"]
        return [one for one in resources if one["labels"].get("continuon-run") == self.run_id]

    @property
    def live(self) -> list[str]:
        phases = ("queued", "pending", "running", "going", "cancelling")
        return [one["name"] for one in self.mine if one["phase"] in phases]

    def ends(self) -> None:
        """Wait until nothing bills."""
        give_up = time.monotonic() + 10
        while self.live:
            assert time.monotonic() < give_up, self.live
            time.sleep(0.03)


@pytest.fixture
def robot(served: ControlPlane, tmp_path: Path) -> Iterator[Robot]:
    served.script(life={"run_s": 60})
    robot = Robot(served, tmp_path, f"r{uuid.uuid4().hex[:12]}")
    yield robot
    robot.restart()


@both
def test_a_run_waits_runs_and_is_done(robot: Robot, target: Target) -> None:
    robot.begin(target)
    assert robot.runs.view(robot.run_id).state == "waiting"
    assert robot.mine == [], "nothing is asked for before the first look"
    assert robot.runs.advance(robot.run_id).state == "waiting"
    running = robot.is_("running")
    assert running.capacity == robot.mine[0]["name"]
    robot.beat(phase="training", step=7)
    view = robot.until(lambda view: view.status is not None, "the heartbeat")
    assert "training, step 7 of 10" in view.detail
    robot.beat(phase="done", step=10, model_id="m1")
    done = robot.is_("done")
    assert done.status is not None and done.status.model_id == "m1"
    assert done.cost_usd > 0 and done.error is None
    robot.ends()
    assert robot.runs.advance(robot.run_id).state == "done", "an end is an end"
    assert len(robot.mine) == 1


@both
def test_a_preempted_run_is_taken_up_by_the_next_attempt(robot: Robot, target: Target) -> None:
    robot.begin(target)
    robot.is_("running")
    robot.beat(attempt=1, step=4)
    robot.until(lambda view: view.status is not None)
    robot.plane.preempt(robot.mine[0]["name"])
    robot.beat(attempt=1, step=5, phase="preempted")
    second = robot.until(lambda view: view.attempt == 2 and view.state == "running", "attempt 2")
    assert second.status is not None and second.status.step == 5
    robot.beat(attempt=2, step=10, phase="done", model_id="m2")
    assert robot.is_("done").attempt == 2
    assert [one["labels"]["continuon-attempt"] for one in robot.mine if one["runs"]] in (["1", "2"], ["2", "1"])
    robot.ends()


def test_the_last_word_of_an_attempt_that_comes_late_is_not_the_next_ones(robot: Robot) -> None:
    robot.begin("vertex")
    robot.is_("running")
    robot.beat(attempt=1)
    robot.until(lambda view: view.status is not None)
    robot.plane.preempt(robot.mine[0]["name"])
    robot.until(lambda view: view.attempt == 2 and view.state == "running")
    robot.beat(attempt=1, phase="failed", error={"detail": "torn down"})
    for _ in range(3):
        assert robot.runs.advance(robot.run_id).state == "running"
    robot.beat(attempt=2, phase="failed", error={"detail": "loss is not a number", "status": 422})
    failed = robot.is_("failed")
    assert failed.error == {"detail": "loss is not a number", "status": 422}
    robot.ends()


@both
def test_a_run_that_failed_is_not_tried_again_and_gives_its_machines_back(robot: Robot, target: Target) -> None:
    robot.begin(target)
    robot.is_("running")
    robot.beat(phase="failed", error={"title": "Corrupt data", "detail": "shard 3 is torn"})
    failed = robot.is_("failed")
    assert failed.detail == "shard 3 is torn"
    robot.ends()
    assert len(robot.mine) == 1


@both
@pytest.mark.parametrize(("code", "state", "attempts"), [(78, "failed", 1), (75, "running", 2), (1, "running", 2)])
def test_an_exit_code_tells_whether_to_try_again(
    robot: Robot, target: Target, code: int, state: str, attempts: int
) -> None:
    robot.begin(target)
    before = sum(robot.plane.report()["creations"].values())
    robot.plane.script(lives=[*[{}] * before, {"run_s": 0.1, "exit_code": code}], life={"run_s": 60})
    view = robot.until(lambda view: view.state == state and view.attempt == attempts, state)
    assert (view.error is not None) == (state == "failed")
    assert len(robot.mine) == attempts
    robot.runs.stop(robot.run_id)
    robot.ends()


@both
def test_a_run_that_stalls_is_started_again(robot: Robot, target: Target) -> None:
    robot.more["stall_timeout_s"] = 0.4
    robot.begin(target)
    robot.is_("running")
    robot.beat(attempt=1)
    view = robot.until(lambda view: view.attempt == 2, "the second attempt")
    assert "no heartbeat for" in view.detail
    robot.until(lambda view: view.state == "running")
    assert len(robot.live) == 1
    robot.runs.stop(robot.run_id)
    robot.ends()


def test_a_run_whose_step_hangs_while_its_heartbeat_goes_on(robot: Robot) -> None:
    robot.more["stall_timeout_s"] = 0.5
    robot.begin("vertex")
    robot.is_("running")

    def beaten(view: RunView) -> bool:
        robot.beat(attempt=1, step=6)
        return view.attempt == 2

    assert "stuck at step 6" in robot.until(beaten, "the second attempt").detail
    robot.runs.stop(robot.run_id)


def test_attempts_have_an_end(robot: Robot) -> None:
    robot.more["max_attempts"] = 2
    robot.plane.script(life={"run_s": 0.05, "exit_code": 1})
    robot.begin("vertex")
    failed = robot.is_("failed")
    assert "given up after 2 attempts (cloud.max_attempts)" in failed.detail
    assert len(robot.mine) == 2


@both
def test_a_run_that_costs_too_much_is_stopped(robot: Robot, target: Target) -> None:
    robot.more["max_cost_usd"] = 0.0006
    robot.begin(target)
    failed = robot.is_("failed")
    assert "over cloud.max_cost_usd = 0.00" in failed.detail and "checkpoints stay" in failed.detail
    assert failed.error is not None and failed.error["status"] == 429
    robot.ends()
    billed_usd = PriceList().cost_usd(_slice(), robot.mine[0]["billed_s"], spot=True)
    assert billed_usd < 0.002


def _slice() -> Any:
    from brain_service.cloud.machines import tpu_slice

    return tpu_slice("v5e:2x2")


def test_what_the_robot_might_not_be_there_to_stop_the_service_ends(robot: Robot) -> None:
    """The job's own timeout is what the money lasts for."""
    robot.more["max_cost_usd"] = 1.2
    robot.begin("vertex", max_run_s=1e6)
    robot.is_("running")
    job = VertexLauncher(cloud_settings(robot.plane.url, robot=robot.run_id))
    (found,) = job.find(robot.run_id)
    told = job._client.get(f"/v1/{found.name}")["jobSpec"]["scheduling"]["timeout"]
    # 4 chips at half of 1.20 USD: half an hour.
    assert told == "1800s"
    robot.runs.stop(robot.run_id)


def test_a_run_that_takes_too_long_is_stopped(robot: Robot) -> None:
    robot.begin("queued_resource", max_run_s=0.3)
    failed = robot.is_("failed")
    assert "over max_run_s" in failed.detail
    robot.ends()


@both
def test_waiting_has_an_end_with_advice(robot: Robot, target: Target) -> None:
    robot.plane.script(life={"queue_s": 60})
    robot.begin(target, max_wait_s=0.3)
    failed = robot.is_("failed")
    assert "no machines for v5e:2x2" in failed.detail
    assert "cloud.spot to false" in failed.detail and "cloud.zone" in failed.detail
    robot.ends()


@both
def test_no_machines_now_is_waited_out_and_costs_no_attempt(robot: Robot, target: Target) -> None:
    robot.more["max_attempts"] = 1
    robot.plane.script(faults=[{"kind": "stockout", "method": "POST"}])
    robot.begin(target)
    view = robot.runs.advance(robot.run_id)
    assert view.state == "waiting" and "no machines are free there now" in view.detail
    assert robot.runs.advance(robot.run_id).detail == view.detail, "not asked again at once"
    assert robot.mine == []


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        ("quota", "ask for more"),
        ("permission", "add-iam-policy-binding"),
        ("disabled", "gcloud services enable"),
        ("project", "gcloud projects list"),
        ("invalid", "wrong"),
    ],
)
def test_what_repeating_does_not_help_fails_the_run_and_says_what_to_do(
    robot: Robot, kind: str, says: str
) -> None:
    robot.plane.script(faults=[{"kind": kind, "method": "POST", "times": 9}])
    robot.begin("vertex")
    failed = robot.runs.advance(robot.run_id)
    assert failed.state == "failed"
    assert failed.error is not None and says in failed.error["detail"]
    assert robot.mine == []


@both
@pytest.mark.parametrize("name", ["project", "image"])
def test_a_setting_that_is_needed_fails_the_run_and_is_named(
    served: ControlPlane, tmp_path: Path, target: Target, name: str
) -> None:
    runs = CloudRuns(tmp_path / "brain.db", cloud_settings(served.url, **{name: None}))
    runs.begin(request(target, f"without-{name}"))
    view = runs.advance(f"without-{name}")
    assert view.state == "failed" and f"cloud.{name} is not set" in view.detail
    runs.close()


def test_credentials_that_are_not_there_fail_the_run(tmp_path: Path) -> None:
    settings = cloud_settings("https://tpu.example", credentials_file=tmp_path / "absent.json")
    runs = CloudRuns(tmp_path / "brain.db", settings)
    runs.begin(request("queued_resource"))
    view = runs.advance("run-1")
    assert view.state == "failed" and "gcloud auth application-default login" in view.detail
    assert runs.reap() == []
    runs.close()
    with pytest.raises(ConfigError):
        CloudRuns(tmp_path, settings)


def test_spot_for_several_hosts_on_vertex_fails_before_anything_is_paid(robot: Robot) -> None:
    robot.begin("vertex", topology="v5e:4x4")
    failed = robot.runs.advance(robot.run_id)
    assert failed.state == "failed" and "one host only" in failed.detail
    assert robot.mine == []


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        *(("vertex", kind) for kind in ("unavailable", "html", "drop_before", "skew")),
        *(("queued_resource", kind) for kind in ("garbage", "redirect", "rate", "skew")),
    ],
)
def test_trouble_that_may_pass_changes_nothing(robot: Robot, target: Target, kind: str) -> None:
    robot.begin(target)
    running = robot.is_("running")
    if kind == "skew":
        robot.plane.script(clock_ahead_s=7200, life={"run_s": 60})
        costs = [robot.runs.advance(robot.run_id).cost_usd for _ in range(2)]
        assert max(costs) < 0.01, "hours of clock are not hours of machines"
    else:
        robot.plane.script(faults=[{"kind": kind, "times": 9}], life={"run_s": 60})
        view = robot.runs.advance(robot.run_id)
        assert (view.state, view.attempt, view.capacity) == ("running", 1, running.capacity)
        assert view.error is None and robot.plane.url in view.detail
    robot.plane.script(life={"run_s": 60})
    robot.beat(phase="done", model_id="m")
    robot.is_("done")
    robot.ends()
    assert len(robot.mine) == 1


@both
def test_rights_that_are_lost_while_it_runs_do_not_give_the_run_up(robot: Robot, target: Target) -> None:
    robot.begin(target)
    robot.is_("running")
    robot.plane.script(faults=[{"kind": "permission", "times": 9}], life={"run_s": 60})
    view = robot.runs.advance(robot.run_id)
    assert view.state == "running" and "which may go on" in view.detail
    robot.plane.script(life={"run_s": 60})
    assert "which may go on" not in robot.runs.advance(robot.run_id).detail
    robot.runs.stop(robot.run_id)
    robot.ends()


def test_rights_that_stay_lost_fail_it_in_the_end(robot: Robot) -> None:
    robot.more["stall_timeout_s"] = 0.3
    robot.begin("vertex")
    robot.is_("running")
    robot.plane.script(faults=[{"kind": "permission", "times": 99}], life={"run_s": 60})
    failed = robot.is_("failed")
    assert failed.error is not None and failed.error["status"] == 403
    robot.plane.script()
    assert robot.runs.reap() == [failed.capacity]
    robot.ends()


@both
def test_a_state_of_tomorrow_does_not_disturb_the_run(robot: Robot, target: Target) -> None:
    robot.plane.script(life={"run_s": 60, "state": "DREAMING"})
    robot.begin(target)
    robot.until(lambda view: "DREAMING" in view.detail, "the state")
    robot.beat(phase="done", model_id="m")
    assert robot.is_("done").attempt == 1
    robot.ends()


@both
def test_a_restart_adopts_in_less_than_two_seconds(robot: Robot, target: Target) -> None:
    robot.begin(target)
    running = robot.is_("running")
    robot.restart()
    start_s = time.monotonic()
    view = robot.runs.advance(robot.run_id)
    assert time.monotonic() - start_s < 2
    assert (view.state, view.capacity) == ("running", running.capacity)
    assert len(robot.mine) == 1
    robot.runs.stop(robot.run_id)


def test_a_robot_that_lost_its_database_adopts_what_it_finds(robot: Robot) -> None:
    robot.begin("queued_resource")
    robot.is_("running")
    robot.plane.preempt(robot.mine[0]["name"])
    second = robot.until(lambda view: view.attempt == 2 and view.state == "running")
    robot.restart()
    for path in robot.folder.glob("brain.db*"):
        path.unlink()
    robot.begin("queued_resource")
    view = robot.runs.advance(robot.run_id)
    assert (view.state, view.attempt, view.capacity) == ("running", 2, second.capacity)
    robot.runs.stop(robot.run_id)
    robot.ends()


@both
def test_a_capacity_that_someone_deleted_is_replaced(robot: Robot, target: Target) -> None:
    robot.begin(target)
    running = robot.is_("running")
    assert running.capacity is not None
    settings = cloud_settings(robot.plane.url, robot=robot.run_id)
    by_hand = VertexLauncher(settings) if target == "vertex" else QueuedResourceLauncher(settings)
    by_hand.stop(running.capacity)
    assert robot.until(lambda view: view.attempt == 2 and view.state == "running").capacity != running.capacity
    robot.runs.stop(robot.run_id)
    robot.ends()


@both
def test_a_stopped_run_gives_its_machines_back_and_stays_stopped(robot: Robot, target: Target) -> None:
    robot.begin(target)
    robot.is_("running")
    assert robot.runs.stop(robot.run_id).state == "stopped"
    robot.ends()
    assert robot.runs.stop(robot.run_id).state == "stopped"
    assert robot.runs.advance(robot.run_id).state == "stopped"
    robot.runs.begin(request(target, robot.run_id, output_dir=str(robot.out)))
    assert robot.runs.advance(robot.run_id).state == "stopped", "begun again by a retry, not started again"


@both
def test_machines_that_cannot_be_stopped_now_are_stopped_later(robot: Robot, target: Target) -> None:
    robot.begin(target)
    robot.is_("running")
    robot.plane.script(faults=[{"kind": "unavailable", "times": 99}], life={"run_s": 60})
    assert robot.runs.stop(robot.run_id).state == "stopped"
    assert len(robot.live) == 1
    robot.plane.script()
    robot.runs.advance(robot.run_id)
    robot.ends()


@both
def test_the_reaper_ends_what_no_run_wants_and_touches_nobody_elses(robot: Robot, target: Target) -> None:
    robot.begin(target)
    running = robot.is_("running")
    make = VertexLauncher if target == "vertex" else QueuedResourceLauncher
    mine = make(cloud_settings(robot.plane.url, robot=robot.run_id))
    other = make(cloud_settings(robot.plane.url, robot="other"))
    forgotten = mine.create(request(target, f"{robot.run_id}-old"), 1)
    doubled = mine.create(request(target, robot.run_id), 7)
    theirs = other.create(request(target, f"{robot.run_id}-theirs"), 1)
    assert sorted(robot.runs.reap()) == sorted([forgotten.name, doubled.name])
    give_up = time.monotonic() + 10
    while {one.name for one in mine.owned()} - {running.capacity}:
        assert time.monotonic() < give_up
        time.sleep(0.03)
    assert [one.name for one in mine.owned()] == [running.capacity]
    assert theirs.name in [one.name for one in other.owned()]
    assert robot.runs.reap() == []
    assert robot.runs.advance(robot.run_id).state == "running"
    robot.runs.stop(robot.run_id)
    other.stop(theirs.name)


@both
def test_a_run_that_is_stopped_before_its_lost_answer_was_found_leaves_nothing(
    robot: Robot, target: Target
) -> None:
    lost = {"kind": "drop_after", "method": "POST", "path": "projects", "times": 9}
    robot.plane.script(faults=[lost], list_lag_s=0.2, life={"run_s": 60})
    robot.begin(target)
    robot.until(lambda _: robot.mine, "the creation")
    assert robot.runs.stop(robot.run_id).state == "stopped"
    robot.until(lambda view: not view.bills, "the capacity to be found and stopped")
    robot.ends()
    assert len(robot.mine) == 1


def test_the_reaper_leaves_a_service_that_is_away_for_the_next_time(robot: Robot) -> None:
    make = QueuedResourceLauncher(cloud_settings(robot.plane.url, robot=robot.run_id))
    forgotten = make.create(request("queued_resource", f"{robot.run_id}-old"), 1)
    robot.plane.script(faults=[{"kind": "unavailable", "path": "customJobs", "times": 9}], life={"run_s": 60})
    assert robot.runs.reap() == [forgotten.name]


def test_a_heartbeat_that_cannot_be_read_is_no_end(robot: Robot) -> None:
    robot.begin("vertex")
    robot.is_("running")
    robot.out.mkdir()
    (robot.out / STATUS_FILE).write_bytes(b'{"schema": "continuon-brain/run-')
    view = robot.runs.advance(robot.run_id)
    assert view.state == "running" and STATUS_FILE in view.detail
    robot.beat(phase="done", model_id="m")
    robot.is_("done")


def test_an_output_directory_of_another_run_is_refused(robot: Robot) -> None:
    heartbeat(robot.out, "someone-else", phase="done", model_id="old")
    robot.begin("vertex")
    failed = robot.is_("failed")
    assert "is of run 'someone-else'" in failed.detail
    robot.ends()


def test_an_intent_is_one_request(robot: Robot) -> None:
    robot.begin("vertex")
    robot.begin("vertex")
    with pytest.raises(ConflictError, match="another run id"):
        robot.begin("vertex", topology="v5e:1x1")
    assert len(robot.mine) == 0


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"run_id": "Run_1"}, "run_id"),
        ({"run_id": "r" * 41}, "run_id"),
        ({"run_id": ""}, "run_id"),
        ({"topology": "v5e:3x3"}, "topology"),
        ({"target": "gke"}, "target"),
    ],
)
def test_a_request_that_is_none(robot: Robot, more: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidError) as caught:
        robot.runs.begin(request(**more))
    assert caught.value.field == field


def test_a_run_that_nobody_began(robot: Robot) -> None:
    for call in (robot.runs.advance, robot.runs.view, robot.runs.stop):
        with pytest.raises(NotFoundError, match="no run 'nobody'"):
            call("nobody")
