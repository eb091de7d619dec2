"""install.sh on a fake root: fresh, again, updates that come well and that do not, interruptions, removal."""

import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator

import pytest

from tests.deploy.fake_system import INSTALL, PROJECT, FakeSystem

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("systemd-sysusers") is None,
    reason="install.sh needs root, and systemd-sysusers to make its user",
)

STEPS = 8
SOON = ("--ready-timeout", "6")  # for releases that never become ready


@pytest.fixture
def system() -> Iterator[FakeSystem]:
    made = FakeSystem()
    try:
        yield made
    finally:
        made.close()


def test_a_fresh_installation_is_whole_and_the_second_run_changes_nothing(system: FakeSystem) -> None:
    done = system.install("0.1.0")
    assert done.returncode == 0, done.stdout
    assert len(re.findall("^==> ", done.stdout, re.MULTILINE)) == STEPS
    assert system.release() == "0.1.0"
    assert (system.root / "etc/systemd/system/continuon-brain.service").exists()
    tokens = system.root / "etc/continuon-brain/tokens"
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    owner = (system.root / "etc/passwd").read_text().split("continuon:")[1].split(":")[1]
    assert str(tokens.stat().st_uid) == owner != "0"
    lines = [line.split() for line in tokens.read_text().splitlines()]
    assert [line[1] for line in lines] == ["control,operate,read", "control", "read"]
    assert len({line[0] for line in lines}) == 3
    assert all(re.fullmatch(r"[0-9a-f]{64}", line[0]) for line in lines)
    assert not any(line[0] in done.stdout for line in lines)
    before = system.files()
    system.calls.write_text("")
    again = system.install("0.1.0")
    assert again.returncode == 0, again.stdout
    assert "nothing to do" in again.stdout
    assert system.files() == before
    asked = set(re.findall(r"^systemctl (\S+)", system.calls.read_text(), re.MULTILINE))
    assert asked <= {"is-active", "is-enabled"}
    assert "pip" not in system.calls.read_text()


def test_a_dry_run_touches_nothing_and_says_what_it_would_do(system: FakeSystem) -> None:
    before = system.files()
    done = system.install("0.1.0", "--dry-run")
    assert done.returncode == 0, done.stdout
    assert system.files() == before
    assert system.calls.read_text() == "" or "restart" not in system.calls.read_text()
    for word in ("build_release", "create_tokens", "systemctl enable", "0.1.0"):
        assert word in done.stdout


def test_an_update_that_comes_well_keeps_the_release_before_and_forgets_older_ones(system: FakeSystem) -> None:
    for version in ("0.1.0", "0.2.0", "0.3.0"):
        done = system.install(version)
        assert done.returncode == 0, done.stdout
    assert (system.release(), system.release("previous")) == ("0.3.0", "0.2.0")
    assert system.releases() == ["0.2.0", "0.3.0"]


@pytest.mark.long
@pytest.mark.parametrize("how", ["never", "dies", "crashes"])
def test_a_release_that_does_not_become_ready_gives_way_to_the_one_before(system: FakeSystem, how: str) -> None:
    system.behave(v0_2_0=how)
    assert system.install("0.1.0").returncode == 0
    tokens = (system.root / "etc/continuon-brain/tokens").read_text()
    done = system.install("0.2.0", *SOON)
    assert done.returncode == 3, done.stdout
    assert "0.1.0" in done.stdout.splitlines()[-1]
    assert "serves again" in done.stdout
    assert system.release() == "0.1.0"
    (log,) = (system.prefix / "log").iterdir()
    assert log.name.startswith("0.2.0-")
    assert str(log).removeprefix(str(system.root)) in done.stdout
    assert "journalctl --no-pager" in system.calls.read_text()
    # What runs is the old one again, and the next good release is taken as ever.
    assert system.run("--wheel", str(system.wheel("0.1.0"))).stdout.count("nothing to do") == 1
    assert system.install("0.3.0").returncode == 0
    assert (system.release(), system.release("previous")) == ("0.3.0", "0.1.0")
    assert system.releases() == ["0.1.0", "0.3.0"]
    assert (system.root / "etc/continuon-brain/tokens").read_text() == tokens


@pytest.mark.long
def test_going_back_goes_back_to_the_units_too(system: FakeSystem) -> None:
    system.behave(v0_2_0="never")
    assert system.install("0.1.0").returncode == 0
    unit = system.root / "etc/systemd/system/continuon-brain.service"
    kept = next(system.prefix.glob("releases/0.1.0-*/units/continuon-brain.service"))
    kept.write_text(kept.read_text() + "# of 0.1.0\n")
    assert system.install("0.2.0", *SOON).returncode == 3
    assert unit.read_text().endswith("# of 0.1.0\n")


@pytest.mark.long
def test_a_first_release_that_does_not_become_ready_is_told_with_its_log(system: FakeSystem) -> None:
    system.behave(v0_1_0="never")
    done = system.install("0.1.0", *SOON)
    assert done.returncode == 3
    assert "there is none before it" in done.stdout
    system.behave()
    assert system.install("0.1.0").returncode == 0


@pytest.mark.slow
def test_killed_at_any_step_the_next_run_goes_on(system: FakeSystem) -> None:
    assert system.install("0.1.0").returncode == 0
    for number in range(STEPS):
        version = f"0.2.{number}"
        process = system.start("--wheel", str(system.wheel(version)))
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += line.startswith("==> ")
            if seen == number + 1:
                break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        done = system.install(version)
        assert done.returncode == 0, done.stdout
        assert system.release() == version
        assert not (system.prefix / "pending").exists()
        assert len(system.releases()) == 2


