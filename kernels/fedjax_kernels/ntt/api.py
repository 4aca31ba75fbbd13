"""The negacyclic transform: checks the arguments and chooses an implementation.

Arrays are uint32 residues of shape ``[..., limb, N, batch]``. The batch is the last axis, so that
each butterfly is one vector operation. The transform of a polynomial is its value at the odd
powers of psi, the smallest primitive 2N-th root of unity, in bit-reversed order.
"""

from __future__ import annotations

from typing import Any

from fedjax_kernels.modular.api import Implementation, choose
from fedjax_kernels.modular.moduli import Moduli
from fedjax_kernels.ntt import reference, xla

#: The ring degrees of the GPU transform, which keeps whole polynomials in shared memory.
MIN_GPU_RING_DEGREE, MAX_GPU_RING_DEGREE = 8, 8192


def _choose(implementation: Implementation, moduli: Moduli) -> Any:
    supported = MIN_GPU_RING_DEGREE <= moduli.ring_degree <= MAX_GPU_RING_DEGREE
    return choose(implementation, xla, reference, supported)


def forward(x: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Transforms polynomials to their values: out[bitrev(k)] = sum_n x[n] psi^(n (2k+1)).

    Args:
        x: [..., limb, N, batch] uint32, below q; coefficients in natural order.
        moduli: the primes and N.
        implementation: see `fedjax_kernels.modular.api`.

    Returns:
        [..., limb, N, batch] uint32, below q; values in bit-reversed order.

    Raises:
        ValueError: dtype or shape do not fit.

    Example:
        >>> import numpy as np
        >>> from fedjax_kernels.modular import Moduli
        >>> moduli = Moduli((17,), 8)
        >>> one = np.zeros((1, 8, 1), np.uint32); one[0, 0, 0] = 1
        >>> forward(one, moduli)[0, :, 0].tolist()
        [1, 1, 1, 1, 1, 1, 1, 1]

    Source: Cooley-Tukey butterflies with merged psi as in P. Longa, M. Naehrig (CANS 2016),
    algorithm 1; lazy reduction of D. Harvey, arXiv 1205.2926, algorithm 4.
    """
    moduli.check_residues("ntt.forward", x, whole_ring=True)
    return _choose(implementation, moduli).forward(x, moduli=moduli)


def inverse(x: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Inverts :func:`forward` exactly.

    Args:
        x: [..., limb, N, batch] uint32, below q; values in bit-reversed order.
        moduli: the primes and N.
        implementation: see `fedjax_kernels.modular.api`.

    Returns:
        [..., limb, N, batch] uint32, below q; coefficients in natural order.

    Raises:
        ValueError: dtype or shape do not fit.

    Source: Gentleman-Sande butterflies as in Longa-Naehrig, algorithm 2; Harvey, algorithm 3.
    """
    moduli.check_residues("ntt.inverse", x, whole_ring=True)
    return _choose(implementation, moduli).inverse(x, moduli=moduli)


def multiply(a: Any, b: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Multiplies polynomials modulo x^N + 1 and q.

    Args:
        a: [..., limb, N, batch] uint32, below q; coefficients.
        b: the same shape, or batch 1.
        moduli: the primes and N.
        implementation: see `fedjax_kernels.modular.api`; the reference multiplies by schoolbook.

    Returns:
        [..., limb, N, batch] uint32, below q; coefficients of the product.

    Raises:
        ValueError: dtype or shape do not fit.
    """
    moduli.check_residues("ntt.multiply", a, whole_ring=True)
    moduli.check_residues("ntt.multiply", b, whole_ring=True)
    return _choose(implementation, moduli).multiply(a, b, moduli=moduli)
