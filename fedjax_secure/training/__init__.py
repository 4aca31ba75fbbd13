"""One client's work, and the engine that runs it for many clients at once."""

from __future__ import annotations

from fedjax_secure.training.devices import use_all_cores

__all__ = ["use_all_cores"]
