"""CoreModel itself on a stand-in for the device: 64 steps of fed-back state against JAX, in 16 bits and in 8."""

import dataclasses
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from brain_service.episodes.reader import Episode
from brain_service.export.bundle import ONNX_MODEL, Bundle, write_bundle
from brain_service.export.hailo import HailoOptions, export_hailo
from brain_service.export.jax_step import export_policy
from brain_service.export.manifest import Parity
from brain_service.export.onnx_graph import to_onnx
from brain_service.export.policy import flat_params, make_policy_step
from brain_service.inference.arena import Layout
from brain_service.inference.golden import check_golden
from brain_service.model.state import carry_shapes
from tests.datasets.samples import START_NS
from tests.datasets.written import write_version
from tests.export.hailo_toy import install_compiler
from tests.export.models import CONFIG, NORMALISER, SPEC, source
from tests.inference.hailo_chip import opened, plug_in


@pytest.fixture(scope="module")
def with_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of CoreModel with its ONNX form, in one folder."""
    root = tmp_path_factory.mktemp("real")
    whole = Bundle.open(export_policy(source(), root / "jax"))
    step, carry = make_policy_step(CONFIG, NORMALISER), carry_shapes(CONFIG)
    params = {name: jnp.asarray(array) for name, array in flat_params(source().params).items()}

    def flat(*arrays: jax.Array) -> tuple[jax.Array, ...]:
        new, action = step(params, arrays[: len(carry)], *arrays[len(carry) :])
        return *new, action

    shapes = {name: (1, size) for name, size in carry.items()}
    shapes |= {"observation": (1, 4), "previous_action": (1, 2)}
    model = to_onnx(
        flat,
        {**shapes, "previous_reward": (1,), "is_first": (1,)},
        [*(f"next_{name}" for name in carry), "action"],
    )
    files = {name: whole.read(name) for name in whole.manifest.files} | {ONNX_MODEL: model.SerializeToString()}
    parity = {**whole.manifest.parity, "onnx": Parity(0.0, 1e-4)}
    draft = dataclasses.replace(whole.manifest, files={}, model_id="", parity=parity)
    return root / "models" / write_bundle(root / "models", draft, files)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, steps = np.random.default_rng(5), 64
    episodes = []
    for index in range(24):
        joints = rng.normal([100, -5, 0], [20, 0.1, 1], (steps, 3)).astype(np.float32)
        command = rng.uniform(NORMALISER.action_low, NORMALISER.action_high, (steps, 2)).astype(np.float32)
        episodes.append(
            Episode(
                episode_id=f"e{index}",
                metadata={},
                spec=SPEC,
                observation={
                    "arm/joints": joints,
                    "gripper/open": rng.random(steps) < 0.5,
                    "task": ["reach"] * steps,
                },
                action={"command": command},
                reward=rng.normal(3, 2, steps).astype(np.float32),
                is_terminal=np.arange(steps) == steps - 1,
                timestamp_ns=START_NS + 20_000_000 * np.arange(steps, dtype=np.int64),
                control_role=["expert"] * steps,
                executed_action=None,
                final_observation=None,
                end="terminated",
            )
        )
    return write_version(tmp_path_factory.mktemp("recordings"), episodes)


@pytest.mark.long
def test_quantised_state_fed_back_stays_within_the_bound_and_sixteen_bits_closer_than_eight(
    with_onnx: Path, recordings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{install_compiler(tmp_path / 'bin').parent}:{os.environ['PATH']}")
    plug_in("4.23", tmp_path / "chip", monkeypatch)
    found = {}
    for bits, fault in ((16, ""), (8, "narrow-outputs")):
        monkeypatch.setenv("HAILO_FAKE_COMPILER", fault)
        bundle = export_hailo(with_onnx, HailoOptions(calibration_dataset=recordings)).bundle
        # The graph that was cut is the model's: what is lost below is lost to quantisation.
        assert bundle.manifest.parity["hailo"].measured <= 1e-4
        with opened(bundle) as policy:
            layout = Layout.of(bundle.manifest)
            found[bits], _ = check_golden(policy, layout, bundle.golden(), bundle.manifest)
    assert 0 < 2 * found[16] < found[8] <= 2e-2
