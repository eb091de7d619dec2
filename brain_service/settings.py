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
from typing import Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from brain_service.errors import ConfigError

__all__ = [
    "CaptureSettings",
    "CloudSettings",
    "GateSettings",
    "HttpSettings",
    "InferenceSettings",
    "JobSettings",
    "LearningSettings",
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


# Beyond it a time in ns would not fit its 64 bits.
_CENTURY_S = 100 * 365 * 86_400.0


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any, info: ValidationInfo) -> Any:
        """Read "none" as None where the field may be None."""
        field = cls.model_fields[info.field_name or ""]
        optional = type(None) in get_args(field.annotation)
        return None if optional and isinstance(value, str) and value.lower() == "none" else value


class CaptureSettings(_Frozen):
    """The capture log: durability, recovery and bounds."""

    durability: Literal["interval", "step", "episode"] = "interval"
    sync_interval_s: float = Field(default=0.2, gt=0, le=60)
    recover_idle_s: float = Field(default=600.0, gt=0)
    min_free_bytes: int = Field(default=256 * 1024**2, ge=0)
    max_body_bytes: int = Field(default=16 * 1024**2, gt=0)
    max_batch_steps: int = Field(default=10_000, gt=0)
    max_step_bytes: int = Field(default=4 * 1024**2, gt=0)
    max_open_episodes: int = Field(default=64, gt=0)
    max_image_bytes: int = Field(default=2 * 1024**2, gt=0)
    max_queued_bytes: int = Field(default=64 * 1024**2, gt=0)
    max_page_bytes: int = Field(default=8 * 1024**2, gt=0)
    max_steps_per_s: float = Field(default=50_000, gt=0)
    compress_after_s: float | None = Field(default=600.0, ge=0, le=_CENTURY_S)


class RetentionSettings(_Frozen):
    """What may be deleted by itself: the oldest closed episodes beyond any of three bounds, None for no bound.

    Unless allowed below, an episode stays until a dataset holds it and it was uploaded.
    """

    max_age_days: float | None = Field(default=None, gt=0, le=_CENTURY_S / 86_400)
    max_total_bytes: int | None = Field(default=None, gt=0)
    keep_free_bytes: int | None = Field(default=1024**3, gt=0)
    delete_unconverted: bool = False
    delete_not_uploaded: bool = False


class HttpSettings(_Frozen):
    """Connections: how many, and how long a slow client may take."""

    max_connections: int = Field(default=256, gt=0)
    header_timeout_s: float = Field(default=10.0, gt=0)
    body_timeout_s: float = Field(default=30.0, gt=0)


class RollbackSettings(_Frozen):
    """When a new model that misbehaves under live sessions gives way to the one before, by itself.

    Shares are of the last `window_steps` steps and are judged from `min_steps` on. `max_limit_share` and
    `max_late_share` count above what the model before did; a step jumps when it is more than `jump_factor` times
    as wide as the widest usual one. Probation ends after `probation_s` and `probation_steps`, whichever comes
    later; 0 s switches rollback off.
    """

    probation_s: float = Field(default=300.0, ge=0, le=_CENTURY_S)
    probation_steps: int = Field(default=200, ge=1)
    window_steps: int = Field(default=200, ge=10, le=100_000)
    min_steps: int = Field(default=50, ge=1)
    max_nonfinite: int = Field(default=3, ge=1)
    max_limit_share: float = Field(default=0.3, gt=0, le=1)
    jump_factor: float = Field(default=3.0, ge=1)
    max_jump_share: float = Field(default=0.05, ge=0, le=1)
    max_late_share: float = Field(default=0.2, gt=0, le=1)
    max_worker_deaths: int = Field(default=3, ge=1)


class InferenceSettings(_Frozen):
    """The router: order of backends, deadlines, sessions, workers, and how one model follows another.

    With `standby` the next usable backend is kept loaded beside the one that serves, and a worker that owes an
    answer for `failover_s` is given up for it; without one, for `worker_hang_s`. A worker whose own memory grows
    over `worker_memory_bytes` is replaced by a fresh one between two steps; None for no limit.
    """

    backends: tuple[Literal["hailo", "tpu", "gpu", "cpu"], ...] = ("hailo", "tpu", "gpu", "cpu")
    # On the CPU the faster one as measured; JAX alone computes the steps of many sessions in batches.
    cpu_runtime: Literal["measured", "jax", "onnx"] = "measured"
    deadline_ms: float = Field(default=100.0, gt=0, le=60_000)
    max_sessions: int = Field(default=64, gt=0, le=4096)
    session_idle_s: float = Field(default=300.0, gt=0)
    # Steps that wait for one worker, beyond those it was given already; of more, the oldest is dropped.
    max_queued_steps: int = Field(default=256, gt=0)
    worker_start_timeout_s: float = Field(default=120.0, gt=0)
    worker_hang_s: float = Field(default=2.0, gt=0)
    standby: bool = True
    failover_s: float = Field(default=0.25, gt=0)
    worker_memory_bytes: int | None = Field(default=1024**3, gt=0)
    # The interpreter that has HailoRT's `hailo_platform`, which the distribution installs for its own.
    hailo_python: Path = Path("/usr/bin/python3")
    # Before a swap: live steps that the new model answers in shadow, and how long they are waited for.
    canary_steps: int = Field(default=50, ge=0, le=100_000)
    canary_timeout_s: float = Field(default=10.0, gt=0, le=30)
    # What becomes of the live sessions at a swap, and how many of their last inputs a rebuilt state has seen.
    on_swap: Literal["finish", "replay"] = "finish"
    replay_steps: int = Field(default=64, ge=1, le=4096)
    rollback: RollbackSettings = RollbackSettings()
    # Safe mode: after how many crashes at start, and how long a start takes to count as a good one.
    max_start_crashes: int = Field(default=3, ge=1)
    healthy_after_s: float = Field(default=30.0, gt=0)


