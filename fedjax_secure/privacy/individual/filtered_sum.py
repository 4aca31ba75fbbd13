"""Private sums in which each person is charged for what they contributed, and stops when spent."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjax_kernels import discrete_gaussian as kernel
from fedjax_secure.core.errors import SpecError
from fedjax_secure.core.randomness import device_keys, host_words

from ..accounting import Spend
from ..accounting.arguments import is_count, is_positive, require
from .renyi_filter import RenyiFilter, RoundCost


class FilteredSum:
    """Sums of one data owner's vectors, such as gradients, with discrete Gaussian noise.

    Every release clips each person's vector to the norm that is left of the person's own budget,
    and at most to ``l2_bound``, rounds it to integers, charges its exact norm, and adds noise. Who
    has nothing left adds nothing, while others go on.

    Guarantees:
        All releases together are (epsilon, dp_delta)-DP for each person, with that person's own
        epsilon, however vectors and later releases depend on earlier ones (adjacency: the person
        added or removed): the module ``renyi_filter`` has the steps. The charge is on disk before a
        sum is returned.

    Assumes:
        Whoever calls it is the data owner, who sees the vectors anyway, and hands on nothing but
        what :meth:`release` returns. A person's vector depends on that person's own data and on
        what was released, and on nobody else's data.

    Args:
        persons: what people are called, once each, in the order of the vectors.
        epsilons: what all releases may cost each of them: one number, or one a person.
        dp_delta: of everyone's guarantee.
        l2_bound: the longest contribution, in the vectors' own units.
        dim: values of a vector.
        noise_multiplier: standard deviation of the noise over the longest contribution.
        scale: integer units per unit of the vectors.
        path: where the accounts are kept; None keeps them in memory only.

    Raises:
        SpecError: values out of range.

    Example:
        >>> sums = FilteredSum(("ann", "bob"), epsilons=(0.5, 8.0), dp_delta=1e-5, l2_bound=1.0,
        ...                    dim=3, noise_multiplier=5.0)
        >>> sums.release("run", 1, np.eye(2, 3)).shape
        (3,)
        >>> sums.accounts.epsilon_of("ann") <= 0.5
        True

    Source:
        Feldman and Zrnic 2021, arXiv 2008.11193 (private gradient descent with filtering);
        Kairouz, Liu, Steinke 2021, arXiv 2102.06387 (rounding before noise).
    """

    def __init__(self, persons: Sequence[str], *, epsilons: float | Sequence[float] | np.ndarray,
                 dp_delta: float, l2_bound: float, dim: int, noise_multiplier: float,
                 scale: float = 1024.0, path: str | Path | None = None):
        where = "FilteredSum"
        for name, value in (("l2_bound", l2_bound), ("noise_multiplier", noise_multiplier),
                            ("scale", scale)):
            require(is_positive(value), where, f"{name} > 0", f"{name}={value!r}",
                    "Give a positive number.")
        require(is_count(dim), where, "dim, a whole number of 1 or more", repr(dim),
                "Give the number of values in a vector.")
        self.dim, self._scale, self._l2_bound = int(dim), float(scale), float(l2_bound)
        # Rounding moves each value by less than one unit, so a norm by less than sqrt(dim).
        largest = l2_bound * scale + math.sqrt(dim)
        stddev = noise_multiplier * largest
        require(kernel.MIN_SIGMA * 20 <= stddev <= kernel.MAX_WIDE_SIGMA, where,
                f"noise of stddev 2 to {kernel.MAX_WIDE_SIGMA:.0f} integer units",
                f"{stddev:.4g}", "Change scale.")
        self._table = kernel.sampler(stddev)
        self.cost = RoundCost(noise_stddev=stddev, largest_norm=largest)
        self.accounts = RenyiFilter(persons, epsilons=epsilons, dp_delta=dp_delta, path=path)

    def release(self, run_id: str, round: int, vectors: ArrayLike, *, attempt: int = 0,
                key: bytes | None = None) -> np.ndarray:
        """A private sum of everyone's vectors.

        Args:
            run_id, round, attempt: which release it is. Releasing one again is another release,
                with rounding and noise of its own: give it another ``attempt``.
            vectors: ``[people, dim]``, each a function of that person's own data. One that is not
                finite, in integer units too, adds nothing.
            key: 32 secret bytes, used for nothing else; None takes fresh ones. Give one only in a
                simulation that repeats.

        Returns:
            float64 [dim], in the vectors' own units.

        Raises:
            SpecError: vectors of another shape.
            BudgetError: the release was charged before, with whatever vectors: its noise would be
                fresh, so it would be another release.
        """
        given = np.asarray(vectors, np.float64)
        people = len(self.accounts.persons)
        if given.shape != (people, self.dim):
            raise SpecError("FilteredSum.release", need=f"vectors of shape [{people}, {self.dim}]",
                            found=f"{list(given.shape)}", fix="Give zeros for who has none.")
        secret = host_words(os.urandom(32) if key is None else key, 16)
        rounding, noise = secret[:8].tobytes(), secret[8:].tobytes()
        integers = self._rounded(given, self.accounts.bounds(self.cost), rounding)
        self.accounts.charge(run_id, round, self.cost, np.sum(integers**2, axis=1),
                             attempt=attempt, once=True)
        drawn = kernel.draw(self._table, jnp.asarray(device_keys([noise])[0]),
                            jnp.zeros(3, jnp.uint32), self.dim)
        return (integers.sum(axis=0) + np.asarray(drawn, np.int64)) / self._scale

    def _rounded(self, vectors: np.ndarray, allowed: np.ndarray, key: bytes) -> np.ndarray:
        """int64 [people, dim] with squared norms of at most ``allowed``, by exact arithmetic."""
        with np.errstate(over="ignore"):  # what is too long to be scaled adds nothing, like NaN
            scaled = vectors * self._scale
        scaled = np.where(np.isfinite(scaled).all(axis=1)[:, None], scaled, 0.0)
        room = np.sqrt(allowed.astype(np.float64)) * (1 - 1e-12) - math.sqrt(self.dim)
        bounds = np.clip(room, 0.0, self._l2_bound * self._scale)
        largest = np.maximum(np.abs(scaled).max(axis=1), 1e-300)
        norms = largest * np.linalg.norm(scaled / largest[:, None], axis=1)
        scaled = scaled * np.minimum(1.0, bounds / np.maximum(norms, 1e-300))[:, None]
        words = host_words(key, 2 * scaled.size).view("<u8").reshape(scaled.shape)
        floor = np.floor(scaled)
        uniform = (words >> np.uint64(11)).astype(np.float64) * 2.0**-53
        integers = (floor + (uniform < scaled - floor)).astype(np.int64)
        within = np.sum(integers**2, axis=1) <= allowed
        return np.where(within[:, None], integers, 0)

    def public_spends(self, unit: str, *, most_rounds: int) -> dict[float, Spend]:
        """What ``most_rounds`` releases cost at most, for a public budget: all that may be told.

        Args:
            unit: whose privacy it is.
            most_rounds: how many releases there are, at the very most.
        """
        draws = most_rounds * self.dim
        return self.accounts.public_spends(
            unit, log_ratio=draws * float(self._table.log_ratio),
            total_variation=draws * float(self._table.total_variation))

    def __repr__(self) -> str:
        return f"FilteredSum({len(self.accounts.persons)} people, dim={self.dim})"
