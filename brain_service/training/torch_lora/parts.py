"""What a fine-tuning is made of, found wrong here before anything is trained: data, model, adapters, optimiser."""

import math
from typing import Any

import jax
import numpy as np
import torch
from jax import Array
from jaxtyping import Int32

from brain_service.datasets.dataset import Dataset
from brain_service.errors import InvalidError
from brain_service.model.core import Params
from brain_service.training.feed import Feed
from brain_service.training.held_out import SPLIT, HeldOutLoss
from brain_service.training.objective import Sequences
from brain_service.training.sharding import make_mesh
from brain_service.training.step import disturb
from brain_service.training.torch_lora.adapters import (
    AdapterSpec,
    adapter_parameters,
    attach,
    default_layers,
    merged_params,
)
from brain_service.training.torch_lora.base import LoraBase
from brain_service.training.torch_lora.config import LoraConfig
from brain_service.training.torch_lora.parameters import to_torch
from brain_service.training.torch_lora.state import RunState

__all__ = ["Parts"]

WARMUP_SHARE = 0.05
LAST_RATE = 0.01
FREE = ("checkpoint_every", "log_every", "max_wall_time_s", "rlds_dir", "adapters_out_dir", "base_model_path")
"""Settings that do not change what a step learns: a run may go on with others."""


class Parts:
    """The parts of one run; only the adapters have gradients, and only they are saved.

    Raises:
        InvalidError: the dataset holds nothing to imitate, a layer is unknown, or the base sees images.
        NotFoundError: the dataset has no `train` split.
    """

    def __init__(self, dataset: Dataset, base: LoraBase, config: LoraConfig) -> None:
        if base.config.image_shape:
            raise InvalidError(
                f"the base {base.name} sees an image, which adapters are not trained with yet; give a base "
                "without one, or train with trainer 'jax'",
                field="base_model_path",
            )
        mesh = make_mesh(devices=jax.devices()[:1])
        self._train = config.train_config()
        self._config = config
        self.feed = Feed(dataset, self._train, base.normaliser, mesh)
        held_out = dataset.entries(SPLIT) if SPLIT in dataset.splits else []
        looks = bool(held_out) and config.evaluate_every > 0
        self.held_out = HeldOutLoss(dataset, base.config, base.normaliser, mesh) if looks else None
        self.spec = AdapterSpec(
            config.rank, config.alpha, config.lora_layers or default_layers(base.config, config.rank)
        )
        self.model = to_torch(base.params, base.config)
        self.base_size = sum(parameter.numel() for parameter in self.model.parameters())
        torch.manual_seed(config.seed)
        attach(self.model, self.spec)
        parameters = adapter_parameters(self.model)
        # Without decay: it would pull the adapters towards zero, which is the base, whatever the new episodes say.
        optimiser = torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=0.0)
        self.state = RunState(parameters, optimiser, [], base.source)
        self.identity = self._identity(dataset, base)
        self._disturb = jax.jit(self._disturbed)

    def merged(self) -> Params:
        """Return the base's parameters with the adapters, as they are now, merged in."""
        return merged_params(self.model)

    def disturbed(self, sequences: Sequences, step: int) -> Sequences:
        """Hide previous actions and add noise as the JAX train step does at this step, to the same bits."""
        disturbed: Sequences = self._disturb(sequences, np.int32(step))
        return disturbed

    def _disturbed(self, sequences: Sequences, step: Int32[Array, ""]) -> Sequences:
        rng = jax.random.fold_in(jax.random.key(self._config.seed + 1), step)
        return sequences._replace(inputs=disturb(sequences.inputs, self._train, rng))

    def learning_rate(self, step: int) -> float:
        """Return the learning rate at a step: a linear warm-up, then a cosine decay to a hundredth."""
        peak, steps = self._config.learning_rate, self._config.max_steps
        warmup = max(round(steps * WARMUP_SHARE), 1)
        if step < warmup:
            return peak * (step + 1) / warmup
        share = (step - warmup) / max(steps - warmup, 1)
        return peak * (LAST_RATE + (1.0 - LAST_RATE) * 0.5 * (1.0 + math.cos(math.pi * min(share, 1.0))))

    def _identity(self, dataset: Dataset, base: LoraBase) -> dict[str, Any]:
        """Return what a run must have in common with the one that it goes on from."""
        manifest = dataset.manifest
        settings = {name: value for name, value in self._config.to_dict().items() if name not in FREE}
        return {
            **settings,
            "lora_layers": list(self.spec.layers),
            "base": base.sha256,
            "control_period_s": dataset.control_period_s,
            "dataset": {
                "name": manifest.name,
                "version": manifest.version,
                "source_digest": manifest.source_digest,
            },
        }
