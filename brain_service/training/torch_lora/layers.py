"""Layers in the arithmetic and the parameter layout of the JAX model, and the adapter that a layer may carry."""

import math

import torch
from jaxtyping import Float32, UInt8
from torch import Tensor, nn
from torch.nn import functional

from brain_service.model.config import CoreModelConfig

__all__ = ["Adapter", "ImageEncoder", "Linear", "product_dtype", "unit"]

KERNEL = 3  # height and width of the image encoder's convolutions
STRIDE = 2


def product_dtype(config: CoreModelConfig, device: torch.device) -> torch.dtype:
    """Return the type that matrix products take their factors in: `model/layers.py` by the tensor's device."""
    kind = config.compute_dtype
    if kind == "auto":
        kind = "float32" if device.type == "cpu" else "bfloat16"
    return torch.float32 if kind == "float32" else torch.bfloat16


def unit(vector: Float32[Tensor, "*B K"]) -> Float32[Tensor, "*B K"]:
    """Scale vectors, shape `[..., K]`, to length 1 along the last axis; a zero vector stays zero."""
    return vector / torch.sqrt(torch.sum(vector * vector, dim=-1, keepdim=True) + 1e-6)


class Adapter(nn.Module):
    """A low-rank addition to a layer's product: `scale x A B` (Hu et al., arXiv 2106.09685).

    A is random and B zero, so that a fresh adapter changes nothing and yet has a gradient.
    """

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.down = nn.Parameter(torch.randn(inputs, rank) / math.sqrt(inputs))
        self.up = nn.Parameter(torch.zeros(rank, outputs))

    def forward(self, x: Float32[Tensor, "*B I"]) -> Float32[Tensor, "*B O"]:
        """Return what is added to the layer's output, shape `[..., O]`."""
        added: Tensor = (x @ self.down) @ (self.scale * self.up)
        return added

    def product(self) -> Float32[Tensor, "I O"]:
        """Return what is added to the layer's kernel where the adapter is merged."""
        return self.scale * (self.down @ self.up)


class Linear(nn.Module):
    """`x W + b` along the last axis, W of shape `[inputs, outputs]` as in JAX; plus its adapter's part, if any."""

    def __init__(self, config: CoreModelConfig, inputs: int, outputs: int, *, use_bias: bool = True) -> None:
        super().__init__()
        self.config = config
        self.kernel = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if use_bias else None
        self.adapter: Adapter | None = None

    def forward(self, x: Float32[Tensor, "*B I"]) -> Float32[Tensor, "*B O"]:
        """Return the product, shape `[..., outputs]`."""
        factor: Tensor = x
        kernel: Tensor = self.kernel
        if product_dtype(self.config, x.device) is torch.bfloat16:
            # The product of two bfloat16 numbers is a float32 number: rounding the factors is all there is to it.
            factor, kernel = (part.to(torch.bfloat16).to(torch.float32) for part in (x, kernel))
        y = functional.linear(factor, kernel.T, self.bias)
        return y if self.adapter is None else y + self.adapter(x)


class _Convolution(nn.Module):
    """3 x 3, stride 2, with a zero border as Flax's `SAME` lays it; kernel `[3, 3, inputs, outputs]`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.zeros(KERNEL, KERNEL, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the result for `[N, C, H, W]`, in the dtype of `x`."""
        borders = []
        for size in (x.shape[-1], x.shape[-2]):
            border = max((math.ceil(size / STRIDE) - 1) * STRIDE + KERNEL - size, 0)
            borders += [border // 2, border - border // 2]
        kernel = self.kernel.permute(3, 2, 0, 1).to(x.dtype)
        y = functional.conv2d(functional.pad(x, borders), kernel, stride=STRIDE)
        return y + self.bias.to(x.dtype)[:, None, None]


class ImageEncoder(nn.Module):
    """Convolutions, each halving height and width, then a linear layer to [-1, 1]^d_e."""

    def __init__(self, config: CoreModelConfig) -> None:
        super().__init__()
        self.config = config
        height, width, channels = config.image_shape
        for index, following in enumerate(config.image_channels):
            self.add_module(f"conv_{index + 1}", _Convolution(channels, following))
            height, width, channels = math.ceil(height / STRIDE), math.ceil(width / STRIDE), following
        self.out = Linear(config, height * width * channels, config.d_e)

    def forward(self, image: UInt8[Tensor, "*B H W C"]) -> Float32[Tensor, "*B E"]:
        """Return the features of raw images, values 0 to 255."""
        lead = image.shape[:-3]
        x = image.reshape(-1, *image.shape[-3:]).permute(0, 3, 1, 2).to(torch.float32) / 255.0
        x = x.to(product_dtype(self.config, image.device))
        for index in range(len(self.config.image_channels)):
            x = functional.silu(self.get_submodule(f"conv_{index + 1}")(x))
        # Flax flattens with the channels last.
        flat = x.to(torch.float32).permute(0, 2, 3, 1).reshape(*lead, -1)
        return torch.tanh(self.out(flat))
