"""What the accountant claims of the rounds that an audit attacks, and how the result is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...core import Aggregation, Spec, SpecError, chain
from ...privacy import Spend, compose
from ...privacy.audit import (
    AuditResult,
    Rates,
    counts_ladder,
    one_run_bound,
    one_run_gaussian_epsilon,
    runs_bound,
    runs_gaussian_epsilon,
)
from ..terms.spending import cost_of


def without_opener(aggregation: Aggregation) -> Aggregation:
    """The chain without encryption, which changes nothing in the sum that is opened."""
    stages = [stage for stage in aggregation.stages if stage.setup is None]
    return aggregation if len(stages) == len(aggregation.stages) else chain(*stages)


def require_auditable(where: str, spec: Spec) -> None:
    """Refuse guarantees that add/remove canaries say nothing about.

    Raises:
        SpecError: another adjacency; or noise that is correlated over rounds, of which the rounds
            are not to be looked at one by one.
    """
    if spec.mechanism is not None and spec.mechanism.schedule:
        raise SpecError(where, need="rounds whose noise is independent",
                        found="a run that is planned as a whole, by correlated_noise(...)",
                        fix="Audit the chain with discrete_gaussian(..., trust='central').")
    if spec.adjacency != "add_remove":
        raise SpecError(where, need='adjacency "add_remove": canaries are there or not',
                        found=repr(spec.adjacency),
                        fix="Audit a chain whose noise hides one unit in the sum.")


def claimed_epsilon(spec: Spec, rounds: int, dp_delta: float) -> float:
    """Epsilon of so many rounds of a planned chain; infinity where it adds no noise.

    Raises:
        SpecError: more rounds than a run was planned for.
    """
    mechanism = spec.mechanism
    if mechanism is None or spec.sampling is None:
        return math.inf
    kind = {} if mechanism.kind == "gaussian" else {
        "kind": mechanism.kind, "parameters": mechanism.parameters}
    one = Spend(
        noise_multiplier=mechanism.noise_multiplier, sampling_rate=spec.sampling_rate,
        unit=unit_of(spec), log_ratio=mechanism.log_ratio,
        total_variation=mechanism.total_variation, **kind)
    one, count = cost_of(one, mechanism, range(1, rounds + 1))
    return compose([dataclasses.replace(one, count=count)], dp_delta)


def unit_of(spec: Spec) -> str:
    """What a canary is, in words."""
    return spec.unit_name if spec.unit == "record" else spec.client_name


def claims_gaussian(spec: Spec) -> bool:
    """Whether the claimed trade-off curve is that of one Gaussian: noise without sampling."""
    mechanism = spec.mechanism
    return mechanism is not None and mechanism.kind == "gaussian" and spec.sampling_rate == 1.0


def log_likelihood_ratio(spec: Spec, found: Any, length: float) -> Any:
    """One round's evidence that a canary was in, if the noise is what is claimed.

    With probability q, the sampling rate, a canary that is in adds ``length`` to a sum of noise
    sigma; one that is out adds nothing.

    Args:
        spec: of the planned chain.
        found: the released sum along each canary's direction, model units; any array.
        length: the canary's norm after clipping, model units.

    Returns:
        ``log(1 - q + q exp((found length - length^2 / 2) / sigma^2))``, of the same shape.
    """
    sigma = spec.noise_stddev / spec.scale or length
    gain = (found * length - length**2 / 2.0) / sigma**2
    rate = spec.sampling_rate
    if rate == 1.0:
        return gain
    return jnp.logaddexp(math.log1p(-rate), math.log(rate) + gain)


def one_run_result(
    scores: np.ndarray, included: np.ndarray, spec: Spec, *, rounds: int, dp_delta: float,
    confidence: float, counts: Sequence[tuple[int, int]] | None, audited: str, attack: str,
) -> AuditResult:
    """The result of canaries, [runs, canaries], each in or out by a fair coin of its own.

    Several independent runs are one run of a mechanism on all their canaries together: a canary
    moves only its own run, so the guarantee of one run is that of all.
    """
    runs, canaries = scores.shape
    if counts is None:
        counts = counts_ladder(scores.size, two_sided=spec.sampling_rate == 1.0)
    bound = partial(one_run_bound, included=included.ravel(), dp_delta=dp_delta,
                    confidence=confidence, counts=counts)
    found = bound(scores.ravel())
    all_right = np.where(included.ravel(), 1.0, -1.0)
    gaussian, attainable = None, bound(all_right).epsilon
    if claims_gaussian(spec):
        gaussian = bound(scores.ravel(), epsilon_of=one_run_gaussian_epsilon)
        attainable = max(
            attainable, bound(all_right, epsilon_of=one_run_gaussian_epsilon).epsilon)
    evidence = (f"{found.tally.correct:,} of {found.tally.guesses:,} guesses right; "
                f"{found.tried} number{'s' if found.tried > 1 else ''} of guesses fixed before "
                f"the scores, confidence corrected")
    return AuditResult(
        audited=audited, unit=unit_of(spec), attack=attack, method="one run",
        canaries=canaries, runs=runs, rounds=rounds, evidence=evidence,
        epsilon=found.epsilon, claimed_epsilon=claimed_epsilon(spec, rounds, dp_delta),
        dp_delta=dp_delta, confidence=confidence,
        gaussian_epsilon=None if gaussian is None else gaussian.epsilon,
        attainable=attainable, mode="simulation")


def many_runs_result(
    scores: np.ndarray, included: np.ndarray, spec: Spec, *, rounds: int, dp_delta: float,
    confidence: float, audited: str, attack: str,
) -> AuditResult:
    """The result of independent runs with one canary each, in or out."""
    found = runs_bound(scores[included], scores[~included], dp_delta=dp_delta,
                       confidence=confidence)
    rates: Rates = found.rates
    gaussian = (runs_gaussian_epsilon(rates, dp_delta=dp_delta, confidence=confidence)
                if claims_gaussian(spec) else None)
    evidence = (f"said in: {rates.true_positives:,} of {rates.runs_with:,} with, "
                f"{rates.false_positives:,} of {rates.runs_without:,} without; the threshold was "
                "chosen on as many other runs")
    return AuditResult(
        audited=audited, unit=unit_of(spec), attack=attack, method="many runs", canaries=1,
        runs=len(scores), rounds=rounds, evidence=evidence, epsilon=found.epsilon,
        claimed_epsilon=claimed_epsilon(spec, rounds, dp_delta), dp_delta=dp_delta,
        confidence=confidence, gaussian_epsilon=gaussian, mode="simulation")
