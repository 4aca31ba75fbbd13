"""Banded matrix factorisation: each round's release takes something of the last few rounds."""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg, signal

from fedjax_secure.core.errors import SpecError

from .coefficients import (
    best_coefficients,
    integer_band,
    jax_privacy_matrix,
    square_root_coefficients,
)
from .separation import MOST_ROUNDS, band_sensitivity
from .strategy import Draw, Strategy

#: A matrix without equal rows is inverted as a whole.
_MOST_UNEQUAL_ROUNDS = 2048


def banded(
    *,
    rounds: int,
    bands: int,
    optimiser: Literal["toeplitz", "square-root", "jax-privacy"] = "toeplitz",
    band: np.ndarray | None = None,
    grid_bits: int | None = None,
) -> Strategy:
    r"""BandMF: the least noise in running totals that rounds far apart allow.

    Row t of the strategy is :math:`\sum_{j<b} c_{tj} x_{t-j}`. Where a client takes part at most
    once in b rounds, its contributions share no row, so the sensitivity is that of its columns,
    one beside the other; and undoing the matrix makes each round's noise take back some of that of
    the rounds before. ``bands=1`` is independent noise.

    The matrix is rounded to integers c, and that one is the strategy: its rows of integer sums are
    integers, its sensitivity and error are exact. What is published is :math:`x_t + u_t` with
    :math:`u_t = \lfloor (Z_t - \sum_{j\ge1} c_{tj} u_{t-j}) / c_{t0} \rceil`. Applied to
    :math:`w_t - \sum_{j\ge1} c_{tj} (x_{t-j} + u_{t-j})`, which is larger by :math:`c_{t0} x_t`,
    the same step gives :math:`x_t + u_t`: it is post-processing of w.

    Args:
        rounds: of the run; 1 to 8,192, and 1 to 2,048 where rows differ.
        bands: b; up to the separation of a client's rounds, which the chain checks.
        optimiser: ``"toeplitz"``: the best with equal rows, found here in a second;
            ``"square-root"``: a closed form, up to a tenth worse; ``"jax-privacy"``: rows that
            differ, best of all by a few percent, where that package is installed (slow from some
            hundred rounds).
        band: float [rounds, bands], your own matrix instead: entry (t, j) is what row t takes of
            round t - j; the diagonal, j = 0, is positive.
        grid_bits: the largest entry becomes ``2**grid_bits``; more bits follow the matrix closer
            and need wider noise, in integer units. None takes 6 (0 for one band; 8 where rows
            differ): within a thousandth of the error of the matrix (half a percent).

    Returns:
        A :class:`Strategy` for `correlated_noise`.

    Raises:
        SpecError: not such numbers.
        ParameterError: ``"jax-privacy"`` is not installed.

    Example:
        >>> made = banded(rounds=100, bands=10)
        >>> round(made.error(separation=10), 1), round(banded(rounds=100, bands=1).error(
        ...     separation=10), 1)
        (9.3, 22.5)

    Source:
        Choquette-Choo et al. 2023, "(Amplified) Banded Matrix Factorization: A unified approach to
        private training", arXiv 2306.08153; McKenna 2024, arXiv 2405.15913; Denisov et al. 2022,
        arXiv 2202.08312 (matrix factorisation for streams).
    """
    _require("rounds", rounds, 1, MOST_ROUNDS)
    _require("bands", bands, 1, rounds)
    if grid_bits is None:
        equal = band is None and optimiser != "jax-privacy"
        grid_bits = 0 if bands == 1 else 6 if equal else 8
    _require("grid_bits", grid_bits, 0, 16)
    if band is not None:
        wanted, source = _checked(band, rounds, bands), "band given"
    elif optimiser == "jax-privacy":
        wanted, source = jax_privacy_matrix(rounds, bands), "jax-privacy"
    elif optimiser in ("toeplitz", "square-root"):
        row = (best_coefficients(rounds, bands) if optimiser == "toeplitz"
               else square_root_coefficients(bands))
        inside = np.arange(bands) <= np.arange(rounds)[:, None]
        wanted, source = np.where(inside, row, 0.0), optimiser
    else:
        raise SpecError("banded", need='optimiser "toeplitz", "square-root" or "jax-privacy"',
                        found=repr(optimiser), fix="Leave it out for the first.")
    integers = integer_band(wanted, grid_bits)
    prefix, rounds_own, amplified = _noise_of(integers)
    table = jnp.asarray(integers, jnp.int32)

    def memory(dim: int) -> Any:
        return {"round": jnp.int32(0), "past": jnp.zeros((bands - 1, dim), jnp.int32)}

    def noise(memory: Any, draw: Draw) -> tuple[jax.Array, Any]:
        past, row = memory["past"], table[memory["round"]]
        # 32-bit sums may wrap on the way; what is divided fits, see `largest_noise`.
        left = draw(0) - jnp.sum(row[1:, None] * past, axis=0, dtype=jnp.int32)
        made = jnp.floor_divide(left + row[0] // 2, row[0])
        past = jnp.concatenate([made[None], past[:-1]]) if bands > 1 else past
        return made, {"round": memory["round"] + 1, "past": past}

    return Strategy(
        name="banded", settings=f"{rounds=}, {bands=}, {source}, {grid_bits=}", rounds=rounds,
        rows_by_round=np.arange(1, rounds + 1), rows_per_round=1, least_separation=bands,
        memory=memory, noise=noise,
        squared_sensitivity=functools.partial(band_sensitivity, band=integers),
        prefix_variance=prefix, round_variance=rounds_own,
        largest_noise=lambda draw: amplified * (draw + 2.0**grid_bits) + 2.0**grid_bits)


def _noise_of(band: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Of the inverse: variances of totals, the largest of a round, and the largest amplification.

    Amplification is the diagonal entry times the sum of magnitudes of a row of the inverse: how
    much larger than a draw what is divided by the diagonal can be.
    """
    rounds, bands = band.shape
    last = band[-1]
    equal = all(np.array_equal(band[j:, j], np.full(rounds - j, last[j])) for j in range(bands))
    if equal:
        impulse = np.zeros(rounds)
        impulse[0] = 1.0
        inverse = signal.lfilter([1.0], last.astype(np.float64), impulse)
        totals = np.cumsum(inverse)
        return (np.cumsum(totals**2), float(np.sum(inverse**2)),
                float(last[0] * np.sum(np.abs(inverse))))
    diagonals = np.zeros((bands, rounds))
    for j in range(bands):
        diagonals[j, : rounds - j] = band[j:, j]
    inverse = linalg.solve_banded((bands - 1, 0), diagonals, np.eye(rounds))
    totals = np.cumsum(inverse, axis=0)
    return (np.sum(totals**2, axis=1), float(np.max(np.sum(inverse**2, axis=1))),
            float(np.max(band[:, 0] * np.sum(np.abs(inverse), axis=1))))


def _checked(band: Any, rounds: int, bands: int) -> np.ndarray:
    made = np.asarray(band, np.float64)
    inside = np.arange(bands) <= np.arange(rounds)[:, None]
    good = (made.shape == (rounds, bands) and bool(np.all(np.isfinite(made)))
            and bool(np.all(made[:, 0] > 0)))
    if not good:
        raise SpecError("banded", need=f"band, finite numbers [{rounds}, {bands}] with a positive "
                        "diagonal band[:, 0]", found=f"shape {list(made.shape)}, or other values",
                        fix="Give what row t takes of round t - j as band[t, j].")
    made = np.where(inside, made, 0.0)
    if len(np.unique(made[bands - 1:], axis=0)) > 1 and rounds > _MOST_UNEQUAL_ROUNDS:
        raise SpecError("banded", need=f"equal rows for more than {_MOST_UNEQUAL_ROUNDS} rounds",
                        found=f"rows that differ, of {rounds} rounds",
                        fix='Use optimiser="toeplitz", or fewer rounds.')
    return made


def _require(name: str, value: object, least: int, most: int) -> None:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and least <= value <= most):
        raise SpecError("banded", need=f"{name}, a whole number from {least} to {most}",
                        found=repr(value), fix="Give for example banded(rounds=200, bands=10).")
