"""The checks of the daemon's own parts: value, limit, and where a part is not well, the reason and the fix.

None of them depends on the cloud. A missing model warns and does not fail: capture is what a new robot needs.
"""

import os
import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from brain_service.health.check import Check
from brain_service.settings import Settings

__all__ = [
    "capture_check",
    "capture_obstacle",
    "disk_check",
    "episodes_check",
    "inference_check",
    "jobs_check",
    "lost_history",
    "memory_check",
    "misplaced_files",
    "recording_check",
    "wear_check",
]

MEMORY_WARN, MEMORY_FAIL = 75.0, 90.0  # percent in use
WEAR_WARN_MB = 30_000.0  # a day; a good 64 GB card endures some 30 TB, which this uses up in under three years
STALL_INTERVALS = 10.0  # steps unsynced for this many sync intervals: the medium stalls
FREE_SPACE = "free some space: brain episodes retention --dry-run shows what may go"


def disk_check(data_dir: Path, min_free_bytes: int) -> Check:
    """Free bytes where the data lives; below `min_free_bytes` new steps are refused."""
    try:
        free = shutil.disk_usage(data_dir).free
    except OSError as error:
        return Check(
            *("fail", None, "bytes", f"cannot look at {data_dir}: {error.strerror}"),
            limit=min_free_bytes,
            fix="is its medium there?",
        )
    if free < min_free_bytes:
        reason = f"below {min_free_bytes} bytes: new steps are refused"
        return Check("fail", free, "bytes", reason, min_free_bytes, FREE_SPACE)
    if free < 4 * min_free_bytes:
        reason = f"steps are refused below {min_free_bytes} bytes"
        return Check("warn", free, "bytes", reason, min_free_bytes, FREE_SPACE)
    return Check("pass", free, "bytes", limit=min_free_bytes)


def capture_obstacle(episodes_dir: Path, min_free_bytes: int) -> str:
    """Tell why no step can be written now, from one look at the file system; nothing where it can."""
    try:
        found = os.statvfs(episodes_dir)
    except OSError as error:
        return f"cannot look at {episodes_dir}: {error.strerror}; is its medium there?"
    if found.f_flag & os.ST_RDONLY:
        return f"the file system of {episodes_dir} is read-only; remount it writable"
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < max(min_free_bytes, 1):
        return f"{free_bytes} bytes are free, {min_free_bytes} are kept in reserve; free some space"
    return ""


def memory_check() -> Check:
    """Share of the machine's memory in use, in percent."""
    used = psutil.virtual_memory().percent
    if used > MEMORY_FAIL:
        fix = "cancel a training job (DELETE /jobs/{id}) or stop other programs"
        return Check("fail", used, "percent", f"above {MEMORY_FAIL:.0f} %", MEMORY_FAIL, fix)
    if used > MEMORY_WARN:
        fix = "stop other programs, or train with a smaller batch_size"
        return Check("warn", used, "percent", f"above {MEMORY_WARN:.0f} %", MEMORY_WARN, fix)
    return Check("pass", used, "percent", limit=MEMORY_WARN)


def capture_check(status: Mapping[str, Any], sync_interval_s: float) -> Check:
    """Age in seconds of the oldest accepted step that is not yet on the medium (`EpisodeStore.status`)."""
    lag_s = float(status["unsynced_s"])
    limit_s = STALL_INTERVALS * sync_interval_s
    if status["last_error"]:
        return Check("fail", lag_s, "s", str(status["last_error"]), limit_s)
    if lag_s > limit_s:
        reason = f"the medium has not taken a step for {lag_s:.1f} s"
        return Check("fail", lag_s, "s", reason, limit_s, "check the SD card: brain doctor")
    lost = [report for report in status["recoveries"] if report.get("bytes_cut")]
    if lost:
        reason = f"after the last stop {len(lost)} logs were cut"
        return Check("warn", lag_s, "s", reason, limit_s, "see the daemon's log: journalctl -u continuon-brain")
    return Check("pass", lag_s, "s", limit=limit_s)


def episodes_check(status: Mapping[str, Any]) -> Check:
    """Number of episodes; what is damaged, what retention cannot delete, and what the catalogue cannot do."""
    counts = status["catalogue"]
    total = counts.get("total", 0)
    damaged = status["damaged"]
    named = ", ".join(f"{name} ({reason})" for name, reason in list(damaged.items())[:3])
    problems = [f"{len(damaged)} damaged or unreadable: {named}"] * bool(damaged)
    problems += [f"catalogue: {status['index_problem']}"] * bool(status["index_problem"])
    problems += [str(status["retention"]["blocked"])] * bool(status["retention"]["blocked"])
    problems += [f"{task}: {reason}" for task, reason in status["failed_tasks"].items()]
    if problems:
        return Check("warn", total, "episodes", "; ".join(problems))
    output = f"{status['open_episodes']} open, {counts.get('unconverted', 0)} that no dataset holds"
    oldest_ns = counts.get("oldest_unconverted_ns")
    if oldest_ns is not None:
        output += f", the oldest from {datetime.fromtimestamp(oldest_ns // 10**9, UTC):%Y-%m-%d}"
    return Check("pass", total, "episodes", output)