def test_killed_while_packages_install_the_half_release_is_built_anew(system: FakeSystem) -> None:
    (system.state / "pip-hangs").touch()
    process = system.start("--wheel", str(system.wheel("0.1.0")))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("building"):
            break
    while "-m pip" not in system.calls.read_text():
        pass
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert len(system.releases()) == 1
    (system.state / "pip-hangs").unlink()
    system.calls.write_text("")
    assert system.install("0.1.0").returncode == 0
    assert "-m venv" in system.calls.read_text()


@pytest.mark.long
def test_killed_before_a_bad_release_was_proven_the_next_run_still_knows_the_good_one(system: FakeSystem) -> None:
    assert system.install("0.1.0").returncode == 0
    system.behave(v0_2_0="never", v0_3_0="never")
    process = system.start("--wheel", str(system.wheel("0.2.0")), "--ready-timeout", "60")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("==> starting"):
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert system.release() == "0.2.0"
    done = system.install("0.3.0", *SOON)
    assert done.returncode == 3, done.stdout
    assert system.release() == "0.1.0"


def test_packages_that_cannot_be_installed_leave_what_runs_alone(system: FakeSystem) -> None:
    assert system.install("0.1.0").returncode == 0
    (system.state / "pip-fails").touch()
    done = system.install("0.2.0")
    assert done.returncode == 1
    assert "no space" in done.stdout
    assert "run it again" in done.stdout
    assert system.release() == "0.1.0"
    assert "systemctl restart" not in system.calls.read_text().partition("0.2.0")[2]


def test_a_data_directory_of_ones_own_reaches_both_units_and_is_remembered(system: FakeSystem) -> None:
    assert system.install("0.1.0", "--data-dir", "/srv/brain").returncode == 0
    assert system.install("0.2.0").returncode == 0
    units = system.root / "etc/systemd/system"
    for unit in ("continuon-brain.service", "continuon-brain-jobs.service"):
        text = (units / unit).read_text()
        assert "BRAIN_DATA_DIR=/srv/brain " in text
        assert "ReadWritePaths=/srv/brain\n" in text
    assert "--data-dir /srv/brain\n" in (units / "continuon-brain-jobs.service").read_text()
    assert (system.root / "srv/brain").is_dir()


def test_uninstalling_keeps_data_and_settings_and_purging_does_not(system: FakeSystem) -> None:
    assert system.install("0.1.0").returncode == 0
    recording = system.root / "var/lib/continuon-brain/episodes/a.jsonl"
    recording.parent.mkdir(parents=True)
    recording.write_text("{}")
    done = system.run("--uninstall")
    assert done.returncode == 0, done.stdout
    assert not system.prefix.exists()
    assert not list((system.root / "etc/systemd/system").glob("continuon*"))
    assert recording.exists()
    assert (system.root / "etc/continuon-brain/tokens").exists()
    assert "systemctl disable" in system.calls.read_text()
    assert system.install("0.1.0").returncode == 0
    assert system.run("--uninstall", "--purge").returncode == 0
    assert not (system.root / "var/lib/continuon-brain").exists()
    assert not (system.root / "etc/continuon-brain").exists()
    assert "continuon" not in (system.root / "etc/passwd").read_text()
    assert system.run("--uninstall").returncode == 0


def test_without_systemd_everything_is_put_in_place_and_nothing_started(system: FakeSystem) -> None:
    shutil.rmtree(system.root / "run/systemd")
    done = system.install("0.1.0")
    assert done.returncode == 0, done.stdout
    assert "nothing was started" in done.stdout
    assert system.release() == "0.1.0"
    assert "systemctl restart" not in system.calls.read_text()
    assert system.install("0.1.0").returncode == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--purge",), "--uninstall"),
        (("--colour",), "--colour"),
        (("--prefix",), "needs a value"),
        (("--prefix", "/opt"), "directory of the system"),
        (("--prefix", "relative"), "absolute"),
        (("--data-dir", "/home/pi/brain"), "hidden"),
        (("--data-dir", "/var/lib"), "directory of the system"),
        (("--data-dir", "/srv/a/../../etc"), ".."),
        (("--data-dir", "/srv/a b"), "absolute"),
        (("--ready-timeout", "soon"), "soon"),
        (("--wheel", "a", "--source", "b"), "exclude"),
    ],
)
def test_a_wrong_call_is_refused_before_anything_is_done(
    system: FakeSystem, arguments: tuple[str, ...], says: str
) -> None:
    before = system.files()
    done = system.run(*arguments)
    assert done.returncode == 2
    assert says in done.stdout
    assert system.files() == before


def test_a_wheel_of_something_else_is_refused(system: FakeSystem) -> None:
    other = system.base / "numpy-2.0-py3-none-any.whl"
    other.touch()
    assert "is no wheel of continuon-brain" in system.run("--wheel", str(other)).stdout
    assert "there is no wheel" in system.run("--wheel", "/nowhere.whl").stdout


def test_two_installers_do_not_meet(system: FakeSystem) -> None:
    (system.state / "pip-hangs").touch()
    first = system.start("--wheel", str(system.wheel("0.1.0")))
    while "-m pip" not in system.calls.read_text():
        pass
    second = system.install("0.1.0")
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.returncode == 1
    assert "another install.sh" in second.stdout


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    done = subprocess.run(
        ["shellcheck", "-x", "-P", "deploy", str(INSTALL)], capture_output=True, text=True, cwd=PROJECT
    )
    assert done.returncode == 0, done.stdout
