"""Our schemes, as the compiled round uses them: a worker of the benchmark."""

from __future__ import annotations

import importlib.metadata
import secrets
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from bench_round import SecretKeyNoise
from worker import serve

from fedjax_kernels import modular, ntt, rlwe
from fedjax_kernels.rlwe import xla as rlwe_xla
from fedjax_secure.core import Setting, Spec, source
from fedjax_secure.core.randomness import Stream, device_keys
from fedjax_secure.he import public_key, threshold, wire
from fedjax_secure.he.packing import plan_packing


def fresh_key() -> np.ndarray:
    """A client's 256-bit key for one round, as the host supplies it."""
    return device_keys([secrets.token_bytes(32)])[0]


class Summed:
    """Ciphertexts of all clients, their sum, and what it opens to; for every form of ours.

    Args:
        updates: file of float32 [clients, dim].
        scale: units per model unit.
        bits: a value is taken modulo 2^bits.
    """

    def __init__(self, updates: str, scale: float, bits: int):
        self.scale, self.bits = scale, bits
        units = np.rint(np.load(updates).astype(np.float64) * scale).astype(np.int64)
        self.values = tuple(
            jnp.asarray((row & ((1 << bits) - 1)).astype(np.uint32)) for row in units
        )
        self.dim = units.shape[1]
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
        lanes = self.lanes.reshape(-1)[: self.dim].astype(np.int64)
        return (lanes - (len(self.values) << (self.bits - 1))) / self.scale


class OfScheme(Summed):
    """What schemes of `he` share: planning, encrypting, adding up, the wire format."""

    def __init__(self, scheme: Any, updates: str, scale: float, bits: int, max_summands: int):
        super().__init__(updates, scale, bits)
        spec = Spec(
            dim=self.dim,
            num_clients=max_summands,
            num_records=max_summands,
            denominator=1.0,
            modulus=1 << bits,
        )
        self.setting = Setting(bytes(16), {}, 1, source())
        self.scheme = scheme
        self.plan = plan = scheme.plan(spec)
        self.packing = getattr(plan, "packing", plan)
        self.transport = transport = self.packing.transport
        self.keys, self.opener = scheme.generate(plan, spec, self.setting)
        self._encrypt = jax.jit(
            lambda keys, key, value: scheme.encrypt(plan, keys, Stream(key, 0), value)
        )
        self._add = jax.jit(lambda ciphertexts: rlwe.sum_ciphertexts(transport, ciphertexts))
        self.message = b""
        self.facts = {
            "parameters": self.packing.parameters,
            "log2_modulus": transport.modulus_bits,
            "explain": plan.explain(),
            "jax": jax.__version__,
            "jaxlib": importlib.metadata.version("jaxlib"),
            "numpy": np.__version__,
        }

    def encrypt(self, client: int) -> None:
        ciphertext = self._encrypt(self.keys, fresh_key(), self.values[client])
        self.ciphertexts[client] = jax.block_until_ready(ciphertext)

    def add(self) -> None:
        self.total = jax.block_until_ready(self._add(self.stacked))

    def to_wire(self) -> None:
        row = self.ciphertexts[0][None]
        (self.message,) = self.scheme.to_wire(self.plan, self.keys, row, self.setting)

    def from_wire(self) -> None:
        wire.ciphertext_from_bytes(self.message, self.packing, self.opener.key_id)

    def wire_bytes(self) -> int:
        return len(self.message)


class PublicKey(OfScheme):
    """`he.public_key`, and the kernels with which its key holder opens a sum."""

    def __init__(
        self,
        updates: str,
        scale: float,
        bits: int,
        max_summands: int,
        parameters: str | None = None,
    ):
        super().__init__(public_key(parameters), updates, scale, bits, max_summands)
        # The holder itself opens signed messages only: what is timed is the opening of one sum.
        self.secret = rlwe.SecretKey(self.opener._secret_key.s[: self.transport.num_limbs])

    def decrypt(self) -> None:
        opened = rlwe.decrypt(self.transport, self.secret, self.total, self.packing.encoding)
        if not bool(opened.valid):
            raise ValueError("the sum does not decrypt")
        self.lanes = np.asarray(opened.lanes)
        self.packing.unpack(self.lanes, len(self.values))

    # -- what encryption and decryption consist of -------------------------------------------------

    def prepare_parts(self) -> None:
        """Compile the parts, each as a program of its own."""
        packing, transport = self.packing, self.transport
        params, polynomials = packing.params, packing.num_polynomials
        num_words = rlwe.words_needed(params, polynomials)
        self.residues = jnp.zeros((3, params.num_limbs, params.ring_degree, polynomials), "uint32")
        self._keystream = jax.jit(lambda key: Stream(key, 0).words(num_words))
        self._transforms = jax.jit(
            lambda x: (
                ntt.forward(x[0], moduli=params.moduli),
                ntt.inverse(x[1:], moduli=params.moduli),
            )
        )
        self._pack = jax.jit(packing.pack)
        self._decode = jax.jit(lambda x: rlwe.decode(transport, packing.encoding, x))
        for part in (self.keystream, self.transforms, self.pack, self.phase, self.decode):
            part()

    def keystream(self) -> None:
        jax.block_until_ready(self._keystream(fresh_key()))

    def transforms(self) -> None:
        jax.block_until_ready(self._transforms(self.residues))

    def pack(self) -> None:
        jax.block_until_ready(self._pack(self.values[0]))

    def phase(self) -> None:
        phase = rlwe_xla.phase(self.secret, self.total, params=self.transport)
        self._phase = jax.block_until_ready(phase)

    def decode(self) -> None:
        jax.block_until_ready(self._decode(self._phase))

    def unpack(self) -> None:
        self.packing.unpack(self.lanes, len(self.values))


