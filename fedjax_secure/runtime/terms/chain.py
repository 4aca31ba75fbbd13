"""The chain of a federation's rounds, refused where its parts do not fit together."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from ...core import Aggregator, Spec, SpecError
from ..rounds import Rounds


def planned_chain(rounds: Rounds, *, min_clients: int | None, denominator: float,
                  aggregator: Aggregator, ledger: bool) -> tuple[Spec, dict[str, Any]]:
    """What the chain makes of the federation, and its stages' states.

    Args:
        rounds: the model, data, algorithm, chain and selection.
        min_clients: how many distinct clients a sum needs; None takes as many as the noise needs,
            or as the selection expects where there is no noise.
        denominator: the public constant by which sums are divided.
        aggregator: who makes the sum.
        ledger: whether clients' messages are recorded on one.

    Raises:
        SpecError: the parts do not fit together.
    """
    _check_aggregator(rounds, aggregator, ledger)
    algorithm, selection, data = rounds.algorithm, rounds.selection, rounds.data
    if rounds.aggregation.num_record_stages and not algorithm.one_step:
        raise SpecError(
            "clip(unit='record')", need="an algorithm of one step a round at the global model",
            found=f"{algorithm.name}, whose clients take several steps",
            fix="Use fs.algorithms.fed_sgd(...), or clip(unit='client').")
    drawn = selection.sampling
    secret = drawn is not None and drawn.kind == "poisson" and drawn.unit == "client"
    if drawn is not None and secret and not selection.hides_drawn:
        # Submissions and records name who answered, so nobody's coin is secret.
        drawn, secret = dataclasses.replace(drawn, kind="public", rate=1.0), False
    spec = Spec(
        dim=rounds.dim, num_clients=selection.most_clients(data.num_clients),
        num_records=len(data.y), client_records=int(np.diff(data.offsets).max()),
        denominator=denominator,
        min_clients=1 if min_clients is None else min_clients, sampling=drawn,
        mode=rounds.source.mode, unit_name=data.unit, client_name=data.client_unit,
        aggregator=aggregator)
    states, chained = rounds.aggregation.init(spec)
    if chained.mechanism is not None:
        check_private(rounds, secret=secret)
    if min_clients is None and (chained.mechanism is None or chained.mechanism.trust == "central"):
        # No noise that says how many shares it needs: a sum of fewer would tell more.
        states, chained = rounds.aggregation.init(
            spec.replace(min_clients=rounds.fewest_clients(spec.num_clients)))
    return chained, states


def _check_aggregator(rounds: Rounds, aggregator: Aggregator, ledger: bool) -> None:
    if aggregator not in ("untrusted", "semi-honest"):
        raise SpecError("the federation", need='aggregator "untrusted" or "semi-honest"',
                        found=repr(aggregator), fix="Leave it out for the first.")
    if aggregator == "semi-honest" and ledger:
        raise SpecError(
            "the federation", need="each client's own message, to record on the ledger",
            found='aggregator="semi-honest", which adds messages up as they are made',
            fix='Leave the ledger out, or use aggregator="untrusted".')
    if aggregator == "semi-honest" and rounds.aggregation.add is None:
        raise SpecError(
            "the federation", need="ciphertexts that a compiled round can add up, for "
            'aggregator="semi-honest"', found=f"stage `{rounds.aggregation.stages[-1].name}`, "
            "whose scheme runs on the host",
            fix='Use he.public_key(), or aggregator="untrusted".')


def check_private(rounds: Rounds, *, secret: bool) -> None:
    """Refuse what noise does not cover.

    Args:
        rounds: the algorithm and the selection.
        secret: whether nobody learns which clients a round drew.

    Raises:
        SpecError: who takes part, or what they send, depends on other clients' records.
    """
    selection, algorithm = rounds.selection, rounds.algorithm
    if selection.reads_data:
        raise SpecError(
            f"selection `{selection.name}` with noise", need="a selection that does not "
            "look at the clients' records: one client's records would decide who else takes "
            "part, which no noise covers", found="one that reads their losses",
            fix="Use fs.selection.uniform_clients(...) or poisson_clients(...).")
    if algorithm.cohort_weights and secret:
        raise SpecError(
            f"{algorithm.name} with noise and secret coins for clients",
            need="values that do not depend on who else was drawn: whether one client is in "
            "the sum would move the others' values too, which no clipping bounds",
            found=f"weights relative to the cohort, and selection `{selection.name}`",
            fix="Use fs.selection.uniform_clients(...), or another algorithm.")
