"""What happens in a round: federated algorithms."""

from .algorithm import Algorithm, example_weights
from .asynchronous import fed_async, fed_buff, staleness_weights
from .client_bounds import with_client_bounds
from .control_variates import fed_dyn, scaffold
from .fairness import agnostic_fed_avg, q_fed_avg, tilted_fed_avg
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
    "agnostic_fed_avg",
    "apfl",
    "ditto",
    "example_weights",
    "fed_adagrad",
    "fed_adam",
    "fed_async",
    "fed_avg",
    "fed_avg_m",
    "fed_buff",
    "fed_dyn",
    "fed_nova",
    "fed_prox",
    "fed_sgd",
    "fed_yogi",
    "fine_tune",
    "mime_lite",
    "q_fed_avg",
    "scaffold",
    "staleness_weights",
    "tilted_fed_avg",
    "with_client_bounds",
]
