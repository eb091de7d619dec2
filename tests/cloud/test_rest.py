"""Google's refusals, and everything that is not Google: each becomes one error that says what to do."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import service_account

from brain_service.cloud.credentials import authorized_session
from brain_service.cloud.launchers.vertex import VertexLauncher
from brain_service.cloud.rest import RestClient
from brain_service.errors import (
    BrainError,
    ConfigError,
    ConflictError,
    ForbiddenError,
    InvalidError,
    NotFoundError,
    TooManyError,
    UnauthorizedError,
    UnavailableError,
)
from tests.cloud.launching import PROJECT, cloud_settings, request
from tests.fakes.control_plane import ControlPlane
from tests.processes import free_port

JOBS = f"/v1/projects/{PROJECT}/locations/us-central1/customJobs"


def client(url: str, session: requests.Session | None = None, **more: Any) -> RestClient:
    session = session or authorized_session(cloud_settings(url), url)
    options = {"service": "aiplatform.googleapis.com", "project": PROJECT, "pause_s": 0.01, **more}
    return RestClient(session, url, **options)


@pytest.fixture(scope="module")
def key() -> str:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    return (
        rsa.generate_private_key(65537, 2048)
        .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        .decode()
    )


def signed(plane: ControlPlane, key: str) -> AuthorizedSession:
    """A robot's own key, whose tokens come from a service that refuses it."""
    info = {
        "type": "service_account",
        "client_email": "robot@robots-of-mine.iam.gserviceaccount.com",
        "private_key": key,
        "token_uri": f"{plane.url}/token",
    }
    scopes = ["https://www.googleapis.com/auth/cloud-platform"]
    found = service_account.Credentials.from_service_account_info(info, scopes=scopes)  # type: ignore[no-untyped-call]
    return AuthorizedSession(found)


@pytest.mark.parametrize(
    ("kind", "error", "says"),
    [
        ("unauthorized", UnauthorizedError, "gcloud auth application-default login"),
        ("expired", UnauthorizedError, "cloud.credentials_file"),
        ("skew", UnavailableError, "clock is 8[56][0-9]{3} s behind Google's.*timedatectl set-ntp true"),
        ("permission", ForbiddenError, r"lacks aiplatform\.customJobs\.create.*add-iam-policy-binding"),
        ("disabled", ForbiddenError, f"gcloud services enable aiplatform.googleapis.com --project={PROJECT}"),
        ("project", ForbiddenError, r"cloud\.project.*gcloud projects list"),
        ("billing", ForbiddenError, f"gcloud billing projects link {PROJECT}"),
        ("quota", TooManyError, "TPUV5sPreemptibleLitepodPerProjectPerZoneForTPUAPI.*smaller cloud.topology"),
        ("rate", UnavailableError, "Requests per minute"),
        ("stockout", UnavailableError, "no machines are free there now"),
        ("invalid", InvalidError, "wrong"),
        ("unavailable", UnavailableError, "503"),
        ("garbage", UnavailableError, "no JSON object"),
        ("html", UnavailableError, "Sign in to the network.*proxy or a login page"),
        ("redirect", UnavailableError, "proxy or a login page"),
        ("drop_before", UnavailableError, "check the network"),
        ("drop_after", UnavailableError, "check the network"),
    ],
)
def test_a_refusal_says_what_to_do(
    plane: ControlPlane, key: str, kind: str, error: type[BrainError], says: str
) -> None:
    plane.script(faults=[{"kind": kind, "times": 9}])
    with pytest.raises(error, match=f"(?s){says}") as caught:
        client(plane.url, signed(plane, key)).get(JOBS)
    assert plane.url in caught.value.detail, "the message names who refused"
    assert caught.value.problem()["status"] == error.status


def test_a_field_that_is_wrong_is_named(plane: ControlPlane) -> None:
    plane.script(faults=[{"kind": "invalid"}])
    with pytest.raises(InvalidError) as caught:
        client(plane.url).get(JOBS)
    assert caught.value.field == "custom_job.job_spec"


def test_what_is_not_there_and_what_is_taken(plane: ControlPlane) -> None:
    with pytest.raises(NotFoundError, match="gcloud projects list"):
        client(plane.url).get(f"{JOBS}/1")
    place = f"/v2/projects/{PROJECT}/locations/us-central1-a/queuedResources"
    node = {"acceleratorType": "v6e-1", "runtimeVersion": "v"}
    spec = {"parent": f"projects/{PROJECT}/locations/us-central1-a", "nodeId": "n", "node": node}
    body = {"tpu": {"nodeSpec": [spec]}}
    client(plane.url).post(place, body, {"queuedResourceId": "taken"})
    with pytest.raises(ConflictError, match="already exists"):
        client(plane.url).post(place, body, {"queuedResourceId": "taken"})


