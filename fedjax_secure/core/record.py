"""What a finished round leaves behind: the only thing that ledger, widgets and checkpoints read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from .errors import ResumeError

VERSION = 1


@dataclasses.dataclass(frozen=True)
class RoundRecord:
    """One finished round, host-side and frozen.

    Attributes:
        run: the run's id, hexadecimal.
        round: the round, from 1.
        mode: ``"secure"`` or ``"simulation"``; every epsilon carries this label.
        clients: whose submissions are in the sum.
        model_before, model_after: SHA-256 of the model's bytes, hexadecimal.
        sum_digest: SHA-256 of the opened sum, hexadecimal.
        dp: what the accountant spent: unit, adjacency, sampling_rate, noise_multiplier, epsilon
            (so far), dp_delta; empty where no privacy is claimed.
        metrics: figures of the round.
        outside_guarantee: names of the metrics and timings computed from data that no guarantee
            covers.
        timings_seconds: train, privacy, encrypt, aggregate, ledger.
        bytes_per_client: what one client sent.
        ledger_head: the ledger's head after the round, hexadecimal; empty without a ledger.
        aggregator: ``"untrusted"`` where whoever opened the sum made it from signed messages,
            ``"semi-honest"`` where the aggregator's sum was taken on trust.

    Example:
        >>> record = RoundRecord(run="00", round=1, mode="secure", clients=("a",),
        ...     model_before="", model_after="", sum_digest="")
        >>> RoundRecord.from_json(record.to_json()) == record
        True
    """

    run: str
    round: int
    mode: str
    clients: tuple[str, ...]
    model_before: str
    model_after: str
    sum_digest: str
    dp: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    outside_guarantee: tuple[str, ...] = ()
    timings_seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    bytes_per_client: int = 0
    ledger_head: str = ""
    aggregator: str = "untrusted"

    def to_json(self) -> str:
        """One line of JSON with sorted keys."""
        return json.dumps({"version": VERSION, **dataclasses.asdict(self)}, sort_keys=True,
                          allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RoundRecord:
        """Read a record back; raises ResumeError for a foreign version or a damaged line."""
        try:
            fields = json.loads(text)
            version = fields.pop("version")
            if version != VERSION:
                raise ResumeError("a round record", need=f"version {VERSION}", found=str(version),
                                  fix="Read it with the release that wrote it.")
            for name in ("clients", "outside_guarantee"):
                fields[name] = tuple(fields[name])
            return cls(**fields)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, ResumeError):
                raise
            raise ResumeError("a round record", need="one line of JSON as to_json writes it",
                              found="something else", fix="Restore the file.") from error


def model_digest(params: Any) -> bytes:
    """SHA-256 over a pytree's leaves: path, dtype, shape and little-endian bytes, in tree order.

    Example:
        >>> model_digest({"w": np.zeros(2, np.float32)}).hex()[:8]
        '797e772c'
    """
    hasher = hashlib.sha256(b"fedjax_secure/model/1")
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        name = jax.tree_util.keystr(path)
        header = f"{len(name)}:{name}:{array.dtype.name}:{array.shape}".encode()
        hasher.update(len(header).to_bytes(4, "little") + header)
        hasher.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return hasher.digest()
