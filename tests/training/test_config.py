import json
from typing import Any

import pytest

from brain_service.errors import InvalidError
from brain_service.model.config import PRESETS
from brain_service.training.config import TrainConfig
from tests.training.tasks import tiny


def test_settings_survive_json() -> None:
    config = tiny(learning_rate=1e-4, seed=5, model={"d_s": 9})
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("preset", "huge"),
        ("steps", -1),
        ("batch_size", 0),
        ("sequence_length", -4),
        ("sequence_length", None),
        ("mode", "shuffled"),
        ("remat_steps", -1),
        ("log_every", 0),
        ("evaluate_every", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("clip_norm", 0.0),
        ("previous_action_dropout", 1.5),
        ("observation_noise", -0.1),
        ("weight_decay", 2.0),
        ("warmup_steps", -1),
        ("checkpoint_every", 0),
        ("keep", 0),
        ("model", {"d_q": 3}),
        ("model", {"d_s": 0}),
    ],
)
def test_an_impossible_setting_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidError) as caught:
        TrainConfig(**{field: value})
    assert caught.value.field == field


def test_an_unknown_preset_or_setting_names_the_known_ones() -> None:
    with pytest.raises(InvalidError, match="pi5_optimized"):
        TrainConfig(preset="pi6")
    with pytest.raises(InvalidError, match=r"optimiser.*learning_rate"):
        TrainConfig.from_dict({"optimiser": "sgd"})


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_the_model_is_the_preset_with_the_robots_sizes_and_the_overrides(preset: str) -> None:
    made = TrainConfig(preset=preset, model={"action_horizon": 3}).model_config(39, 4)
    assert made == PRESETS[preset](obs_dim=39, action_dim=4, action_horizon=3)


def test_patience_needs_looks_at_the_held_out_loss() -> None:
    with pytest.raises(InvalidError, match="evaluate_every") as caught:
        TrainConfig(patience=3)
    assert caught.value.field == "evaluate_every"


def test_whole_episodes_may_be_of_any_length() -> None:
    assert TrainConfig(mode="episodes", sequence_length=None).sequence_length is None
