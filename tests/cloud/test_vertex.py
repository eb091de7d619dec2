"""Vertex AI: what we send is what Google's own protos understand, and what comes back is read rightly."""

import re
from pathlib import Path
from typing import Any

import pytest
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from google.cloud.aiplatform_v1 import CustomJob, JobServiceClient, JobState, Scheduling
from google.protobuf import json_format

from brain_service.cloud.launchers.vertex import VertexLauncher, custom_job
from brain_service.cloud.machines import tpu_slice
from brain_service.errors import ConfigError, InvalidError
from tests.cloud.launching import PROJECT, cloud_settings, request, wait_for
from tests.fakes.control_plane import ControlPlane, running_control_plane

PARENT = f"projects/{PROJECT}/locations/us-central1"


@pytest.fixture(scope="module")
def sdk(served: ControlPlane) -> JobServiceClient:
    """Google's own client, over the wire."""
    return JobServiceClient(
        credentials=AnonymousCredentials(),
        transport="rest",
        client_options=ClientOptions(api_endpoint=served.url),
    )


def parsed(body: dict[str, Any]) -> CustomJob:
    """Read JSON as the service does: a field or an enum name that it does not know is an error."""
    message = CustomJob.pb(CustomJob())
    json_format.ParseDict(body, message, ignore_unknown_fields=False)
    return CustomJob(message)


def test_a_job_is_what_googles_own_protos_understand() -> None:
    settings = cloud_settings(
        "http://127.0.0.1:1", service_account="trainer@robots-of-mine.iam.gserviceaccount.com"
    )
    wanted = request(max_run_s=7200.4, max_wait_s=600, arguments=("--output-dir", "gs://b/x y", "--flag"))
    job = parsed(custom_job(settings, wanted, 3))
    (pool,) = job.job_spec.worker_pool_specs
    assert dict(job.labels) == {"continuon-robot": "robot", "continuon-run": "run-1", "continuon-attempt": "3"}
    assert (pool.machine_spec.machine_type, pool.machine_spec.tpu_topology) == ("ct5lp-hightpu-4t", "2x2")
    assert pool.replica_count == 1
    assert pool.container_spec.image_uri == settings.image
    assert list(pool.container_spec.command) == ["python", "-m", "cloud_trainer"]
    assert list(pool.container_spec.args) == list(wanted.arguments)
    assert {item.name: item.value for item in pool.container_spec.env}["CONTINUON_RUN_ID"] == "run-1"
    scheduling = job.job_spec.scheduling
    assert scheduling.strategy == Scheduling.Strategy.SPOT
    assert scheduling.timeout.total_seconds() == 7200
    assert scheduling.max_wait_duration.total_seconds() == 600
    assert scheduling.disable_retries and not scheduling.restart_job_on_worker_restart
    assert job.job_spec.service_account == settings.service_account


@pytest.mark.parametrize(
    ("topology", "machine", "hosts"),
    [
        ("v5e:1x1", "ct5lp-hightpu-1t", 1),
        ("v5e:2x2", "ct5lp-hightpu-4t", 1),
        ("v5e:2x4", "ct5lp-hightpu-8t", 1),
        ("v5e:4x4", "ct5lp-hightpu-4t", 4),
        ("v5e:16x16", "ct5lp-hightpu-4t", 64),
        ("v6e:1x1", "ct6e-standard-1t", 1),
        ("v6e:2x4", "ct6e-standard-8t", 1),
        ("v6e:4x4", "ct6e-standard-4t", 4),
    ],
)
def test_a_topology_becomes_machines_on_demand(topology: str, machine: str, hosts: int) -> None:
    job = parsed(custom_job(cloud_settings("http://127.0.0.1:1"), request(topology=topology, spot=False), 1))
    (pool,) = job.job_spec.worker_pool_specs
    assert (pool.machine_spec.machine_type, pool.replica_count) == (machine, hosts)
    assert pool.machine_spec.tpu_topology == topology.partition(":")[2]
    assert job.job_spec.scheduling.strategy == Scheduling.Strategy.STANDARD
    assert tpu_slice(topology).hosts == hosts


