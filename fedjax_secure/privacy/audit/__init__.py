"""What an attack measured: lower bounds on epsilon from guesses about canaries."""

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
