"""From parameters to a bundle: raw units in and out, the model's own numbers, for every platform we name."""

import dataclasses
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from safetensors.numpy import load

from brain_service.errors import CorruptDataError, InvalidError, NotFoundError, UnavailableError
from brain_service.export.bundle import JAX_STEP, PARAMS, Bundle
from brain_service.export.jax_form import PLATFORMS
from brain_service.export.jax_step import export_jax, export_policy
from brain_service.export.parity import GOLDEN_RESET
from brain_service.export.policy import flat_params, make_policy_step, policy_step_of
from brain_service.model.core import unroll
from brain_service.model.signals import StepInputs
from brain_service.model.state import init_carry
from brain_service.trees import unflatten
from tests.export.models import CONFIG, NORMALISER, source
from tests.export.samples import DRAFT


def test_the_manifest_tells_what_the_model_is(bundle: Bundle) -> None:
    manifest = bundle.manifest
    assert manifest.config == CONFIG.to_dict() and manifest.spec == source().spec
    assert (manifest.observation_size, manifest.action_size, manifest.action_horizon) == (4, 2, 3)
    assert manifest.action_low == tuple(NORMALISER.action_low.tolist())
    assert manifest.parity["jax"].measured <= manifest.parity["jax"].bound == 1e-4
    assert (manifest.source_run, manifest.evaluation, manifest.control_period_s) == ("run-7", {"mae": 0.5}, 0.02)


def test_golden_vectors_are_the_models_own_unrolled_in_normalised_units(bundle: Bundle) -> None:
    golden = bundle.golden()
    inputs = StepInputs(
        jnp.asarray(NORMALISER.observation(golden.observation))[None],
        jnp.asarray(NORMALISER.action(golden.previous_action))[None],
        jnp.asarray(NORMALISER.reward(golden.previous_reward))[None],
        jnp.asarray(golden.is_first)[None],
    )
    _, outputs = unroll(dict(source().params), CONFIG, init_carry(CONFIG, 1), inputs)
    expected = NORMALISER.raw_action(outputs.action_mean)[0]
    np.testing.assert_allclose(golden.action, expected, rtol=1e-5, atol=1e-4)
    assert np.ptp(golden.action, axis=0).min() > 0
    np.testing.assert_array_equal(golden.previous_action[1:], golden.action[:-1, 0])
    assert np.flatnonzero(golden.is_first).tolist() == [0, GOLDEN_RESET]


def test_the_exported_step_runs_from_its_bytes_alone(bundle: Bundle) -> None:
    exported = export.deserialize(bytearray(bundle.read(JAX_STEP)))
    assert exported.platforms == PLATFORMS
    params, golden = load(bundle.read(PARAMS)), bundle.golden()
    carry: Any = tuple(np.zeros((1, size), np.float32) for size in bundle.manifest.carry.values())
    for t in range(8):
        now = slice(t, t + 1)
        carry, action = exported.call(
            params,
            carry,
            golden.observation[now],
            golden.previous_action[now],
            golden.previous_reward[now],
            golden.is_first[now],
        )
        np.testing.assert_allclose(action[0], golden.action[t], rtol=1e-5, atol=1e-5)


def test_actions_stay_within_the_recorded_limits_whatever_comes_in() -> None:
    # A head driven far into saturation: the limits, not the model, end it.
    params = jax.tree.map(lambda leaf: leaf * 30.0, dict(source().params))
    step = jax.jit(make_policy_step(CONFIG, NORMALISER))
    rng = np.random.default_rng(0)
    carry: Any = tuple(init_carry(CONFIG, 64))
    reached = []
    for _ in range(20):
        observation, reward = rng.uniform(-1e9, 1e9, (64, 4)), rng.uniform(-1e9, 1e9, 64)
        carry, action = step(
            flat_params(params),
            carry,
            observation.astype(np.float32),
            np.zeros((64, 2), np.float32),
            reward.astype(np.float32),
            np.zeros(64, np.float32),
        )
        assert (action >= NORMALISER.action_low).all() and (action <= NORMALISER.action_high).all()
        reached.append(np.asarray(action))
    assert (np.concatenate(reached) == NORMALISER.action_high).any()


def test_the_step_can_be_rebuilt_from_the_manifest(bundle: Bundle) -> None:
    step = jax.jit(policy_step_of(bundle.manifest))
    params, golden = load(bundle.read(PARAMS)), bundle.golden()
    carry: Any = tuple(init_carry(CONFIG, 1))
    first = slice(0, 1)
    _, action = step(
        params, carry, golden.observation[first], golden.previous_action[first], golden.previous_reward[first],
        golden.is_first[first],
    )  # fmt: skip
    np.testing.assert_allclose(action[0], golden.action[0], rtol=1e-5, atol=1e-5)


