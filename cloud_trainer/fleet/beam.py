"""The five steps as an Apache Beam pipeline: here with the DirectRunner, or on Dataflow."""

import uuid
from collections.abc import Iterable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import apache_beam as beam
import msgspec
from apache_beam.options.pipeline_options import PipelineOptions, SetupOptions, StandardOptions

from brain_service.datasets.build import nothing_to_convert
from brain_service.datasets.places import LocalPlace, Place, open_place
from brain_service.datasets.sources import Inventory
from brain_service.datasets.versions import exclusive_work
from brain_service.errors import BrainError, ConfigError, InvalidError, UnavailableError
from cloud_trainer.fleet.encode import encode_stem
from cloud_trainer.fleet.plan import make_plan
from cloud_trainer.fleet.publish import OUTCOME_FILE, FleetReport, Outcome, publish
from cloud_trainer.fleet.run import Run
from cloud_trainer.fleet.shard import do_task
from cloud_trainer.fleet.sources import LogFolder, list_stems

__all__ = ["build", "convert_fleet", "parse_options"]

_WORK = ".work"


def parse_options(flags: Sequence[str]) -> PipelineOptions:
    """Return Beam's options of the flags that are not ours: `--runner DataflowRunner --project ...`.

    Raises:
        InvalidError: Beam does not know one of them; it would be passed over in silence.
    """
    options = PipelineOptions(list(flags))
    parser = beam.options.pipeline_options._BeamArgumentParser(allow_abbrev=False)
    for kind in PipelineOptions.__subclasses__():
        kind._add_argparse_args(parser)
    _, unknown = parser.parse_known_args(list(flags))
    if unknown:
        raise InvalidError(
            f"{' '.join(unknown)}: neither an option of convert nor one of Apache Beam {beam.__version__}; see "
            "cloud-trainer convert --help"
        )
    # Workers import what they run from the package; the driver's main module is none of it.
    options.view_as(SetupOptions).save_main_session = False
    return options


def build(pipeline: Any, folders: Iterable[LogFolder], run: Run) -> None:
    """Add the conversion of these folders to a Beam pipeline."""
    found = (
        pipeline
        | "folders" >> beam.Create(list(folders))
        | "list" >> beam.FlatMap(list_stems)
        | "spread episodes" >> beam.Reshuffle()
        | "encode" >> beam.Map(partial(encode_stem, run=run))
    )
    done = (
        _in_one_place(found, "index")
        | "plan" >> beam.FlatMap(partial(make_plan, run=run))
        | "spread shards" >> beam.Reshuffle()
        | "shard" >> beam.Map(partial(do_task, run=run))
    )
    _ = _in_one_place(done, "figures") | "publish" >> beam.Map(partial(publish, run=run))


def _in_one_place(items: Any, what: str) -> Any:
    """Return a collection of one element, which holds all of them; of none where there are none."""
    return (
        items
        | f"key {what}" >> beam.Map(_keyed)
        | f"gather {what}" >> beam.GroupByKey()
        | f"take {what}" >> beam.Values()
    )


def _keyed(item: Any) -> tuple[int, Any]:
    return 0, item


def convert_fleet(
    folders: Sequence[LogFolder], output: str | Path, template: Run, options: PipelineOptions
) -> FleetReport:
    """Run the conversion and wait for its end; `template` lacks its places, which are below `output`.

    Raises:
        InvalidError: no episode can be converted, or the workers could not see a place; says why.
        ConfigError: Dataflow's client is not installed; names the extra.
        UnavailableError: a worker failed, or the runner did; nothing was published.
    """
    dataset = open_place(output).child(template.name)
    _require_reach([*(folder.location for folder in folders), dataset.folder.location], options)
    if not isinstance(dataset, LocalPlace):
        return _convert(folders, dataset, dataset.child(_WORK).child(uuid.uuid4().hex), template, options)
    try:
        dataset = LocalPlace(dataset.path.resolve())
        with exclusive_work(dataset.path) as work:
            return _convert(folders, dataset, LocalPlace(work / "run"), template, options)
    except OSError as error:
        raise UnavailableError(
            f"cannot convert to {dataset.path}: {error.strerror or error}; check permissions and free space"
        ) from error


def _require_reach(places: Iterable[str], options: PipelineOptions) -> None:
    """Check that Dataflow's workers see what they are to read and write, before they are paid for."""
    if str(options.view_as(StandardOptions).runner).rpartition(".")[2] != "DataflowRunner":
        return
    for place in places:
        if not place.startswith("gs://"):
            raise InvalidError(
                f"{place} lies on this machine, where no worker of Dataflow sees it; give a gs:// place"
            )
    if find_spec("apitools") is None:
        raise ConfigError("DataflowRunner needs Beam's client: pip install 'apache-beam[gcp]' beside it")


def _convert(
    folders: Sequence[LogFolder], dataset: Place, work: Place, template: Run, options: PipelineOptions
) -> FleetReport:
    run = msgspec.structs.replace(template, dataset=dataset.folder.location, work=work.folder.location)
    try:
        _run(folders, run, options)
        if OUTCOME_FILE not in work.folder.sizes():
            raise nothing_to_convert(Inventory(Path("the given folders"), [], []), [])
        outcome = msgspec.json.decode(work.folder.read(OUTCOME_FILE), type=Outcome)
    finally:
        work.remove()
    if outcome.report is None:
        raise InvalidError(outcome.problem or "nothing was converted")
    return outcome.report


def _run(folders: Sequence[LogFolder], run: Run, options: PipelineOptions) -> None:
    try:
        pipeline = beam.Pipeline(options=options)
        build(pipeline, folders, run)
        pipeline.run().wait_until_finish()
    except BrainError:
        raise
    except Exception as error:
        # Beam has no root for its errors, and a worker's come back as text in a RuntimeError.
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UnavailableError(
            f"the pipeline failed and nothing was published: {lines[-1] if lines else type(error).__name__}; mend "
            "that and start it again"
        ) from error
