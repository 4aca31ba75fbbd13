"""What an attack measured: lower bounds on epsilon from guesses about canaries.

`fedjax_secure.audit` attacks a federation; the statistics here take the scores of any attack.

Example:
    >>> from fedjax_secure.privacy.audit import Tally, one_run_epsilon
    >>> seen = Tally(canaries=1000, guesses=100, correct=75)
    >>> round(one_run_epsilon(seen, dp_delta=1e-4), 3)  # epsilon is at least this
    0.673
"""

from .canary_runs import Rates, RunsBound, clopper_pearson, runs_bound, runs_epsilon
from .gaussian import (
    gaussian_epsilon,
    gaussian_separation,
    one_run_gaussian_epsilon,
    runs_gaussian_epsilon,
)
from .guesses import Tally, counts_ladder, guess, tally
from .one_run import OneRunBound, one_run_bound, one_run_epsilon, one_run_p_value
from .result import AuditResult

__all__ = [
    "AuditResult", "OneRunBound", "Rates", "RunsBound", "Tally", "clopper_pearson",
    "counts_ladder", "gaussian_epsilon", "gaussian_separation", "guess", "one_run_bound",
    "one_run_epsilon", "one_run_gaussian_epsilon", "one_run_p_value", "runs_bound", "runs_epsilon",
    "runs_gaussian_epsilon", "tally",
]
