"""Encryption under a joint key of n share holders, of which any t open a sum together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import threshold as kernels

from ...core import ResumeError, Setting, Spec, SpecError, Stream
from ..packing import plan_packing
from ..public_key import PublicKeyScheme
from .holder import ShareHolder
from .key_generation import run_key_generation
from .opener import ThresholdOpener
from .plan import ThresholdNoise, ThresholdPlan

#: More sets than this are not opened and compared in a round.
MAX_SETS = 64


@dataclasses.dataclass(frozen=True)
class ThresholdScheme:
    """What :func:`threshold` returns; see :class:`fedjax_secure.he.Scheme`."""

    openings: kernels.Openings
    answering: int
    witnesses: int
    parameters: str | None = None
    name: str = dataclasses.field(default="threshold", init=False)

    def plan(self, spec: Spec) -> ThresholdPlan:
        """The packing, with room for the floods, for the chain's ring, dimension and clients."""
        assert spec.modulus is not None
        try:
            packing = plan_packing(
                self.parameters,
                dim=spec.dim,
                modulus=spec.modulus,
                max_summands=spec.num_clients,
                noise=ThresholdNoise(self.openings),
            )
        except SpecError:
            raise
        except ValueError:  # flooding_needed: the sampler's distance, over so many draws
            raise SpecError(
                "stage `encrypt`",
                need=f"draws that together are within 2^-{self.openings.flooding_bits} of ideal",
                found=f"{spec.dim} values and {self.openings.max_openings} openings",
                fix="Use fewer flooding_bits or max_openings.",
            ) from None
        return ThresholdPlan(packing, self.openings, self.answering, self.witnesses)

    def opener_text(self, spec: Spec) -> str:
        """Who opens the sum, for the threat model."""
        params = self.plan(spec).packing.params
        t, n = self.openings.threshold, self.openings.num_parties
        client, least = spec.client_name, spec.min_clients
        names = ", ".join(f"holder-{number}" for number in range(1, n + 1))
        wrong = (
            f"All sets of {t} of {self.answering} answers are compared, so wrong answers of up to "
            f"{self.answering - t} of them are noticed"
            if self.answering > t
            else f"Exactly {t} answer, so a holder who answers wrongly shifts the sum unseen: "
            "nothing is claimed about wrong shares"
        )
        checks = (
            f"Each holder takes part in one sum a round, which the server gives it as that of "
            f"{least} or more {client}s, and"
            if spec.aggregator == "semi-honest"
            else f"Each holder checks the {client}s' signatures, sums by itself, and takes part in "
            f"one sum a round, of {least} or more {client}s,"
        )
        return (
            f"any {t} of {n} share holders together ({names}; Ring-LWE {params.name}, "
            f"{params.security_bits}-bit security), each with a share of a key that nobody has. "
            f"{t - 1} of them, and a server that works with them, learn nothing but the opened "
            f"sums, up to a statistical distance of 2^-{self.openings.flooding_bits}; {t} of them "
            f"together can open any {client}'s ciphertext, and so can whoever breaks into {t}. "
            f"{checks} that {self.witnesses} holders were given. A server that works with k "
            f"{client}s learns the sum of the others' values as well, of {least} - k or more. "
            f"{wrong}. Holders are assumed to follow the protocol, and {client}s to encrypt as "
            "planned. In a simulation all holders are in "
            "this process"
        )

    def generate(
        self, plan: ThresholdPlan, spec: Spec, setting: Setting
    ) -> tuple[Any, ThresholdOpener]:
        """Make or restore the holders, each with a folder of its own, and their joint key."""
        holders = tuple(
            ShareHolder(
                number,
                plan,
                dataclasses.replace(
                    setting, folder=setting.folder and setting.folder / f"holder-{number}"
                ),
            )
            for number in range(1, plan.openings.num_parties + 1)
        )
        if not _restored(plan, holders):
            identities = tuple(holder.identity for holder in holders)
            run_key_generation(
                {holder.number: holder.key_generation(identities) for holder in holders}
            )
        opener = ThresholdOpener(plan, setting, holders)
        key_id = jnp.asarray(np.frombuffer(opener.key_id, "<u4").astype(np.uint32))
        return {"public_key": opener.public_key, "key_id": key_id}, opener

    def encrypt(
        self, plan: ThresholdPlan, keys: Any, stream: Stream, value: jax.Array
    ) -> jax.Array:
        """Encrypt uint32 [dim] ring elements to uint32 [2, limb, N, polynomial], as they travel."""
        return PublicKeyScheme().encrypt(plan.packing, keys, stream, value)

    def add(self, plan: ThresholdPlan, keys: Any, one: jax.Array, other: jax.Array) -> jax.Array:
        """Add two ciphertexts, uint32 [2, limb, N, polynomial]; pure and jittable."""
        return PublicKeyScheme().add(plan.packing, keys, one, other)

    def to_wire(
        self, plan: ThresholdPlan, keys: Any, payloads: Any, setting: Setting
    ) -> list[bytes]:
        """One message a client from uint32 [clients, 2, limb, N, polynomial]."""
        return PublicKeyScheme().to_wire(plan.packing, keys, payloads, setting)

    def __repr__(self) -> str:
        return (
            f"threshold({self.openings.threshold}, {self.openings.num_parties}, "
            f"answering={self.answering}, witnesses={self.witnesses}, "
            f"max_openings={self.openings.max_openings}, "
            f"flooding_bits={self.openings.flooding_bits}, parameters={self.parameters!r})"
        )


