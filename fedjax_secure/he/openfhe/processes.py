"""The processes in which OpenFHE runs, as this process sees them: key holders and encryptors."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...core import (
    InvalidSum,
    OpeningError,
    ParameterError,
    PartyError,
    SecureFederationError,
)
from ...core.party import Party, Refusal
from .plan import Plan

_SCRIPT = Path(__file__).with_name("party.py")
_MAX_CALL_BYTES = 64 << 20
_PARTIALS_A_CALL = 128  # ciphertexts whose partial decryptions travel in one message


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
        ...     plan = openfhe.plan_for("openfhe_bgv", 16, 2)
        ...     with openfhe.KeyHolder(plan) as holder:
        ...         with openfhe.Encryptor(plan, holder.public_key) as encryptor:
        ...             messages = encryptor.encrypt(np.array([[1, 65535], [2, 3]], np.uint32))
        ...         return holder.sum_and_decrypt(messages, 2).tolist()
        >>> total()  # doctest: +SKIP
        [3, 2]
    """

    def __init__(self, plan: Plan, *, min_summands: int = 2, timeout_seconds: float = 120.0):
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
            uint32 [dim], the sums modulo the ring.

        Raises:
            OpeningError: a message that is cut, altered, of another version, key, parameters or
                length, given twice, or in a sum that was opened; too few or too many messages.
                Nothing is opened then.
            InvalidSum: what was opened is no sum of encrypted ring elements.
            PartyError: the process died; its secret key with it.
        """
        with self._lock, _key_is_lost_with(self._party, "Its secret key is gone with it"):
            return _result(_refusals_as(OpeningError, self._sum, ciphertexts, dim))

    def _sum(self, ciphertexts: Sequence[bytes], dim: int) -> dict[str, Any]:
        _add(self._party, ciphertexts, dim)
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


class KeyHolders:
    """Processes that each hold one share of a joint key; all are needed to open a sum.

    Every process makes its own share and never gives it away. Each checks the messages and
    recomputes the sum itself, and decrypts it partially; another process, which has the public key
    only, fuses the partial decryptions. A context manager.

    Args:
        plan: as every encryptor has it; its ``parties`` is the number of holders.
        min_summands: the fewest different ciphertexts that each holder takes part in opening.
        timeout_seconds: the time limit of one call.

    Attributes:
        public_key, key_id, about: as of :class:`KeyHolder`, for the joint key.

    Guarantees:
        The secret key is in no process: it is the sum of the shares. If a holder dies, a
        PartyError names it and nothing is opened, then or later.

    Assumes:
        Holders follow OpenFHE's protocol when they make the joint key, and what they send arrives
        unaltered. The protocol has no proof of a well-formed key: the first holder chooses the
        public polynomial `a` that all use, and the last to add its share could put a key of its own
        in place of the joint one. Partial decryptions are noised by OpenFHE's default, see
        :meth:`.plan.Plan.flooding_margin_bits`.

    Raises:
        PartyError: OpenFHE is not installed, or a process does not start.

    Source: n-of-n additive shares, Asharov et al., EUROCRYPT 2012 (ePrint 2011/613), as in OpenFHE.
    """

    def __init__(self, plan: Plan, *, min_summands: int = 2, timeout_seconds: float = 120.0):
        self.plan, self._lock = plan, threading.Lock()
        count = plan.parties
        names = [*(f"OpenFHE key holder {i + 1} of {count}" for i in range(count)),
                 "OpenFHE fusion"]
        self._pool = concurrent.futures.ThreadPoolExecutor(len(names))
        self._parties: list[Party] = []
        try:
            self._parties = self._start(names, timeout_seconds)
            numbers, previous = _numbers(plan), b""
            made: dict[str, Any] = {}
            for holder in self._holders:
                made = holder.call("hold_share", plan=numbers, min_summands=min_summands,
                                   previous=previous)
                previous = made.pop("public_key")
            self.public_key: bytes = previous
            self.key_id: bytes = made.pop("key_id")
            joined = [self._pool.submit(holder.call, "join", public_key=previous)
                      for holder in self._holders]
            self._fusion.call("load_public_key", plan=numbers, public_key=previous)
            for done in joined:
                done.result()
        except BaseException:
            self.close()
            raise
        self.about: dict[str, Any] = {**self._fusion.about, **made}

    def _start(self, names: list[str], timeout_seconds: float) -> list[Party]:
        starts = [self._pool.submit(_start, name, timeout_seconds) for name in names]
        concurrent.futures.wait(starts)
        self._parties = [start.result() for start in starts if start.exception() is None]
        return [start.result() for start in starts]

    @property
    def _holders(self) -> list[Party]:
        return self._parties[:-1]

    @property
    def _fusion(self) -> Party:
        return self._parties[-1]

    def sum_and_decrypt(self, ciphertexts: Sequence[bytes], dim: int) -> np.ndarray:
        """Have every holder add the ciphertexts up and decrypt its part, and fuse the parts.

        Args, returns and raises as :meth:`KeyHolder.sum_and_decrypt`; a PartyError names the
        holder that died.
        """
        with self._lock, contextlib.ExitStack() as stack:
            for holder in self._holders:
                stack.enter_context(
                    _key_is_lost_with(holder, "Its share of the key is gone with it"))
            stack.enter_context(_key_is_lost_with(self._fusion, "The sum is used up"))
            return _result(_refusals_as(OpeningError, self._sum, ciphertexts, dim))

    def _sum(self, ciphertexts: Sequence[bytes], dim: int) -> dict[str, Any]:
        self._of_all(lambda holder: _add(holder, ciphertexts, dim))
        finished = self._of_all(lambda holder: holder.call("finish_sum"))
        terms, parts = finished[0]
        self._fusion.call("begin_fusion")
        for start in range(0, parts, _PARTIALS_A_CALL):
            count = min(_PARTIALS_A_CALL, parts - start)
            partials = self._of_all(
                lambda holder, start=start, count=count: holder.call(
                    "partial", start=start, count=count))
            self._fusion.call("fuse", partials=partials, dim=dim)
        return self._fusion.call("fused", dim=dim, terms=terms)

    def _of_all(self, ask: Callable[[Party], Any]) -> list[Any]:
        """Every holder's answer, asked at the same time; the first error once all have ended."""
        asked = [self._pool.submit(ask, holder) for holder in self._holders]
        concurrent.futures.wait(asked)
        return [answer.result() for answer in asked]

    @property
    def pids(self) -> list[int]:
        """The holders' process ids."""
        return [holder.pid for holder in self._holders]

    def close(self) -> None:
        """End the processes, and with them the shares."""
        for party in self._parties:
            party.close()
        self._pool.shutdown()

    def __enter__(self) -> KeyHolders:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        running = sum(holder.running for holder in self._holders)
        return (f"KeyHolders(key_id={self.key_id.hex()[:16]}, "
                f"running={running} of {self.plan.parties})")


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
        step = max(1, _MAX_CALL_BYTES // self.plan.message_bytes(values.shape[1]))
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


def _add(holder: Party, ciphertexts: Sequence[bytes], dim: int) -> None:
    holder.call("begin_sum", dim=dim)
    for group in _groups(ciphertexts):
        holder.call("add", ciphertexts=group)


def _result(opened: dict[str, Any]) -> np.ndarray:
    if not opened["valid"]:
        raise InvalidSum(
            "opening an OpenFHE sum", need="sums of encrypted ring elements",
            found="values that no such sum can have", fix="One client did not encrypt as planned: "
            "begin a new run, with a new key, and find that client.")
    return opened["total"]


@contextlib.contextmanager
def _key_is_lost_with(party: Party, lost: str) -> Iterator[None]:
    """An error of a party that died says what is lost."""
    try:
        yield
    except PartyError as error:
        if party.running or party.name not in error.where or "no sum was opened" in error.fix:
            raise
        raise PartyError(
            error.where, need=error.need, found=error.found,
            fix=f"{lost}, and no sum was opened. Set the run up again from its last finished "
            "round; the clients then encrypt again.") from error


def _start(name: str, timeout_seconds: float) -> Party:
    from . import env  # not at the top: `python -m` runs that file too

    interpreter = env.find()
    if interpreter is None:
        raise PartyError(
            "OpenFHE", need="a Python in which it loads",
            found=env.why_not() or "none that has been set up",
            fix=f"Run: {env.COMMAND} (or use he.public_key(), which needs no OpenFHE).")
    return Party(
        _SCRIPT, name=name, interpreter=interpreter, timeout_seconds=timeout_seconds,
        start_fix=f"Run: {env.COMMAND} (with {env.VARIABLE} unset, or naming a "
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
