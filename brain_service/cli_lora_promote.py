"""`brain lora promote` and `rollback`: by the daemon where one serves, else on the files alone.

Either way a run's merged checkpoint is held against the active model on held-out episodes, exported, and made the
active one only if it is not worse; the audit of adapters gets a line with the figures.
"""

import argparse
import contextlib
import getpass
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from brain_service.errors import BrainError, ConflictError, InvalidError, NotFoundError
from brain_service.terminal import progress_bar, say_json

if TYPE_CHECKING:
    from brain_service.datasets.dataset import Dataset
    from brain_service.settings import Settings
    from brain_service.training.checkpointing import LoadedCheckpoint
    from brain_service.training.evaluation import Promotion, Subject
    from brain_service.training.torch_lora.document import AdapterDocument

__all__ = ["lora_settings", "promote", "rollback"]


def lora_settings(options: argparse.Namespace) -> "Settings":
    """Return the settings with what the flags of every `brain lora` command say."""
    from brain_service.settings import load_settings

    adapters = options.adapters_out_dir
    lora = None if adapters is None else {"adapters_out_dir": adapters}
    return load_settings({"data_dir": options.data_dir, "lora": lora})


def promote(options: argparse.Namespace) -> int:
    """Judge, export and activate a run's merged model.

    Raises:
        NotFoundError: there are no such adapters, no checkpoint of them, or no dataset to judge them on.
        ConflictError: it is worse than the active model, the checkpoint is not of these adapters, another model
            became active meanwhile, or a daemon runs here and `--url` does not name it.
        InvalidError: a dataset is named, and a daemon that judges on its own.
        UnavailableError: the daemon does not answer or refuses, or the medium is full.
    """
    from brain_service.jobs.bases import active_adapters
    from brain_service.training.torch_lora.store import AdapterStore

    settings = lora_settings(options)
    store, run = AdapterStore(settings.adapters_dir), options.run_id
    document = store.document(run)
    dataset = document.extra["dataset"]
    if options.url and options.data_path:
        raise InvalidError(
            f"--data-path: the daemon judges run {run} on the dataset that it was trained on, {dataset['name']}/"
            f"{dataset['version']}; leave --data-path out, or stop the daemon and leave --url out",
            field="data_path",
        )
    store.catch_up(active_adapters(settings))
    with store.hold(run):
        loaded = _merged(settings, run, document)
        here = (options, settings, dataset, loaded)
        evaluation = _by_daemon(options, dataset) if options.url else _by_files(*here)
    verdict = evaluation["promotion"]
    promoted = verdict is None or bool(verdict["promoted"])
    reason = "no model was active" if verdict is None else str(verdict["reason"])
    figures = {"verdict": reason, "model_id": evaluation.get("model_id"), "evaluation": verdict}
    event = "promoted" if promoted else "not promoted"
    store.note(event, run, document.sha256, _who(), **figures)
    if not promoted:
        raise ConflictError(f"run {run} is not promoted: {reason}; the active model goes on serving")
    say_json({"run": run, "sha256": document.sha256, "model_id": evaluation["model_id"], "verdict": reason})
    return 0


def rollback(options: argparse.Namespace) -> int:
    """Serve the model before again, if the active one has adapters.

    Raises:
        ConflictError: the active model has no adapters, nothing was before it or what was is rejected, or a daemon
            runs here unnamed.
        UnavailableError: the daemon does not answer or refuses, or the medium is full.
    """
    from brain_service.inference.model_store import ModelStore
    from brain_service.jobs.bases import active_adapters, active_model
    from brain_service.training.torch_lora.store import AdapterStore

    settings = lora_settings(options)
    store, models = AdapterStore(settings.adapters_dir), ModelStore(settings.models_dir)
    current, model_id = active_adapters(settings), active_model(settings)
    if current is None or model_id is None:
        raise ConflictError(
            f"the active model {model_id or '(none)'} has no adapters to take back; POST /models/rollback goes "
            "back from any model"
        )
    store.catch_up(current)
    if options.url:
        from brain_service.cli_daemon import open_daemon

        with open_daemon(options.url, options.token_file) as daemon:
            back = str(daemon.post("/models/rollback")["model_id"])
    else:
        _require_no_daemon(settings)
        previous = models.linked("previous")
        if previous is None or previous == model_id:
            raise ConflictError(f"no model was active before {model_id}; there is nothing to go back to")
        if (mark := models.rejected().get(previous)) is not None:
            raise ConflictError(
                f"model {previous}, which was active before, was rejected ({mark.get('evidence')}); start 'brain "
                f"serve', and POST /models/{previous}/activate serves it all the same"
            )
        models.manifest(previous)
        models.point(previous, model_id)
        back = previous
    store.note("rolled back", store.run_of(current), current, _who(), model_id=back)
    store.catch_up(active_adapters(settings))
    say_json({"model_id": back, "rolled_back": model_id})
    return 0


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user has no name
        user = f"user {os.getuid()}"
    return f"{user} by brain lora"


