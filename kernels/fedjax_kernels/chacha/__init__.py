"""ChaCha20 (RFC 8439): secret randomness that is expanded on the device from one 256-bit key."""

from __future__ import annotations

from fedjax_kernels.chacha.api import key_from_bytes, keystream

__all__ = ["key_from_bytes", "keystream"]
