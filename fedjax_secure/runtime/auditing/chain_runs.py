"""Audits of the chain alone: thousands of independent runs of clipping, rounding and noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_kernels import chacha

from ...core import Aggregation, Spec, SpecError, source
from ...core.randomness import host_words
from ...core.stage import States
from ...privacy.audit import AuditResult
from .claims import (
    log_likelihood_ratio,
    many_runs_result,
    one_run_result,
    require_auditable,
    without_opener,
)

Background = Literal["silent", "opposed"]

#: A canary's length before clipping, in clipping bounds: enough to show a bound that is not kept,
#: and not so long that it would wrap around the ring and come back as something else.
GAIN = 4.0


class CanaryScores(NamedTuple):
    """What an auditor sees of canaries over independent runs.

    Attributes:
        scores: float64 [runs, canaries]: the evidence that each was in, summed over rounds.
        included: bool [runs, canaries]: how its coin fell.
        spec: of the planned chain.
    """

    scores: np.ndarray
    included: np.ndarray
    spec: Spec


def audit_chain(
    aggregation: Aggregation, spec: Spec, *, canaries: int = 1, runs: int = 20_000,
    rounds: int = 1, missing_clients: int = 0, background: Background = "silent",
    dp_delta: float = 1e-5, confidence: float = 0.95,
    counts: Sequence[tuple[int, int]] | None = None, seed: int = 0,
) -> AuditResult:
    """Attack a chain by itself, many times: does its noise hide one unit as claimed?

    Every run sends values through the chain's own clipping, rounding, noise shares and wrapping;
    no model is trained, so thousands of runs take seconds. It finds noise that is too small,
    shares that are missing and sensitivities that are wrong. What it does not see is whether
    training feeds the chain as it should: :func:`fedjax_secure.runtime.audit` does that.

    Guarantees:
        If the chain is private as claimed, the result's ``epsilon`` is above the claim with
        probability at most ``1 - confidence``. With one canary a run, the first half of the runs
        chooses the threshold, and the other half is the evidence. With several canaries the
        numbers of guesses are fixed before any score, and corrected for.

    Args:
        aggregation: the chain. Encryption is left out: it changes nothing in the sum.
        spec: what it is planned for: ``simulation.spec``, or a ``Spec`` of your own. The chain is
            planned anew for its dimension, clients, records and sampling.
        canaries: per run, each by a fair coin; at most as many as there are values, and clients
            where a client is the unit.
        runs: how many independent runs.
        rounds: rounds in each.
        missing_clients: how many clients' messages, noise shares included, are left out of every
            sum, from the last: what if they drop out and the sum is opened all the same?
        background: all other units send nothing (``"silent"``), or one other unit a canary pushes
            the other way (``"opposed"``), which shows where one unit pushes another out.
        dp_delta: at which both epsilons are stated. A smaller one needs more runs; an audit may
            use a larger one than the federation does, 1e-2 for example: the claim is computed anew.
        confidence: of the bound.
        counts: of guesses, where there are several canaries; see
            :func:`fedjax_secure.privacy.audit.counts_ladder`.
        seed: of everything random.

    Returns:
        An :class:`fedjax_secure.privacy.audit.AuditResult`.

    Raises:
        SpecError: numbers that make no sense, more canaries than directions or units, a chain that
            cannot be planned or whose guarantee is of another adjacency.

    Example:
        >>> import fedjax_secure as fs
        >>> chain = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=20),
        ...                  fs.privacy.discrete_gaussian(noise_multiplier=1.0))
        >>> four = fs.core.Spec(dim=8, num_clients=4, num_records=4, denominator=4.0,
        ...                     sampling=fs.core.Sampling("all", 1.0, "client"))
        >>> result = audit_chain(chain, four, runs=4000, dp_delta=1e-2)
        >>> result.refuted, 0.5 < result.share < 1.0
        (False, True)

    Source:
        Jagielski, Ullman, Oprea 2020, "Auditing Differentially Private Machine Learning"; Nasr et
        al. 2021, "Adversary Instantiation: Lower Bounds for Differentially Private Machine
        Learning" (crafted gradients). Several canaries: Steinke, Nasr, Jagielski 2023, "Privacy
        Auditing with One (1) Training Run".
    """
    for name, part, kind, example in (
            ("a chain", aggregation, Aggregation, "fs.chain(...)"),
            ("a Spec", spec, Spec, "federation.spec, or fs.Spec(...)")):
        if not isinstance(part, kind):
            raise SpecError("audit_chain", need=name, found=f"{part!r}"[:100],
                            fix=f"Pass {example}.")
    found = canary_scores(aggregation, spec, canaries=canaries, runs=runs, rounds=rounds,
                          missing_clients=missing_clients, background=background, seed=seed)
    stages = ", ".join(stage.name for stage in without_opener(aggregation).stages)
    spec = found.spec
    audited = (f"chain({stages}) alone, {spec.dim:,} values, {spec.num_clients:,} "
               f"{spec.client_name}s" + (f", {missing_clients} missing" if missing_clients else ""))
    others = ("all others silent" if background == "silent" else "others push the other way")
    attack = (f"crafted vectors {GAIN:g} times the clipping bound, {others}; the auditor sees "
              "every released sum (white box)")
    if canaries == 1:
        return many_runs_result(
            found.scores[:, 0], found.included[:, 0], spec, rounds=rounds, dp_delta=dp_delta,
            confidence=confidence, audited=audited, attack=attack)
    return one_run_result(
        found.scores, found.included, spec, rounds=rounds, dp_delta=dp_delta,
        confidence=confidence, counts=counts, audited=audited, attack=attack)


def canary_scores(
    aggregation: Aggregation, spec: Spec, *, canaries: int = 1, runs: int, rounds: int = 1,
    missing_clients: int = 0, background: Background = "silent", seed: int = 0,
) -> CanaryScores:
    """The scores that :func:`audit_chain` judges, for bounds of your own.

    Args:
        aggregation, spec, canaries, runs, rounds, missing_clients, background, seed: as there.

    Returns:
        A :class:`CanaryScores`. With one canary, every second run has it; with several, each
        canary of each run has a fair coin.

    Raises:
        SpecError: as there.
    """
    aggregation = without_opener(aggregation)
    states, planned = aggregation.init(_before_chain(spec))
    _check(planned, canaries, runs, rounds, missing_clients, background)
    secrets = source(seed)
    if canaries == 1:
        included = (np.arange(runs) % 2 == 0)[:, None]
    else:
        coins = host_words(secrets.key("audit coins"), runs * canaries)
        included = (coins >> 31).astype(bool).reshape(runs, canaries)
    one_run = _one_run(aggregation, states, planned, canaries, rounds, missing_clients, background)
    # One run after another: side by side they compile twice as long and run no faster.
    program = jax.jit(lambda keys, coins: jax.lax.map(lambda pair: one_run(*pair), (keys, coins)))
    keys = host_words(secrets.key("audit runs"), 8 * runs).reshape(runs, 8)
    scores = np.asarray(program(jnp.asarray(keys), jnp.asarray(included)), np.float64)
    return CanaryScores(scores, included, planned)


def _one_run(
    aggregation: Aggregation, states: States, spec: Spec, canaries: int, rounds: int,
    missing_clients: int, background: Background,
) -> Any:
    """``(key [8], included [canaries]) -> evidence [canaries]``: pure and jittable."""
    per_record = aggregation.num_record_stages > 0
    bound = spec.unit_l2 / spec.scale if spec.unit_l2 is not None else 1.0
    dim, clients = _dim(aggregation, states, spec), spec.num_clients
    places = np.arange(canaries) * dim // canaries
    alive = np.arange(clients) < clients - missing_clients
    opposed = background == "opposed"

    def vectors(present: jax.Array) -> jax.Array:
        """[units, dim]: canaries, and what is sent against them."""
        units = jnp.arange(canaries)
        rows = jnp.zeros((canaries, dim)).at[units, places].set(GAIN * bound)
        rows = rows * present[:, None]
        against = jnp.zeros((canaries, dim)).at[units, places].set(-GAIN * bound)
        return jnp.concatenate([rows, against]) if opposed else rows

    def values(states: States, keys: jax.Array, present: jax.Array) -> jax.Array:
        rows = vectors(present)
        if not per_record:
            return jnp.zeros((clients, dim)).at[:len(rows)].set(rows)
        slots = jnp.arange(len(rows), dtype=jnp.uint32)
        encoded = jax.lax.map(
            lambda pair: aggregation.encode_record(states, keys[0], *pair), (slots, rows))
        total = jnp.sum(encoded, axis=0, dtype=encoded.dtype)
        return jnp.zeros((clients, total.shape[0]), total.dtype).at[0].set(total)

    def one_round(key: jax.Array, included: jax.Array, carry: Any, number: jax.Array) -> Any:
        carried, evidence = carry
        now = aggregation.with_carried(states, carried)
        words = chacha.keystream(
            key, jnp.stack([number.astype(jnp.uint32), jnp.uint32(0), jnp.uint32(0)]),
            8 * (clients + 1) + canaries)
        keys = words[:8 * (clients + 1)].reshape(clients + 1, 8)
        uniform = (words[8 * (clients + 1):] >> 8).astype(jnp.float32) * jnp.float32(2.0**-24)
        present = included & (uniform < spec.sampling_rate)
        elements, _ = aggregation.encode(now, keys[:clients], values(now, keys, present))
        total = aggregation.reduce(elements, jnp.asarray(alive))
        if aggregation.release is not None:
            total = aggregation.release(now, keys[clients], total)
        mean, after, _ = aggregation.decode(now, total)
        found = mean[places] * spec.denominator + (bound if opposed else 0.0)
        evidence = evidence + log_likelihood_ratio(spec, found, bound)
        return aggregation.carried(after), evidence

    def run(key: jax.Array, included: jax.Array) -> jax.Array:
        start = (aggregation.carried(states), jnp.zeros(canaries, jnp.float32))
        return jax.lax.fori_loop(
            0, rounds, lambda number, carry: one_round(key, included, carry, number), start)[1]

    return run


def _dim(aggregation: Aggregation, states: States, spec: Spec) -> int:
    """How many values go into the chain, where a stage may make them more."""
    total = jax.ShapeDtypeStruct((spec.dim,), jnp.float32 if spec.modulus is None else jnp.uint32)
    return jax.eval_shape(aggregation.decode, states, total)[0].shape[0]


def _before_chain(spec: Spec) -> Spec:
    """What a chain is planned for, without what a chain has made of it."""
    return Spec(dim=spec.dim, num_clients=spec.num_clients, num_records=spec.num_records,
                denominator=spec.denominator, sampling=spec.sampling, mode="seeded",
                unit_name=spec.unit_name, client_name=spec.client_name,
                aggregator="semi-honest")


def _check(spec: Spec, canaries: int, runs: int, rounds: int, missing: int,
           background: str) -> None:
    require_auditable("audit_chain", spec)
    if spec.mechanism is not None and spec.mechanism.schedule:
        raise SpecError("audit_chain", need="noise that is drawn anew in every round",
                        found="noise that was planned for a whole run",
                        fix="Use fs.audit(...), which runs the rounds one after the other.")
    units = spec.num_records if spec.unit == "record" else spec.num_clients
    most = min(spec.dim, units // (2 if background == "opposed" else 1))
    checks = (
        (background in ("silent", "opposed"), 'background "silent" or "opposed"',
         repr(background), "Leave it out."),
        (1 <= canaries <= most, f"1 to {most} canaries: a value and a unit for each",
         f"canaries={canaries!r}", "Use more runs instead."),
        (runs >= (16 if canaries == 1 else 1) and rounds >= 1,
         "runs of 16 or more (1 with several canaries), and rounds of 1 or more",
         f"runs={runs!r}, rounds={rounds!r}", "Use runs=20_000, for example."),
        (0 <= missing < spec.num_clients, f"missing_clients from 0 to {spec.num_clients - 1}",
         f"missing_clients={missing!r}", "Leave it out."),
    )
    for holds, need, found, fix in checks:
        if not holds:
            raise SpecError("audit_chain", need=need, found=found, fix=fix)
