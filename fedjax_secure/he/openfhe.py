"""OpenFHE's BGV as an encryption of ring elements, run in processes of its own."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core import (
    OnceOpener,
    OpeningError,
    ParameterError,
    PartyError,
    SecureFederationError,
    Setting,
    Spec,
    Stream,
)
from ..core.party import Party, Refusal
from ..core.stage import need

_SCRIPT = Path(__file__).with_name("openfhe_party.py")
_MAX_SUMMANDS = 1 << 20
_MAX_CALL_BYTES = 64 << 20
_ROOT_ORDER = 1 << 15  # 2N for the largest ring that these plans reach, N = 16384


@dataclasses.dataclass(frozen=True)
class Plan:
    """How ring elements become plaintexts of OpenFHE.

    A value of ``ring_bits`` bits is split into ``num_digits`` digits of ``digit_bits`` bits, each
    in a slot of its own, so that the sum of ``max_summands`` digits stays below half the plaintext
    modulus. OpenFHE's parameter generation keeps the plaintext modulus in 32 bits, hence digits.

    Attributes:
        ring_bits: a value is in ``[0, 2**ring_bits)``.
        max_summands: how many ciphertexts a sum may hold.
        num_digits, digit_bits: the split.
        plaintext_modulus: a prime below 2^32 that is 1 modulo 2N.
    """

    ring_bits: int
    max_summands: int
    num_digits: int
    digit_bits: int
    plaintext_modulus: int

    @property
    def modulus(self) -> int:
        """The ring's size, ``2**ring_bits``."""
        return 1 << self.ring_bits


