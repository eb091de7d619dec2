"""The groups of settings: one frozen, validated model a room; `settings` puts them together and reads them."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

__all__ = [
    "CaptureSettings",
    "CloudSettings",
    "Frozen",
    "GateSettings",
    "HttpSettings",
    "InferenceSettings",
    "JobSettings",
    "LearningSettings",
    "LoraSettings",
    "RetentionSettings",
    "RollbackSettings",
]

# Beyond it a time in ns would not fit its 64 bits.
_CENTURY_S = 100 * 365 * 86_400.0


class Frozen(BaseModel):
    """What all groups have in common: they never change, and know every key that they accept."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _none(cls, value: Any, info: ValidationInfo) -> Any:
        """Read "none" as None where the field may be None."""
        field = cls.model_fields[info.field_name or ""]
        optional = type(None) in get_args(field.annotation)
        return None if optional and isinstance(value, str) and value.lower() == "none" else value


class CaptureSettings(Frozen):
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


class RetentionSettings(Frozen):
    """What may be deleted by itself: the oldest closed episodes beyond any of three bounds, None for no bound.

    Unless allowed below, an episode stays until a dataset holds it and it was uploaded.
    """

    max_age_days: float | None = Field(default=None, gt=0, le=_CENTURY_S / 86_400)
    max_total_bytes: int | None = Field(default=None, gt=0)
    keep_free_bytes: int | None = Field(default=1024**3, gt=0)
    delete_unconverted: bool = False
    delete_not_uploaded: bool = False


class HttpSettings(Frozen):
    """Connections: how many, and how long a slow client may take."""

    max_connections: int = Field(default=256, gt=0)
    header_timeout_s: float = Field(default=10.0, gt=0)
    body_timeout_s: float = Field(default=30.0, gt=0)


class RollbackSettings(Frozen):
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


class InferenceSettings(Frozen):
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


class JobSettings(Frozen):
    """The job runner: a child of the daemon, or, `external`, a service of its own that the daemon only watches.

    Work that only takes what others leave of the CPU and the disk (SCHED_IDLE) stands still where something always
    wants them; without `background` it has an ordinary share, as suits a workstation but no robot.
    """

    runner: Literal["child", "external"] = "child"
    background: bool = True
    poll_interval_s: float = Field(default=0.2, gt=0)
    cancel_grace_s: float = Field(default=2.0, gt=0)
    max_attempts: int = Field(default=3, gt=0)
    keep_finished: int = Field(default=500, gt=0)


class LearningSettings(Frozen):
    """When the daemon starts the whole loop by itself; never, unless `after_episodes` or `daily_at` is set.

    It starts after so many episodes that ended since the loop ran last, or at a time of the day ("03:00", local),
    whichever comes first; with `only_idle` not while a session or an episode is open, and never while a gate is
    closed, another training waits or runs, or less than `min_interval_s` passed since the last one began.
    `prefer_jax` decides for every training with `trainer: auto` (`hardware.select_trainer`).
    """

    after_episodes: int | None = Field(default=None, gt=0)
    daily_at: str | None = Field(default=None, pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")
    only_idle: bool = True
    min_interval_s: float = Field(default=3600.0, ge=0, le=_CENTURY_S)
    check_interval_s: float = Field(default=30.0, gt=0)
    preset: Literal["development", "pi5_optimized", "tpu_optimized"] = "pi5_optimized"
    steps: int | None = Field(default=None, gt=0)
    target: Literal["local", "process", "vertex", "queued_resource"] = "local"
    prefer_jax: bool = True


class GateSettings(Frozen):
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


class LoraSettings(Frozen):
    """Fine-tuning with PyTorch: when it rests, and what its runs take where a request names nothing else.

    It needs every sensor that `gates` and `idle_s` speak of, unless `allow_missing` names it. A base is a run or a
    model by id or path; None is the active model, else the newest checkpoint.
    """

    allow_missing: tuple[Literal["battery", "temperature", "sessions", "episodes"], ...] = ()
    idle_s: float = Field(default=60.0, ge=0, le=_CENTURY_S)
    base_model_path: str | None = None
    adapters_out_dir: Path | None = None
    min_episodes: int = Field(default=16, gt=0)
    max_episodes: int = Field(default=256, gt=0)
    max_steps: int = Field(default=500, ge=0)
    max_wall_time_s: float = Field(default=300.0, ge=1, le=7 * 86_400)
    batch_size: int = Field(default=32, gt=0)
    lora_layers: tuple[str, ...] = ()
    learning_rate: float = Field(default=6e-3, gt=0, le=1)
    rank: int = Field(default=4, gt=0)
    alpha: float = Field(default=8.0, gt=0, le=1e4)

    @field_validator("allow_missing", "lora_layers", mode="before")
    @classmethod
    def _words(cls, value: Any) -> Any:
        """Read "battery,temperature", as the environment has it."""
        return tuple(filter(None, value.split(","))) if isinstance(value, str) else value

    @field_validator("adapters_out_dir")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path is not None else None


class CloudSettings(Frozen):
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
