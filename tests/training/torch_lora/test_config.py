"""What a fine-tuning may be told, from a request, a file or the environment."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brain_service.errors import ConfigError, InvalidError
from brain_service.settings import LoraSettings, Settings, load_settings
from brain_service.training.torch_lora.config import LoraConfig
from brain_service.training.trainers import PytorchTrainer


def test_the_seeds_keys_and_values_are_the_defaults() -> None:
    config = LoraConfig()
    assert (config.min_episodes, config.max_episodes) == (16, 256)
    assert (config.max_steps, config.max_wall_time_s, config.batch_size) == (500, 300.0, 32)
    keys = {"rlds_dir", "lora_layers", "learning_rate", "adapters_out_dir", "base_model_path"}
    assert keys <= config.to_dict().keys()


def test_an_unknown_key_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InvalidError, match=r"unknown fine-tuning setting lr; the settings are .*learning_rate"
    ) as no:
        LoraConfig.from_dict({"lr": 1e-3})
    assert no.value.field == "lr"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_episodes", 0),
        ("max_episodes", 8),  # fewer than min_episodes
        ("max_steps", -1),
        ("max_wall_time_s", 0.0),
        ("max_wall_time_s", float("nan")),
        ("batch_size", 0),
        ("rank", -2),
        ("alpha", 0.0),
        ("learning_rate", 2.0),
        ("lora_layers", ("",)),
        ("seed", 2**31),
        ("previous_action_dropout", 1.5),
    ],
)
def test_an_impossible_value_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidError) as no:
        LoraConfig.from_dict({field: value})
    assert no.value.field == field
    assert field in no.value.detail


def test_patience_without_looks_waits_for_nothing() -> None:
    with pytest.raises(InvalidError, match="patience"):
        LoraConfig(evaluate_every=0)
    assert LoraConfig(evaluate_every=0, patience=0).train_config().evaluate_every == 0


@given(
    rank=st.integers(1, 64),
    rate=st.floats(1e-6, 1.0),
    layers=st.lists(st.sampled_from(["heads", "encoder.*", "drive"]), max_size=3),
    folder=st.none() | st.just(Path("/somewhere")),
)
def test_a_config_survives_its_document(rank: int, rate: float, layers: list[str], folder: Path | None) -> None:
    config = LoraConfig(rank=rank, learning_rate=rate, lora_layers=tuple(layers), rlds_dir=folder)
    assert LoraConfig.from_dict(config.to_dict()) == config


def test_a_request_goes_over_the_settings_and_they_over_the_defaults() -> None:
    settings = Settings(lora=LoraSettings(rank=2, max_steps=50, lora_layers=("heads",)))
    config = PytorchTrainer().config(settings, {"preset": "development", "steps": 7, "batch_size": 4})
    assert (config.rank, config.max_steps, config.batch_size) == (2, 7, 4)
    assert config.lora_layers == ("heads",)
    assert PytorchTrainer().config(Settings(), {}) == LoraConfig()


def test_adapters_are_trained_on_windows_only() -> None:
    with pytest.raises(InvalidError, match="'streams'") as no:
        PytorchTrainer().config(Settings(), {"mode": "streams"})
    assert no.value.field == "mode"


def test_settings_reach_a_child_process_by_the_environment() -> None:
    ours = Settings(
        lora=LoraSettings(allow_missing=("battery", "temperature"), lora_layers=("heads", "drive"), rank=2)
    )
    assert load_settings(environ=ours.as_environment()).lora == ours.lora
    assert load_settings(environ=Settings().as_environment()).lora == LoraSettings()


def test_a_sensor_that_nobody_knows_cannot_be_allowed() -> None:
    with pytest.raises(ConfigError, match=r"lora\.allow_missing.*'batery'"):
        load_settings(environ={"BRAIN_LORA__ALLOW_MISSING": "batery"})


def test_a_choice_of_image_is_the_bases_and_another_is_refused() -> None:
    trainer = PytorchTrainer()
    trainer.config(Settings(), {"image": "none"})
    assert "image" not in trainer.command(Settings(), Path("d"), "run", {"image": "auto"})
    for name, value in (("image", "camera"), ("image_size", "48x64")):
        with pytest.raises(InvalidError, match="not trained on images yet") as no:
            trainer.config(Settings(), {name: value})
        assert no.value.field == name
