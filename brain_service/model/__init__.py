"""CoreModel: one bounded recurrent policy for the robot and for a TPU. Pure JAX and Flax, no input or output.

`step` advances one time step, `unroll` a sequence; both give the same numbers.
"""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.model.config import PRESETS, CoreModelConfig
    from brain_service.model.core import CoreModel, count_parameters, init_params, step, unroll
    from brain_service.model.signals import StepInputs, StepOutputs
    from brain_service.model.state import Carry, carry_bounds, carry_shapes, init_carry

__all__ = [
    "PRESETS",
    "Carry",
    "CoreModel",
    "CoreModelConfig",
    "StepInputs",
    "StepOutputs",
    "carry_bounds",
    "carry_shapes",
    "count_parameters",
    "init_carry",
    "init_params",
    "step",
    "unroll",
]

__getattr__ = lazy_names(
    __name__,
    {
        "PRESETS": "config",
        "Carry": "state",
        "CoreModel": "core",
        "CoreModelConfig": "config",
        "StepInputs": "signals",
        "StepOutputs": "signals",
        "carry_bounds": "state",
        "carry_shapes": "state",
        "count_parameters": "core",
        "init_carry": "state",
        "init_params": "core",
        "step": "core",
        "unroll": "core",
    },
)
