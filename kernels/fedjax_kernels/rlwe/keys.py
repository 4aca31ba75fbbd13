"""The two keys, as pytrees; a secret key never prints its content."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class SecretKey:
    """The ternary secret s, transformed: [limb, N, 1] uint32 residues in bit-reversed order."""

    s: Any

    def __repr__(self) -> str:
        return "SecretKey(hidden)"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, repr=False)
class PublicKey:
    """The pair (b, a) with b = e - a s, transformed: each [limb, N, 1] uint32 residues.

    `a` is sampled as it stands, in the transformed domain.
    """

    b: Any
    a: Any

    def __repr__(self) -> str:
        return f"PublicKey(shape={list(getattr(self.a, 'shape', ()))})"