def test_spot_for_several_hosts_is_refused_before_anything_is_asked() -> None:
    with pytest.raises(ConfigError, match=r"one host only: set cloud\.spot to false"):
        custom_job(cloud_settings("http://127.0.0.1:1"), request(topology="v5e:4x4"), 1)


def test_v5p_is_not_for_vertex() -> None:
    with pytest.raises(InvalidError, match="queued_resource"):
        custom_job(cloud_settings("http://127.0.0.1:1"), request(topology="v5p:2x2x1"), 1)


def test_a_setting_that_is_needed_is_named() -> None:
    with pytest.raises(ConfigError, match=r"cloud\.image is not set"):
        custom_job(cloud_settings("http://127.0.0.1:1", image=None), request(), 1)
    with pytest.raises(ConfigError, match=r"cloud\.project is not set"):
        VertexLauncher(cloud_settings("http://127.0.0.1:1", project=None))


def test_our_job_lives_as_googles_client_sees_it(plane: ControlPlane, sdk: JobServiceClient) -> None:
    launcher = VertexLauncher(cloud_settings(plane.url))
    plane.script(life={"run_s": 30})
    made = launcher.create(request(run_id="seen"), 1)
    assert (made.phase, made.attempt, made.run_id) == ("waiting", 1, "seen")
    running = wait_for(
        lambda: (found := launcher.look(made.name)) and found.phase == "running" and found, "running"
    )
    assert running.running_since_ns >= running.created_ns
    job = sdk.get_custom_job(name=made.name)
    assert job.state == JobState.JOB_STATE_RUNNING
    assert [found.name for found in sdk.list_custom_jobs(parent=PARENT) if found.name == made.name]
    launcher.stop(made.name)
    stopped = wait_for(
        lambda: (found := launcher.look(made.name)) and found.phase == "stopped" and found, "stopped"
    )
    assert stopped.ended_ns is not None
    assert sdk.get_custom_job(name=made.name).state == JobState.JOB_STATE_CANCELLED
    launcher.stop(made.name)
    launcher.stop(f"{PARENT}/customJobs/404")
    assert launcher.look(f"{PARENT}/customJobs/404") is None


def test_a_job_of_googles_client_is_understood(plane: ControlPlane, sdk: JobServiceClient) -> None:
    settings = cloud_settings(plane.url)
    plane.script(life={"run_s": 30})
    job = sdk.create_custom_job(
        parent=PARENT, custom_job=parsed(custom_job(settings, request(run_id="theirs"), 2))
    )
    (found,) = VertexLauncher(settings).find("theirs")
    assert (found.name, found.attempt, found.run_id) == (job.name, 2, "theirs")
    asked = {"parent": PARENT, "filter": 'labels.continuon-run="theirs"'}
    assert [one.name for one in sdk.list_custom_jobs(asked)] == [job.name]
    sdk.cancel_custom_job(name=job.name)
    wait_for(lambda: VertexLauncher(settings).find("theirs")[0].phase == "stopped", "the end")


@pytest.mark.parametrize("state", list(JobState))
def test_every_state_that_the_service_has_is_known(plane: ControlPlane, state: JobState) -> None:
    plane.script(life={"state": state.name, "run_s": 30})
    launcher = VertexLauncher(cloud_settings(plane.url))
    name = launcher.create(request(run_id=f"state-{state.value}"), 1).name
    wait_for(lambda: (found := launcher.look(name)) and found.detail == state.name, state.name)
    found = launcher.look(name)
    assert found is not None
    expected = {
        0: "unknown",
        1: "waiting",
        2: "waiting",
        3: "running",
        4: "succeeded",
        5: "failed",
        6: "unknown",
        7: "stopped",
        8: "waiting",
        9: "failed",
        10: "running",
        11: "failed",
    }
    assert found.phase == expected[state.value]


def test_a_state_of_tomorrow_is_waited_out(plane: ControlPlane) -> None:
    plane.script(life={"state": "JOB_STATE_DREAMING", "run_s": 30})
    launcher = VertexLauncher(cloud_settings(plane.url))
    name = launcher.create(request(run_id="tomorrow"), 1).name
    found = wait_for(lambda: (now := launcher.look(name)) and now.phase == "unknown" and now, "the state")
    assert found.detail == "JOB_STATE_DREAMING"
    assert name in [one.name for one in launcher.owned()]
    launcher.stop(name)


