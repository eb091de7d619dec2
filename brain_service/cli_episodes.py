"""`brain episodes`: list, show and delete episodes of a data directory, and see what retention would do.

It works on the files, whether a daemon runs or not: an open episode is locked and stays as it is, and a daemon
notices what is gone.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from brain_service.errors import BrainError, NotFoundError
from brain_service.settings import Settings, load_settings
from brain_service.terminal import size_text

if TYPE_CHECKING:
    from brain_service.episodes.store import EpisodeStore

__all__ = ["add_episodes_command"]

EXAMPLES = """\
examples:
  brain episodes ls --state truncated --tag demo
  brain episodes ls --json | jq -r '.[] | select(.converted | not) | .episode_id'
  brain episodes show 20261122T201500-3f9a1c
  brain episodes rm 20261122T201500-3f9a1c
  brain episodes retention --dry-run
"""

Run = Callable[[argparse.Namespace], int]
_PAGE = 1000


def add_episodes_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `episodes` and its own commands to the parser of `brain`."""
    summary = "List, show and delete episodes; see what retention would delete."
    episodes = commands.add_parser(
        "episodes",
        help=summary,
        description=summary,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = episodes.add_subparsers(dest="action", required=True, metavar="action")

    def action(name: str, run: Run, summary: str) -> argparse.ArgumentParser:
        added = actions.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.add_argument("--data-dir", type=Path, help="everything the daemon keeps")
        added.add_argument("--config", type=Path, help="settings file (default: brain.toml)")
        added.add_argument("--json", action="store_true", help="print JSON")
        added.set_defaults(run=run)
        return added

    ls = action("ls", _list, "List episodes, newest first.")
    ls.add_argument("--limit", type=int, default=_PAGE, help="at most so many (default: %(default)s)")
    ls.add_argument("--tag", action="append", default=[], help="only with this tag; repeat it for several")
    ls.add_argument("--state", choices=["open", "terminated", "truncated", "recovered"])
    for name in ("robot-id", "environment-id", "control-role", "xr-mode"):
        ls.add_argument(f"--{name}", help=f"only with this {name.replace('-', ' ')}")
    show = action("show", _show, "Show one episode: state, length, metadata, features, file.")
    show.add_argument("episode_id")
    rm = action("rm", _remove, "Delete ended episodes with their images, for good.")
    rm.add_argument("episode_id", nargs="+")
    retention = action("retention", _retain, "Delete what the settings of [retention] ask for and allow.")
    retention.add_argument("--dry-run", action="store_true", help="only say what would be deleted")


def _list(options: argparse.Namespace) -> int:
    from brain_service.episodes.index import Filters

    filters = Filters(
        tags=tuple(options.tag),
        state=options.state,
        robot_id=options.robot_id,
        environment_id=options.environment_id,
        control_role=options.control_role,
        xr_mode=options.xr_mode,
    )
    found: list[dict[str, Any]] = []
    cursor: str | None = None
    with _store(options) as store:
        while len(found) < options.limit:
            page, cursor = store.list(min(_PAGE, options.limit - len(found)), cursor, filters)
            found += page
            if cursor is None:
                break
    if options.json:
        return _say_json(found)
    _say(f"{'episode':38} {'state':10} {'steps':>9} {'size':>10}  environment")
    for item in found:
        marks = [name for name in ("compressed", "converted", "uploaded") if item[name]]
        _say(
            f"{item['episode_id']:38} {item['state']:10} {item['steps']:9} {size_text(item['size_bytes']):>10}  "
            f"{item['metadata']['environment_id']}{' (' + ', '.join(marks) + ')' if marks else ''}"
        )
    return 0


def _show(options: argparse.Namespace) -> int:
    with _store(options) as store:
        found = store.get(options.episode_id)
    if options.json:
        return _say_json(found)
    for name, value in found.items():
        shown = value
        if name.endswith("_ns") and value is not None:
            shown = f"{value} ({datetime.fromtimestamp(value / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC)"
        elif name == "size_bytes":
            shown = f"{value} ({size_text(value)})"
        elif isinstance(value, dict):
            shown = json.dumps(value, indent=2)
        _say(f"{name:16} {'-' if shown is None else shown}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    with _store(options) as store:
        for episode_id in options.episode_id:
            store.delete(episode_id)
            if not options.json:
                _say(f"deleted {episode_id}")
    return _say_json({"deleted": options.episode_id}) if options.json else 0


def _retain(options: argparse.Namespace) -> int:
    with _store(options) as store:
        plan = store.retention_plan() if options.dry_run else store.apply_retention()
    if options.json:
        return _say_json(
            {
                "dry_run": options.dry_run,
                "deleted": [item.to_json() for item in plan.doomed],
                "kept_unconverted": plan.kept_unconverted,
                "kept_not_uploaded": plan.kept_not_uploaded,
                "kept_bytes": plan.kept_bytes,
            }
        )
    for item in plan.doomed:
        _say(f"{'would delete' if options.dry_run else 'deleted'} {item.episode_id} ({item.reason})")
    freed = size_text(sum(item.size_bytes for item in plan.doomed))
    _say(f"{len(plan.doomed)} episodes, {freed} {'would be ' if options.dry_run else ''}freed")
    if plan.blocked:
        _say(plan.blocked)
    return 0


@contextlib.contextmanager
def _store(options: argparse.Namespace) -> "Iterator[EpisodeStore]":
    """Open the data directory without starting anything: what it does is what the command asks for.

    Raises:
        NotFoundError: there are no episodes.
        ConfigError: the settings are wrong.
    """
    from brain_service.episodes.store import EpisodeStore

    settings = load_settings({"data_dir": options.data_dir}, config=options.config)
    if not settings.episodes_dir.is_dir():
        raise NotFoundError(
            f"no episodes in {settings.data_dir}; name the daemon's data directory with --data-dir"
        )
    store = EpisodeStore(
        settings.episodes_dir,
        settings.capture,
        database=_database(settings),
        retention=settings.retention,
        datasets_dir=settings.datasets_dir,
    )
    try:
        yield store
    finally:
        store.close()


def _database(settings: Settings) -> Path | None:
    """Return the catalogue's file if it is there and whole: only the daemon makes it, or moves it aside."""
    from brain_service.episodes.index import EpisodeIndex

    if not settings.database.exists():
        return None
    try:
        EpisodeIndex(settings.database).close()
    except BrainError as error:
        sys.stderr.write(f"brain episodes: {error.detail}; what was uploaded is not known\n")
        return None
    return settings.database


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _say_json(document: Any) -> int:
    _say(json.dumps(document, indent=2))
    return 0
