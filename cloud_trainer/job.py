"""The job: train on a dataset, evaluate on its held-out episodes, export a bundle; resumable at every point."""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from brain_service.cloud.run_status import EXIT_PREEMPTED, RunStatus
from brain_service.datasets.loader import Dataset, open_dataset
from brain_service.datasets.places import Place, open_place
from brain_service.errors import InvalidError
from brain_service.training.checkpointing import load_checkpoint
from brain_service.training.compile_cache import keep_compiled
from brain_service.training.config import TrainConfig
from brain_service.training.evaluation import EvaluationResult, Subject, evaluate_subject
from brain_service.training.loop import Hooks, TrainProgress, train_run
from brain_service.training.run import Run
from brain_service.training.sharding import make_mesh
from cloud_trainer.curves import Curves
from cloud_trainer.distributed import Cluster, Hosts, check_topology, join
from cloud_trainer.ending import Ending
from cloud_trainer.frozen import check_frozen
from cloud_trainer.goodput import Goodput, process_age_s
from cloud_trainer.heartbeat import Heartbeat, read_status
from cloud_trainer.preemption import SignalAction, leave_at_once, save_first, stop_point
from cloud_trainer.publish import MODELS, publish_model, publish_report, summary
from cloud_trainer.record import RunRecord, default_run_id, read_record

__all__ = ["JobOptions", "run_job"]

log = logging.getLogger(__name__)

REPORT_EVERY_S = 10.0
CHECKPOINTS = "checkpoints"
CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """What one run is asked to do; see `cloud-trainer train --help`."""

    data_path: str
    output_dir: str
    config: TrainConfig
    run_id: str | None = None
    fsdp: int = 1
    """Devices that share one copy of the parameters; the others hold copies (data parallel)."""
    topology: str | None = None
    cluster: Cluster = field(default_factory=Cluster)
    before_training: Callable[[Dataset, Hosts], None] = lambda *_: None
    """Asked once the data is there, before anything is compiled; may refuse by an error."""
    bundle: bool = True
    """Whether a bundle is exported; a trial of a search needs none."""
    sign_key: Path | None = None
    compile_cache: str | None = None
    heartbeat_s: float = 10.0
    cache_least_s: float = 1.0
    """Programs that compile faster are not kept: they are fetched no faster."""


def run_job(options: JobOptions, say: Callable[[str], None]) -> int:
    """Run the job and return its exit code: 0 done, 75 preempted (the same again goes on), 78 refused, 2 failed.

    `say` gets a line of progress at most every `REPORT_EVERY_S`. A killed job that is started again with the
    same options goes on from its newest checkpoint; a finished one only says so. On several hosts every process
    calls it.

    Raises:
        BrainError: nothing was begun: an option is wrong, or the output directory is another run's or cannot be
            read. What goes wrong later is told in `status.json` and raised too.
    """
    output = open_place(options.output_dir)
    record, before = read_record(output), read_status(output)
    run_id = options.run_id or (record.run_id if record else default_run_id(output.location))
    if record is not None:
        record.require_same(output, run_id, options.data_path, options.config)
    elif before is not None and before.run_id != run_id:
        raise InvalidError(
            f"{output.location} holds run {before.run_id}, not {run_id}; give this run an output directory of "
            "its own",
            field="run_id",
        )
    if before is not None and before.phase == "done":
        say(f"run {run_id} is done: {before.model_id or 'no bundle'} in {output.location}")
        return 0
    leave_at_once()
    hosts = join(options.cluster)
    service = SignalAction()
    leave_at_once()  # until there is something to save
    goodput = _goodput(before)
    status = _first_status(run_id, options.config, hosts, before, goodput)
    curves = Curves(output.child(CHECKPOINTS))
    beat = Heartbeat(
        output if hosts.first else None,
        status,
        goodput=goodput.buckets,
        interval_s=options.heartbeat_s,
        also=curves.copy,
    )
    goodput.on_checkpoint = beat.wake
    try:
        with Ending(hosts, beat), beat:
            return _Job(options, output, hosts, service, goodput, curves, beat, record, say).run()
    finally:
        curves.close()


def _goodput(before: RunStatus | None) -> Goodput:
    age_s = process_age_s()
    if before is None:
        return Goodput(age_s=age_s)
    down_s = max(time.time() - age_s - before.updated_ns / 1e9, 0.0)
    return Goodput(before=before.goodput, down_s=down_s, age_s=age_s, known_step=before.step)


def _first_status(
    run_id: str, config: TrainConfig, hosts: Hosts, before: RunStatus | None, goodput: Goodput
) -> RunStatus:
    now_ns = time.time_ns()
    age_ns = int(sum(goodput.buckets().values()) * 1e9)
    return RunStatus(
        run_id=run_id,
        phase="starting",
        attempt=1 if before is None else before.attempt + 1,
        step=0 if before is None else before.step,
        steps=config.steps,
        started_ns=now_ns - age_ns if before is None else before.started_ns,
        updated_ns=now_ns,
        stepped_ns=now_ns,
        hosts=hosts.count,
        devices=jax.device_count(),
    )


