"""Every setting of the daemon: one frozen, validated model. The only module that reads the environment.

Order, strongest first: command line, `BRAIN_*` environment variables, the TOML file, defaults. The file is
`--config`, else `$BRAIN_CONFIG`, else the first of `./brain.toml`, `~/.config/continuon-brain/brain.toml`,
`/etc/continuon-brain/brain.toml` that exists. Nested settings are `[capture]` tables in TOML and
`BRAIN_CAPTURE__SYNC_INTERVAL_S` in the environment. Where a setting may be absent, "none" says so: TOML and the
environment have no word of their own for it. An unknown key is fatal everywhere.
"""

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from brain_service.errors import ConfigError
from brain_service.setting_groups import (
    CaptureSettings,
    CloudSettings,
    Frozen,
    GateSettings,
    HttpSettings,
    InferenceSettings,
    JobSettings,
    LearningSettings,
    LoraSettings,
    RetentionSettings,
    RollbackSettings,
)

__all__ = [
    "CaptureSettings",
    "CloudSettings",
    "GateSettings",
    "HttpSettings",
    "InferenceSettings",
    "JobSettings",
    "LearningSettings",
    "LoraSettings",
    "RetentionSettings",
    "RollbackSettings",
    "Settings",
    "child_environment",
    "load_settings",
    "take_variables",
]

PREFIX = "BRAIN_"
CONFIG_PLACES = (
    Path("brain.toml"),
    Path("~/.config/continuon-brain/brain.toml"),
    Path("/etc/continuon-brain/brain.toml"),
)


class Settings(Frozen):
    """The daemon's settings. Paths become absolute; durations end in `_s`, sizes in `_bytes`."""

    data_dir: Path = Path("~/.local/share/continuon-brain")
    # Compiled programs; safe to delete, so it may lie where nobody makes backups.
    cache_dir: Path = Field(default_factory=lambda found: found.get("data_dir", Path()) / "cache")
    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65535)
    uds: Path | None = None
    tokens_file: Path | None = None
    # For TCP alone: whoever opens the Unix socket is on this machine already.
    tls_certfile: Path | None = None
    tls_keyfile: Path | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "text"] = "auto"
    # A collector of OpenTelemetry (OTLP over HTTP), and the share of traces that it gets.
    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://")
    trace_share: float = Field(default=1.0, ge=0, le=1)
    capture: CaptureSettings = CaptureSettings()
    retention: RetentionSettings = RetentionSettings()
    http: HttpSettings = HttpSettings()
    inference: InferenceSettings = InferenceSettings()
    jobs: JobSettings = JobSettings()
    gates: GateSettings = GateSettings()
    learning: LearningSettings = LearningSettings()
    lora: LoraSettings = LoraSettings()
    cloud: CloudSettings = CloudSettings()

    @field_validator("data_dir", "cache_dir", "uds", "tokens_file", "tls_certfile", "tls_keyfile")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path is not None else None

    @model_validator(mode="after")
    def _tls_is_a_pair(self) -> Self:
        if (self.tls_certfile is None) != (self.tls_keyfile is None):
            raise ValueError("tls_certfile and tls_keyfile go together: set both, or neither")
        return self

    def as_environment(self) -> dict[str, str]:
        """Return the `BRAIN_*` variables that make a child process load these very settings."""
        found: dict[str, str] = {}

        def visit(prefix: str, values: Mapping[str, Any]) -> None:
            for name, value in values.items():
                key = f"{prefix}{name.upper()}"
                if isinstance(value, Mapping):
                    visit(f"{key}__", value)
                elif value is None:
                    found[key] = "none"
                else:
                    found[key] = ",".join(value) if isinstance(value, list) else str(value)

        visit(PREFIX, self.model_dump(mode="json"))
        return found

    @property
    def episodes_dir(self) -> Path:
        """Capture logs, one file an episode."""
        return self.data_dir / "episodes"

    @property
    def datasets_dir(self) -> Path:
        """RLDS datasets in TFDS layout, `<name>/<x.y.z>/`."""
        return self.data_dir / "datasets"

    @property
    def checkpoints_dir(self) -> Path:
        """Orbax checkpoints, `<run_id>/<step>/`."""
        return self.data_dir / "checkpoints"

    @property
    def adapters_dir(self) -> Path:
        """What PyTorch's fine-tunings made, `<run_id>/`, and the audit of what became of it."""
        return self.lora.adapters_out_dir or self.data_dir / "adapters"

    @property
    def models_dir(self) -> Path:
        """Bundles by model id, and the `active` and `previous` links."""
        return self.data_dir / "models"

    @property
    def sessions_dir(self) -> Path:
        """What a graceful stop leaves of live sessions."""
        return self.data_dir / "sessions"

    @property
    def jobs_dir(self) -> Path:
        """Logs and events of jobs, `<job_id>/`."""
        return self.data_dir / "jobs"

    @property
    def database(self) -> Path:
        """SQLite file with jobs and activations."""
        return self.data_dir / "brain.db"


def load_settings(
    overrides: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Read file and environment, apply `overrides` (None values are skipped) and validate.

    Raises:
        ConfigError: unreadable or invalid file, an unknown key (with the nearest known one) or a wrong value.
    """
    env = os.environ if environ is None else environ
    path = config or (Path(env["BRAIN_CONFIG"]) if env.get("BRAIN_CONFIG") else None)
    merged = _read_file(path)
    for source in (_from_environment(env), {k: v for k, v in (overrides or {}).items() if v is not None}):
        merged = _merge(merged, source)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(_explain(error)) from error


def take_variables(names: Iterable[str], environ: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Return those of the variables that are set, and remove them: no child is to take them for its own."""
    env = os.environ if environ is None else environ
    return {name: value for name in names if (value := env.pop(name, None)) is not None}


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with `extra` on top, for a child process."""
    return {**os.environ, **extra}


def _read_file(path: Path | None) -> dict[str, Any]:
    candidates = (
        [path.expanduser()] if path else [p for place in CONFIG_PLACES if (p := place.expanduser()).is_file()]
    )
    if not candidates:
        return {}
    try:
        return tomllib.loads(candidates[0].read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read settings from {candidates[0]}: {error}") from error


def _from_environment(env: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in sorted(env.items()):
        if not name.startswith(PREFIX) or name == "BRAIN_CONFIG":
            continue
        *tables, key = name.removeprefix(PREFIX).lower().split("__")
        node = found
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{name} and {PREFIX}{table.upper()} contradict each other; unset one of them")
        node[key] = value.split(",") if key == "backends" else value
    return found


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        mine = merged.get(key)
        merged[key] = _merge(mine, value) if isinstance(mine, dict) and isinstance(value, Mapping) else value
    return merged


def _known_keys() -> list[str]:
    keys: list[str] = []
    for name, info in Settings.model_fields.items():
        kind = info.annotation
        nested = isinstance(kind, type) and issubclass(kind, BaseModel)
        keys += [f"{name}.{inner}" for inner in kind.model_fields] if nested else [name]  # type: ignore[union-attr]
    return keys


def _explain(error: ValidationError) -> str:
    parts = []
    for problem in error.errors():
        key = ".".join(str(part) for part in problem["loc"])
        if not key:
            # Of several settings together; their values may be long.
            parts.append(problem["msg"].removeprefix("Value error, "))
        elif problem["type"] == "extra_forbidden":
            close = difflib.get_close_matches(key, _known_keys(), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(_known_keys())}"
            parts.append(f"unknown setting {key!r}{hint}")
        else:
            parts.append(f"setting {key!r}: {problem['msg']}, got {problem['input']!r}")
    return "; ".join(parts)
