"""Personal models: each client ends with a model of its own."""

from .apfl import apfl
from .ditto import ditto
from .fine_tuning import fine_tune

__all__ = ["apfl", "ditto", "fine_tune"]
