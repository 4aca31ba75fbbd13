"""What happens in a round: federated algorithms."""

from .algorithm import Algorithm, example_weights
from .fed_avg import fed_avg
from .fed_sgd import fed_sgd

__all__ = ["Algorithm", "example_weights", "fed_avg", "fed_sgd"]
