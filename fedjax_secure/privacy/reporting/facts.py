"""What a run tells about its privacy: plain values, which a report is made from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedjax_secure.core import RoundRecord, Spec, ThreatModel
from fedjax_secure.privacy.accounting import Spend, explain, spent
from fedjax_secure.privacy.budget import Budget

#: Names of features are listed up to this many.
_MOST_FEATURES = 60


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What is known of a run's privacy, as a federation hands it out.

    Attributes:
        run: the run's id.
        release: the version of this package that ran it.
        data: ``name``, ``population``, ``card``, ``features`` and ``records``, of the training
            records.
        model, algorithm, selection: their names and settings.
        stages: names of the chain's stages, client side first to last.
        spec: what the chain came to.
        spend: what one round costs; None where no privacy is claimed.
        budget: what it is spent from.
        threat_model: who sees what.
        records: the finished rounds, oldest first.

    Example:
        >>> import fedjax_secure as fs
        >>> data = fs.data.heart_disease()
        >>> model = fs.models.logistic_regression(data)
        >>> run = fs.Federation(model, data, fs.algorithms.fed_avg(0.1), fs.chain(), seed=0)
        >>> facts = run.privacy_facts()
        >>> run.close()
        >>> facts.stages, facts.spend, fs.privacy.report(facts).values["run"]["mode"]
        ((), None, 'simulation')
    """

    run: str
    release: str
    data: Mapping[str, Any]
    model: str
    algorithm: str
    selection: str
    stages: Sequence[str]
    spec: Spec
    spend: Spend | None
    budget: Budget | None
    threat_model: ThreatModel
    records: Sequence[RoundRecord]

    def values(self) -> dict[str, Any]:
        """The facts as numbers, texts, lists and dictionaries, for JSON."""
        spec = self.spec
        return {
            "run": {
                "id": self.run, "release": self.release, "model": self.model,
                "parameters": spec.dim, "algorithm": self.algorithm, "selection": self.selection,
                "stages": list(self.stages), "clients_asked": spec.num_clients,
                "clients_needed": spec.min_clients, "aggregator": spec.aggregator,
                "readable": spec.readable,
                "mode": "simulation" if spec.mode == "seeded" else "secure",
            },
            "data": self._data(),
            "guarantee": self._guarantee(),
            "rounds": [_round(record, before) for record, before in
                       zip(self.records, [None, *self.records], strict=False)],
            "budget": _budget(self.budget),
            "threat_model": dataclasses.asdict(self.threat_model),
        }  # fmt: skip

    def _data(self) -> dict[str, Any]:
        features = [str(name) for name in self.data.get("features", ())]
        return {
            "name": str(self.data["name"]), "population": str(self.data.get("population", "")),
            "card": str(self.data.get("card", "")), "records": int(self.data["records"]),
            "features": features[:_MOST_FEATURES], "num_features": len(features),
            "unit": self.spec.unit_name, "client_unit": self.spec.client_name,
        }  # fmt: skip

    def _guarantee(self) -> dict[str, Any] | None:
        spec, spend = self.spec, self.spend
        if spend is None or spec.mechanism is None or self.budget is None:
            return None
        mechanism = spec.mechanism
        last = self.records[-1].dp if self.records else {}
        return {
            "unit": spend.unit, "adjacency": spend.adjacency, "mechanism": mechanism.kind,
            "trust": mechanism.trust, "arithmetic": mechanism.arithmetic,
            "noise_multiplier": spend.noise_multiplier,
            "parameters": dict(mechanism.parameters),
            "sampling": _sampling(spec), "sampling_rate": spend.sampling_rate,
            "sensitivity_in_model_units":
                None if spec.moving_bound else mechanism.rounded_unit_l2 / spec.scale,
            "sensitivity": mechanism.rounded_unit_l2,
            "scale": spec.scale, "noise_stddev": spec.noise_stddev,
            "ring_bits": math.log2(spec.modulus) if spec.modulus else None,
            "shares_counted": mechanism.num_shares,
            "log_ratio": spend.log_ratio, "total_variation": spend.total_variation,
            "rounds": len(self.records), "epsilon": last.get("epsilon", 0.0),
            "dp_delta": self.budget.dp_delta, "assumes": last.get("assumes", ""),
            "groups": {name: dict(own) for name, own in last.get("groups", {}).items()},
            "statement": self.threat_model.guarantee, **self._explained(),
        }  # fmt: skip

    def _explained(self) -> dict[str, Any]:
        if not self.records:
            return {}
        known = spent(self.records)
        meaning = explain(known)
        rates = (0.001, 0.01, 0.05, 0.1, 0.25)
        return {
            "accountant": known.accountant, "explained": list(meaning.sentences),
            "false_alarms": list(rates),
            "detections": [float(rate) for rate in meaning.true_positive_rate(rates)],
        }  # fmt: skip


def _sampling(spec: Spec) -> str:
    """How units are drawn, as the accountant counts it."""
    kind = "all" if spec.sampling is None else spec.sampling.kind
    # Coins for other units than those that are protected amplify nothing.
    return "public" if kind == "poisson" and spec.sampling_rate == 1.0 else kind


def _round(record: RoundRecord, before: RoundRecord | None) -> dict[str, Any]:
    dp = record.dp
    epsilon = dp.get("epsilon")
    known = before.dp.get("epsilon", 0.0) if before is not None else 0.0
    return {
        "round": record.round, "clients": len(record.clients), "epsilon": epsilon,
        "added": None if epsilon is None else epsilon - known, "dp_delta": dp.get("dp_delta"),
        "noise_stddev": dp.get("noise_stddev_in_sum"),
        "mode": record.mode, "aggregator": record.aggregator, "sum_digest": record.sum_digest,
        "model_after": record.model_after, "ledger_head": record.ledger_head,
        "outside": list(record.outside_guarantee),
    }  # fmt: skip


def _budget(budget: Budget | None) -> dict[str, Any] | None:
    if budget is None:
        return None
    entries = budget.entries()
    return {
        "unit": budget.unit, "adjacency": budget.adjacency, "epsilon": budget.epsilon,
        "dp_delta": budget.dp_delta, "spent": budget.spent, "label": budget.label,
        "fingerprint": budget.fingerprint,
        "entries": [
            {"index": e.index, "kind": e.kind, "time": e.time, "epsilon": e.epsilon,
             "run": e.run_id, "round": e.round, "attempt": e.attempt, "reason": e.reason,
             "by": e.by}
            for e in entries
        ],
    }  # fmt: skip