def wear_check(wear: Mapping[str, Any]) -> Check:
    """Megabytes a day that capture writes, at the pace of the last hour."""
    pace_mb = round(wear["bytes_per_day"] / 1e6, 1)
    output = f"{wear['bytes_today'] / 1e6:.1f} MB written today"
    if pace_mb > WEAR_WARN_MB:
        output += f"; {365 * pace_mb / 1e6:.0f} TB a year"
        return Check(
            "warn", pace_mb, "MB/day", output, WEAR_WARN_MB, "record fewer or coarser values, or use an SSD"
        )
    return Check("pass", pace_mb, "MB/day", output, WEAR_WARN_MB)


def recording_check(failed_steps: int, last_error: str) -> Check:
    """Policy steps that `record` of `/infer` could not append since the start."""
    if failed_steps:
        reason = f"the policy's last step was not recorded: {last_error}"
        return Check("warn", failed_steps, "steps", reason, 0, "name an open episode in 'record' of /infer")
    return Check("pass", 0, "steps", limit=0)


def inference_check(status: Mapping[str, Any]) -> Check:
    """p99 of an answer in microseconds and the state of the active model (`InferenceRouter.status`)."""
    p99_us = status["total_us"]["p99"]
    if status["state"] == "no-model":
        fix = "POST /pipeline trains one from what was recorded"
        return Check("warn", p99_us, "us", "no model yet", fix=fix)
    if status["state"] == "failed":
        fix = "POST /models/rollback serves the one before"
        return Check("fail", p99_us, "us", str(status["error"]), fix=fix)
    if not status["ready"]:
        return Check("warn", p99_us, "us", f"the model is {status['state']}; it answers within seconds")
    if status.get("safe_mode"):
        return Check("warn", p99_us, "us", f"safe mode: {status['safe_mode']}")
    warnings = [*status["warnings"], *_distrusted(status)]
    if warnings:
        return Check("warn", p99_us, "us", "; ".join(warnings))
    rest = [f"{why['backend']}: {why['reason']}" for why in status["why"] if not why["used"]]
    output = "; ".join([f"model {status['active_model']} on {status['backend']}", *rest])
    return Check("pass", p99_us, "us", output)


def _distrusted(status: Mapping[str, Any]) -> list[str]:
    """Tell of models that were rolled back by themselves, and of one that cannot be, since the daemon's start."""
    rolled_back = {rollback["model_id"]: rollback["evidence"] for rollback in status.get("rollbacks", ())}
    found = [f"model {name} was rolled back: {why}; see GET /models" for name, why in rolled_back.items()]
    probation = status.get("probation") or {}
    if probation.get("evidence") and probation["model_id"] not in rolled_back:
        outcome = probation.get("outcome") or "the rollback is under way"
        found.append(f"model {probation['model_id']}: {probation['evidence']}; {outcome}")
    return found


def jobs_check(status: Mapping[str, Any], *problems_of_files: str) -> Check:
    """Whether jobs are taken and run (`status` of the runner); its value is the number of the runner's restarts.

    `problems_of_files` tell what is wrong with the files that jobs need; an empty one is none.
    """
    restarts = int(status["restarts"])
    problems = [problem for problem in problems_of_files if problem]
    if status.get("absent"):
        problems.append(status["absent"])
    elif not status["settled"]:
        reason = status["last_reason"] or "see the daemon's log"
        exit_code = status["last_exit"]
        problems.append(f"the job runner died (exit code {exit_code}) and starts again by itself: {reason}")
    fix = "journalctl -u continuon-brain" if not status["settled"] else ""
    return Check("warn" if problems else "pass", restarts, "restarts", "; ".join(problems), fix=fix)


def misplaced_files(settings: Settings) -> str:
    """Tell where a file stands in the place of a directory that jobs need; nothing if nowhere."""
    places = (
        *(settings.jobs_dir, settings.datasets_dir, settings.checkpoints_dir),
        *(settings.models_dir, settings.cache_dir),
    )
    found = [str(place) for place in places if place.exists() and not place.is_dir()]
    return f"no directory, as jobs need one there: {', '.join(found)}; move the file away" if found else ""


def lost_history(database: Path, since_ns: int) -> str:
    """Tell which damaged job table was moved aside since a moment (Unix time in ns); nothing if none was."""
    begin = f"{database.name}.damaged-"
    for file in sorted(database.parent.glob(f"{begin}*"), reverse=True):
        moment = file.name.removeprefix(begin)
        if moment.isdigit() and int(moment) >= since_ns:
            return (
                f"{database.name} was damaged and is now {file.name}: the history of jobs and of uploads began "
                "anew, queued jobs are to be asked for again; a restart of the daemon ends this warning"
            )
    return ""
