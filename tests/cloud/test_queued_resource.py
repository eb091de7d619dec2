"""Queued resources: what we send is what Google's own protos understand, and machines go when they should."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud.tpu_v2 import QueuedResource, QueuedResourceState, TpuClient
from google.protobuf import json_format

from brain_service.cloud.launchers.labels import unique_name
from brain_service.cloud.launchers.queued_resource import QueuedResourceLauncher, queued_resource, startup_script
from brain_service.errors import ConfigError, ConflictError
from tests.cloud.launching import PROJECT, cloud_settings, request, wait_for
from tests.fakes.control_plane import ControlPlane, running_control_plane

PARENT = f"projects/{PROJECT}/locations/us-central1-a"
NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def sdk(served: ControlPlane) -> TpuClient:
    """Google's own client, over the wire."""
    return TpuClient(
        credentials=AnonymousCredentials(),
        transport="rest",
        client_options=ClientOptions(api_endpoint=served.url),
    )


def parsed(body: dict[str, Any]) -> QueuedResource:
    """Read JSON as the service does: a field or an enum name that it does not know is an error."""
    message = QueuedResource.pb(QueuedResource())
    json_format.ParseDict(body, message, ignore_unknown_fields=False)
    return QueuedResource(message)


def test_a_request_is_what_googles_own_protos_understand() -> None:
    settings = cloud_settings(NOWHERE, service_account="trainer@robots-of-mine.iam.gserviceaccount.com")
    made = parsed(queued_resource(settings, request("queued_resource", max_wait_s=600), 2))
    (spec,) = made.tpu.node_spec
    assert spec.parent == PARENT
    assert spec.node_id == unique_name(settings, "run-1", 2)
    assert spec.node.accelerator_type == "v5litepod-4"
    assert spec.node.runtime_version == "v2-alpha-tpuv5-lite"
    assert dict(spec.node.labels) == {
        "continuon-robot": "robot",
        "continuon-run": "run-1",
        "continuon-attempt": "2",
    }
    assert spec.node.service_account.email == settings.service_account
    assert "cloud_trainer --num-steps 10" in spec.node.metadata["startup-script"]
    assert "spot" in made and "guaranteed" not in made
    assert made.queueing_policy.valid_until_duration.total_seconds() == 600


@pytest.mark.parametrize(
    ("topology", "accelerator", "runtime"),
    [
        ("v5e:1x1", "v5litepod-1", "v2-alpha-tpuv5-lite"),
        ("v5e:16x16", "v5litepod-256", "v2-alpha-tpuv5-lite"),
        ("v6e:4x4", "v6e-16", "v2-alpha-tpuv6e"),
        ("v5p:2x2x2", "v5p-16", "v2-alpha-tpuv5"),
    ],
)
def test_a_topology_becomes_an_accelerator_type(topology: str, accelerator: str, runtime: str) -> None:
    made = parsed(queued_resource(cloud_settings(NOWHERE), request(topology=topology, spot=False), 1))
    (spec,) = made.tpu.node_spec
    assert (spec.node.accelerator_type, spec.node.runtime_version) == (accelerator, runtime)
    assert "guaranteed" in made and "spot" not in made


def test_a_setting_that_is_needed_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cloud\.image is not set"):
        queued_resource(cloud_settings(NOWHERE, image=None), request(), 1)
    with pytest.raises(ConfigError, match=r"cloud\.project is not set"):
        QueuedResourceLauncher(cloud_settings(NOWHERE, project=None))


def test_the_start_up_script_is_a_script_whatever_the_arguments(tmp_path: Path) -> None:
    arguments = ("--data-path", 'gs://b/it\'s; rm -rf "$HOME"', "--output-dir", "gs://b/$(reboot)`x`\n{}")
    path = tmp_path / "start.sh"
    path.write_text(startup_script(cloud_settings(NOWHERE), request(arguments=arguments), 1))
    assert subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True).stderr == ""


