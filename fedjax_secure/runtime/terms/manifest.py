"""What makes a federation the run that it is: settled in its folder, which takes no other."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ... import __version__
from ...core import Spec
from ..rounds import Rounds


def manifest_of(rounds: Rounds, spec: Spec, states: dict[str, Any], *, seed: int | None,
                ledger: bool) -> dict[str, Any]:
    """Everything that a run's results depend on, as JSON can hold it.

    Args:
        rounds: the model, data, algorithm, chain and selection.
        spec: what the chain made of the federation.
        states: its stages' states.
        seed: of a simulation; None in secure mode.
        ledger: whether clients' messages are recorded on one.
    """
    algorithm, selection = rounds.algorithm, rounds.selection
    return {
        "release": __version__,
        "model": rounds.model.name, "dim": rounds.model.dim,
        "data": rounds.data.fingerprint, "algorithm": algorithm.name,
        "algorithm's settings": algorithm.settings,
        "server optimiser": rounds.server_digest(states, spec),
        "clients' work": rounds.work_digest(states),
        "stages": [stage.name for stage in rounds.aggregation.stages],
        "selection": selection.name, "selection's settings": selection.settings,
        "seed": seed,
        "ledger": ledger, **_settled(spec),
        **({"groups": selection.by_group.digest} if selection.by_group else {}),
        **{name: _digest(bounds) for name, bounds in (
            ("client bounds", algorithm.client_bounds), ("record bounds", algorithm.record_bounds))
           if bounds is not None},
    }


def _digest(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values, "<f4").tobytes()).hexdigest()


def _settled(spec: Spec) -> dict[str, Any]:
    fields = dict(vars(spec))
    mechanism, sampling = fields.pop("mechanism"), fields.pop("sampling")
    return {**fields, "mechanism": mechanism and dict(vars(mechanism)),
            "noise_multiplier": mechanism.noise_multiplier if mechanism else 0.0,
            "sampling_rate": sampling.rate if sampling else 1.0}
