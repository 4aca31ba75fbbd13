"""Algorithms whose server does not wait: clients start from models of different age."""

from .buffered import fed_buff
from .fed_async import fed_async
from .staleness import staleness_weights

__all__ = ["fed_async", "fed_buff", "staleness_weights"]
