"""Sets that are put together by hand: what does not belong together is refused."""

from __future__ import annotations

import pytest

from fedjax_kernels import rlwe
from fedjax_kernels.modular import Moduli

PRIMES = rlwe.parameters("rlwe-8192-212").moduli.primes


@pytest.mark.parametrize(
    ("primes", "degree", "transport"),
    [
        (PRIMES, 8192, "rlwe-8192-180"),  # other primes of this ring
        (PRIMES, 8192, "rlwe-4096-60"),  # another ring
        (PRIMES[:-1], 8192, "rlwe-8192-196"),  # the same primes: nothing is dropped
        (PRIMES[::-1], 8192, "rlwe-8192-196"),  # another order: another prime would be dropped
        (rlwe.parameters("rlwe-1024-26").moduli.primes, 1024, "rlwe-1024-26"),
    ],
)
def test_a_transport_set_is_the_set_without_its_last_prime(primes, degree, transport):
    with pytest.raises(ValueError, match="its primes but the last"):
        rlwe.Parameters("custom", Moduli(primes, degree), transport)
    good = rlwe.Parameters("custom", Moduli(PRIMES, 8192), "rlwe-8192-196")
    assert good.dropped_prime == 65537 and good.transport.num_limbs == 7
