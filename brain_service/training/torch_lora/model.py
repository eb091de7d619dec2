"""CoreModel in torch: the semantics of `model/core.py`, on the same parameters.

Over a sequence the encoder, the wave's gates, the cell's input products and the heads run on all B * T steps at
once; only the wave's elementwise recurrence and the cell run in time.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Complex64, Float32
from torch import Tensor, nn
from torch.nn import functional

from brain_service.model.choices import choice_points
from brain_service.model.config import CoreModelConfig
from brain_service.model.wave import SHARPNESS
from brain_service.training.torch_lora.cell import Cell, pack_carry, unpack_carry
from brain_service.training.torch_lora.layers import ImageEncoder, Linear, unit
from brain_service.training.torch_lora.signals import Carry, StepInputs, StepOutputs, fresh_carry

__all__ = ["TorchCoreModel", "share_of_choices"]

SHARPEN = 1e6  # as in model/choices.py: two logits one float32 apart differ by more than one after this


def share_of_choices(action: Float32[Tensor, "*B A"], points: Float32[Tensor, "n"]) -> Float32[Tensor, "*B A n"]:
    """Return 1 at the choice that each normalised action is, else 0; between two choices each gets its share."""
    distance = (action[..., None] - points) * ((points.shape[0] - 1) / 2)
    return torch.clamp(1.0 - distance, 0.0, 1.0) + torch.clamp(1.0 + distance, 0.0, 1.0) - 1.0


class _Encoder(nn.Module):
    points: Tensor

    def __init__(self, config: CoreModelConfig) -> None:
        super().__init__()
        self.config = config
        seen = config.obs_dim + config.action_dim * (config.action_choices or 1) + 2
        self.first = Linear(config, seen + (config.d_e if config.image_shape else 0), config.d_e)
        self.second = Linear(config, config.d_e, config.d_e)
        self.image = ImageEncoder(config) if config.image_shape else None
        self.register_buffer("points", torch.tensor(choice_points(config.action_choices)), persistent=False)

    def forward(self, inputs: StepInputs) -> Float32[Tensor, "*B E"]:
        keep = (1.0 - inputs.is_first)[..., None]
        action = inputs.previous_action
        if self.config.action_choices:
            action = share_of_choices(action, self.points).flatten(-2)
        past = torch.cat([action, inputs.previous_reward[..., None]], dim=-1) * keep
        seen = [inputs.observation, past, inputs.is_first[..., None]]
        shape = () if inputs.image is None else tuple(inputs.image.shape[inputs.is_first.ndim :])
        if shape != self.config.image_shape:
            raise ValueError(f"the image has shape {shape}, the model's image_shape is {self.config.image_shape}")
        if self.image is not None:
            seen.append(self.image(inputs.image))
        hidden = functional.silu(self.first(torch.cat(seen, dim=-1)))
        return hidden + functional.silu(self.second(hidden))


class _WaveDrive(NamedTuple):
    # A rotating pair is one complex channel, a plain one a complex channel that stays real.
    factor: Complex64[Tensor, "B *T C"]
    signal: Complex64[Tensor, "B *T C"]


class _Wave(nn.Module):
    def __init__(self, config: CoreModelConfig) -> None:
        super().__init__()
        self.config = config
        pairs = config.wave_pairs
        self.project = Linear(config, config.d_e, 3 * config.d_w - pairs)
        self.rate = nn.Parameter(torch.zeros(config.d_w - pairs))
        if pairs:
            self.angle = nn.Parameter(torch.zeros(pairs))

    def forward(self, encoded: Float32[Tensor, "B *T E"], is_first: Float32[Tensor, "B *T"]) -> _WaveDrive:
        pairs, width = self.config.wave_pairs, self.config.d_w
        recurrence, gate, signal = torch.split(self.project(encoded), [width - pairs, width, width], dim=-1)
        loss = SHARPNESS * functional.softplus(self.rate) * torch.sigmoid(recurrence)
        decay = torch.exp(-torch.clamp(loss, min=1.0 / self.config.wave_max_steps))
        scale = torch.sqrt(torch.clamp(1.0 - decay * decay, min=1e-6))
        signal = torch.sigmoid(gate) * torch.tanh(signal)
        if pairs:
            half = scale[..., :pairs] * math.sqrt(0.5)
            signal = signal * torch.cat([half, half, scale[..., pairs:]], dim=-1)
            angle = math.pi * torch.sigmoid(self.angle)
            turn = functional.pad(angle, (0, width - 2 * pairs))
        else:
            signal = signal * scale
            turn = torch.zeros(width, device=decay.device)
        decay = decay * (1.0 - is_first[..., None])
        return _WaveDrive(torch.complex(decay * torch.cos(turn), decay * torch.sin(turn)), self.fold(signal))

    def fold(self, wave: Float32[Tensor, "*B W"]) -> Complex64[Tensor, "*B C"]:
        """Return channels as complex numbers: pair r is channel r and, imaginary, channel R + r."""
        pairs = self.config.wave_pairs
        first, second, plain = torch.split(wave, [pairs, pairs, self.config.d_w - 2 * pairs], dim=-1)
        return torch.complex(
            torch.cat([first, plain], dim=-1), torch.cat([second, torch.zeros_like(plain)], dim=-1)
        )

    def unfold(self, wave: Complex64[Tensor, "*B C"]) -> Float32[Tensor, "*B W"]:
        """Return the channels of complex numbers: the inverse of `fold`."""
        pairs = self.config.wave_pairs
        return torch.cat([wave.real[..., :pairs], wave.imag[..., :pairs], wave.real[..., pairs:]], dim=-1)


class _Heads(nn.Module):
    points: Tensor

    def __init__(self, config: CoreModelConfig, inputs: int) -> None:
        super().__init__()
        self.config = config
        self.first = Linear(config, inputs, config.d_h)
        self.second = Linear(config, config.d_h, config.d_h)
        chunk = config.action_horizon * config.action_dim * (config.action_choices or 2)
        self.out = Linear(config, config.d_h, chunk + config.obs_dim + 2)
        self.register_buffer("points", torch.tensor(choice_points(config.action_choices)), persistent=False)

    def forward(self, features: Float32[Tensor, "*B F"], observation: Float32[Tensor, "*B D"]) -> StepOutputs:
        hidden = functional.silu(self.first(features))
        hidden = hidden + functional.silu(self.second(hidden))
        out = self.out(hidden)
        world = self.config.obs_dim + 2
        mean, log_std, logits = self._actions(out[..., :-world])
        return StepOutputs(mean, log_std, observation + out[..., -world:-2], out[..., -2], out[..., -1], logits)

    def _actions(
        self, out: Float32[Tensor, "*B O"]
    ) -> tuple[Float32[Tensor, "*B H A"], Float32[Tensor, "*B H A"], Float32[Tensor, "*B H A n"] | None]:
        config = self.config
        shape = (*out.shape[:-1], config.action_horizon, config.action_dim)
        if config.action_choices:
            logits = out.reshape(*shape, config.action_choices)
            mean = torch.softmax(SHARPEN * logits, dim=-1) @ self.points
            return mean, torch.zeros_like(mean), logits
        mean, log_std = out.chunk(2, dim=-1)
        centre = (config.log_std_max + config.log_std_min) / 2
        reach = (config.log_std_max - config.log_std_min) / 2
        mean = config.action_limit * torch.tanh(mean)
        return mean.reshape(shape), (centre + reach * torch.tanh(log_std)).reshape(shape), None


class TorchCoreModel(nn.Module):
    """The recurrent policy in torch. Its parameters carry the names and the layout of the JAX model's.

    All are zero until they are loaded (`parameters.to_torch`). `step` advances one time step and `unroll` (also
    `forward`) a sequence, with the same numbers. All values are normalised float32.
    """

    def __init__(self, config: CoreModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = _Encoder(config)
        self.wave = _Wave(config)
        self.cell = Cell(config)
        features = config.d_e + config.d_w + config.d_s + config.d_p + config.levels * config.d_v
        self.heads = _Heads(config, features)
        self.drive = Linear(config, config.d_e + config.d_w, config.d_k + config.d_c + config.d_s)
        self.from_wave = Linear(config, config.d_w, config.d_s, use_bias=False)

    def step(self, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
        """Advance one step: inputs and outputs of shape `[B, ...]`.

        Raises:
            ValueError: there is an image and no encoder for it, or the reverse, or it has another shape.
        """
        parts = (None if part is None else part.unsqueeze(1) for part in inputs)
        carry, outputs = self.unroll(carry, StepInputs(*parts))  # type: ignore[arg-type]
        now = (None if part is None else part.squeeze(1) for part in outputs)
        return carry, StepOutputs(*now)  # type: ignore[arg-type]

    def opening_carry(self, batch: int) -> Carry:
        """Return the state of sequences of which some begin inside an episode, as `training/step.py` has it.

        Arrays are of shape `[batch, n]`, see `carry_shapes`.
        """
        fresh = fresh_carry(self.config, batch)
        state, elapsed = unpack_carry(self.config, fresh)
        keys = unit(self.cell.memory.initial_keys).expand_as(state.keys)
        return pack_carry(state._replace(keys=keys), elapsed, fresh.wave)

    def forward(self, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
        """Do `unroll`."""
        return self.unroll(carry, inputs)

    def unroll(self, carry: Carry, inputs: StepInputs) -> tuple[Carry, StepOutputs]:
        """Advance T steps: inputs and outputs of shape `[B, T, ...]`.

        Raises:
            ValueError: there is an image and no encoder for it, or the reverse, or it has another shape.
        """
        encoded = self.encoder(inputs)
        wave = self._waves(carry.wave, self.wave(encoded, inputs.is_first))
        mixed = self.drive(torch.cat([encoded, wave], dim=-1)).unbind(1)
        driven = self.from_wave(wave).unbind(1)

        state, elapsed = unpack_carry(self.config, carry)
        rules = self.cell.rules()
        beats, elapsed = self.cell.memory.beats(elapsed, inputs.is_first)
        begins, seen = inputs.is_first.any(dim=0).tolist(), []
        for t, beat in enumerate(beats):
            if begins[t]:
                state = self.cell.reset(rules, state, inputs.is_first[:, t])
            state, features = self.cell(rules, state, beat, mixed[t], driven[t])
            seen.append(features)
        outputs = self.heads(torch.cat([encoded, wave, torch.stack(seen, dim=1)], dim=-1), inputs.observation)
        return pack_carry(state, elapsed, wave[:, -1]), outputs

    def _waves(self, wave: Float32[Tensor, "B W"], drive: _WaveDrive) -> Float32[Tensor, "B T W"]:
        now, waves = self.wave.fold(wave), []
        for factor, signal in zip(drive.factor.unbind(1), drive.signal.unbind(1), strict=True):
            now = torch.addcmul(signal, factor, now)
            waves.append(now)
        return self.wave.unfold(torch.stack(waves, dim=1))