class JobSettings(_Frozen):
    """The job runner: a child of the daemon, or, `external`, a service of its own that the daemon only watches."""

    runner: Literal["child", "external"] = "child"
    poll_interval_s: float = Field(default=0.2, gt=0)
    cancel_grace_s: float = Field(default=2.0, gt=0)
    max_attempts: int = Field(default=3, gt=0)
    keep_finished: int = Field(default=500, gt=0)


class LearningSettings(_Frozen):
    """When the daemon starts the whole loop by itself; never, unless `after_episodes` or `daily_at` is set.

    It starts after so many episodes that ended since the loop ran last, or at a time of the day ("03:00", local),
    whichever comes first; with `only_idle` not while a session or an episode is open, and never while a gate is
    closed, another training waits or runs, or less than `min_interval_s` passed since the last one began.
    """

    after_episodes: int | None = Field(default=None, gt=0)
    daily_at: str | None = Field(default=None, pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")
    only_idle: bool = True
    min_interval_s: float = Field(default=3600.0, ge=0, le=_CENTURY_S)
    check_interval_s: float = Field(default=30.0, gt=0)
    preset: Literal["development", "pi5_optimized", "tpu_optimized"] = "pi5_optimized"
    steps: int | None = Field(default=None, gt=0)
    target: Literal["local", "process", "vertex", "queued_resource"] = "local"


class GateSettings(_Frozen):
    """When training rests, and when it goes on again; None switches a gate off, a missing sensor closes none.

    The defaults are well below where a Raspberry Pi 5 throttles itself (80 C).
    """

    max_temperature_c: float | None = Field(default=75.0, gt=0, le=150)
    cool_down_c: float = Field(default=5.0, ge=0, le=100)
    min_battery_share: float | None = Field(default=0.4, ge=0, le=1)
    charge_margin: float = Field(default=0.05, ge=0, le=1)
    under_voltage_quiet_s: float | None = Field(default=30.0, ge=0)
    poll_interval_s: float = Field(default=2.0, ge=0)
    sysfs: Path = Path("/sys")


class CloudSettings(_Frozen):
    """The cloud half: where it lies, what it runs on, what it may cost, and when the network may be used.

    Credentials are Google's own (Application Default Credentials), or `credentials_file`. `max_cost_usd` bounds
    one run by the list price of its chips; a run without a heartbeat for `stall_timeout_s` is started again, at
    most `max_attempts` times. `quiet_hours` ("22:00-06:00", local time) are those in which nothing is uploaded.
    """

    bucket: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9_.-]{1,220}[a-z0-9]$")
    prefix: str = Field(default="continuon-brain", pattern=r"^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$")
    project: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9.:-]{2,62}$")
    region: str = Field(default="us-central1", pattern=r"^[a-z]+-[a-z]+[0-9]+$")
    zone: str = Field(default="us-central1-a", pattern=r"^[a-z]+-[a-z]+[0-9]+-[a-z]$")
    # What this robot's capacity is labelled with, so that its reaper touches nobody else's.
    robot: str = Field(default="robot", pattern=r"^[a-z][a-z0-9-]{0,30}$")
    topology: str = Field(default="v5e:2x2", pattern=r"^v[0-9]+[a-z]*:[0-9]+(x[0-9]+){1,2}$")
    spot: bool = True
    image: str | None = None
    runtime_version: str = "v2-alpha-tpuv5-lite"
    service_account: str | None = None
    credentials_file: Path | None = None
    max_cost_usd: float = Field(default=20.0, gt=0)
    max_run_s: float = Field(default=21_600.0, gt=0)
    max_wait_s: float = Field(default=86_400.0, gt=0)
    stall_timeout_s: float = Field(default=1800.0, gt=0)
    max_attempts: int = Field(default=10, gt=0)
    poll_interval_s: float = Field(default=30.0, gt=0)
    upload_bytes_per_s: float | None = Field(default=None, gt=0)
    quiet_hours: str | None = Field(default=None, pattern=r"^[0-2][0-9]:[0-5][0-9]-[0-2][0-9]:[0-5][0-9]$")
    chunk_bytes: int = Field(default=4 * 1024**2, ge=256 * 1024, multiple_of=256 * 1024)
    # With a key, a downloaded bundle must carry a good signature before it activates by itself.
    public_key: Path | None = None
    # Other addresses of Google's services: an emulator, or a private endpoint.
    storage_endpoint: str | None = None
    vertex_endpoint: str | None = None
    tpu_endpoint: str | None = None


class Settings(_Frozen):
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
    capture: CaptureSettings = CaptureSettings()
    retention: RetentionSettings = RetentionSettings()
    http: HttpSettings = HttpSettings()
    inference: InferenceSettings = InferenceSettings()
    jobs: JobSettings = JobSettings()
    gates: GateSettings = GateSettings()
    learning: LearningSettings = LearningSettings()
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
