"""Adapters: they begin as nothing, are what is trained, merge into the base, and survive the disk or say why."""

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brain_service.errors import BrainError, CorruptDataError, InvalidError, NotFoundError, UnavailableError
from brain_service.model.config import PRESETS, CoreModelConfig
from brain_service.model.core import count_parameters, init_params
from brain_service.training.torch_lora import adapters
from brain_service.training.torch_lora.adapters import (
    AdapterSpec,
    adapter_parameters,
    attach,
    default_layers,
    layer_names,
    load_adapters,
    merged_params,
    save_adapters,
)
from brain_service.training.torch_lora.model import TorchCoreModel
from brain_service.training.torch_lora.parameters import to_jax, to_torch
from brain_service.training.torch_lora.signals import fresh_carry
from tests.model.models import DISCRETE, SEEING, SMALL, params_of, random_inputs
from tests.training.torch_lora.tensors import as_tensors, farthest, outputs_of

SPEC = AdapterSpec(2, 4.0, ("heads", "cell.from_fast"))
BASE = "b" * 64


def trained(spec: AdapterSpec = SPEC, config: CoreModelConfig = SMALL, seed: int = 0) -> TorchCoreModel:
    """Return a model whose adapters are away from their start."""
    model = to_torch(params_of(config), config)
    torch.manual_seed(seed)
    attach(model, spec)
    with torch.no_grad():
        for parameter in adapter_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


@pytest.mark.parametrize("config", [SMALL, DISCRETE, SEEING], ids=["continuous", "discrete", "image"])
def test_fresh_adapters_change_no_output(config: CoreModelConfig) -> None:
    model = to_torch(params_of(config), config)
    before = outputs_of(model)
    attach(model, AdapterSpec(1, 8.0, ("*",)))
    assert len(adapter_parameters(model)) == 2 * len(layer_names(model))
    assert farthest(outputs_of(model), before) == 0.0


def test_only_the_adapters_are_trained_and_every_one_has_a_gradient() -> None:
    model = trained(AdapterSpec(1, 8.0, ("*",)))
    frozen = to_jax(model)
    parameters = adapter_parameters(model)
    assert {id(p) for p in parameters} == {id(p) for p in model.parameters() if p.requires_grad}
    optimiser = torch.optim.SGD(parameters, lr=0.1)
    inputs = as_tensors(random_inputs(model.config, 2, 23))
    _, outputs = model.unroll(fresh_carry(model.config, 2), inputs)
    torch.autograd.backward(
        torch.stack([(part - 0.3).square().mean() for part in outputs if part is not None]).sum()
    )
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0.0 for p in parameters)
    before = merged_params(model)
    optimiser.step()
    for one, other in zip(jax.tree.leaves(frozen), jax.tree.leaves(to_jax(model)), strict=True):
        assert np.array_equal(one, other)
    assert not np.array_equal(before["heads"]["out"]["kernel"], merged_params(model)["heads"]["out"]["kernel"])


@settings(max_examples=10)
@given(
    rank=st.integers(1, 4),
    alpha=st.floats(0.5, 16.0),
    layers=st.sets(st.sampled_from(layer_names(TorchCoreModel(SMALL))), min_size=1),
    seed=st.integers(0, 2**16),
)
def test_a_merged_model_answers_as_the_one_with_adapters(
    rank: int, alpha: float, layers: set[str], seed: int
) -> None:
    model = trained(AdapterSpec(rank, alpha, tuple(layers)), seed=seed)
    merged = to_torch(merged_params(model), SMALL)
    attached, alone = outputs_of(model), outputs_of(merged)
    # Next observations go up to ten and more.
    assert farthest(attached, alone) <= 1e-5 * max(1.0, float(attached.next_observation.abs().max()))
    # What a slow level of the memory writes may not show in so few steps; the parameters show it.
    pairs = zip(jax.tree.leaves(to_jax(model)), jax.tree.leaves(merged_params(model)), strict=True)
    assert sum(bool((bare != merged).any()) for bare, merged in pairs) == len(layers)


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("sizes", [(4, 2), (39, 4), (128, 32)])
def test_default_adapters_are_below_2_percent_of_every_preset(preset: str, sizes: tuple[int, int]) -> None:
    config = PRESETS[preset](obs_dim=sizes[0], action_dim=sizes[1])
    layers = default_layers(config)
    assert len(layers) >= 2
    total = count_parameters(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))
    with torch.device("meta"):
        model = TorchCoreModel(config)
        attach(model, AdapterSpec(adapters.DEFAULT_RANK, 8.0, layers))
        added = sum(parameter.numel() for parameter in adapter_parameters(model))
    assert 0 < added < 0.02 * total


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (("rank", 0), "rank is 0; use a positive integer"),
        (("alpha", float("nan")), "alpha is nan; use a positive number"),
        (("layers", ()), "no layer is named"),
    ],
)
def test_an_impossible_spec_is_refused(spec: tuple[str, object], message: str) -> None:
    with pytest.raises(InvalidError, match=message):
        replace(SPEC, **{spec[0]: spec[1]})  # type: ignore[arg-type]


