"""Rows that take seconds: capture, conversion, loading, the model, upload, hardware, packages."""

import gzip
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np

import brain_service
from brain_service import CoreModelConfig, EpisodeLogger, convert_directory_to_tfrecord, detect_jax_backends
from brain_service.datasets import SequenceLoader, open_dataset
from brain_service.datasets.layout import INFO_FILE
from brain_service.episodes import read_episode
from brain_service.model import CoreModel, StepInputs, count_parameters, init_carry, init_params, step, unroll
from tests.seed_map.chain import ACTION, BUCKET, DATA, EPISODES, OBSERVATION, PREFIX, STEPS, Chain
from tests.seed_map.existing import project
from tests.seed_map.registry import run
from tests.seed_map.table import ROOT
from tests.training.tasks import record_episodes

REFUSE_TENSORFLOW = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "tensorflow_datasets"):
            raise ImportError(f"{name} is not installed on a robot")

sys.meta_path.insert(0, Refuse())
"""


@run
def capture(chain: Chain) -> None:
    for path in chain.recorded:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line.get("type") for line in lines] == ["episode", *["step"] * STEPS, "end"]
        assert (lines[0]["metadata"]["environment_id"], lines[0]["metadata"]["xr_mode"]) == ("pi5-dev", "trainer")
        assert {line["episode_id"] for line in lines[1:-1]} == {path.stem}
        episode = read_episode(path)
        assert np.shape(episode.observation["command"]) == (STEPS, OBSERVATION)
        assert np.shape(episode.action["command"]) == (STEPS, ACTION)
        assert (episode.reward == 0.5).all() and not episode.is_terminal.any()
    loaded = chain.run(
        "-c", "import brain_service.episodes.logger, sys; print({'jax', 'tensorflow', 'torch'} & set(sys.modules))"
    )
    assert loaded == "set()\n"


@run
def convert(chain: Chain) -> None:
    report = chain.converted
    assert (report.episodes, report.steps, report.quarantined) == (EPISODES, EPISODES * STEPS, [])
    assert report.dataset_dir == chain.tfrecord / "episodes" / "1.0.0"
    assert (report.dataset_dir / INFO_FILE).is_file()
    shards = sorted(report.dataset_dir.glob("*.tfrecord*"))
    assert report.archive_dir is not None
    packed = {path.name.removesuffix(".gz"): path for path in report.archive_dir.glob("*.gz")}
    for shard in shards:
        assert gzip.decompress(packed[shard.name].read_bytes()) == shard.read_bytes()


@run
def convert_one_file(chain: Chain) -> None:
    folder = chain.root / "one"
    with EpisodeLogger(str(folder), format="json") as logger:
        logger.start_episode(environment_id="pi5-dev", xr_mode="trainer")
        for _ in range(STEPS):
            logger.log_step(obs={"command": [0.1, 0.2]}, action={"command": [0.15, 0.25]}, reward=0.5, done=False)
        document = logger.end_episode()
    shutil.move(document, folder / "episode.json")
    report = convert_directory_to_tfrecord(
        input_dir=str(folder / "episode.json"),
        output_dir=str(folder / "tfrecord"),
        compress=True,
    )
    assert (report.episodes, report.steps) == (1, STEPS)
    assert open_dataset(report.dataset_dir).splits


@run
def old_recordings(chain: Chain) -> None:
    folder = record_episodes(chain.root / "old", 3, length=STEPS)
    one = {
        "observation": {"state": [0.1, 0.2, 0.3]},
        "action": {"command": [0.15, 0.25]},
        "reward": 0.5,
        "is_terminal": False,
        "step_metadata": {"timestamp": 1_700_000_000.0},
    }
    (folder / "episode.json").write_text(json.dumps({"metadata": {"episode_id": "seed"}, "steps": [one] * STEPS}))
    report = convert_directory_to_tfrecord(folder, chain.root / "old-tfrecord")
    assert (report.episodes, report.quarantined) == (4, [])


@run
def no_tensorflow(chain: Chain) -> None:
    assert chain.recorded
    script = f"""{REFUSE_TENSORFLOW}