@pytest.mark.parametrize("kind", ["unavailable", "rate", "garbage", "html", "drop_before", "drop_after"])
def test_what_may_be_repeated_is(plane: ControlPlane, kind: str) -> None:
    plane.script(faults=[{"kind": kind, "times": 2}])
    assert client(plane.url).get(JOBS, {"filter": 'labels.continuon-run="nobody"'}) == {}


def test_what_must_not_be_repeated_is_not(plane: ControlPlane) -> None:
    plane.script(faults=[{"kind": "drop_after", "method": "POST"}])
    before = plane.report()["requests"]
    with pytest.raises(UnavailableError):
        client(plane.url).post(f"{JOBS}/1:cancel", {})
    assert plane.report()["requests"] == before + 1


def test_a_refusal_is_not_repeated(plane: ControlPlane) -> None:
    plane.script(faults=[{"kind": "permission", "times": 1}])
    with pytest.raises(ForbiddenError):
        client(plane.url).get(JOBS)


def test_nobody_listens() -> None:
    with pytest.raises(UnavailableError, match="check the network"):
        client(f"http://127.0.0.1:{free_port()}").get(JOBS)


def test_a_service_that_does_not_answer_in_time(plane: ControlPlane) -> None:
    plane.script(faults=[{"kind": "slow"}])
    start_s = time.monotonic()
    with pytest.raises(UnavailableError, match=r"[Tt]imed? ?out"):
        client(plane.url, timeout_s=0.3, tries=1).get(JOBS)
    assert time.monotonic() - start_s < 3


def test_pages_that_never_end_do_end(plane: ControlPlane) -> None:
    plane.script(page_size=0, life={"run_s": 30})
    VertexLauncher(cloud_settings(plane.url)).create(request(run_id="paged"), 1)
    with pytest.raises(UnavailableError, match="more than 100 pages"):
        list(client(plane.url).pages(JOBS, "customJobs"))


def test_a_time_of_the_service_is_read_by_this_machines_clock(plane: ControlPlane) -> None:
    """A clock that is off by days must not make a job of seconds cost days."""
    rest = client(plane.url)
    plane.script(clock_ahead_s=7200)
    rest.get(JOBS)
    stamp = "2026-01-01T02:00:00.123456789Z"
    then_ns = rest.local_ns(stamp)
    plane.script()
    rest.get(JOBS)
    now_ns = rest.local_ns(stamp)
    assert then_ns is not None and now_ns is not None
    assert 7195 < (now_ns - then_ns) / 1e9 < 7205
    assert rest.local_ns("yesterday") is None
    assert rest.local_ns(None) is None


def test_a_key_that_was_revoked(plane: ControlPlane, key: str) -> None:
    plane.script(token="Invalid grant: account not found")
    with pytest.raises(UnauthorizedError, match=r"account not found.*gcloud auth application-default login"):
        client(plane.url, signed(plane, key)).get(JOBS)


def test_a_clock_that_is_off_is_not_blamed_on_the_key(plane: ControlPlane, key: str) -> None:
    plane.script(
        token="Invalid JWT: Token must be a short-lived token (60 minutes) and in a reasonable timeframe.",
        clock_ahead_s=86_400,
    )
    with pytest.raises(UnavailableError, match=r"s behind Google's.*timedatectl"):
        client(plane.url, signed(plane, key)).get(JOBS)


def test_there_are_no_credentials(tmp_path: Path) -> None:
    broken = tmp_path / "key.json"
    broken.write_text(json.dumps({"type": "service_account"}))
    for path in (tmp_path / "absent.json", broken):
        settings = cloud_settings("https://tpu.example").model_copy(update={"credentials_file": path})
        with pytest.raises(ConfigError, match="gcloud auth application-default login"):
            VertexLauncher(settings)


def test_no_token_travels_in_the_clear() -> None:
    with pytest.raises(ConfigError, match="in the clear"):
        VertexLauncher(cloud_settings("http://tpu.example"))


def test_a_launcher_passes_refusals_on(plane: ControlPlane) -> None:
    plane.script(faults=[{"kind": "quota", "method": "POST"}])
    with pytest.raises(TooManyError, match="quota"):
        VertexLauncher(cloud_settings(plane.url)).create(request(run_id="quota"), 1)
