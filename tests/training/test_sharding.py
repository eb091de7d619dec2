"""The one train step on four (simulated) devices: data parallel, fsdp and both give a single device's losses."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from brain_service.training.checkpointing import load_checkpoint

pytestmark = pytest.mark.slow

PROGRAM = """
import json, sys
from pathlib import Path
import jax
from brain_service.datasets.loader import open_dataset
from brain_service.training.feed import Feed
from brain_service.training.loop import train
from brain_service.training.normalisation import Normaliser
from brain_service.training.sharding import make_mesh
from brain_service.training.step import init_state, make_train_step
from tests.training.tasks import TINY, same_parameters, tiny

small = TINY | {"d_e": 32, "d_h": 32, "cms_sizes": (2,), "cms_periods": (1,), "cms_decays": (0.1,)}
config = tiny(steps=5, model=small, mode="streams", checkpoint_every=100)
dataset = open_dataset(sys.argv[1])
normaliser = Normaliser.from_statistics(dataset.statistics)
model = config.model_config(3, 2)
found = {}
for name, devices, fsdp in (("single", 1, 1), ("data", 4, 1), ("fsdp", 4, 4), ("mixed", 4, 2)):
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    state, step = init_state(model, config, mesh), make_train_step(model, config, mesh)
    feed = Feed(dataset, config, normaliser, mesh)
    losses, norms = [], []
    for number in range(4):
        state, metrics = step(state, feed.batch(number))
        losses.append(float(metrics["loss"])); norms.append(float(metrics["gradient_norm"]))
    leaves = jax.tree.leaves((state.params, state.opt_state))
    whole = sum(leaf.nbytes for leaf in leaves)
    here = sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves)
    found[name] = {"losses": losses, "norms": norms, "share": here / whole,
                   "rows": state.carry.fast.addressable_shards[0].data.shape[0]}
# A run on all devices is resumed to the bits of one that was not stopped, parameters in pieces and all.
asked = iter(range(100))
mesh, root = make_mesh(2), Path(sys.argv[2])
train(sys.argv[1], root / "whole", config, mesh=mesh)
train(sys.argv[1], root / "run", config, mesh=mesh, should_stop=lambda: next(asked) == 2)
found["resumed_from"] = train(sys.argv[1], root / "run", config, mesh=mesh).resumed_from
found["same"] = same_parameters(root / "whole", root / "run")
found["folder"] = str(root / "run")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4",
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.values["jax_compilation_cache_dir"]),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(dataset), str(tmp_path_factory.mktemp("sharded"))],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("mesh", ["data", "fsdp", "mixed"])
def test_losses_and_gradients_are_those_of_a_single_device(mesh: str, found: dict[str, Any]) -> None:
    assert found[mesh]["losses"] == pytest.approx(found["single"]["losses"], abs=1e-5)
    assert found[mesh]["norms"] == pytest.approx(found["single"]["norms"], rel=1e-4)
    assert found[mesh]["losses"][0] != found[mesh]["losses"][-1]


def test_rows_and_parameters_are_really_spread(found: dict[str, Any]) -> None:
    assert [found[mesh]["rows"] for mesh in ("single", "data", "fsdp", "mixed")] == [4, 1, 1, 1]
    assert found["data"]["share"] == 1.0
    assert found["fsdp"]["share"] < found["mixed"]["share"] < 0.8


def test_a_run_on_a_mesh_resumes_to_the_same_bits(found: dict[str, Any]) -> None:
    assert found["resumed_from"] == 2
    assert found["same"] is True


def test_a_checkpoint_of_a_mesh_is_loaded_on_a_single_device(found: dict[str, Any]) -> None:
    assert jax.device_count() == 1
    loaded = load_checkpoint(found["folder"])
    assert loaded.step == 5
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(loaded.params))
