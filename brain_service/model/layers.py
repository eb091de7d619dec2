"""Linear layers: float32 parameters, products in the type that the device is quick at, float32 results."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float32

from brain_service.model.config import CoreModelConfig

__all__ = ["Linear", "product_dtype"]


def product_dtype(config: CoreModelConfig) -> jnp.dtype:
    """Return the type that matrix products take their factors in; `auto` asks for JAX's default device.

    Sums are float32 in any case.
    """
    kind = config.compute_dtype
    if kind == "auto":
        kind = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(kind)


class Linear(nn.Module):  # type: ignore[misc]
    """`x W + b` along the last axis."""

    config: CoreModelConfig
    features: int
    use_bias: bool = True
    kernel_init: Callable[..., Array] = nn.initializers.lecun_normal()
    bias_init: Callable[..., Array] = nn.initializers.zeros_init()

    @nn.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Float32[Array, "*B I"]) -> Float32[Array, "*B O"]:
        """Return the product, shape `[..., features]`."""
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features), jnp.float32)
        dtype = product_dtype(self.config)
        y = jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=jnp.float32)
        if self.use_bias:
            y = y + self.param("bias", self.bias_init, (self.features,), jnp.float32)
        return y
