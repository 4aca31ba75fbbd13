"""OpenDP's exact samplers: a worker of the DP benchmark."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import opendp.prelude as dp
from worker import serve


class Sampler:
    """Integer noise added to zeros by a measurement.

    Args:
        law: ``"discrete Gaussian"`` or ``"discrete Laplace"``.
        parameter: sigma or scale.
        draws: of one call.
    """

    def __init__(self, law: str, parameter: float, draws: int):
        dp.enable_features("contrib")
        domain = dp.vector_domain(dp.atom_domain(T="i32"))
        if law == "discrete Gaussian":
            self.noise = dp.m.make_gaussian(domain, dp.l2_distance(T="i32"), parameter)
        elif law == "discrete Laplace":
            self.noise = dp.m.make_laplace(domain, dp.l1_distance(T="i32"), parameter)
        else:
            raise ValueError(f"OpenDP has no {law}")
        self.zeros = [0] * draws
        self.facts = {"version": importlib.metadata.version("opendp"), "with": "its own library"}

    def draw(self) -> None:
        """Draws."""
        self.now = self.noise(self.zeros)

    def drawn(self) -> np.ndarray:
        """The last draws."""
        return np.array(self.now, np.int64)


if __name__ == "__main__":
    serve({"sampler": Sampler})
