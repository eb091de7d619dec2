"""`cloud-trainer tune`: search for good training settings, here or as a job of Vertex AI."""

import argparse
import json
import sys
from pathlib import Path

from brain_service.durable import write_atomic
from brain_service.errors import InvalidError, UnavailableError
from cloud_trainer.tuning import trial as in_container
from cloud_trainer.tuning.local import LocalSearch, run_search, trial_command
from cloud_trainer.tuning.report import PLOT_FILE, TABLE_FILE, best_trial, shell, table, write_plot
from cloud_trainer.tuning.search import Asha, RandomSearch, Search
from cloud_trainer.tuning.space import read_space
from cloud_trainer.tuning.state import Trial, Trials
from cloud_trainer.tuning.vertex import VertexOptions, tuning_job

__all__ = ["main"]

EXAMPLES = """\
examples:
  cloud-trainer tune --search asha --trials 27 --space space.toml --data-path ./datasets --output-dir ./search \\
      --num-steps 2000 --min-steps 200 -- --preset development
  cloud-trainer tune --search random --trials 40 --space space.toml --launcher vertex-spec \\
      --data-path gs://fleet/datasets --output-dir gs://fleet/search --image europe-docker.pkg.dev/p/brain/job:1

space.toml has a table for each setting:
  [learning_rate]
  type = "double"
  min = 1e-5
  max = 1e-2
  scale = "log"
  [batch_size]
  type = "discrete"
  values = [16, 32, 64]

The objective is the held-out loss, and less is better. What follows -- are options of every trial. A search that
was killed goes on with the same command.
"""


def main(arguments: list[str]) -> int:
    """Search, or print the job, and return the exit code: 0 done, 75 told to go (the same command goes on).

    Raises:
        BrainError: an option or the space is wrong, the folder holds another search or cannot be written.
    """
    if arguments[:1] == ["trial"]:
        return in_container.main(arguments[1:])
    arguments, extra = _split(arguments)
    options = _parser().parse_args(arguments)
    for name in ("trials", "parallel", "num_steps"):
        if getattr(options, name) < 1:
            raise InvalidError(f"{name} is {getattr(options, name)}; use a positive number", field=name)
    return _print_job(options, extra) if options.launcher == "vertex-spec" else _search_here(options, extra)


def _split(arguments: list[str]) -> tuple[list[str], tuple[str, ...]]:
    if "--" not in arguments:
        return arguments, ()
    at = arguments.index("--")
    return arguments[:at], tuple(arguments[at + 1 :])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloud-trainer tune",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--search", choices=("random", "asha"), default="asha", help="which trials go on (default: %(default)s)")
    add("--trials", type=int, required=True, help="how many settings are tried")
    add("--space", type=Path, required=True, help="TOML file of what varies")
    add("--launcher", choices=("local", "vertex-spec"), default="local", help="where (default: %(default)s)")
    add("--data-path", required=True, help="dataset in TFDS layout")
    add("--output-dir", required=True, help="where the trials go")
    add("--num-steps", type=int, default=10_000, help="steps of a whole trial (default: %(default)s)")
    add("--min-steps", type=int, help="steps before the first choice of asha (default: a 27th of --num-steps)")
    add("--eta", type=int, default=3, help="asha: one in so many goes on (default: %(default)s)")
    add("--parallel", type=int, default=1, help="trials at once (default: %(default)s)")
    add("--seed", type=int, default=0, help="of the trials' settings and of each trial (default: %(default)s)")
    group = parser.add_argument_group("vertex-spec")
    group.add_argument("--image", help="container image of the job")
    group.add_argument("--machine-type", default="ct5lp-hightpu-4t", help="(default: %(default)s)")
    group.add_argument("--tpu-topology", default="2x2", help="(default: %(default)s; '' without a TPU)")
    group.add_argument("--service-account", default="", help="that the trials run as")
    group.add_argument("--name", default="continuon-brain-tune", help="of the job (default: %(default)s)")
    return parser


def _method(options: argparse.Namespace) -> Search:
    if options.search == "random":
        return RandomSearch(options.trials, options.num_steps)
    first_step = options.min_steps if options.min_steps is not None else max(1, options.num_steps // 27)
    return Asha(options.trials, options.num_steps, first_step, options.eta)


def _print_job(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    if not options.image:
        raise InvalidError("--launcher vertex-spec needs --image: what the trials run", field="image")
    vertex = VertexOptions(
        image=options.image,
        data_path=options.data_path,
        output_dir=options.output_dir,
        steps=options.num_steps,
        look_every=_method(options).rungs[0],
        machine_type=options.machine_type,
        tpu_topology=options.tpu_topology,
        service_account=options.service_account,
        extra=extra,
    )
    job = tuning_job(
        options.name,
        read_space(options.space),
        options.trials,
        options.parallel,
        vertex,
        halving=options.search == "asha",
        seed=options.seed,
    )
    _say(json.dumps(job, indent=1))
    return 0


def _search_here(options: argparse.Namespace, extra: tuple[str, ...]) -> int:
    if "://" in options.output_dir:
        raise InvalidError(
            f"{options.output_dir}: trials of this machine go to a local folder; or use --launcher vertex-spec",
            field="output_dir",
        )
    method = _method(options)
    folder = Path(options.output_dir)
    search = LocalSearch(
        data_path=options.data_path,
        folder=folder,
        space=read_space(options.space),
        seed=options.seed,
        steps=options.num_steps,
        parallel=options.parallel,
        extra=extra,
    )
    identity = {
        "search": {"kind": options.search, **vars(method)},
        "space": search.space.to_json(),
        "data_path": search.data_path,
        "seed": search.seed,
        "extra": list(extra),
    }
    trials = Trials(folder, identity)
    code = run_search(search, method, trials, _say)
    known = [trials.trials[number] for number in sorted(trials.trials)]
    _write_results(folder, search, method, known)
    return code if code or best_trial(known) is not None else 2


def _write_results(folder: Path, search: LocalSearch, method: Search, known: list[Trial]) -> None:
    best = best_trial(known)
    lines = [table(known)]
    if best is not None:
        lines += ["", "the best one:", shell(trial_command(search, best, method.rungs[0]))]
    text = "\n".join(lines)
    try:
        write_atomic(folder / TABLE_FILE, f"{text}\n".encode())
        write_plot(folder / PLOT_FILE, known)
    except OSError as error:
        raise UnavailableError(f"cannot write the results to {folder}: {error.strerror or error}") from error
    _say(text)


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
