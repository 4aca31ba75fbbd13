"""How ring elements become plaintexts of OpenFHE, so that sums come out exact.

A value x of the ring is stored as x + M/2 mod M and split into digits, each in a slot of its own,
so that the sum of all summands' digits fits. With one digit a slot's sum is the sum of the centred
values plus a constant, and tells whoever opens it no more than that sum.

Also read in OpenFHE's process, perhaps on Python 3.10 and without jax: it imports nothing but the
standard library and ``core.errors``.
"""

from __future__ import annotations

import dataclasses
import math

from ...core.errors import SpecError

BGV, CKKS = "openfhe_bgv", "openfhe_ckks"
MAX_PARTIES = 32
_MAX_SUMMANDS = 1 << 20
_ROOT_ORDER = 1 << 15  # 2N for the largest ring that these plans reach, N = 16384

#: OpenFHE's error distribution (discrete Gaussian) and its noise in partial decryptions.
ERROR_STDDEV = 3.19
FLOODING_BITS = 20
_FLOODING_VARIANCE = 4.0**FLOODING_BITS

# Bits of a single ciphertext prime, and the ring dimension that OpenFHE takes for it at
# HEStd_128_classic. 60 bits are the most that it takes for the first prime.
_SINGLE_PRIME = ((2048, 53), (4096, 60))
_NATS = 62 * math.log(2)  # each of some 2^20 slots may fail with probability 2^-62
_DEVIATIONS = math.sqrt(2 * (_NATS + math.log(2)))


@dataclasses.dataclass(frozen=True)
class Plan:
    """A plan made by :func:`plan_for`; hashable, so compiled functions take it as static.

    Attributes:
        scheme: ``"openfhe_bgv"`` or ``"openfhe_ckks"``.
        ring_bits: a value is in ``[0, 2**ring_bits)``.
        max_summands: how many ciphertexts a sum may hold.
        parties: how many hold a share of the key; 1 for one key holder.
        num_digits, digit_bits: the split of a value.
        plaintext_modulus: BGV: a prime below 2^32 that is 1 modulo 2N; CKKS: 0.
        scaling_bits, modulus_bits: CKKS: log2 of the scale, bits of the ciphertext prime; BGV: 0.
    """

    scheme: str
    ring_bits: int
    max_summands: int
    parties: int
    num_digits: int
    digit_bits: int
    plaintext_modulus: int = 0
    scaling_bits: int = 0
    modulus_bits: int = 0

    @property
    def modulus(self) -> int:
        """The ring's size, ``2**ring_bits``."""
        return 1 << self.ring_bits

    def message_bytes(self, dim: int) -> int:
        """About how many bytes one client's message has: two 64-bit words a coefficient."""
        slot_bytes = 17 if self.scheme == BGV else 34  # CKKS has half as many slots
        return slot_bytes * max(self.num_digits * dim, 1 << 13)

    def bgv_bits_needed(self, ring_dimension: int) -> float:
        """log2 of the ciphertext modulus above which every sum decrypts exactly (BGV).

        A sum of K ciphertexts decrypts to m + t (e u + e0 + e1 s + flooding), with Gaussian e, e0,
        e1, ternary u and s (each the sum of the parties'). Given u and s, a coefficient is
        sub-Gaussian with variance at most K ((n + n^2) N + 1) stddev^2, plus n 2^40 of flooding
        with n > 1 parties; 12 standard deviations are exceeded with probability below 2^-100.
        """
        terms, parties = self.max_summands, self.parties
        secret = (parties + parties**2) * ring_dimension
        variance = terms * (secret + 1) * ERROR_STDDEV**2 + self._flooding_variance
        noise = 12.0 * math.sqrt(variance)
        return math.log2(self.plaintext_modulus * (terms / 2 + noise)) + 1

    def ckks_error(self, ring_dimension: int) -> float:
        """A bound on a slot's error in a decrypted sum, in units (CKKS).

        It is exceeded in a sum of 2^20 slots with probability below 2^-40. In a slot, the canonical
        embedding at a root z of x^N + 1, the error is e(z) u(z) + e0(z) + e1(z) s(z), summed, plus
        flooding(z) and about as much that OpenFHE adds when it decodes. |u(z)|^2 and |s(z)|^2 are
        exponential with mean 2N/3, which Chernoff's bound holds for their sums.
        """
        terms, parties = self.max_summands, self.parties
        mean = 2 * ring_dimension / 3
        secret = parties * mean * (_excess(terms) + _excess(1))
        variance = terms * (secret + 1 + 1 / 12) * ERROR_STDDEV**2 + self._flooding_variance
        noise = _DEVIATIONS * math.sqrt(ring_dimension * variance)
        doubles = 2.0**-49 * self._largest_slot  # the embedding runs in 53-bit arithmetic
        return noise / 2.0**self.scaling_bits + doubles

    def ckks_bits_needed(self) -> float:
        """log2 of the ciphertext modulus that holds the scaled sum with sign and error (CKKS)."""
        return math.log2(self._largest_slot + 1) + self.scaling_bits + 1

    @property
    def _largest_slot(self) -> int:
        return self.max_summands << (self.digit_bits - 1)

    @property
    def _flooding_variance(self) -> float:
        return self.parties * _FLOODING_VARIANCE if self.parties > 1 else 0.0

    def flooding_margin_bits(self, ring_dimension: int) -> float:
        """How many bits OpenFHE's flooding is above the noise of a full sum; it may be negative."""
        secret = self.parties * 4 * ring_dimension / 3
        noise = ERROR_STDDEV * math.sqrt(self.max_summands * (secret + 1))
        return FLOODING_BITS - math.log2(noise)


