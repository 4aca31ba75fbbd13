"""OpenFHE's BGV and CKKS as encryptions of ring elements, run in processes of their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...core import OnceOpener, ParameterError, PartyError, Setting, Spec, Stream
from ...core.party import MAX_MESSAGE_BYTES
from ...core.stage import need
from .plan import BGV, CKKS, FLOODING_BITS, MAX_PARTIES, Plan, plan_for
from .processes import Encryptor, KeyHolder, KeyHolders

_LARGEST_RING = 4096  # of the plans; the flooding is stated for it


def openfhe_bgv(*, parties: int = 1, timeout_seconds: float = 120.0) -> OpenFheScheme:
    """Encryption by OpenFHE's BGV: exact, public-key, at 128-bit security.

    Why: a second, independent implementation whose keys and ciphertexts other OpenFHE programs
    read (see :mod:`fedjax_secure.he.openfhe.interop`). For speed and size prefer ``public_key()``.

    Guarantees:
        Sums open to exactly the ring elements that were encrypted, modulo the ring. The secret
        key is made in a process of its own and never leaves it; the process that encrypts has the
        public key only. With ``parties`` above one, every party has a process of its own, which
        makes its own share of the key and keeps it; each checks the messages and recomputes the
        sum, and only all of them together can open one. OpenFHE picks ring dimension and modulus
        at HEStd_128_classic, and the parties refuse parameters under which a coefficient of a sum
        might not decrypt (probability above 2^-100). OpenFHE's randomness cannot be seeded: in
        seeded mode ciphertexts differ from run to run, but the opened ring elements, and so the
        models, are the same.

    Assumes:
        Clients encrypt as the protocol says: a sum that holds a ciphertext made otherwise may
        tell whoever sees the sum something about the key. With several parties: they follow the
        protocol when they make the key (:class:`.processes.KeyHolders`), and OpenFHE's default
        noise in partial decryptions, of standard deviation 2^20, is enough to hide the shares.
        That is 20 bits before the noise of the sum is counted, which takes most of it: much less
        than the 40 bits over that noise of ``threshold(...)``, on our own kernels, which also
        needs only t of n.

    Args:
        parties: 1 for one key holder; 2 to 32 for n-of-n shares.
        timeout_seconds: the time limit of one call of a party.

    Returns:
        A scheme for :func:`fedjax_secure.he.encrypt`. Its processes start when a run is set up
        and end when its opener is closed.

    Raises:
        ParameterError: a number of parties out of range.
        PartyError: (when a run is set up) OpenFHE is not installed, with the command that
            installs it; (in a round) a process died. Nothing has been opened then.

    Example:
        >>> from fedjax_secure.he import encrypt
        >>> encrypt(openfhe_bgv()).name, openfhe_bgv(parties=3)
        ('encrypt', openfhe_bgv(parties=3, timeout_seconds=120))

    Source:
        Brakerski, Gentry, Vaikuntanathan 2012 (ePrint 2011/277); OpenFHE 1.6.1 (ePrint 2022/915).
    """
    return OpenFheScheme(BGV, parties, timeout_seconds)


def openfhe_ckks(*, parties: int = 1, timeout_seconds: float = 120.0) -> OpenFheScheme:
    """Encryption by OpenFHE's CKKS, with parameters under which sums round to the exact integers.

    Why: CKKS is what most other federated-learning software encrypts with. It is approximate; a
    ring element is an integer, so with enough bits below the unit the error rounds away.

    Guarantees:
        As of :func:`openfhe_bgv`, except that a slot's error passes 1/4 of a unit with probability
        below 2^-40 (a bound computed by :meth:`.plan.Plan.ckks_error`). The residual of every
        opened slot is checked: one above 1/4 is an InvalidSum and nothing is released. Only the
        rounded integers leave the process that decrypts: approximate decryptions, published, would
        tell about the key (IND-CPA^D: Li, Micciancio, ePrint 2020/1533).

    Assumes:
        As of :func:`openfhe_bgv`. With several parties, whoever runs the fusion sees the
        approximate sum; OpenFHE's stronger multiparty mode (``SetMultipartyMode``) is not
        available for CKKSRNS.

    Args:
        parties: 1 for one key holder; 2 to 32 for n-of-n shares.
        timeout_seconds: the time limit of one call of a party.

    Returns:
        A scheme for :func:`fedjax_secure.he.encrypt`.

    Raises:
        ParameterError, PartyError: as of :func:`openfhe_bgv`.

    Example:
        >>> from fedjax_secure.he import encrypt
        >>> encrypt(openfhe_ckks()).name
        'encrypt'

    Source:
        Cheon, Kim, Kim, Song, ASIACRYPT 2017 (ePrint 2016/421); OpenFHE 1.6.1 (ePrint 2022/915).
    """
    return OpenFheScheme(CKKS, parties, timeout_seconds)


class OpenFheScheme:
    """What :func:`openfhe_bgv` and :func:`openfhe_ckks` return; see he.Scheme."""

    def __init__(self, name: str, parties: int, timeout_seconds: float):
        if isinstance(parties, bool) or not isinstance(parties, int) \
                or not 1 <= parties <= MAX_PARTIES:
            raise ParameterError(name, need=f"parties from 1 to {MAX_PARTIES}",
                                 found=repr(parties), fix="Choose how many hold a share.")
        self.name, self.parties = name, parties
        self._timeout_seconds = timeout_seconds
        self._encryptors: dict[bytes, Encryptor] = {}

    def plan(self, spec: Spec) -> Plan:
        """Digits and moduli for the chain's ring and number of clients.

        Raises:
            SpecError: no parameters of OpenFHE fit, or one client's message is too large for the
                pipe to a party.
        """
        assert spec.modulus is not None
        plan = plan_for(self.name, spec.modulus.bit_length() - 1, spec.num_clients, self.parties)
        size = plan.message_bytes(spec.dim)
        need(size < MAX_MESSAGE_BYTES, "encrypt", f"messages below {MAX_MESSAGE_BYTES} bytes",
             f"{size} bytes a client with {self.name}", "Use public_key(), whose ciphertexts are "
             "several times smaller, or a smaller model.")
        return plan

    def opener_text(self, spec: Spec) -> str:
        """Who opens the sum, and what those who collude learn, for the threat model."""
        kind = f"OpenFHE {'BGV' if self.name == BGV else 'CKKS'}, 128-bit security"
        client, fewest = spec.client_name, spec.min_clients
        checks = ("distinct ciphertexts; signatures, and one opening a round, are checked by the "
                  "process that starts {}.")
        collusion = (f"An aggregator that colludes with k {client}s learns the sum of the other "
                     f"{client}s' values, never of fewer than {fewest} - k together; with {{}} as "
                     "well: everything.")
        if self.parties == 1:
            return (f"one key holder ({kind}), whose secret key stays in a process of its own. It "
                    f"opens any sum of {fewest} or more {checks.format('it')} It is "
                    f"trusted not to open one {client}'s ciphertext; whoever breaks into it can. "
                    f"{collusion.format('the key holder')}")
        plan = self.plan(spec)
        margin = plan.flooding_margin_bits(_LARGEST_RING)
        digits = ("" if plan.num_digits == 1 else " Whoever fuses the partial decryptions sees the "
                  f"sums of {plan.num_digits} digits of each value, which tell more than their "
                  "total.")
        return (f"{self.parties} key holders together ({kind}, n-of-n shares), each of which keeps "
                f"its share in a process of its own, recomputes the sum, and takes part for "
                f"{fewest} or more {checks.format('them')} All are needed, and fewer learn nothing "
                "but the opened sums, if they made the joint key as the protocol says and the "
                f"noise in partial decryptions hides their shares: OpenFHE's default has standard "
                f"deviation 2^{FLOODING_BITS}, {margin:.0f} bits above the noise of a full sum, "
                "where our own threshold scheme has 40."
                f"{digits} {collusion.format('all key holders')}")

    def generate(self, plan: Plan, spec: Spec, setting: Setting) -> tuple[Any, OnceOpener]:
        """Start the key holders, which make fresh keys, and the encryptor with the public one.

        Nothing of the keys is stored: a resumed run makes others, and its clients encrypt again.
        """
        hold = KeyHolder if plan.parties == 1 else KeyHolders
        holder = hold(plan, min_summands=max(setting.min_clients, 2),
                      timeout_seconds=self._timeout_seconds)
        try:
            encryptor = Encryptor(plan, holder.public_key, timeout_seconds=self._timeout_seconds)
        except BaseException:
            holder.close()
            raise
        self._encryptors[holder.key_id] = encryptor

        def open_payloads(payloads: list[bytes]) -> np.ndarray:
            return holder.sum_and_decrypt(payloads, spec.dim)

        def close() -> None:
            self._encryptors.pop(holder.key_id, None)
            encryptor.close()
            holder.close()

        opener = OnceOpener(setting, holder.key_id, open_payloads, on_close=close)
        # The key's id as words, so that a new key does not compile the round anew.
        return {"key_id": jnp.asarray(np.frombuffer(holder.key_id, "<u4"))}, opener

    def encrypt(self, plan: Plan, keys: Any, stream: Stream, value: jax.Array) -> jax.Array:
        """The ring elements as they are: OpenFHE encrypts on the host, in :meth:`to_wire`."""
        return value

    def to_wire(self, plan: Plan, keys: Any, payloads: Any, setting: Setting) -> list[bytes]:
        """Encrypt uint32 [clients, dim] under the run's public key: one message a client."""
        key_id = np.asarray(keys["key_id"]).astype("<u4").tobytes()
        encryptor = self._encryptors.get(key_id)
        if encryptor is None:
            raise PartyError("encrypting with OpenFHE", need="a run whose opener is open",
                             found="a key whose opener was closed", fix="Set the run up again.")
        return encryptor.encrypt(np.asarray(payloads))

    def __repr__(self) -> str:
        return (f"{self.name}(parties={self.parties}, "
                f"timeout_seconds={self._timeout_seconds:g})")