from brain_service import convert_directory_to_tfrecord
from brain_service.datasets import SequenceLoader, open_dataset
import brain_service.export.jax_step, brain_service.training.loop
report = convert_directory_to_tfrecord({str(chain.episodes)!r}, {str(chain.root / "plain")!r})
batch = SequenceLoader(open_dataset(report.dataset_dir), "train", batch_size=2, sequence_length=8, seed=0).batch(0)
print(report.steps, batch.observation.shape)
"""
    assert chain.run("-c", script) == f"{EPISODES * STEPS} (2, 8, {OBSERVATION})\n"


@run
def load(chain: Chain) -> None:
    dataset = open_dataset(chain.converted.dataset_dir)
    loader = SequenceLoader(dataset, "train", batch_size=4, sequence_length=16, seed=0)
    batch, again = loader.batch(7), loader.batch(7)
    assert jnp.asarray(batch.observation).shape == (4, 16, OBSERVATION) and batch.action.shape == (4, 16, ACTION)
    np.testing.assert_array_equal(batch.observation, again.observation)
    rows = np.concatenate([read_episode(path).observation["command"] for path in chain.recorded])
    # A row is steps that were lived one after the other.
    (start,) = np.flatnonzero((rows == batch.observation[0, 0]).all(axis=1))
    np.testing.assert_array_equal(rows[start : start + 16], batch.observation[0])


@run
def core_model(chain: Chain) -> None:
    config = CoreModelConfig.development(obs_dim=OBSERVATION, action_dim=ACTION)
    params = init_params(config, jax.random.key(0))
    batch = SequenceLoader(
        open_dataset(chain.converted.dataset_dir), "train", batch_size=2, sequence_length=12, seed=0
    ).batch(0)
    inputs = StepInputs(
        observation=jnp.asarray(batch.observation),
        previous_action=jnp.asarray(batch.previous_action),
        previous_reward=jnp.asarray(batch.previous_reward),
        is_first=jnp.asarray(batch.is_first),
    )
    assert isinstance(CoreModel(config), brain_service.CoreModel)
    whole_carry, whole = jax.jit(unroll, static_argnums=1)(params, config, init_carry(config, 2), inputs)
    carry, one_step = init_carry(config, 2), jax.jit(step, static_argnums=1)
    for t in range(12):
        carry, out = one_step(params, config, carry, jax.tree.map(lambda leaf, t=t: leaf[:, t], inputs))
        np.testing.assert_allclose(out.action_mean, whole.action_mean[:, t], atol=1e-5)
    for one, other in zip(jax.tree.leaves(carry), jax.tree.leaves(whole_carry), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@run
def presets(chain: Chain) -> None:
    sizes = {
        CoreModelConfig.development(): 205_297,
        CoreModelConfig.pi5_optimized(): 782_689,
        CoreModelConfig.tpu_optimized(): 14_921_425,
        CoreModelConfig.tpu_large(): 112_796_817,
    }
    for config, expected in sizes.items():
        assert (config.obs_dim, config.action_dim) == (OBSERVATION, ACTION)
        params = jax.eval_shape(lambda config=config: init_params(config, jax.random.key(0)))
        assert count_parameters(params) == expected


@run
def sanity_check(chain: Chain) -> None:
    words = ("--rlds-dir", chain.converted.dataset_dir.parents[1], "--action-dim", str(ACTION))
    more = ("--max-steps", "10", "--batch-size", "4")
    told = json.loads(chain.brain_command("sanity-check", *words, "--obs-dim", str(OBSERVATION), *more, "--json"))
    assert told["passed"], told
    # The verdict is one: what does not fit fails it.
    chain.brain_command("sanity-check", *words, "--obs-dim", "127", *more, code=1)


@run
def upload(chain: Chain) -> None:
    version = chain.converted.dataset_dir
    assert f"{DATA}/{version.parent.name}/{version.name}/" in chain.uploaded
    expected = {f"{PREFIX}/episodes/1.0.0/{path.name}": path.read_bytes() for path in version.iterdir()}
    assert chain.bucket.objects(BUCKET, f"{PREFIX}/") == expected


@run
def detect_hardware(chain: Chain) -> None:
    info = detect_jax_backends()
    for name in ("tpu", "hailo"):
        available = info["backends"][name]["available"]
        assert available is (info["backends"][name]["reason"] is None)
    usable = {name for name, entry in info["backends"].items() if entry["available"]}
    assert "cpu" in usable and {info["best_for_training"], info["best_for_inference"]} <= usable
    assert info["best_for_training"] != "hailo"
    told = json.loads(chain.brain_command("hardware", "--json"))
    assert told["backends"].keys() == {"cpu", "gpu", "tpu", "hailo"}


@run
def install(chain: Chain) -> None:
    runtime, extras = project()["dependencies"], project()["optional-dependencies"]

    def holds(lines: list[str], *packages: str) -> bool:
        return all(any(line.startswith(f"{package}>") for line in lines) for package in packages)

    assert holds(runtime, "jax", "flax", "optax", "orbax-checkpoint")
    assert any(line.startswith("libtpu") for line in extras["tpu"])
    assert holds(extras["gcs"], "google-cloud-storage") and holds(extras["rlds"], "tensorflow-datasets")
    assert not any("tensorflow" in line for line in runtime)
    text = (ROOT / "pyproject.toml").read_text().partition("\ndependencies = [")[2].partition("\n]")[0]
    assert all("  # " in line for line in text.strip().splitlines()), "a dependency has no reason beside it"
    locked = (ROOT / "deploy" / "locks" / "runtime.txt").read_text()
    assert all(f"\n{package}==" in locked for package in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"))


@run
def names(chain: Chain) -> None:
    shown = (
        *("CoreModel", "CoreModelConfig", "EpisodeLogger", "InferenceRouter"),
        *("convert_directory_to_tfrecord", "detect_jax_backends", "select_trainer"),
    )
    script = "import sys, brain_service; print({'jax', 'numpy'} & set(sys.modules)); "
    told = chain.run("-c", f"{script} from brain_service import {', '.join(shown)}; print('jax' in sys.modules)")
    assert told == "set()\nTrue\n"
    for room in ("episodes", "datasets", "training", "export", "inference", "jobs", "cloud", "hardware"):
        assert (ROOT / "brain_service" / room / "__init__.py").read_text().startswith('"""')


@run
def select_trainer(chain: Chain) -> None:
    from brain_service.hardware import select_trainer

    trainer_type = select_trainer(prefer_jax=True)
    assert f"Selected trainer: {trainer_type}" in ("Selected trainer: jax", "Selected trainer: pytorch")
    # JAX computes here: the tests run on it.
    assert trainer_type == "jax" and trainer_type.reason
    assert [option.trainer for option in trainer_type.alternatives] == ["pytorch"]
    assert all(option.reason for option in trainer_type.alternatives)
    assert select_trainer(forced="jax") == "jax"
    script = (
        "from brain_service.hardware import select_trainer; import sys; print(select_trainer(prefer_jax=True)); "
    )
    told = chain.run("-c", f"{script} print({{'jax', 'torch'}} & set(sys.modules))")
    assert told == f"{trainer_type}\nset()\n"
