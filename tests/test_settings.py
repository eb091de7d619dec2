"""Settings: where they come from, which source wins, and that nothing unknown is let through."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from brain_service.errors import ConfigError
from brain_service.settings import load_settings


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    path = tmp_path / "brain.toml"
    path.write_text('port = 9001\ndata_dir = "/srv/brain"\n[capture]\nsync_interval_s = 0.5\n')
    return path


def test_defaults_need_nothing() -> None:
    settings = load_settings(environ={})
    assert settings.port == 8080
    assert settings.host == "127.0.0.1"
    assert settings.data_dir == Path("~/.local/share/continuon-brain").expanduser()
    assert settings.episodes_dir == settings.data_dir / "episodes"
    assert settings.cache_dir == settings.data_dir / "cache"


def test_the_cache_may_lie_elsewhere_and_a_child_finds_it() -> None:
    settings = load_settings({"data_dir": "/srv/brain"}, environ={"BRAIN_CACHE_DIR": "~/programs"})
    assert settings.cache_dir == Path("~/programs").expanduser()
    assert load_settings(environ=settings.as_environment()) == settings


def test_command_line_beats_environment_beats_file(toml: Path) -> None:
    environ = {"BRAIN_PORT": "9002", "BRAIN_CAPTURE__DURABILITY": "step"}
    assert load_settings(config=toml, environ={}).port == 9001
    assert load_settings(config=toml, environ=environ).port == 9002
    settings = load_settings({"port": 9003, "host": None}, config=toml, environ=environ)
    assert settings.port == 9003
    assert settings.host == "127.0.0.1"
    assert settings.capture.durability == "step"
    assert settings.capture.sync_interval_s == 0.5
    assert settings.data_dir == Path("/srv/brain")


def test_the_file_may_be_named_by_the_environment(toml: Path) -> None:
    assert load_settings(environ={"BRAIN_CONFIG": str(toml)}).port == 9001


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"BRAIN_PROT": "1"}, "unknown setting 'prot'; did you mean 'port'"),
        ({"BRAIN_CAPTURE__SYNC_INTERVAL": "1"}, "did you mean 'capture.sync_interval_s'"),
        ({"BRAIN_PORT": "http"}, "setting 'port'.*got 'http'"),
        ({"BRAIN_PORT": "70000"}, "setting 'port'"),
        ({"BRAIN_CAPTURE__DURABILITY": "always"}, "capture.durability"),
        ({"BRAIN_CAPTURE": "1", "BRAIN_CAPTURE__DURABILITY": "step"}, "BRAIN_CAPTURE contradict"),
        ({"BRAIN_CONFIG": "/nowhere/brain.toml"}, "cannot read settings from /nowhere/brain.toml"),
    ],
)
def test_a_wrong_setting_is_fatal_and_named(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_settings(environ=environ)


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "brain.toml"
    path.write_text("port: 9001")
    with pytest.raises(ConfigError, match=str(path)):
        load_settings(config=path, environ={})


def test_settings_are_frozen() -> None:
    settings = load_settings(environ={})
    with pytest.raises(ValidationError):
        settings.port = 1  # type: ignore[misc]


def test_a_list_comes_from_the_environment_as_commas() -> None:
    settings = load_settings(environ={"BRAIN_INFERENCE__BACKENDS": "cpu,gpu"})
    assert settings.inference.backends == ("cpu", "gpu")


def test_none_says_that_a_setting_is_absent(tmp_path: Path) -> None:
    path = tmp_path / "brain.toml"
    path.write_text('[retention]\nkeep_free_bytes = "none"\n')
    settings = load_settings(config=path, environ={"BRAIN_CAPTURE__COMPRESS_AFTER_S": "None"})
    assert settings.retention.keep_free_bytes is None
    assert settings.capture.compress_after_s is None
    with pytest.raises(ConfigError, match="port"):
        load_settings(environ={"BRAIN_PORT": "none"})


def test_a_child_process_loads_the_very_same_settings(toml: Path) -> None:
    given = {
        "port": 9003,
        "tokens_file": "/etc/tokens",
        "inference": {"backends": ["cpu", "gpu"], "deadline_ms": 7},
        "capture": {"compress_after_s": None},
    }
    settings = load_settings(given, config=toml, environ={})
    assert load_settings(environ=settings.as_environment()) == settings