def test_an_unknown_layer_is_refused_with_the_names_of_all() -> None:
    model = trained()
    before = outputs_of(model)
    with pytest.raises(
        InvalidError, match=r"layer 'head\.\*' matches no linear layer.*heads\.first, heads\.second"
    ):
        attach(model, AdapterSpec(1, 1.0, ("heads", "head.*")))
    with pytest.raises(InvalidError, match=r"rank 9 is above the width of layer cell\.from_fast, 8"):
        attach(model, AdapterSpec(9, 1.0, ("cell.from_fast",)))
    assert farthest(outputs_of(model), before) == 0.0


def test_adapters_read_back_with_the_same_bits(tmp_path: Path) -> None:
    model = trained()
    sha256 = save_adapters(tmp_path / "a", model, SPEC, base_sha256=BASE, extra={"steps": 3})
    other = to_torch(params_of(SMALL), SMALL)
    assert load_adapters(tmp_path / "a", other, base_sha256=BASE) == SPEC
    assert farthest(outputs_of(other), outputs_of(model)) == 0.0
    document = json.loads((tmp_path / "a/adapters.json").read_bytes())
    assert (document["sha256"], document["extra"]) == (sha256, {"steps": 3})
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"adapters.json", "adapters.safetensors"}


def refusal(folder: Path, config: CoreModelConfig = SMALL, base: str = BASE) -> BrainError:
    """Return the error of loading, after a look that the model is what it was."""
    model = to_torch(params_of(config), config)
    before = outputs_of(model)
    with pytest.raises(BrainError) as caught:
        load_adapters(folder, model, base_sha256=base)
    assert farthest(outputs_of(model), before) == 0.0 and not adapter_parameters(model)
    return caught.value


def test_adapters_of_another_base_or_other_shapes_are_refused(tmp_path: Path) -> None:
    save_adapters(tmp_path, trained(), SPEC, base_sha256=BASE, extra={})
    other = refusal(tmp_path, base="c" * 64)
    assert isinstance(
        other, InvalidError
    ) and "belong to the base bbbbbbbbbbbb, this model is cccccccccccc" in str(other)
    wide = refusal(tmp_path, replace(SMALL, d_h=11))
    assert isinstance(wide, InvalidError)
    assert "heads.first.up" in str(wide) and "(2, 10)" in str(wide) and "(2, 11)" in str(wide)
    assert isinstance(refusal(tmp_path / "none"), NotFoundError)


@pytest.mark.parametrize("name", ["adapters.json", "adapters.safetensors"])
def test_no_flipped_byte_goes_unnoticed(tmp_path: Path, name: str) -> None:
    save_adapters(tmp_path, trained(), SPEC, base_sha256=BASE, extra={})
    path = tmp_path / name
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 12).astype(int):
        spoiled = bytearray(whole)
        spoiled[place] ^= 0x20
        path.write_bytes(spoiled)
        if name == "adapters.safetensors":
            assert isinstance(refusal(tmp_path), CorruptDataError), place
        else:
            try:
                load_adapters(tmp_path, model := to_torch(params_of(SMALL), SMALL), base_sha256=BASE)
            except (CorruptDataError, InvalidError):
                continue
            # White space and the name of an unread key may change; the adapters may not.
            assert farthest(outputs_of(model), outputs_of(trained())) == 0.0, place
    path.unlink()
    assert isinstance(refusal(tmp_path), CorruptDataError | NotFoundError)


class _KilledError(BaseException):
    """The process is gone."""


def test_a_save_that_is_killed_at_any_instant_leaves_the_old_adapters_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = trained(seed=1), trained(seed=2)
    save_adapters(tmp_path, old, SPEC, base_sha256=BASE, extra={})
    calls = 0
    real: dict[str, Callable[..., Any]] = {"fsync": os.fsync, "replace": Path.replace}

    def deadly(name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls -= 1
            if calls == 0:
                raise _KilledError
            return real[name](*arguments)

        return call

    monkeypatch.setattr(os, "fsync", deadly("fsync"))
    monkeypatch.setattr(Path, "replace", deadly("replace"))
    seen = []
    for last in range(1, 100):
        calls = last
        try:
            save_adapters(tmp_path, new, SPEC, base_sha256=BASE, extra={})
        except _KilledError:
            finished = False
        else:
            finished = True
        load_adapters(tmp_path, found := to_torch(params_of(SMALL), SMALL), base_sha256=BASE)
        is_new = farthest(outputs_of(found), outputs_of(new)) == 0.0
        assert is_new or farthest(outputs_of(found), outputs_of(old)) == 0.0
        seen.append(is_new)
        if finished:
            break
    assert not seen[0] and seen[-1] and seen == sorted(seen) and len(seen) > 6


def test_a_full_medium_leaves_the_old_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = trained(seed=1)
    save_adapters(tmp_path, old, SPEC, base_sha256=BASE, extra={})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(UnavailableError, match="No space left on device; make room, then save again"):
            save_adapters(tmp_path, trained(seed=2), SPEC, base_sha256=BASE, extra={})
    load_adapters(tmp_path, found := to_torch(params_of(SMALL), SMALL), base_sha256=BASE)
    assert farthest(outputs_of(found), outputs_of(old)) == 0.0
