"""The files of deploy/cloud, held against what reads them: the SDKs' protos, the tree, the price table, pip."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from brain_service.cloud.chips import PRICES_AS_OF, parse_topology

PROJECT = Path(__file__).parent.parent
FOLDER = PROJECT / "deploy" / "cloud"
LOCK = PROJECT / "deploy" / "locks" / "tpu.txt"
CAP_USD = 20.0


def instructions() -> Iterator[tuple[str, str]]:
    """Yield each instruction of the Dockerfile with its arguments, continued lines joined."""
    lines = [line for line in (FOLDER / "Dockerfile").read_text().splitlines() if not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if line.strip():
            name, _, rest = line.partition(" ")
            yield name, rest.strip()


def stages() -> list[list[tuple[str, str]]]:
    """Return the instructions of each stage."""
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest))
    return found


def test_the_image_is_pinned_and_runs_the_trainer_as_nobody_in_particular() -> None:
    for stage in stages():
        assert re.fullmatch(r"python:3\.11\.\d+-slim-\w+( AS \w+)?", stage[0][1]), stage[0]
    final = stages()[-1]
    user = [rest for name, rest in final if name == "USER"]
    assert user and int(user[-1].split(":")[0]) > 0
    assert json.loads(final[-1][1]) == ["python", "-m", "cloud_trainer"]
    assert final[-1][0] == "ENTRYPOINT"


def test_the_final_stage_builds_and_downloads_nothing() -> None:
    for name, rest in stages()[-1]:
        assert name != "RUN" or not re.search(r"pip|apt|gcc|make|curl", rest), rest
        assert name != "COPY" or rest.startswith("--from=build "), rest


def test_everything_that_is_copied_exists_and_reaches_the_builder() -> None:
    sent = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    copied = [rest.split()[:-1] for name, rest in stages()[0] if name == "COPY"]
    assert copied
    for source in (source for sources in copied for source in sources):
        assert (PROJECT / source).exists(), source
        assert f"!{source}" in sent, source
    assert sent[1] == "*"


def test_every_installation_is_pinned() -> None:
    for name, rest in stages()[0]:
        if name == "RUN":
            for command in re.findall(r"pip install ([^&]*)", rest):
                wanted = [word for word in command.split() if not word.startswith("-")]
                assert all(word in ("tpu.txt", "/wheels/*.whl") or "==" in word for word in wanted), wanted


def test_the_lock_holds_the_compiler_and_the_versions_that_the_tests_run() -> None:
    locked = LOCK.read_text().splitlines()
    tested = set((PROJECT / "deploy" / "locks" / "dev.txt").read_text().splitlines())
    assert any(line.startswith("libtpu==") for line in locked)
    assert any(line.startswith("gcsfs==") for line in locked)
    assert not any("://" in line for line in locked)
    names = {re.split(r"[=\s;]", line)[0] for line in locked}
    pins = {line.split(";")[0].strip() for line in tested}
    shared = [line for line in locked if re.split(r"[=\s;]", line)[0] in {re.split(r"[=\s;]", p)[0] for p in pins}]
    assert len(shared) > len(names) / 2
    assert [line for line in shared if line.split(";")[0].strip() not in pins] == []


def test_the_vertex_job_is_one_by_the_sdk() -> None:
    from google.cloud.aiplatform_v1.types import CustomJob
    from google.protobuf.json_format import ParseDict

    job = ParseDict(json.loads((FOLDER / "vertex-job.json").read_text()), CustomJob.pb(CustomJob()))
    pool = job.job_spec.worker_pool_specs[0]
    assert pool.machine_spec.tpu_topology == "2x2" and pool.replica_count == 1
    assert list(pool.container_spec.command) == ["python", "-m", "cloud_trainer"]
    assert "--data-path" in pool.container_spec.args
    assert job.job_spec.scheduling.disable_retries


def test_the_queued_resource_is_one_by_the_sdk_and_its_script_is_shell(tmp_path: Path) -> None:
    from google.cloud.tpu_v2.types import QueuedResource
    from google.protobuf.json_format import ParseDict

    document = json.loads((FOLDER / "queued-resource.json").read_text())
    resource = ParseDict(document, QueuedResource.pb(QueuedResource()))
    node = resource.tpu.node_spec[0].node
    assert node.accelerator_type == "v5litepod-16" and resource.HasField("spot")
    script = tmp_path / "startup.sh"
    script.write_text(node.metadata["startup-script"])
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert "queued-resources delete" in script.read_text()


def test_roles_are_small_and_only_the_job_may_delete_objects() -> None:
    permissions: dict[str, set[str]] = {}
    for path in sorted((FOLDER / "iam").glob("*.yaml")):
        text = path.read_text()
        assert re.search(
            r"^title: .+\ndescription: .+\nstage: GA\nincludedPermissions:\n(- [\w.]+\n)+\Z", text, re.M
        )
        permissions[path.stem] = set(re.findall(r"^- ([\w.]+)$", text, re.M))
        assert not any("*" in name or "setIamPolicy" in name for name in permissions[path.stem])
    assert set(permissions) == {"robot", "launcher", "job", "self-delete"}
    assert permissions["robot"] == {"storage.objects.create", "storage.objects.get", "storage.objects.list"}
    assert not any(name.startswith("storage.") for name in permissions["launcher"])
    assert "storage.objects.delete" in permissions["job"]


def test_the_script_that_binds_them_is_shell_and_names_each_role() -> None:
    script = FOLDER / "iam" / "apply.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    for path in (FOLDER / "iam").glob("*.yaml"):
        assert path.name in text


def test_the_cost_notes_are_the_price_table() -> None:
    text = (FOLDER / "README.md").read_text()
    assert f"List prices of {PRICES_AS_OF}" in text
    rows = re.findall(r"^\| (v\w+:[\dx]+) \|.*$", text, re.M)
    assert len(rows) >= 6
    for topology in rows:
        slice_ = parse_topology(topology)
        full, spot = (slice_.usd_per_hour(spot=flag) for flag in (False, True))
        row = (
            f"| {topology} | {slice_.chips} | ${full:.2f} | ${spot:.2f} | {CAP_USD / full:.1f} h / "
            f"{CAP_USD / spot:.1f} h |"
        )
        assert row in text, row


@pytest.mark.wheels
def test_the_lock_installs_on_the_images_python() -> None:
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--quiet", "--no-deps", "--ignore-installed"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--requirement", str(LOCK)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
