"""What an additive encryption scheme offers, and the stage that puts one at the end of a chain."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Protocol

import jax

from ..core import Opener, Setting, Spec, Stage, Static, Stream
from ..core.ring import wrap
from ..core.stage import need


class Scheme(Protocol):
    """An additively homomorphic encryption of ring elements.

    A scheme that runs on the device does its work in :meth:`encrypt` and only serialises in
    :meth:`to_wire`; a scheme that runs on the host (OpenFHE) returns the value unchanged from
    ``encrypt`` and does its work in ``to_wire``.

    A scheme on the device may also have ``add(plan, keys, one, other)``, which adds what
    ``encrypt`` returned; rounds whose aggregator is trusted then add in the compiled program.
    """

    name: str

    def plan(self, spec: Spec) -> Hashable:
        """Choose the packing for this chain; SpecError where the sum does not fit.

        Reads ``spec.dim``, ``spec.modulus`` (each value is in ``[0, modulus)``) and
        ``spec.num_clients`` (the most summands).
        """
        ...

    def opener_text(self, spec: Spec) -> str:
        """Who opens the sum, to end the sentence 'opened by'.

        Says what is assumed of them, and what a server that works with k clients learns.
        """
        ...

    def generate(self, plan: Any, spec: Spec, setting: Setting) -> tuple[Any, Opener]:
        """Make (or, from ``setting.folder``, restore) keys.

        Returns:
            Public key material as a pytree that :meth:`encrypt` takes, and the opener that holds
            the private key. Nothing in the pytree leads to the private key.
        """
        ...

    def encrypt(self, plan: Any, keys: Any, stream: Stream, value: jax.Array) -> Any:
        """Encrypt one client's ring elements, uint32 [dim]; pure and jittable.

        One stream encrypts one value: two values under the same stream and key would show their
        difference. The chain gives every client and round a stream of its own.
        """
        ...

    def to_wire(self, plan: Any, keys: Any, payloads: Any, setting: Setting) -> list[bytes]:
        """One message a client from what ``encrypt`` returned, stacked over clients."""
        ...


def encrypt(scheme: Scheme) -> Stage:
    """Encrypt each client's ring elements so that only the sum can be opened.

    Args:
        scheme: ``fs.he.public_key()`` or ``fs.he.threshold(t, n)`` (our lattice kernels),
            ``fs.he.openfhe_bgv()`` or ``fs.he.openfhe_ckks()``.

    Returns:
        A stage; it must be the last of its chain.

    Guarantees:
        Sums open to exactly the integers that were encrypted, modulo the ring. The server reads
        no client's value. Who can open, and what is assumed of them, is in the chain's threat
        model.

    Assumes:
        Each client encrypts its own value as planned. Every scheme here is secure against chosen
        plaintexts, not chosen ciphertexts: a client that sends a ciphertext derived from another's,
        or one of its own devising, can learn that client's value or the key, together with whoever
        sees the sums. Openers check who sent what and how many, not what is inside.

    Raises:
        SpecError: (from ``init``) values that are not integers, no ring, or a sum that does not
            fit the scheme's parameters.

    Example:
        >>> from fedjax_secure.he import encrypt, public_key
        >>> encrypt(public_key()).name
        'encrypt'
    """

    def init(spec: Spec) -> tuple[Any, Spec]:
        need(spec.dtype in ("int32", "uint32"), "encrypt", "integer values", spec.dtype,
             "Put quantise(...) before it.")
        need(spec.modulus is not None, "encrypt", "a ring to sum in", "no modulus",
             "Put quantise(bits=...) before it.")
        need(spec.num_clients >= 2, "encrypt", "at least two clients", "one",
             "A sum of one client's value is that value: leave encrypt(...) out.")
        plan = scheme.plan(spec)
        changed = spec.replace(dtype="ciphertext", readable=False,
                               min_clients=max(spec.min_clients, 2))
        changed = changed.replace(opener=scheme.opener_text(changed))
        return {"plan": Static(plan), "modulus": Static(spec.modulus), "keys": None}, changed

    def setup(state: Any, spec: Spec, setting: Setting) -> tuple[Any, Opener]:
        keys, opener = scheme.generate(state["plan"].value, spec, setting)
        return {**state, "keys": keys}, opener

    def client(state: Any, stream: Stream, value: jax.Array) -> Any:
        ring_value = wrap(value, state["modulus"].value)
        return scheme.encrypt(state["plan"].value, state["keys"], stream, ring_value)

    def to_wire(state: Any, payloads: Any, setting: Setting) -> list[bytes]:
        return scheme.to_wire(state["plan"].value, state["keys"], payloads, setting)

    def add(state: Any, one: Any, other: Any) -> Any:
        return scheme.add(state["plan"].value, state["keys"], one, other)  # type: ignore[attr-defined]

    return Stage("encrypt", init, client, setup=setup, to_wire=to_wire,
                 add=add if hasattr(scheme, "add") else None)