def plan_for(ring_bits: int, max_summands: int) -> Plan:
    """The plan with the fewest digits for values of some bits and a number of summands.

    Args:
        ring_bits: bits of a value, 1 to 32.
        max_summands: the most ciphertexts in a sum, 1 to 2^20.

    Raises:
        SpecError: an argument out of range.

    Example:
        >>> plan_for(16, 4).num_digits, plan_for(31, 1000).num_digits
        (1, 2)
    """
    need(1 <= ring_bits <= 32, "encrypt", "a ring of 1 to 32 bits", f"{ring_bits} bits",
         "Choose another quantise(bits=...).")
    need(1 <= max_summands <= _MAX_SUMMANDS, "encrypt",
         f"1 to {_MAX_SUMMANDS} clients in an OpenFHE sum", str(max_summands),
         "Use he.public_key() for more.")
    for num_digits in range(1, ring_bits + 1):
        digit_bits = -(-ring_bits // num_digits)
        # Sums stay below half the modulus, where OpenFHE reads plaintexts as not negative.
        modulus = _prime_above(2 * max_summands * ((1 << digit_bits) - 1))
        if modulus < 1 << 32:
            return Plan(ring_bits, max_summands, num_digits, digit_bits, modulus)
    raise AssertionError("one bit a digit always fits")


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


class KeyHolder:
    """The process that made a key pair, sums ciphertexts, and opens the sum; a context manager.

    The secret key is made in that process, is never written or sent, and dies with it.

    Args:
        plan: as every encryptor has it.
        min_summands: the fewest different ciphertexts that it opens a sum of.
        timeout_seconds: the time limit of one call; a sum takes several.

    Attributes:
        public_key: for encryptors; begins with a header that names scheme, version, parameters.
        key_id: SHA-256 of ``public_key``.
        about: ring dimension, bits of the ciphertext modulus, digest of the parameters, versions.

    Raises:
        PartyError: OpenFHE is not installed, or its process does not start; the message has the
            command that mends it.

    Example:
        >>> from fedjax_secure.he import openfhe
        >>> def total():
        ...     plan = openfhe.plan_for(16, 2)
        ...     with openfhe.KeyHolder(plan) as holder:
        ...         with openfhe.Encryptor(plan, holder.public_key) as encryptor:
        ...             messages = encryptor.encrypt(np.array([[1, 65535], [2, 3]], np.uint32))
        ...         return holder.sum_and_decrypt(messages, 2).tolist()
        >>> total()  # doctest: +SKIP
        [3, 65538]
    """

    def __init__(self, plan: Plan, *, min_summands: int = 1, timeout_seconds: float = 120.0):
        self.plan, self._lock = plan, threading.Lock()
        self._party = _start("OpenFHE key holder", timeout_seconds)
        try:
            made = self._party.call("hold_key", plan=_numbers(plan), min_summands=min_summands)
        except BaseException:
            self._party.close()
            raise
        self.public_key: bytes = made.pop("public_key")
        self.key_id: bytes = made.pop("key_id")
        self.about: dict[str, Any] = {**self._party.about, **made}

    def sum_and_decrypt(self, ciphertexts: Sequence[bytes], dim: int) -> np.ndarray:
        """Add ciphertexts up and open the sum.

        Args:
            ciphertexts: one message a client, as :meth:`Encryptor.encrypt` made them.
            dim: how many values each holds.

        Returns:
            uint64 [dim], the sums of plain integers; reduce them modulo the ring.

        Raises:
            OpeningError: a message that is cut, altered, of another version, key, parameters or
                length, or given twice; too few or too many messages. Nothing is opened then.
            PartyError: the process died; its secret key with it.
        """
        with self._lock:
            try:
                return _refusals_as(OpeningError, self._sum, ciphertexts, dim)
            except PartyError as error:
                if self._party.running:
                    raise
                raise PartyError(
                    error.where, need=error.need, found=error.found,
                    fix="Its secret key is gone with it, and no sum was opened. Set the run up "
                    "again from its last finished round; the clients then encrypt again.",
                ) from error

    def _sum(self, ciphertexts: Sequence[bytes], dim: int) -> np.ndarray:
        self._party.call("begin_sum", dim=dim)
        for group in _groups(ciphertexts):
            self._party.call("add", ciphertexts=group)
        return self._party.call("open_sum")

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._party.pid

    def close(self) -> None:
        """End the process, and with it the secret key."""
        self._party.close()

    def __enter__(self) -> KeyHolder:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"KeyHolder(key_id={self.key_id.hex()[:16]}, running={self._party.running})"


class Encryptor:
    """The process that encrypts for clients, with the public key only; a context manager.

    Args:
        plan: as the key holder has it.
        public_key: the key holder's.
        timeout_seconds: the time limit of one call.

    Guarantees:
        If the process dies, the call under way raises PartyError and the next call starts
        another process: encrypting needs nothing that was lost.

    Raises:
        PartyError: OpenFHE is not installed, or its process does not start.
        ParameterError: a public key of another version or other parameters.
    """

    def __init__(self, plan: Plan, public_key: bytes, *, timeout_seconds: float = 120.0):
        self.plan, self.public_key = plan, public_key
        self._timeout_seconds, self._lock = timeout_seconds, threading.Lock()
        self._party: Party | None = None
        self._closed = False
        self.key_id = b""
        with self._lock:
            self._running()

    def encrypt(self, values: np.ndarray) -> list[bytes]:
        """Encrypt ring elements.

        Args:
            values: uint32 [clients, dim], each below the plan's ring size.

        Returns:
            One message a client: a versioned header, OpenFHE's serialised ciphertexts, a checksum.

        Raises:
            ParameterError: values of another type or shape, or outside the ring.
            PartyError: the process died; calling again starts another.
        """
        values = np.asarray(values)
        if values.dtype != np.uint32 or values.ndim != 2 or 0 in values.shape:
            raise ParameterError(
                "encrypting with OpenFHE", need="uint32 [clients, dim], not empty",
                found=f"{values.dtype} {list(values.shape)}",
                fix="Wrap the values into the ring and stack the clients.")
        # A call's messages stay far below the size limit: 16 bytes and a part of one a digit.
        client_bytes = 20 * self.plan.num_digits * max(values.shape[1], 1 << 14)
        step = max(1, _MAX_CALL_BYTES // client_bytes)
        messages: list[bytes] = []
        with self._lock:
            for start in range(0, len(values), step):
                messages += _refusals_as(ParameterError, lambda rows: self._running().call(
                    "encrypt", values=rows), values[start:start + step])
        return messages

    @property
    def pid(self) -> int | None:
        """The process's id; None before the first and after :meth:`close`."""
        return self._party.pid if self._party is not None else None

    def close(self) -> None:
        """End the process; the encryptor cannot be used again."""
        self._closed = True
        if self._party is not None:
            self._party.close()
            self._party = None

    def _running(self) -> Party:
        """The process, started if there is none (any more)."""
        if self._closed:
            raise PartyError("encrypting with OpenFHE", need="an open encryptor",
                             found="one that was closed", fix="Set the run up again.")
        if self._party is None or not self._party.running:
            if self._party is not None:
                self._party.close()
            party = _start("OpenFHE encryptor", self._timeout_seconds)
            try:
                loaded = _refusals_as(ParameterError, lambda: party.call(
                    "load_public_key", plan=_numbers(self.plan), public_key=self.public_key))
            except BaseException:
                party.close()
                raise
            self._party, self.key_id = party, loaded["key_id"]
        return self._party

    def __enter__(self) -> Encryptor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Encryptor(key_id={self.key_id.hex()[:16]}, pid={self.pid})"


def openfhe_bgv(*, timeout_seconds: float = 120.0) -> OpenFheBgv:
    """Encryption by OpenFHE's BGV: exact, public-key, at 128-bit security.

    Why: a second, independent implementation whose keys and ciphertexts other OpenFHE programs
    read. For speed and size prefer ``public_key()``.

    Guarantees:
        Sums open to exactly the ring elements that were encrypted, modulo the ring. The secret
        key is made in a process of its own and never leaves it; the process that encrypts has the
        public key only. OpenFHE picks ring dimension and modulus at HEStd_128_classic, and the
        parties refuse parameters under which a sum might not decrypt (probability above 2^-100).
        OpenFHE's randomness cannot be seeded: in seeded mode ciphertexts differ from run to run,
        but the opened ring elements, and so the models, are the same.

    Assumes:
        Clients encrypt as the protocol says: a sum that holds a ciphertext made otherwise may
        tell whoever sees the sum something about the key.

    Args:
        timeout_seconds: the time limit of one call of a party.

    Returns:
        A scheme for :func:`fedjax_secure.he.encrypt`. Its processes start when a run is set up
        and end when its opener is closed.

    Raises:
        PartyError: (when a run is set up) OpenFHE is not installed, with the command that
            installs it; (in a round) a process died. Nothing has been opened then.

    Example:
        >>> from fedjax_secure.he import encrypt
        >>> encrypt(openfhe_bgv()).name
        'encrypt'

    Source:
        Brakerski, Gentry, Vaikuntanathan 2012 (ePrint 2011/277); OpenFHE 1.6.1 (ePrint 2022/915).
    """
    return OpenFheBgv(timeout_seconds)


class OpenFheBgv:
    """What :func:`openfhe_bgv` returns; see :class:`fedjax_secure.he.Scheme`."""

    name = "openfhe_bgv"

    def __init__(self, timeout_seconds: float):
        self._timeout_seconds = timeout_seconds
        self._encryptors: dict[bytes, Encryptor] = {}

    def plan(self, spec: Spec) -> Plan:
        """Digits and plaintext modulus for the chain's ring and number of clients."""
        assert spec.modulus is not None
        return plan_for(spec.modulus.bit_length() - 1, spec.num_clients)

    def opener_text(self, spec: Spec) -> str:
        """Who opens the sum, for the threat model."""
        return ("one key holder (OpenFHE BGV, 128-bit security), whose secret key stays in a "
                f"process of its own. That process opens any sum of {spec.min_clients} or more "
                "distinct ciphertexts; signatures, and one opening a round, are checked by the "
                f"process that starts it. It is trusted not to open one {spec.client_name}'s "
                "ciphertext; whoever breaks into it can.")

    def generate(self, plan: Plan, spec: Spec, setting: Setting) -> tuple[Any, OnceOpener]:
        """Start the key holder, which makes fresh keys, and the encryptor with the public one.

        Nothing of the keys is stored: a resumed run makes others, and its clients encrypt again.
        """
        holder = KeyHolder(plan, min_summands=setting.min_clients,
                           timeout_seconds=self._timeout_seconds)
        try:
            encryptor = Encryptor(plan, holder.public_key, timeout_seconds=self._timeout_seconds)
        except BaseException:
            holder.close()
            raise
        self._encryptors[holder.key_id] = encryptor

        def open_payloads(payloads: list[bytes]) -> np.ndarray:
            total = holder.sum_and_decrypt(payloads, spec.dim)
            return (total & np.uint64(plan.modulus - 1)).astype(np.uint32)

        def close() -> None:
            self._encryptors.pop(holder.key_id, None)
            encryptor.close()
            holder.close()

        opener = OnceOpener(setting, holder.key_id, open_payloads, on_close=close, keeps_key=False)
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
        return f"openfhe_bgv(timeout_seconds={self._timeout_seconds:g})"


def _start(name: str, timeout_seconds: float) -> Party:
    from . import openfhe_env  # not at the top: `python -m` runs that file too

    interpreter = openfhe_env.find()
    if interpreter is None:
        raise PartyError(
            "OpenFHE", need="a Python in which it loads",
            found=openfhe_env.why_not() or "none that has been set up",
            fix=f"Run: {openfhe_env.COMMAND} (or use he.public_key(), which needs no OpenFHE).")
    return Party(
        _SCRIPT, name=name, interpreter=interpreter, timeout_seconds=timeout_seconds,
        start_fix=f"Run: {openfhe_env.COMMAND} (with {openfhe_env.VARIABLE} unset, or naming a "
        "Python in which openfhe, numpy and msgpack import).")


def _numbers(plan: Plan) -> dict[str, int]:
    return dataclasses.asdict(plan)


def _refusals_as(kind: type[SecureFederationError], call: Callable[..., Any], *args: Any) -> Any:
    """A party's refusal as an error of the toolkit that says what it is about."""
    try:
        return call(*args)
    except Refusal as refusal:
        raise kind(refusal.where, need=refusal.need, found=refusal.found,
                   fix=refusal.fix) from None


def _groups(messages: Sequence[bytes]) -> Iterator[list[bytes]]:
    """Messages in groups that fit a call, none empty."""
    group: list[bytes] = []
    size = 0
    for message in messages:
        if group and size + len(message) > _MAX_CALL_BYTES:
            yield group
            group, size = [], 0
        group.append(message)
        size += len(message)
    if group:
        yield group
