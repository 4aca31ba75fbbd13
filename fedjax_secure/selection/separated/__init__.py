"""Clients whose rounds are kept apart."""

from .clients import separated_clients
from .promise import require_separated

__all__ = ["require_separated", "separated_clients"]