@pytest.mark.parametrize(
    ("life", "phase", "code"),
    [
        ({"run_s": 0.1}, "succeeded", 0),
        ({"run_s": 0.1, "exit_code": 75}, "preempted", 75),
        ({"run_s": 0.1, "exit_code": 78}, "failed", 78),
        ({"run_s": 0.1, "exit_code": 1}, "failed", 1),
        ({"preempt_after_s": 0.1}, "preempted", None),
        ({"stockout": True}, "preempted", None),
        ({"expire": True}, "failed", None),
    ],
)
def test_an_end_is_told_from_another(
    plane: ControlPlane, life: dict[str, Any], phase: str, code: int | None
) -> None:
    plane.script(life=life)
    launcher = VertexLauncher(cloud_settings(plane.url))
    run_id = re.sub("[^a-z0-9]+", "-", f"end {life}").strip("-")[:40]
    name = launcher.create(request(run_id=run_id), 1).name
    found = wait_for(
        lambda: (now := launcher.look(name)) and now.phase not in ("waiting", "running") and now, "the end"
    )
    assert (found.phase, found.exit_code) == (phase, code)
    assert found.problem is None


def test_a_preempted_job_that_the_service_brings_back_is_waited_for(plane: ControlPlane) -> None:
    plane.script(life={"preempt_after_s": 0.1, "preempt_as": "PENDING", "provision_s": 0.3, "run_s": 0.2})
    launcher = VertexLauncher(cloud_settings(plane.url))
    name = launcher.create(request(run_id="back"), 1).name
    phases: list[str] = []

    def ended() -> bool:
        found = launcher.look(name)
        assert found is not None
        phases.extend([found.phase] if phases[-1:] != [found.phase] else [])
        return found.phase == "succeeded"

    wait_for(ended, "the end")
    assert phases[-3:] == ["waiting", "running", "succeeded"]


def test_one_attempt_is_one_job_however_often_it_is_asked_for(plane: ControlPlane) -> None:
    launcher = VertexLauncher(cloud_settings(plane.url))
    before = plane.report()["creations"]["vertex"]
    first = launcher.create(request(run_id="once"), 1)
    assert launcher.create(request(run_id="once"), 1).name == first.name
    assert VertexLauncher(cloud_settings(plane.url)).create(request(run_id="once"), 1).name == first.name
    assert plane.report()["creations"]["vertex"] == before + 1


def test_lists_are_read_to_their_end_and_show_nothing_of_others(plane: ControlPlane) -> None:
    plane.script(life={"run_s": 30}, page_size=2)
    mine = VertexLauncher(cloud_settings(plane.url, robot="mine"))
    other = VertexLauncher(cloud_settings(plane.url, robot="other"))
    names = [mine.create(request(run_id="paged"), attempt).name for attempt in range(1, 6)]
    theirs = other.create(request(run_id="paged"), 9).name
    found = mine.find("paged")
    assert [one.name for one in found] == names[::-1], "newest first"
    assert {one.name for one in mine.owned()} == set(names)
    assert [one.name for one in other.owned()] == [theirs]


def test_without_credentials_nothing_is_sent(plane: ControlPlane, tmp_path: Path) -> None:
    settings = cloud_settings(plane.url, credentials_file=tmp_path / "absent.json").model_copy(
        update={"vertex_endpoint": None}
    )
    with pytest.raises(ConfigError, match="gcloud auth application-default login"):
        VertexLauncher(settings)


def test_the_container_really_runs_where_the_service_is_told_to_run_it(tmp_path: Path) -> None:
    with running_control_plane(tmp_path / "plane", run=True) as plane:
        launcher = VertexLauncher(cloud_settings(plane.url))
        name = launcher.create(request(run_id="real", arguments=("--no-such-option",)), 1).name
        found = wait_for(
            lambda: (now := launcher.look(name)) and now.exit_code is not None and now, "the exit", 60
        )
        assert (found.phase, found.exit_code) == ("failed", 2), "argparse's"
        (log,) = (tmp_path / "plane" / "logs").iterdir()
        assert "usage: cloud-trainer" in log.read_text()
