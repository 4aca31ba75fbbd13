"""What happens in a round: federated algorithms."""

from .algorithm import Algorithm, example_weights
from .control_variates import fed_dyn, scaffold
from .fed_avg import fed_avg
from .fed_opt import adaptive_server, fed_adagrad, fed_adam, fed_avg_m, fed_yogi
from .fed_prox import fed_prox
from .fed_sgd import fed_sgd
from .mime import mime_lite
from .normalised import fed_nova
from .personal import apfl, ditto, fine_tune

__all__ = [
    "Algorithm",
    "adaptive_server",
    "apfl",
    "ditto",
    "example_weights",
    "fed_adagrad",
    "fed_adam",
    "fed_avg",
    "fed_avg_m",
    "fed_dyn",
    "fed_nova",
    "fed_prox",
    "fed_sgd",
    "fed_yogi",
    "fine_tune",
    "mime_lite",
    "scaffold",
]
