"""Our schemes, as the compiled round uses them: a worker of the benchmark."""

from __future__ import annotations

import importlib.metadata
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from worker import serve

from fedjax_kernels import ntt, rlwe
from fedjax_kernels.rlwe import xla as rlwe_xla
from fedjax_secure.core import Setting, Spec, source
from fedjax_secure.core.randomness import Stream, device_keys
from fedjax_secure.he import public_key, wire


def fresh_key() -> np.ndarray:
    """A client's 256-bit key for one round, as the host supplies it."""
    return device_keys([secrets.token_bytes(32)])[0]


def ring_elements(updates: str, scale: float, bits: int) -> tuple[jax.Array, ...]:
    """Each client's update in whole units modulo 2^bits: uint32 [dim] on the device."""
    units = np.rint(np.load(updates).astype(np.float64) * scale).astype(np.int64)
    return tuple(jnp.asarray((row & ((1 << bits) - 1)).astype(np.uint32)) for row in units)


class Summed:
    """Ciphertexts of all clients, their sum, and what it opens to; for every form of ours."""

    bits: int
    scale: float
    values: tuple[jax.Array, ...]

    def __init__(self, updates: str, scale: float, bits: int):
        self.scale, self.bits = scale, bits
        self.values = ring_elements(updates, scale, bits)
        self.ciphertexts: list[Any] = [None] * len(self.values)
        self.stacked = self.total = self.lanes = None

    def gather(self) -> None:
        """All clients' ciphertexts in one array, as the sum takes them; not timed."""
        self.stacked = jax.block_until_ready(jnp.stack(self.ciphertexts))

    def sum(self) -> np.ndarray:
        """The opened sum in model units, float64 [dim].

        Packing adds half of the ring to every value; a lane holds the whole sum.
        """
        assert self.lanes is not None
        count = len(self.values)
        lanes = self.lanes.reshape(-1)[: self.values[0].shape[0]].astype(np.int64)
        return (lanes - (count << (self.bits - 1))) / self.scale


class PublicKey(Summed):
    """`he.public_key`: its plan, its encryption, its wire format, its kernels' decryption."""

    def __init__(self, updates: str, scale: float, bits: int, max_summands: int):
        super().__init__(updates, scale, bits)
        self.spec = Spec(
            dim=self.values[0].shape[0],
            num_clients=max_summands,
            num_records=max_summands,
            denominator=1.0,
            modulus=1 << bits,
        )
        self.setting = Setting(bytes(16), {}, 1, source())
        self.scheme = scheme = public_key()
        self.plan = plan = scheme.plan(self.spec)
        self.keys, self.holder = scheme.generate(plan, self.spec, self.setting)
        self._encrypt = jax.jit(
            lambda keys, key, value: scheme.encrypt(plan, keys, Stream(key, 0), value)
        )
        params = plan.transport
        # The holder itself opens signed messages only: what is timed is the opening of one sum.
        self.secret = rlwe.SecretKey(self.holder._secret_key.s[: params.num_limbs])
        self._add = jax.jit(lambda ciphertexts: rlwe.sum_ciphertexts(params, ciphertexts))
        self.message = b""
        self.facts = {
            "parameters": plan.parameters,
            "polynomials": plan.num_polynomials,
            "lanes": plan.encoding.num_lanes,
            "lane_bits": plan.encoding.lane_bits,
            "log2_modulus": params.modulus_bits,
            "failure_log2": plan.failure_log2,
            "explain": plan.explain(),
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            "numpy": np.__version__,
        }

    def encrypt(self, client: int) -> None:
        value = self.values[client]
        self.ciphertexts[client] = jax.block_until_ready(
            self._encrypt(self.keys, fresh_key(), value)
        )

    def add(self) -> None:
        self.total = jax.block_until_ready(self._add(self.stacked))

    def decrypt(self) -> None:
        opened = rlwe.decrypt(self.plan.transport, self.secret, self.total, self.plan.encoding)
        if not bool(opened.valid):
            raise ValueError("the sum does not decrypt")
        self.lanes = np.asarray(opened.lanes)
        self.plan.unpack(self.lanes, len(self.values))

    def to_wire(self) -> None:
        row = self.ciphertexts[0][None]
        (self.message,) = self.scheme.to_wire(self.plan, self.keys, row, self.setting)

    def from_wire(self) -> None:
        wire.ciphertext_from_bytes(self.message, self.plan, self.holder.key_id)

    def wire_bytes(self) -> int:
        return len(self.message)

    # -- what encryption and decryption consist of -------------------------------------------------

    def prepare_parts(self) -> None:
        """Compile the parts, each as a program of its own."""
        params, plan = self.plan.params, self.plan
        num_words = rlwe.words_needed(params, plan.num_polynomials)
        shape = (3, params.num_limbs, params.ring_degree, plan.num_polynomials)
        self.residues = jnp.zeros(shape, jnp.uint32)
        self._keystream = jax.jit(lambda key: Stream(key, 0).words(num_words))
        self._transforms = jax.jit(
            lambda x: (
                ntt.forward(x[0], moduli=params.moduli),
                ntt.inverse(x[1:], moduli=params.moduli),
            )
        )
        self._pack = jax.jit(plan.pack)
        self._decode = jax.jit(lambda x: rlwe.decode(plan.transport, plan.encoding, x))
        for part in (self.keystream, self.transforms, self.pack, self.phase, self.decode):
            part()

    def keystream(self) -> None:
        jax.block_until_ready(self._keystream(fresh_key()))

    def transforms(self) -> None:
        jax.block_until_ready(self._transforms(self.residues))

    def pack(self) -> None:
        jax.block_until_ready(self._pack(self.values[0]))

    def phase(self) -> None:
        phase = rlwe_xla.phase(self.secret, self.total, params=self.plan.transport)
        self._phase = jax.block_until_ready(phase)

    def decode(self) -> None:
        jax.block_until_ready(self._decode(self._phase))

    def unpack(self) -> None:
        self.plan.unpack(self.lanes, len(self.values))


if __name__ == "__main__":
    serve({"public_key": PublicKey})
