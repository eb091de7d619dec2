"""`make demo`: start the daemon, run the loop, print the figures, say where to look next."""

import argparse
import fcntl
import json
import shutil
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.e2e.demo.figures import print_figures
from tests.e2e.demo.loop import Plan, run_loop
from tests.processes import MemoryMeter, running_daemon

NEXT = """\
Where to look next
  {folder}.json  the same figures as JSON
  {folder}/brain/episodes  what the expert did: JSON lines, one file an episode
  {folder}/brain/datasets  the RLDS dataset: tfds.builder_from_directory reads it
  {folder}/brain/models/active  the bundle that drove the robot
  {folder}/brain.log  the daemon's log
  make serve  serves what was learned; then: curl localhost:8080/health"""


def in_use(data_dir: Path) -> bool:
    """Whether a daemon holds the lock of this data directory."""
    try:
        with (data_dir / ".lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def main() -> int:
    """Run the demo from a fresh folder; the folder of the run before is kept as `<folder>.previous`."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.demo", description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="where the daemon's data goes")
    parser.add_argument("--episodes", type=int, default=60, help="expert episodes to record")
    parser.add_argument("--drives", type=int, default=25, help="held-out goals to drive to")
    parser.add_argument("--steps", type=int, default=None, help="training steps (default: the pipeline's)")
    parser.add_argument("--seed", type=int, default=0, help="of goals and noise (default: %(default)s)")
    options = parser.parse_args()
    folder: Path = options.folder
    if in_use(folder / "brain"):
        print(f"a daemon serves {folder}/brain now; stop it, or choose another --folder", file=sys.stderr)
        return 2
    if folder.exists():
        previous = folder.with_name(f"{folder.name}.previous")
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
    folder.mkdir(parents=True)

    console, meter, begun = Console(), MemoryMeter(), time.monotonic()
    meter.start()
    columns = (TextColumn("{task.description:32}"), BarColumn(), TimeElapsedColumn())
    with running_daemon(folder / "brain") as daemon, Progress(*columns, console=console) as progress:
        console.print(f"daemon on {daemon.url}")
        figures = run_loop(
            daemon.url, Plan(options.episodes, options.steps, options.drives, options.seed), progress
        )
    figures.total_s, figures.peak_memory_bytes = time.monotonic() - begun, meter.stop()
    folder.with_name(f"{folder.name}.json").write_text(json.dumps(figures.to_json(), indent=1) + "\n")
    print_figures(figures, console)
    console.print(NEXT.format(folder=folder), highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
