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
from brain_service.terminal import printable, say, say_json, size_text, table_lines

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
    ls.add_argument("--limit", type=_positive, default=_PAGE, help="at most so many (default: %(default)s)")
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


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not a whole number from 1 on")
    return number


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
        say_json(found)
        return 0
    rows = [("episode", "state", "steps", "size", "environment")]
    for item in found:
        marks = [name for name in ("compressed", "converted", "uploaded") if item[name]]
        environment = f"{item['metadata']['environment_id']}{' (' + ', '.join(marks) + ')' if marks else ''}"
        steps, size = str(item["steps"]), size_text(item["size_bytes"])
        rows.append((item["episode_id"], item["state"], steps, size, environment))
    for line in table_lines(rows, right=("steps", "size")):
        say(line)
    return 0


def _show(options: argparse.Namespace) -> int:
    with _store(options) as store:
        found = store.get(options.episode_id)
    if options.json:
        say_json(found)
        return 0
    for name, value in found.items():
        shown = value
        if name.endswith("_ns") and value is not None:
            shown = _time_text(value)
        elif name == "size_bytes":
            shown = f"{value} ({size_text(value)})"
        elif isinstance(value, dict):
            shown = json.dumps(value, indent=2)
        for line in f"{name:16} {'-' if shown is None else shown}".split("\n"):
            say(line)
    return 0


def _time_text(time_ns: int) -> str:
    # A header may hold any number: not all are dates.
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return f"{time_ns} ({datetime.fromtimestamp(time_ns / 1e9, UTC):%Y-%m-%d %H:%M:%S} UTC)"
    return str(time_ns)


def _remove(options: argparse.Namespace) -> int:
    with _store(options) as store:
        for episode_id in options.episode_id:
            store.delete(episode_id)
            if not options.json:
                say(f"deleted {episode_id}")
    if options.json:
        say_json({"deleted": options.episode_id})
    return 0


def _retain(options: argparse.Namespace) -> int:
    with _store(options) as store:
        plan = store.retention_plan() if options.dry_run else store.apply_retention()
    if options.json:
        say_json(
            {
                "dry_run": options.dry_run,
                "deleted": [item.to_json() for item in plan.doomed],
                "kept_unconverted": plan.kept_unconverted,
                "kept_not_uploaded": plan.kept_not_uploaded,
                "kept_bytes": plan.kept_bytes,
            }
        )
        return 0
    for item in plan.doomed:
        say(f"{'would delete' if options.dry_run else 'deleted'} {item.episode_id} ({item.reason})")
    freed = size_text(sum(item.size_bytes for item in plan.doomed))
    say(f"{len(plan.doomed)} episodes, {freed} {'would be ' if options.dry_run else ''}freed")
    if plan.blocked:
        say(plan.blocked)
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
        sys.stderr.write(f"brain episodes: {printable(error.detail)}; what was uploaded is not known\n")
        return None
    return settings.database
