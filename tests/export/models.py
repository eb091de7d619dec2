"""A CoreModel of a few hundred parameters with scales that show when they are forgotten."""

import jax
import numpy as np

from brain_service.export.jax_step import PolicySource
from brain_service.model.config import CoreModelConfig
from brain_service.model.core import init_params
from brain_service.spec import EpisodeSpec, Feature
from brain_service.training.normalisation import Normaliser

SPEC = EpisodeSpec(
    observation={"arm/joints": Feature("float32", (3,)), "gripper/open": Feature("bool"), "task": Feature("text")},
    action={"command": Feature("float32", (2,))},
)
CONFIG = CoreModelConfig(
    obs_dim=4, action_dim=2, action_horizon=3, d_e=8, d_s=4, d_w=4, d_p=4, d_c=8, d_k=4, d_v=4, d_h=8,
    cms_sizes=(2, 4), cms_periods=(1, 4), cms_decays=(0.1, 0.05),
)  # fmt: skip
NORMALISER = Normaliser(
    observation_mean=np.asarray([100.0, -5.0, 0.0, 0.5], np.float32),
    observation_std=np.asarray([20.0, 0.1, 1.0, 0.5], np.float32),
    action_low=np.asarray([10.0, -0.2], np.float32),
    action_high=np.asarray([30.0, 0.4], np.float32),
    reward_mean=np.asarray([3.0], np.float32),
    reward_std=np.asarray([2.0], np.float32),
)


def source(seed: int = 0, config: CoreModelConfig = CONFIG) -> PolicySource:
    """The parts of a bundle, with random parameters."""
    return PolicySource(config, init_params(config, jax.random.key(seed + 10)), NORMALISER, SPEC, 0.02)
