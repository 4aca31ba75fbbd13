"""A run on disk: its journal, and what its clients keep from round to round."""

from .client_states import ClientStates
from .journal import FORMAT, Journal, Outbox, Sent

__all__ = ["FORMAT", "ClientStates", "Journal", "Outbox", "Sent"]
