import json
import subprocess
import sys
from typing import Any

import jax
import pytest

from brain_service.model.config import PRESETS, CoreModelConfig
from brain_service.model.core import count_parameters, init_params


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_a_config_survives_json(preset: str) -> None:
    config = PRESETS[preset](obs_dim=7, action_dim=2)
    assert CoreModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_presets_take_the_robots_sizes_and_keep_the_seeds_defaults(preset: str) -> None:
    assert (PRESETS[preset]().obs_dim, PRESETS[preset]().action_dim) == (128, 32)
    assert PRESETS[preset](obs_dim=39).obs_dim == 39


def test_presets_have_the_parameter_counts_that_the_documentation_states() -> None:
    def count(config: CoreModelConfig) -> int:
        return count_parameters(jax.eval_shape(lambda: init_params(config, jax.random.key(0))))

    assert count(CoreModelConfig.development()) == pytest.approx(0.2e6, rel=0.15)
    assert count(CoreModelConfig.pi5_optimized()) == pytest.approx(0.8e6, rel=0.1)
    assert count(CoreModelConfig.tpu_optimized()) == pytest.approx(15e6, rel=0.1)
    assert count(CoreModelConfig.tpu_large()) == pytest.approx(113e6, rel=0.02)


def test_class_methods_are_the_presets() -> None:
    assert CoreModelConfig.pi5_optimized() == PRESETS["pi5_optimized"]()
    assert CoreModelConfig.tpu_optimized() == PRESETS["tpu_optimized"]()
    assert CoreModelConfig.tpu_large() == PRESETS["tpu_large"]()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("obs_dim", 0),
        ("action_dim", -3),
        ("d_s", True),
        ("cms_sizes", ()),
        ("cms_sizes", (8, 0, 4)),
        ("cms_periods", (1, 8)),
        ("cms_periods", (2, 8, 64)),
        ("cms_periods", (1, 8, 8)),
        ("cms_decays", (0.1, 0.05)),
        ("cms_decays", (0.1, 0.05, 0.0)),
        ("cms_decays", (0.01, 0.05, 0.1)),
        ("wave_min_steps", 0.5),
        ("wave_max_steps", 1.0),
        ("action_limit", 0.9),
        ("log_std_min", 2.0),
        ("log_std_max", float("nan")),
        ("cms_sizes", (8, 16)),
        ("cms_decays", (0.1, 0.05, 1.0)),
        ("wave_pairs", 33),
        ("wave_pairs", -1),
        ("compute_dtype", "float16"),
        ("action_kind", "binary"),
        ("action_choices", 3),
        ("image_shape", (32, 32)),
        ("image_shape", (32, 0, 3)),
        ("image_shape", (8192, 8192, 3)),
        ("image_channels", ()),
    ],
)
def test_an_impossible_value_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        CoreModelConfig(**{field: value})


def test_a_value_of_the_wrong_type_is_refused_by_name() -> None:
    # In a process of its own: in this one the tests' run-time type checks come first.
    wrong: dict[str, Any] = {
        "wave_max_steps": "10000",
        "cms_periods": 8,
        "cms_decays": [0.1, "0.05", 0.01],
        "associative_wave": 1,
        "image_channels": 16,
        "obs_dim": 4.0,
    }
    code = (
        "import json, sys\n"
        "from brain_service.model.config import CoreModelConfig\n"
        "for name, value in json.loads(sys.argv[1]).items():\n"
        "    try: CoreModelConfig.from_dict({name: value})\n"
        "    except ValueError as error: print(str(error).split()[0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(wrong)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == list(wrong)


def test_an_unknown_setting_is_refused_and_the_known_ones_are_named() -> None:
    with pytest.raises(ValueError, match=r"d_q.*d_s"):
        CoreModelConfig.development(d_q=4)


def test_one_level_of_memory_is_enough() -> None:
    config = CoreModelConfig(cms_sizes=(4,), cms_periods=(1,), cms_decays=(0.1,))
    assert (config.levels, config.slots) == (1, 4)


def test_discrete_actions_need_at_least_two_choices() -> None:
    with pytest.raises(ValueError, match="action_choices is 1"):
        CoreModelConfig(action_kind="discrete", action_choices=1)
    assert CoreModelConfig(action_kind="discrete", action_choices=2).action_choices == 2


@pytest.mark.parametrize("width", [4, 5, 64])
def test_half_of_a_presets_wave_rotates_whatever_its_size(width: int) -> None:
    config = CoreModelConfig.development(d_w=width)
    assert config.wave_pairs == width // 4
    assert CoreModelConfig.development(d_w=width, wave_pairs=0).wave_pairs == 0


ADDED = {"action_kind", "action_choices", "image_shape", "image_channels", "wave_pairs", "compute_dtype"}
"""Fields that the first version's configs do not have."""


def test_a_config_of_the_first_version_gives_the_model_that_it_gave_then() -> None:
    document = {name: value for name, value in CoreModelConfig().to_dict().items() if name not in ADDED}
    config = CoreModelConfig.from_dict(document)
    shapes = jax.eval_shape(lambda: init_params(config, jax.random.key(0)))
    assert (config.wave_pairs, config.action_kind, config.image_shape) == (0, "continuous", ())
    assert set(shapes["wave"]) == {"project", "rate"}
    assert shapes["wave"]["project"]["kernel"].shape == (128, 3 * 64)
    assert shapes["heads"]["out"]["kernel"].shape == (128, 2 * 32 + 128 + 2)


def test_a_config_of_a_later_version_is_refused_by_the_fields_it_adds() -> None:
    with pytest.raises(ValueError, match=r"unknown model setting attention_heads; the settings are"):
        CoreModelConfig.from_dict(CoreModelConfig().to_dict() | {"attention_heads": 4})