def test_a_name_is_of_one_robot_run_and_attempt_and_short_enough() -> None:
    mine, other = cloud_settings(NOWHERE, robot="mine"), cloud_settings(NOWHERE, robot="other")
    longest = "r" * 40
    names = {unique_name(robot, run, n) for robot in (mine, other) for run in ("a", longest) for n in (1, 2)}
    assert len(names) == 8
    assert max(map(len, names)) <= 61


def test_a_resource_lives_as_googles_client_sees_it(plane: ControlPlane, sdk: TpuClient) -> None:
    plane.script(life={"run_s": 30})
    launcher = QueuedResourceLauncher(cloud_settings(plane.url))
    made = launcher.create(request("queued_resource", "seen"), 1)
    assert (made.phase, made.attempt, made.run_id) == ("waiting", 1, "seen")
    running = wait_for(
        lambda: (found := launcher.look(made.name)) and found.phase == "running" and found, "running"
    )
    assert running.running_since_ns >= running.created_ns, "the machines' own time"
    assert running.exit_code is None
    told = sdk.get_queued_resource(name=made.name)
    assert told.state.state == QueuedResourceState.State.ACTIVE
    assert [found.name for found in sdk.list_queued_resources(parent=PARENT) if found.name == made.name]
    launcher.stop(made.name)
    wait_for(lambda: launcher.look(made.name) is None, "the deletion")
    launcher.stop(made.name)
    assert made.name not in [found.name for found in sdk.list_queued_resources(parent=PARENT)]


def test_a_resource_of_googles_client_is_understood(plane: ControlPlane, sdk: TpuClient) -> None:
    settings = cloud_settings(plane.url)
    operation = sdk.create_queued_resource(
        parent=PARENT,
        queued_resource_id=unique_name(settings, "theirs", 4),
        queued_resource=parsed(queued_resource(settings, request("queued_resource", "theirs"), 4)),
    )
    made = operation.result(timeout=5)
    (found,) = QueuedResourceLauncher(settings).find("theirs")
    assert (found.name, found.attempt) == (made.name, 4)
    sdk.delete_queued_resource(request={"name": made.name, "force": True}).result(timeout=5)
    assert QueuedResourceLauncher(settings).find("theirs") == []


@pytest.mark.parametrize("state", list(QueuedResourceState.State))
def test_every_state_that_the_service_has_is_known(plane: ControlPlane, state: QueuedResourceState.State) -> None:
    plane.script(life={"state": state.name, "run_s": 30})
    launcher = QueuedResourceLauncher(cloud_settings(plane.url))
    name = launcher.create(request("queued_resource", f"state-{state.value}"), 1).name
    found = wait_for(lambda: (now := launcher.look(name)) and now.detail == state.name and now, state.name)
    expected = {
        0: "unknown",
        1: "waiting",
        2: "waiting",
        3: "waiting",
        4: "failed",
        5: "unknown",
        6: "running",
        7: "preempted",
        8: "preempted",
        9: "waiting",
    }
    assert found.phase == expected[state.value]


def test_a_state_of_tomorrow_is_waited_out_and_still_billed(plane: ControlPlane) -> None:
    plane.script(life={"state": "HIBERNATING", "run_s": 30})
    launcher = QueuedResourceLauncher(cloud_settings(plane.url))
    name = launcher.create(request("queued_resource", "tomorrow"), 1).name
    found = wait_for(lambda: (now := launcher.look(name)) and now.phase == "unknown" and now, "the state")
    assert found.detail == "HIBERNATING"
    assert name in [one.name for one in launcher.owned()]


