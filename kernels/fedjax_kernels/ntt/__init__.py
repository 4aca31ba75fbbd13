"""The negacyclic number-theoretic transform: products in Z_q[x]/(x^N + 1) become pointwise."""

from fedjax_kernels.ntt.api import forward, inverse, multiply
from fedjax_kernels.ntt.tables import bit_reverse, primitive_root

__all__ = ["bit_reverse", "forward", "inverse", "multiply", "primitive_root"]
