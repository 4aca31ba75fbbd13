"""Coefficients of banded strategies, and integer matrices that are near them."""

from __future__ import annotations

import numpy as np
from scipy import optimize, signal

from fedjax_secure.core.errors import ParameterError


def square_root_coefficients(bands: int) -> np.ndarray:
    r"""The first coefficients of the square root of the matrix of running totals.

    :math:`\binom{2j}{j}/4^j`: the best Toeplitz strategy for the largest error where no band is
    cut, and close to the best one where it is.

    Example:
        >>> square_root_coefficients(4).tolist()
        [1.0, 0.5, 0.375, 0.3125]

    Source:
        Fichtenberger, Henzinger, Upadhyay 2023, "Constant Matters"; Kalinin, Lampert 2024, arXiv
        2405.13763 (cut to bands).
    """
    j = np.arange(1, bands)
    return np.concatenate([[1.0], np.cumprod((2 * j - 1) / (2 * j))])


def best_coefficients(rounds: int, bands: int) -> np.ndarray:
    r"""The banded Toeplitz strategy whose running totals have the least mean squared error.

    Minimises :math:`|c|^2 \cdot \frac1n\sum_t\sum_{i\le t} y_i^2` over c with c_0 = 1, y the
    coefficients of :math:`1/((1-z)\,c(z))`, by L-BFGS with exact gradients from the square root's.

    Args:
        rounds: n.
        bands: how many coefficients.

    Returns:
        float64 [bands], the first one 1.

    Example:
        >>> best_coefficients(64, 3).round(3).tolist()
        [1.0, 0.703, 0.579]

    Source:
        McKenna 2024, "Scaling up the Banded Matrix Factorization Mechanism for Differentially
        Private ML", arXiv 2405.15913 (banded Toeplitz strategies); jax-privacy has the same
        optimum, and the tests compare them.
    """
    start = square_root_coefficients(bands)
    if bands == 1:
        return start
    share = (rounds - np.arange(rounds)) / rounds
    ones = np.ones(rounds)

    def loss(rest: np.ndarray) -> tuple[float, np.ndarray]:
        c = np.concatenate([[1.0], rest])
        y = signal.lfilter([1.0], c, ones)
        error, norm = float(np.sum(share * y**2)), float(np.sum(c**2))
        if not np.isfinite(error):
            return 1e300, np.zeros_like(rest)
        back = signal.lfilter([1.0], c, (2.0 * share * y)[::-1])[::-1]
        slope = -np.array([back[j:] @ y[: rounds - j] for j in range(1, bands)])
        return np.log(error) + np.log(norm), slope / error + 2.0 * rest / norm

    found = optimize.minimize(loss, start[1:], jac=True, method="L-BFGS-B",
                              options={"maxiter": 500, "ftol": 1e-13, "gtol": 1e-9})
    best = found.x if found.fun <= loss(start[1:])[0] else start[1:]
    return np.concatenate([[1.0], best])


def jax_privacy_matrix(rounds: int, bands: int) -> np.ndarray:
    """The banded matrix that jax-privacy finds, each column of norm 1 (BandMF).

    Returns:
        float64 [rounds, bands]; entry (t, j) is what row t takes of round t - j.

    Raises:
        ParameterError: jax-privacy is not installed.

    Source:
        Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization: A unified approach to
        private training", arXiv 2306.08153; McKenna 2024, arXiv 2405.15913.
    """
    try:
        from jax_privacy.matrix_factorization import banded
    except ImportError as error:
        raise ParameterError(
            'banded(optimiser="jax-privacy")', need="the package jax-privacy, 2.0 or newer",
            found="none", fix='pip install "fedjax-secure[matrix]", or leave optimiser out.',
        ) from error
    return as_band(np.asarray(banded.optimize(rounds, bands=bands).materialize()), bands)


def as_band(matrix: np.ndarray, bands: int) -> np.ndarray:
    """A lower triangular matrix [rounds, rounds] as its bands [rounds, bands].

    Example:
        >>> as_band(np.array([[1.0, 0.0], [0.5, 1.0]]), 2).tolist()
        [[1.0, 0.0], [1.0, 0.5]]
    """
    band = np.zeros((len(matrix), bands))
    for j in range(bands):
        band[j:, j] = np.diagonal(matrix, -j)
    return band


def integer_band(band: np.ndarray, grid_bits: int) -> np.ndarray:
    """The nearest integers, with ``2**grid_bits`` for the largest entry; diagonals at least 1.

    The result is a strategy of its own, whose sensitivity and error are computed as it is: rounding
    the matrix costs a little error, and nothing in privacy.

    Example:
        >>> integer_band(np.array([[1.0, 0.0], [1.0, 0.4]]), 3).tolist()
        [[8, 0], [8, 3]]
    """
    scaled = np.rint(band * (2.0**grid_bits / np.max(np.abs(band)))).astype(np.int64)
    scaled[:, 0] = np.maximum(scaled[:, 0], 1)
    return scaled
