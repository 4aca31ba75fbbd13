"""Clip and sum in torch and by jax_privacy: a worker of the DP benchmark, in either environment."""

from __future__ import annotations

import importlib.metadata

import numpy as np
from worker import serve


class Torch:
    """Norms of rows, and one product of the factors and the rows.

    Args:
        values: a file of rows.
        l2_bound: the bound.
    """

    def __init__(self, values: str, l2_bound: float):
        import torch

        self.torch, self.bound = torch, l2_bound
        torch.set_num_threads(1)
        self.values = torch.from_numpy(np.load(values))
        self.facts = {"version": importlib.metadata.version("torch"), "with": "one thread"}

    def clip(self) -> None:
        """Norms and sum."""
        norms = self.torch.linalg.vector_norm(self.values, dim=1)
        self.now = (self.bound / norms).clamp(max=1) @ self.values

    def total(self) -> np.ndarray:
        """The last sum."""
        return self.now.numpy()


class JaxPrivacy:
    """`jax_privacy.clipping.clipped_fun` of the rows themselves.

    Args:
        values: a file of rows.
        l2_bound: the bound.
    """

    def __init__(self, values: str, l2_bound: float):
        import jax
        from jax_privacy import clipping

        self.jax = jax
        self.values = jax.numpy.asarray(np.load(values))
        self.function = jax.jit(
            clipping.clipped_fun(lambda row: row, l2_clip_norm=l2_bound, keep_batch_dim=False)
        )
        self.clip()
        version = importlib.metadata.version("jax-privacy")
        self.facts = {"version": version, "with": f"jax {jax.__version__}"}

    def clip(self) -> None:
        """Norms and sum."""
        self.now = self.jax.block_until_ready(self.function(self.values))

    def total(self) -> np.ndarray:
        """The last sum."""
        return np.asarray(self.now)


if __name__ == "__main__":
    serve({"torch": Torch, "jax_privacy": JaxPrivacy})
