"""Who takes part in a round."""

from .arrivals import arrivals
from .availability import available, day_night, dropping_out
from .clients import (
    importance_clients,
    poisson_clients,
    poisson_clients_by_group,
    uniform_clients,
)
from .deadlines import fed_cs
from .loss_guided import oort, power_of_choice
from .records import all_records, poisson_records, poisson_records_by_group
from .selection import ByGroup, Candidates, Observed, Selection
from .separated import require_separated, separated_clients
from .timing import Devices, devices, timed

__all__ = [
    "ByGroup", "Candidates", "Devices", "Observed", "Selection", "all_records", "arrivals",
    "available", "day_night", "devices", "dropping_out", "fed_cs", "importance_clients", "oort",
    "poisson_clients", "poisson_clients_by_group", "poisson_records", "poisson_records_by_group",
    "power_of_choice", "require_separated", "separated_clients", "timed", "uniform_clients",
]