def threshold(
    t: int,
    n: int,
    *,
    answering: int | None = None,
    witnesses: int | None = None,
    max_openings: int = 256,
    flooding_bits: int = 40,
    parameters: str | None = None,
) -> ThresholdScheme:
    """Encryption that any t of n share holders open together, and fewer cannot.

    Why: nobody then has to be trusted with a key. The n holders make it together, by messages; its
    secret never exists anywhere. Holders may be the hospitals themselves, or institutions apart.

    Guarantees:
        Any t holders open; n - t may be away (where t is more than half of n: see `witnesses`).
        Sums open to exactly the ring elements that were encrypted, modulo the ring, except with
        probability at most 2^-40 a round. t - 1 holders who pool what they have, with the server,
        learn nothing but opened sums: shares are uniform, and everything shown in openings is
        within 2^-flooding_bits of what these sums alone would give, over all openings of the key.
        Where more than t answer, up to ``answering - t`` wrong holders cannot pass a wrong sum;
        with exactly t nothing is claimed. At least 128 bits of security by the tables of
        HomomorphicEncryption.org and ePrint 2024/463.

    Assumes:
        Holders follow the protocol, also those who pool what they have (semi-honest); clients
        encrypt as planned. Holders know each other's public keys. Residues that rounding drops, if
        the parameter set drops a prime, are taken as uniform.

    Args:
        t: how many holders open a sum together, at least 2.
        n: how many holders there are, up to 64.
        answering: how many are asked each round; t if None. With more, results of all sets of t
            are compared. t + 1 notices a wrong holder; t + 2 can tell which.
        witnesses: how many holders must have been given a round's submissions before any answers,
            so that no two disjoint sets open two sums of one round. None takes the larger of t and
            a majority of n. Against t - 1 holders who also break the protocol take (n + t) / 2,
            rounded up.
        max_openings: how many partial decryptions a holder gives with one key. A round takes one,
            or C(answering - 1, t - 1) where results are compared. Twice as many take half a bit
            more of every coefficient: at N = 8192, 16-bit values of 256 clients leave room for any
            number in 10 bytes a value, those of 1,024 clients for 4 of 3 of 4 holders.
        flooding_bits: the statistical distance is at most 2^-flooding_bits; 40 to 60.
        parameters: name of a parameter set; None takes the one that suits best.

    Returns:
        A scheme for :func:`fedjax_secure.he.encrypt`.

    Raises:
        SpecError: numbers out of range, flooding below 40 bits, too many sets to compare; (when
            the chain is planned) the sum and its noise do not fit.

    Example:
        >>> from fedjax_secure.core import Spec
        >>> spec = Spec(dim=30, num_clients=4, num_records=900, denominator=90.0, modulus=2**24)
        >>> plan = threshold(2, 3).plan(spec)
        >>> print(plan.explain().splitlines()[-2])
        Any 2 of 3 share holders open a sum: 1 set of 2 a round. Each answers 256 times with a key.

    Source: Mouchet, Bertrand, Hubaux (ePrint 2022/780), section 4, on the multiparty encryption of
    Mouchet et al. (ePrint 2020/304); masks as in ePrint 2024/184. See
    :mod:`fedjax_kernels.threshold`.
    """
    where = "threshold"

    def refuse(need: str, found: str, fix: str) -> SpecError:
        return SpecError(where, need=need, found=found, fix=fix)

    for name, value in (("t", t), ("n", n), ("max_openings", max_openings),
                        ("flooding_bits", flooding_bits)):  # fmt: skip
        if isinstance(value, bool) or not isinstance(value, int):
            raise refuse(f"a whole number {name}", repr(value), "Give threshold(2, 3).")
    if not 2 <= t <= n <= kernels.MAX_PARTIES:
        raise refuse(
            f"2 <= t <= n <= {kernels.MAX_PARTIES}",
            f"t={t}, n={n}",
            "Choose how many of the holders open a sum; for one holder use public_key().",
        )
    if (
        not kernels.MIN_FLOODING_BITS <= flooding_bits <= kernels.MAX_FLOODING_BITS
        or max_openings < 1
    ):
        raise refuse(
            f"at least one opening and {kernels.MIN_FLOODING_BITS} to "
            f"{kernels.MAX_FLOODING_BITS} bits of flooding",
            f"max_openings={max_openings}, flooding_bits={flooding_bits}",
            "Leave them out for 256 openings with 40 bits.",
        )
    asked = t if answering is None else answering
    if not t <= asked <= n or math.comb(asked, t) > MAX_SETS:
        raise refuse(
            f"answering from t={t} to n={n}, with at most {MAX_SETS} sets of t to compare",
            f"answering={asked}",
            f"answering={min(t + 1, n)} notices a wrong holder.",
        )
    seen = max(t, n // 2 + 1) if witnesses is None else witnesses
    if not max(t, n // 2 + 1) <= seen <= n:
        raise refuse(
            f"witnesses from {max(t, n // 2 + 1)} (t, and more than half of n) to n={n}",
            f"witnesses={seen}",
            "Leave it out for the fewest.",
        )
    openings = kernels.Openings(n, t, max_openings, flooding_bits)
    return ThresholdScheme(openings, asked, seen, parameters)


def _restored(plan: ThresholdPlan, holders: tuple[ShareHolder, ...]) -> bool:
    """Whether the holders' folders hold a key that is in use; closes those who lost theirs.

    A holder's share counts once all have confirmed the key. Where none has got that far, nothing
    was encrypted under it, and a key is made anew.
    """
    confirmed = [holder for holder in holders if holder.confirmations]
    if not confirmed:
        return False
    key_id, session = confirmed[0].key_id, confirmed[0].session
    for holder in holders:
        if not holder.has_share:
            holder.close()
        elif holder.key_id != key_id or holder.session != session:
            raise ResumeError(
                f"restoring {holder.name}",
                need="a share of the same key as the others'",
                found="one of another key",
                fix="Give each holder its own latest folder, or begin a new run.",
            )
        elif not holder.confirmations:
            holder.confirm(confirmed[0].confirmations)
    there = sum(not holder.closed for holder in holders)
    needed = max(plan.answering, plan.witnesses)
    if there < needed:
        raise ResumeError(
            "restoring share holders",
            need=f"the folders of {needed} holders",
            found=str(there),
            fix="Bring back their latest folders; fewer cannot open anything.",
        )
    return True
