"""Camera image to a vector: strided convolutions, without a state."""

import flax.linen as nn
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32, UInt8

from brain_service.model.config import CoreModelConfig
from brain_service.model.layers import Linear, product_dtype

__all__ = ["ImageEncoder"]


class ImageEncoder(nn.Module):  # type: ignore[misc]
    """3 x 3 convolutions, each halving height and width, then a linear layer to [-1, 1]^d_e."""

    config: CoreModelConfig

    def setup(self) -> None:
        """Create the layers."""
        dtype = product_dtype(self.config)
        self.convolutions = [
            nn.Conv(channels, (3, 3), strides=(2, 2), dtype=dtype, name=f"conv_{index + 1}")
            for index, channels in enumerate(self.config.image_channels)
        ]
        self.out = Linear(self.config, self.config.d_e, name="out")

    def __call__(self, image: UInt8[Array, "*B H W C"] | Float32[Array, "*B H W C"]) -> Float32[Array, "*B E"]:
        """Return the features of raw images, values 0 to 255."""
        lead = image.shape[:-3]
        x = image.reshape((-1, *image.shape[-3:])).astype(jnp.float32) / 255.0
        for convolution in self.convolutions:
            x = nn.silu(convolution(x))
        return jnp.tanh(self.out(x.astype(jnp.float32).reshape((*lead, -1))))