class _Job:
    """One attempt, once its hosts have met and its heart beats."""

    def __init__(
        self,
        options: JobOptions,
        output: Place,
        hosts: Hosts,
        service: SignalAction,
        goodput: Goodput,
        curves: Curves,
        beat: Heartbeat,
        record: RunRecord | None,
        say: Callable[[str], None],
    ) -> None:
        self.options = options
        self.config = options.config
        self.output = output
        self.hosts = hosts
        self.service = service
        self.goodput = goodput
        self.curves = curves
        self.beat = beat
        self.record = record
        self.say = say if hosts.first else lambda _: None
        self.checkpoints = output.child(CHECKPOINTS).location
        self._told_s = float("-inf")

    def run(self) -> int:
        """Train, evaluate, export; return the exit code."""
        options = self.options
        if options.topology is not None and (found := check_topology(options.topology)):
            log.warning("the slice is not the one that was asked for", extra={"found": found})
            self.say(f"note: this is {found}")
        dataset = self._open_dataset()
        check_frozen(dataset, self.output, self.hosts)
        run = Run(dataset, self.checkpoints, self.config, make_mesh(options.fsdp))
        options.before_training(dataset, self.hosts)
        self._keep_record(dataset)
        cache = options.compile_cache or self.output.child(CACHE).location
        keep_compiled(cache, least_s=options.cache_least_s)
        if not self._train(run):
            return EXIT_PREEMPTED
        leave_at_once()
        self._finish(dataset)
        return 0

    def _open_dataset(self) -> Dataset:
        """Open the version that the run began with, on every host the same."""
        record, wanted = self.record, self.options.data_path
        place = self.hosts.first_says(
            "dataset", lambda: open_dataset(wanted).location if record is None else record.dataset
        )
        return open_dataset(place)

    def _keep_record(self, dataset: Dataset) -> None:
        if self.record is None and self.hosts.first:
            RunRecord(
                run_id=self.beat.status.run_id,
                data_path=self.options.data_path,
                dataset=dataset.location,
                config=self.config.to_dict(),
            ).write(self.output)

    def _train(self, run: Run) -> bool:
        """Train to the last step; false if the hosts were told to go before, and saved."""
        self.beat.update(phase="compiling")
        save_first(self.service)
        hooks = Hooks(
            on_progress=self._on_progress,
            on_step=self._on_step,
            should_stop_at=stop_point(),
            phases=self.goodput,
            more_metrics=lambda: {f"goodput/{name}_s": value for name, value in self.goodput.buckets().items()},
        )
        done = train_run(run, hooks, self.curves.folder)
        if not done.completed:
            self.beat.end(phase="preempted", step=done.step)
            self.say(f"told to go: saved at step {done.step} of {self.config.steps}; the same command goes on")
            return False
        self.beat.update(step=done.step)
        return True

    def _on_step(self, step: int) -> None:
        self.goodput.made(step)
        self.beat.update(step=step, phase="training")

    def _on_progress(self, now: TrainProgress) -> None:
        self.beat.update(loss=now.loss, steps_per_s=now.steps_per_s)
        # By the clock: the loop tells of a step now and then, hardly ever of a round one.
        if time.monotonic() - self._told_s >= REPORT_EVERY_S or now.step == now.steps:
            self._told_s = time.monotonic()
            self.say(f"step {now.step}/{now.steps} loss {now.loss:.4f} {now.steps_per_s:.1f} steps/s")

    def _finish(self, dataset: Dataset) -> None:
        """Evaluate and export on the first host; the others wait for it."""
        self.goodput.begin("finish")
        self.beat.update(phase="evaluating")
        loaded = load_checkpoint(self.checkpoints)  # all hosts: Orbax has them meet
        if not self.hosts.first:
            self.hosts.wait_for_all("finished")
            return
        evaluation: EvaluationResult | None = None
        if "val" in dataset.splits:
            subject = Subject.of_checkpoint(loaded, "checkpoint")
            evaluation = evaluate_subject(subject, dataset, step=loaded.step)
            self.say(str(evaluation))
        else:
            self.say("no episode is held out: the model is not evaluated")
        model_id: str | None = None
        if self.options.bundle:
            self.beat.update(phase="exporting")
            run_id = self.beat.status.run_id
            model_id = publish_model(loaded, evaluation, self.output, run_id, self.options.sign_key)
        publish_report(self.output, evaluation, self._account(model_id, loaded.step))
        told = None if evaluation is None else summary(evaluation)
        self.beat.end(phase="done", model_id=model_id, evaluation=told)
        self.hosts.wait_for_all("finished")
        self.say(self.output.location if model_id is None else f"{self.output.location}/{MODELS}/{model_id}")

    def _account(self, model_id: str | None, step: int) -> Mapping[str, Any]:
        status = self.beat.status
        return {
            "run_id": status.run_id,
            "model_id": model_id,
            "step": step,
            "attempts": status.attempt,
            "hosts": status.hosts,
            "devices": status.devices,
            "goodput_s": self.goodput.buckets(),
            "config": self.config.to_dict(),
        }