def _merged(settings: "Settings", run: str, document: "AdapterDocument") -> "LoadedCheckpoint":
    """Return the checkpoint that a run's adapters were merged into, which is what is judged and served.

    Raises:
        NotFoundError: a merge was cut short, or its checkpoint deleted.
        ConflictError: the checkpoint is of other adapters, or of none.
        CorruptDataError: it fails its hash.
    """
    from brain_service.training.checkpointing import load_checkpoint

    try:
        loaded = load_checkpoint(settings.checkpoints_dir / run)
    except NotFoundError as error:
        raise NotFoundError(
            f"the adapters of run {run} are in no checkpoint below {settings.checkpoints_dir}; `brain lora merge "
            f"{run}` writes it",
            field="run",
        ) from error
    if (loaded.meta.get("adapters") or {}).get("sha256") != document.sha256:
        raise ConflictError(
            f"the checkpoint of run {run}, step {loaded.step}, does not hold its adapters {document.sha256[:12]}; "
            f"`brain lora merge {run}` writes it again"
        )
    return loaded


def _by_daemon(options: argparse.Namespace, dataset: Mapping[str, str]) -> dict[str, Any]:
    """Have the daemon do it; returns the verdict, and the model's id where it serves."""
    from brain_service.cli_daemon import Daemon, open_daemon

    def ended(daemon: Daemon, kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
        job = daemon.job(kind, body, report)
        if job["state"] != "succeeded":
            raise ConflictError(f"{kind} job {job['job_id']}: {(job['error'] or {}).get('detail', job['state'])}")
        return dict(job["result"])

    named = f"{dataset['name']}/{dataset['version']}"
    with open_daemon(options.url, options.token_file) as daemon, progress_bar("promoting") as report:
        verdict = ended(daemon, "evaluate", {"checkpoint": options.run_id, "dataset": named})["evaluation"][
            "promotion"
        ]
        if verdict is not None and not verdict["promoted"]:
            return {"promotion": verdict}
        model_id = ended(daemon, "export", {"checkpoint": options.run_id})["model_id"]
        daemon.post(f"/models/{model_id}/activate")
    return {"promotion": verdict, "model_id": model_id}


def _by_files(
    options: argparse.Namespace, settings: "Settings", dataset: Mapping[str, str], loaded: "LoadedCheckpoint"
) -> dict[str, Any]:
    """Do it here; returns the verdict, and the model's id where it is active."""
    from brain_service.datasets.dataset import open_dataset
    from brain_service.export.forms import default_forms
    from brain_service.export.jax_step import export_jax
    from brain_service.inference.model_store import ModelStore
    from brain_service.jobs.bases import active_model
    from brain_service.training.evaluation import Subject, evaluate_subject

    _require_no_daemon(settings)
    checkpoint = settings.checkpoints_dir / options.run_id
    folder = options.data_path or settings.datasets_dir / dataset["name"] / dataset["version"]
    episodes = open_dataset(folder)
    subject = Subject.of_checkpoint(loaded, f"checkpoint {options.run_id}, step {loaded.step}")
    found = evaluate_subject(subject, episodes, split="val", step=loaded.step)
    active = active_model(settings)
    verdict = None if active is None else _judge(settings, active, subject, episodes)
    told = None if verdict is None else verdict.to_json()
    if verdict is not None and not verdict.promoted:
        return {"promotion": told}
    with progress_bar("exporting") as report:
        path = export_jax(
            checkpoint,
            settings.models_dir,
            forms=default_forms(),
            evaluation=found.to_json() | {"promotion": told},
            source_run=options.run_id,
            progress=report,
        )
    # Minutes have passed: a daemon may have started, or another command activated what nobody judged this against.
    _require_no_daemon(settings)
    if active_model(settings) != active:
        raise ConflictError(
            f"another model than {active or 'none'} is active by now, which run {options.run_id} was not held "
            "against; promote it again"
        )
    models = ModelStore(settings.models_dir)
    models.point(path.name, None if active == path.name else active)
    models.pardon(path.name)
    return {"promotion": told, "model_id": path.name}


def _judge(settings: "Settings", active: str, candidate: "Subject", dataset: "Dataset") -> "Promotion":
    from brain_service.export.bundle import Bundle
    from brain_service.export.subject import bundle_subject
    from brain_service.training.checkpointing import load_checkpoint
    from brain_service.training.evaluation import judge_promotion

    bundle = Bundle.open(settings.models_dir / active)
    trained_on = None
    with contextlib.suppress(BrainError):
        trained_on = load_checkpoint(settings.checkpoints_dir / bundle.manifest.source_run).meta["dataset"]
    return judge_promotion(candidate, bundle_subject(bundle, trained_on), dataset)


def _require_no_daemon(settings: "Settings") -> None:
    """Refuse to change what a daemon serves behind its back.

    Raises:
        ConflictError: one runs on the data directory, or that cannot be told.
    """
    from brain_service.training.torch_lora.activity import daemon_runs

    if daemon_runs(settings.data_dir) is not False:
        raise ConflictError(
            f"a daemon uses {settings.data_dir}, or the kernel's list of locks cannot be read; give its address "
            "with --url, so that it swaps the model itself"
        )
