"""Encryption under one key holder's public key, by our lattice kernels, in the compiled round."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import rlwe

from ..core import Setting, Spec, Stream
from . import wire
from .key_holder import KeyHolder
from .packing import Packing, plan_packing


@dataclasses.dataclass(frozen=True)
class PublicKeyScheme:
    """What :func:`public_key` returns; see :class:`fedjax_secure.he.Scheme`."""

    parameters: str | None = None
    name: str = dataclasses.field(default="public_key", init=False)

    def plan(self, spec: Spec) -> Packing:
        """The packing for the chain's ring, dimension and number of clients."""
        assert spec.modulus is not None
        return plan_packing(
            self.parameters, dim=spec.dim, modulus=spec.modulus, max_summands=spec.num_clients
        )

    def opener_text(self, spec: Spec) -> str:
        """Who opens the sum, for the threat model."""
        params = self.plan(spec).params
        opens = (
            f"It opens what the server gives as the sum of {spec.min_clients} or more "
            f"{spec.client_name}s, once a round"
            if spec.aggregator == "semi-honest"
            else f"It opens sums of {spec.min_clients} or more {spec.client_name}s only"
        )
        return (
            f"one key holder (Ring-LWE {params.name}, {params.security_bits}-bit security), "
            f"whose secret key the server does not have. {opens}, and is trusted not to open one "
            f"{spec.client_name}'s ciphertext; whoever breaks into it can. A server that works "
            f"with k {spec.client_name}s learns the sum of the others' values as well, of "
            f"{spec.min_clients} - k or more; with the key holder, every value."
        )

    def generate(self, plan: Packing, spec: Spec, setting: Setting) -> tuple[Any, KeyHolder]:
        """Make or restore the key holder; the pytree is its public key and the key's id."""
        holder = KeyHolder(plan, setting)
        key_id = jnp.asarray(np.frombuffer(holder.key_id, "<u4").astype(np.uint32))
        return {"public_key": holder.public_key, "key_id": key_id}, holder

    def encrypt(self, plan: Packing, keys: Any, stream: Stream, value: jax.Array) -> jax.Array:
        """Encrypt uint32 [dim] ring elements to uint32 [2, limb, N, polynomial], as they travel."""
        params, lanes = plan.params, plan.lanes(value)
        fresh = rlwe.encrypt_lanes(
            params, keys["public_key"], plan.encoding, lanes, stream.key, stream.nonce()
        )
        return fresh if plan.transport is params else rlwe.switch_modulus(params, fresh)

    def add(self, plan: Packing, keys: Any, one: jax.Array, other: jax.Array) -> jax.Array:
        """Add two ciphertexts, uint32 [2, limb, N, polynomial]; pure and jittable."""
        return rlwe.add(plan.transport, one, other)

    def to_wire(self, plan: Packing, keys: Any, payloads: Any, setting: Setting) -> list[bytes]:
        """One message a client from uint32 [clients, 2, limb, N, polynomial]."""
        key_id = np.asarray(keys["key_id"]).astype("<u4").tobytes()
        return [wire.ciphertext_to_bytes(plan, key_id, row) for row in np.asarray(payloads)]

    def __repr__(self) -> str:
        return f"public_key(parameters={self.parameters!r})"


def public_key(parameters: str | None = None) -> PublicKeyScheme:
    """Encryption under the public key of one key holder, exact and inside the compiled round.

    Why: the server then sums updates that it cannot read. Several values share a coefficient, and
    everything runs in one JAX program, so it costs far less than calling a library per client.

    Guarantees:
        Sums open to exactly the ring elements that were encrypted, modulo the ring, except with
        probability at most 2^-40 a round. At least 128 bits of security by the tables of
        HomomorphicEncryption.org and ePrint 2024/463. The private key is in the
        :class:`KeyHolder` only.

    Args:
        parameters: name of a parameter set (``fedjax_kernels.rlwe.PARAMETER_SETS``); None takes
            the one that suits the model, the ring and the number of clients best.

    Returns:
        A scheme for :func:`fedjax_secure.he.encrypt`.

    Raises:
        SpecError: (when the chain is planned) the set is unknown, or the sum does not fit it.

    Example:
        >>> from fedjax_secure.core import Spec
        >>> spec = Spec(dim=30, num_clients=4, num_records=900, denominator=90.0, modulus=2**24)
        >>> print(public_key().plan(spec).explain().splitlines()[1])
        A lane has 26 bits: 24 of the ring and 2 for the carries of 4 summands.

    Source: Lyubashevsky, Peikert, Regev (ePrint 2012/230), section 8.2; plaintext in the upper bits
    as in Fan, Vercauteren (ePrint 2012/144).
    """
    return PublicKeyScheme(parameters)