class Threshold(OfScheme):
    """`he.threshold`: a holder's partial decryption and the combiner's work, by what they run."""

    def __init__(
        self,
        updates: str,
        scale: float,
        bits: int,
        max_summands: int,
        t: int,
        n: int,
        **options: Any,
    ):
        super().__init__(threshold(t, n, **options), updates, scale, bits, max_summands)
        self.members = tuple(range(1, t + 1))
        self.partials: list[np.ndarray] = []

    def _partial(self, holder: Any) -> np.ndarray:
        total = np.asarray(self.total)
        return holder._decrypt(holder._share, total, 1, bytes(32), self.members)

    def partial(self) -> None:
        """One holder's: its share, its flood and its masks."""
        self._partial(self.opener.holders[0])

    def combine(self) -> None:
        if not self.partials:  # in the warm-up, which is not timed
            self.partials = [self._partial(self.opener.holders[j - 1]) for j in self.members]
        valid, self.lanes = self.opener._combine(np.asarray(self.total), np.stack(self.partials))
        if not valid:
            raise ValueError("the sum does not decrypt")
        self.packing.unpack(self.lanes, len(self.values))


class SecretKeyForm(Summed):
    """The secret-key kernel, which no scheme of `he` offers: one component and an `a`.

    Its bytes are those of the bit-packed residues and of the seed: it has no wire format.
    """

    def __init__(self, updates: str, scale: float, bits: int, max_summands: int):
        super().__init__(updates, scale, bits)
        self.packing = packing = plan_packing(
            None, dim=self.dim, modulus=1 << bits, max_summands=max_summands, noise=SecretKeyNoise()
        )
        self.params = params = packing.params
        polynomials = packing.num_polynomials
        num_a = rlwe.uniform_words_needed(params, polynomials)
        num_secret = rlwe.secret_words_needed(params, polynomials)
        num_key = 2 * params.ring_degree
        self._key = jax.jit(
            lambda key: rlwe.generate_secret(params, Stream(key, 0).words(num_key))
        )
        self._expand = jax.jit(
            lambda key: rlwe.expand_uniform(params, Stream(key, 0).words(num_a))
        )

        def encrypt(secret, a, key, value):
            words = Stream(key, 1).words(num_secret)
            return rlwe.encrypt_secret(params, secret, packing.pack(value), a, words)

        self._encrypt = jax.jit(encrypt)
        self._encrypt_expanding = jax.jit(
            lambda secret, seed, key, value: encrypt(
                secret, rlwe.expand_uniform(params, Stream(seed, 0).words(num_a)), key, value
            )
        )
        self._add = jax.jit(lambda stacked: modular.sum_residues(stacked, params.moduli))
        self._decrypt = jax.jit(
            lambda secret, total, a: rlwe.decrypt_secret(params, secret, total, a, packing.encoding)
        )
        self.secret: Any = None
        self.a: Any = None
        self.facts = {
            "parameters": packing.parameters,
            "log2_modulus": params.modulus_bits,
            "explain": " ".join(packing.explain().splitlines()[:3])
            + f" One polynomial of two travels: {self.wire_bytes() / self.dim:.2f} bytes a value.",
        }

    def add(self) -> None:
        self.total = jax.block_until_ready(self._add(self.stacked))

    def decrypt(self) -> None:
        opened = self._decrypt(self.secret, self.total, self.a)
        if not bool(opened.valid):
            raise ValueError("the sum does not decrypt")
        self.lanes = np.asarray(opened.lanes)
        self.packing.unpack(self.lanes, len(self.values))

    def wire_bytes(self) -> int:
        return self.packing.ciphertext_bytes // 2 + 32


class Seeded(SecretKeyForm):
    """One secret key, and a fresh `a` for every ciphertext, which travels as a 256-bit seed."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.secret = self._key(fresh_key())
        self.seeds = [fresh_key() for _ in self.values]

    def encrypt(self, client: int) -> None:
        self.seeds[client] = seed = fresh_key()
        ciphertext = self._encrypt_expanding(self.secret, seed, fresh_key(), self.values[client])
        self.ciphertexts[client] = jax.block_until_ready(ciphertext)

    def expand(self) -> None:
        """Expand every client's seed, and add them up."""
        total = self._expand(self.seeds[0])
        for seed in self.seeds[1:]:
            total = modular.add(total, self._expand(seed), self.params.moduli)
        self.a = jax.block_until_ready(total)


class CommonA(SecretKeyForm):
    """A secret key for every client, and one `a` for all, expanded once a round."""

    def __init__(self, **arguments: Any):
        super().__init__(**arguments)
        self.secrets = [self._key(fresh_key()) for _ in self.values]
        total = self._add(jnp.stack([key.s for key in self.secrets]))
        self.secret = rlwe.SecretKey(total)
        self.expand()

    def encrypt(self, client: int) -> None:
        ciphertext = self._encrypt(self.secrets[client], self.a, fresh_key(), self.values[client])
        self.ciphertexts[client] = jax.block_until_ready(ciphertext)

    def expand(self) -> None:
        """Expand the round's seed; after encryption it must not change, so `a` is kept."""
        a = jax.block_until_ready(self._expand(fresh_key()))
        self.a = a if self.a is None else self.a


if __name__ == "__main__":
    serve(
        {"public_key": PublicKey, "threshold": Threshold, "seeded": Seeded, "common_a": CommonA}
    )
