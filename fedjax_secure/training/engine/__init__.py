"""The engine: every client of a round inside one compiled program."""

from fedjax_secure.training.engine.engine import ClientValues, Engine

__all__ = ["ClientValues", "Engine"]
