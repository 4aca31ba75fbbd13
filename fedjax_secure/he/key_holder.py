"""The key holder: keeps the private key, takes the clients' messages, opens one sum a round."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from fedjax_kernels import rlwe

from ..core import InvalidSum, OnceOpener, ResumeError, Setting
from ..core.opening import write_durably
from ..core.randomness import KEY_BYTES, host_words
from . import wire
from .packing import Packing
from .summing import read_total, sum_ciphertexts

_FILE = "key-holder.key"
_FILE_VERSION = 2


class KeyHolder(OnceOpener):
    """Makes the key pair, and opens sums of ciphertexts under it.

    It is apart from the aggregator: what the aggregator gets is :attr:`public_key`, which does not
    lead back here. It does not trust a sum made by others, but adds the clients' signed ciphertexts
    itself.

    Args:
        packing: the plan of the chain.
        setting: the run, its roster, the minimum of distinct clients, where the key comes from,
            and the private folder in which a 256-bit seed of the key is kept for resuming. Without
            a folder the key lives and ends with this object.

    Guarantees:
        One sum a round is opened, of at least ``min_clients`` and never fewer than two distinct
        registered clients, each ciphertext signed for this run, round, model and key, none given
        twice. Neither ``repr`` nor an error shows a secret. It can decrypt a single client's
        ciphertext, and is trusted not to.

    Assumes:
        Whoever runs the aggregator did not fill the roster with clients of its own: k of them and
        the sum give the sum of the others. Clients got the public key's :attr:`key_id` from the key
        holder, not from the aggregator. Clients encrypt their own values as planned: the scheme is
        secure against chosen plaintexts only. A client that sends a ciphertext derived from
        another's has that value counted as it likes, and one that sends a ciphertext of its own
        devising can have the sum tell the secret key to whoever sees it, and with the key every
        update. Most such sums are not noticed; one that is, because it is invalid, uses its round
        up.

    Raises:
        ResumeError: the folder holds a key of another run or of other parameters, or a damaged one.

    Example:
        >>> from fedjax_secure.core import source
        >>> from fedjax_secure.he.packing import plan_packing
        >>> packing = plan_packing("rlwe-1024-26", dim=3, modulus=256, max_summands=2)
        >>> holder = KeyHolder(packing, Setting(bytes(16), {}, 2, source()))
        >>> len(holder.key_id), holder.opened(1)
        (32, None)

    Source: V. Lyubashevsky, C. Peikert, O. Regev, ePrint 2012/230, section 8.2.
    """

    def __init__(self, packing: Packing, setting: Setting):
        self.packing = packing
        params = packing.params
        seed = _restored_or_fresh_seed(packing, setting)
        words = host_words(seed, rlwe.key_words_needed(params)).astype(np.uint32)
        self._secret_key, self.public_key = rlwe.generate_key(params, words)
        content = wire.public_key_to_bytes(packing.parameters, self.public_key)
        super().__init__(setting, wire.key_id_of(content), self._sum_and_decrypt,
                         open_sum=self._decrypt_sum)

    @property
    def public_key_bytes(self) -> bytes:
        """The public key as the clients get it; its SHA-256 is :attr:`key_id`."""
        return wire.public_key_to_bytes(self.packing.parameters, self.public_key)

    def _sum_and_decrypt(self, payloads: Sequence[bytes]) -> np.ndarray:
        return self._decrypt(sum_ciphertexts(self.packing, self.key_id, payloads), len(payloads))

    def _decrypt_sum(self, payload: bytes, num_clients: int) -> np.ndarray:
        total = read_total(self.packing, self.key_id, payload, num_clients)
        return self._decrypt(total, num_clients)

    def _decrypt(self, total: Any, num_clients: int) -> np.ndarray:
        packing, params = self.packing, self.packing.transport
        secret_key = rlwe.SecretKey(self._secret_key.s[: params.num_limbs])
        opened = rlwe.decrypt(params, secret_key, total, packing.encoding)
        if not bool(opened.valid):
            raise InvalidSum(
                "opening a sum",
                need="a sum within the planned lanes",
                found="bits above them: a client did not encrypt as planned",
                fix="Begin a new run, with a new key, and find that client.",
            )
        return packing.unpack(np.asarray(opened.lanes), num_clients)


def _restored_or_fresh_seed(packing: Packing, setting: Setting) -> bytes:
    if setting.folder is None:
        return setting.source.key("he/key-holder")
    path = setting.folder / _FILE
    if path.exists():
        return _read_seed(path, packing, setting.run)
    setting.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    seed = setting.source.key("he/key-holder")
    content = msgpack.packb({"version": _FILE_VERSION, "run": setting.run,
                             "parameters": packing.parameters, "seed": seed})
    assert content is not None
    write_durably(path, content)
    return seed


def _read_seed(path: Path, packing: Packing, run: bytes) -> bytes:
    where = "restoring the key holder's key"
    try:
        fields = msgpack.unpackb(path.read_bytes())
        version, found_run, parameters, seed = (
            fields[name] for name in ("version", "run", "parameters", "seed"))
    except (ValueError, KeyError, TypeError, msgpack.exceptions.UnpackException):
        version = found_run = parameters = seed = None
    if version != _FILE_VERSION or not isinstance(seed, bytes) or len(seed) != KEY_BYTES:
        raise ResumeError(
            where,
            need="a whole key file of this version",
            found="one that cannot be read",
            fix="Restore this file alone from a backup, or begin a new run.",
        )
    if found_run != run:
        raise ResumeError(
            where,
            need="a key of this run",
            found="one of another run",
            fix="Give every run a folder of its own: under one key a round is opened once.",
        )
    if parameters != packing.parameters:
        raise ResumeError(
            where,
            need=f"a key of {packing.parameters}",
            found=f"one of {parameters!r:.40}",
            fix="Resume with the parameters that the run began with.",
        )
    return seed
