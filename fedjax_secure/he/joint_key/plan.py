"""The plan of a threshold encryption: packing, who opens, how often, and what hides the noise."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from itertools import combinations

from fedjax_kernels import rlwe, threshold

from ..packing import FAILURE_BITS, Packing


@dataclasses.dataclass(frozen=True)
class ThresholdNoise:
    """The noise of sums under a joint key, floods of all who open included; a ``NoiseModel``.

    Example:
        >>> noise = ThresholdNoise(threshold.Openings(num_parties=3, threshold=2, max_openings=32))
        >>> noise.bits_needed(rlwe.parameters("rlwe-8192-212"), 1024, 8192 * 26)
        66
    """

    openings: threshold.Openings

    def bits_needed(self, params: rlwe.Parameters, num_summands: int, num_coefficients: int) -> int:
        """The fewest noise bits with which a sum opens right, except with probability 2^-40."""
        return threshold.noise_bits_needed(
            params, num_summands, num_coefficients, self.openings, failure_bits=FAILURE_BITS
        )

    def failure_log2(
        self, params: rlwe.Parameters, num_summands: int, num_coefficients: int, noise_bits: int
    ) -> float:
        """log2 of a bound on the probability that a sum opens wrong; -inf for never."""
        return threshold.failure_log2(
            params, num_summands, num_coefficients, noise_bits, self.openings
        )

    def worst_case_bits(self, params: rlwe.Parameters, num_summands: int) -> int:
        """Noise bits beyond which more are of no use.

        At four times the least threshold the tail is below 2^-600: what is left is that of keys.
        """
        return self.bits_needed(params, num_summands, params.ring_degree << 10) + 2


@dataclasses.dataclass(frozen=True)
class ThresholdPlan:
    """A plan of :func:`fedjax_secure.he.threshold`; hashable, so compiled functions take it.

    Attributes:
        packing: how ring elements lie in ciphertexts.
        openings: n, t, how many partial decryptions a holder gives, and the bits of flooding.
        answering: how many holders are asked; where more than t, results are compared.
        witnesses: how many holders must have been given the same submissions.
    """

    packing: Packing
    openings: threshold.Openings
    answering: int
    witnesses: int

    @property
    def num_coefficients(self) -> int:
        """Coefficients of one sum."""
        return self.packing.params.ring_degree * self.packing.num_polynomials

    @property
    def flooding(self) -> threshold.Flooding:
        """What each holder adds to its partial decryption."""
        packing = self.packing
        return threshold.flooding_needed(
            packing.params, packing.max_summands, self.num_coefficients, self.openings
        )

    @property
    def digest(self) -> bytes:
        """SHA-256 of everything that all parties have to plan alike."""
        return hashlib.sha256(repr(self).encode()).digest()

    def active_sets(self, answering: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The sets of t among those who answer: every result that can be compared.

        Example:
            >>> from fedjax_secure.core import Spec
            >>> from fedjax_secure.he import threshold as scheme
            >>> spec = Spec(dim=30, num_clients=4, num_records=9, denominator=9.0, modulus=2**16)
            >>> scheme(2, 3, answering=3).plan(spec).active_sets((1, 2, 3))
            [(1, 2), (1, 3), (2, 3)]
        """
        return list(combinations(answering, self.openings.threshold))

    def explain(self) -> str:
        """The plan in words, one fact a line."""
        openings, packing = self.openings, self.packing
        distance = threshold.distance_log2(
            self.flooding,
            packing.params,
            packing.max_summands,
            self.num_coefficients,
            openings,
        )
        sets = math.comb(self.answering, openings.threshold)
        return "\n".join(
            [
                packing.explain(),
                f"Any {openings.threshold} of {openings.num_parties} share holders open a sum: "
                f"{sets} set{'s' if sets > 1 else ''} of {openings.threshold} a round. "
                f"Each answers {openings.max_openings} times with a key.",
                f"Each adds noise of standard deviation 2^{math.log2(self.flooding.sigma):.1f} to "
                "every coefficient of its partial decryption: all that fewer than "
                f"{openings.threshold} holders see of the ciphertexts' noise is within "
                f"2^{distance:.0f} of nothing, over all openings.",
            ]
        )