def plan_for(scheme: str, ring_bits: int, max_summands: int, parties: int = 1) -> Plan:
    """The plan with the fewest digits for values of some bits and a number of summands.

    Args:
        scheme: ``"openfhe_bgv"`` or ``"openfhe_ckks"``.
        ring_bits: bits of a value, 1 to 32.
        max_summands: the most ciphertexts in a sum, 1 to 2^20.
        parties: how many hold a share of the key, 1 to 32.

    Raises:
        SpecError: an argument out of range, or a sum that fits no parameters.

    Example:
        >>> plan_for("openfhe_bgv", 16, 4).num_digits, plan_for("openfhe_ckks", 31, 1000).num_digits
        (1, 2)
    """
    _need(1 <= ring_bits <= 32, "a ring of 1 to 32 bits", f"{ring_bits} bits",
          "Choose another quantise(bits=...).")
    _need(1 <= max_summands <= _MAX_SUMMANDS, f"1 to {_MAX_SUMMANDS} clients in an OpenFHE sum",
          str(max_summands), "Use he.public_key() for more.")
    _need(1 <= parties <= MAX_PARTIES, f"1 to {MAX_PARTIES} parties that hold shares of an OpenFHE "
          "key", str(parties), f"Choose {scheme}(parties=...) in that range.")
    fit = {BGV: _fit_bgv, CKKS: _fit_ckks}.get(scheme)
    _need(fit is not None, f"one of {BGV}, {CKKS}", scheme, "Name one of these.")
    assert fit is not None
    for num_digits in range(1, ring_bits + 1):
        plan = fit(Plan(scheme, ring_bits, max_summands, parties, num_digits,
                        -(-ring_bits // num_digits)))
        if plan is not None:
            return plan
    raise SpecError("stage `encrypt`", need=f"parameters of {scheme} for {max_summands} clients "
                    f"and {parties} parties", found="none that fit 60 bits",
                    fix="Sum fewer clients, or use he.public_key().")


def _fit_bgv(plan: Plan) -> Plan | None:
    # Sums stay below half the modulus, where OpenFHE reads plaintexts as not negative.
    modulus = _prime_above(2 * plan.max_summands * ((1 << plan.digit_bits) - 1))
    plan = dataclasses.replace(plan, plaintext_modulus=modulus)
    dimension, bits = _SINGLE_PRIME[-1]
    # OpenFHE's parameter generation keeps the plaintext modulus in 32 bits: larger ones wrap.
    return plan if modulus < 1 << 32 and plan.bgv_bits_needed(dimension) < bits - 0.1 else None


def _fit_ckks(plan: Plan) -> Plan | None:
    for dimension, bits in _SINGLE_PRIME:
        for scaling_bits in range(18, bits):
            tried = dataclasses.replace(plan, scaling_bits=scaling_bits, modulus_bits=bits)
            if tried.ckks_bits_needed() >= bits - 0.01:
                break
            if tried.ckks_error(dimension) < 0.25:
                return tried
    return None


def _excess(count: int) -> float:
    """c so that a mean of `count` exponentials of mean 1 is above c with probability < e^-NATS.

    Chernoff: P(mean > c) <= exp(-count (c - 1 - ln c)).
    """
    low, high = 1.0, 2.0 + 2.0 * _NATS
    for _ in range(60):
        middle = (low + high) / 2
        below = count * (middle - 1 - math.log(middle)) < _NATS
        low, high = (middle, high) if below else (low, middle)
    return high


def _need(holds: bool, need: str, found: str, fix: str) -> None:
    if not holds:
        raise SpecError("stage `encrypt`", need=need, found=found, fix=fix)


def _prime_above(bound: int) -> int:
    """The least prime above a bound that is 1 modulo 2N for every N in use."""
    candidate = (bound // _ROOT_ORDER + 1) * _ROOT_ORDER + 1
    while not _is_prime(candidate):
        candidate += _ROOT_ORDER
    return candidate


def _is_prime(n: int) -> bool:
    """Miller-Rabin with the bases that decide every n below 3.3e24 (Sorenson, Webster 2015)."""
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        if n % base == 0:
            return n == base
        power = pow(base, odd, n)
        if power not in (1, n - 1) and all(
                (power := power * power % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True