def test_a_config_of_another_model_cannot_be_rebuilt() -> None:
    with pytest.raises(CorruptDataError, match="sizes"):
        policy_step_of(DRAFT)


def test_flat_params_are_sorted_and_nest_again() -> None:
    nested = {"b": {"w": np.ones(2), "a": np.zeros(1)}, "a": np.full(3, 2.0)}
    flat = flat_params(nested)
    assert list(flat) == ["a", "b/a", "b/w"]
    again = unflatten(flat)
    assert again["b"]["w"].tolist() == [1.0, 1.0] and again["a"].tolist() == [2.0] * 3


def test_a_checkpoint_becomes_the_bundle_of_its_model(run_dir: Path, bundle: Bundle, tmp_path: Path) -> None:
    path = export_jax(run_dir, tmp_path / "models", evaluation={"mae": 0.5})
    manifest = Bundle.open(path).manifest
    assert path.name == bundle.manifest.model_id
    assert manifest.source_run == "run-7" and manifest.evaluation == {"mae": 0.5}


def test_an_untrained_twin_has_the_same_features_and_other_parameters(
    run_dir: Path, bundle: Bundle, tmp_path: Path
) -> None:
    twin = Bundle.open(export_jax(run_dir, tmp_path, untrained=True)).manifest
    assert twin.model_id != bundle.manifest.model_id
    assert (twin.spec, twin.config, twin.carry) == (
        bundle.manifest.spec,
        bundle.manifest.config,
        bundle.manifest.carry,
    )


def test_no_checkpoint_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="train first"):
        export_jax(tmp_path / "none", tmp_path / "models")
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_another_config_is_refused(run_dir: Path, tmp_path: Path) -> None:
    twisted = tmp_path / "run"
    shutil.copytree(run_dir, twisted)
    (meta,) = twisted.glob("30/meta/metadata")
    document = json.loads(meta.read_text())
    meta.write_text(json.dumps(document | {"model": document["model"] | {"d_h": 16}}))
    with pytest.raises(CorruptDataError, match="meta/metadata is not what was written"):
        export_jax(twisted, tmp_path / "models")
    sums = twisted / "30" / "sha256.json"
    sealed = json.loads(sums.read_text())
    sealed["meta/metadata"] = hashlib.sha256(meta.read_bytes()).hexdigest()
    sums.write_text(json.dumps(sealed))
    # In a process of its own: Orbax leaves coroutines behind that fail when they are collected.
    words = ["export", "--checkpoint-dir", str(twisted), "--output-dir", str(tmp_path / "models")]
    done = subprocess.run([sys.executable, "-m", "brain_service", *words], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert f"brain export: checkpoint {twisted / '30'}: params: " in done.stderr
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_parameter_that_is_not_finite_is_named(wrong: float, tmp_path: Path) -> None:
    params = dict(source().params)
    params["drive"] = {**params["drive"], "bias": params["drive"]["bias"].at[3].set(wrong)}
    diverged = dataclasses.replace(source(), params=params)
    with pytest.raises(CorruptDataError, match=r"parameter drive/bias holds NaN.*--step"):
        export_policy(diverged, tmp_path / "models")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"quantisation": "int4"}, "'int4' is not known; use one of none, fp16, int8"),
        ({"forms": ("jax", "tflite")}, "'tflite' is not known; use jax, onnx"),
    ],
)
def test_what_is_not_known_is_refused_before_the_checkpoint_is_read(
    asked: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidError, match=message):
        export_jax(tmp_path / "none", tmp_path / "models", **asked)


def test_a_folder_that_cannot_be_written_is_told_before_anything_is_compiled(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("a file where the folder should be")
    told: list[str] = []
    with pytest.raises(UnavailableError, match="cannot write a bundle into"):
        export_policy(source(), tmp_path / "models", progress=lambda *now: told.append(now[2]))
    assert told == [] and [item.name for item in tmp_path.iterdir()] == ["models"]


def test_progress_names_each_piece_of_work_and_ends_at_its_total(run_dir: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int, str]] = []
    export_jax(run_dir, tmp_path, progress=lambda *now: told.append(now))
    assert [done for done, _, _ in told] == list(range(len(told)))
    assert {total for _, total, _ in told} == {told[-1][0]}
    assert [label for _, _, label in told] == [
        "running the model", "compiling jax", "comparing jax", "writing", "done",
    ]  # fmt: skip


def test_whoever_follows_the_progress_may_end_the_export(tmp_path: Path) -> None:
    def stop(_: int, __: int, label: str) -> None:
        if label == "comparing jax":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_policy(source(), tmp_path / "models", progress=stop)
    assert not list(tmp_path.iterdir())
