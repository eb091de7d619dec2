"""The PyTorch trainer: low-rank adapters on the parameters that the JAX trainer made.

The same model in torch reads and writes the same checkpoints, so a robot that fine-tunes with PyTorch serves the
result as any other. Importing this package imports no torch; `require_torch` says whether it can be had.
"""

from typing import TYPE_CHECKING

from brain_service.lazy import lazy_names

if TYPE_CHECKING:
    from brain_service.training.torch_lora.adapters import (
        AdapterSpec,
        adapter_parameters,
        attach,
        default_layers,
        load_adapters,
        merged_params,
        save_adapters,
    )
    from brain_service.training.torch_lora.model import TorchCoreModel
    from brain_service.training.torch_lora.objective import losses
    from brain_service.training.torch_lora.parameters import to_jax, to_torch
    from brain_service.training.torch_lora.require import require_torch

__all__ = [
    "AdapterSpec",
    "TorchCoreModel",
    "adapter_parameters",
    "attach",
    "default_layers",
    "load_adapters",
    "losses",
    "merged_params",
    "require_torch",
    "save_adapters",
    "to_jax",
    "to_torch",
]

__getattr__ = lazy_names(
    __name__,
    {
        "AdapterSpec": "adapters",
        "TorchCoreModel": "model",
        "adapter_parameters": "adapters",
        "attach": "adapters",
        "default_layers": "adapters",
        "load_adapters": "adapters",
        "losses": "objective",
        "merged_params": "adapters",
        "require_torch": "require",
        "save_adapters": "adapters",
        "to_jax": "parameters",
        "to_torch": "parameters",
    },
)