@pytest.mark.parametrize(
    ("life", "phase", "problem"),
    [
        ({"preempt_after_s": 0.1}, "preempted", False),
        ({"stockout": True}, "preempted", False),
        ({"expire": True}, "failed", False),
    ],
)
def test_an_end_is_told_from_another(plane: ControlPlane, life: dict[str, Any], phase: str, problem: bool) -> None:
    plane.script(life=life)
    launcher = QueuedResourceLauncher(cloud_settings(plane.url))
    name = launcher.create(request("queued_resource", f"end-{next(iter(life)).replace('_', '-')}"), 1).name
    found = wait_for(
        lambda: (now := launcher.look(name)) and now.phase not in ("waiting", "running") and now, "the end"
    )
    assert (found.phase, found.problem is not None) == (phase, problem)
    launcher.stop(name)
    wait_for(lambda: launcher.look(name) is None, "the deletion")


def test_a_program_that_ends_leaves_machines_that_bill_and_says_so(plane: ControlPlane) -> None:
    plane.script(life={"run_s": 0.1, "exit_code": 78})
    launcher = QueuedResourceLauncher(cloud_settings(plane.url))
    name = launcher.create(request("queued_resource", "ended"), 1).name
    found = wait_for(lambda: (now := launcher.look(name)) and now.exit_code is not None and now, "the exit code")
    assert (found.phase, found.exit_code, found.detail) == ("running", 78, "ACTIVE")
    assert name in [one.name for one in launcher.owned()]


def test_one_attempt_is_one_resource_however_often_it_is_asked_for(plane: ControlPlane) -> None:
    before = plane.report()["creations"]["queued_resource"]
    plane.script(faults=[{"kind": "drop_after", "method": "POST", "path": "queuedResources", "times": 2}])
    wanted = request("queued_resource", "once")
    first = QueuedResourceLauncher(cloud_settings(plane.url)).create(wanted, 1)
    again = QueuedResourceLauncher(cloud_settings(plane.url)).create(wanted, 1)
    assert again.name == first.name
    assert plane.report()["creations"]["queued_resource"] == before + 1


def test_a_name_that_another_took_is_a_conflict(plane: ControlPlane, sdk: TpuClient) -> None:
    settings = cloud_settings(plane.url)
    body = queued_resource(settings, request("queued_resource", "taken"), 1)
    body["tpu"]["nodeSpec"][0]["node"]["labels"] = {}
    name = unique_name(settings, "taken", 1)
    sdk.create_queued_resource(parent=PARENT, queued_resource_id=name, queued_resource=parsed(body))
    with pytest.raises(ConflictError, match="not of run taken"):
        QueuedResourceLauncher(settings).create(request("queued_resource", "taken"), 1)


def test_lists_are_read_to_their_end_and_show_nothing_of_others(plane: ControlPlane) -> None:
    plane.script(life={"run_s": 30}, page_size=2)
    mine = QueuedResourceLauncher(cloud_settings(plane.url, robot="mine"))
    other = QueuedResourceLauncher(cloud_settings(plane.url, robot="other"))
    names = [mine.create(request("queued_resource", "paged"), attempt).name for attempt in range(1, 6)]
    theirs = other.create(request("queued_resource", "paged"), 1).name
    assert [one.name for one in mine.find("paged")] == names[::-1], "newest first"
    assert {one.name for one in mine.owned()} == set(names)
    assert [one.name for one in other.owned()] == [theirs]


def test_the_start_up_script_runs_the_trainer_and_tells_how_it_ended(tmp_path: Path) -> None:
    """The real script, with stand-ins for docker, gcloud and the metadata server."""
    with running_control_plane(tmp_path / "plane", run=True) as plane:
        launcher = QueuedResourceLauncher(cloud_settings(plane.url))
        wanted = request("queued_resource", "script", arguments=("--no-such-option", 'it\'s a "test" of $HOME'))
        name = launcher.create(wanted, 1).name
        wait_for(lambda: (now := launcher.look(name)) and now.exit_code == 2, "argparse's exit code", 30)
        (log,) = (tmp_path / "plane" / "logs").iterdir()
        assert "usage: cloud-trainer" in log.read_text()
        launcher.stop(name)
        wait_for(lambda: launcher.look(name) is None, "the deletion")
