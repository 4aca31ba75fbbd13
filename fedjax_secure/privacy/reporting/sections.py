"""What a privacy report says, section by section, from a run's values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import Any

from .document import Note, Points, Section, Table

#: What only the people in charge can say, and where the law asks for it.
CONTEXT = {
    "controller": "Controller, and joint controllers (GDPR Art. 30(1)(a); HIPAA: covered entity)",
    "contact": "Data protection officer or privacy officer, and how to reach them",
    "purpose": "Purpose of the training (GDPR Art. 30(1)(b))",
    "legal_basis": "Legal basis (GDPR Art. 6, and Art. 9 for health data), or HIPAA pathway",
    "recipients": "Who receives the model (GDPR Art. 30(1)(d)), third countries included",
    "retention": "How long records, models and this run's folder are kept (GDPR Art. 30(1)(f))",
    "assessment": "Impact assessment (GDPR Art. 35) or expert determination (45 CFR 164.514(b))",
}

_TRUST = {
    "distributed": "Distributed: each {client} adds its share before anything leaves it.",
    "central": "Central: the server adds the noise to the sum, and is trusted to do so.",
    "local": "Local: each {client} adds the whole noise to its own message.",
}
_MECHANISM = {
    "gaussian": "Gaussian; discrete where the arithmetic is in integers",
    "skellam": "Skellam (difference of two Poisson variables) on integers",
    "pure": "a mechanism with pure differential privacy",
    "approximate": "a mechanism with a stated (epsilon, delta)",
}
_ACCOUNTANT = {
    "pld": "privacy loss distributions, by dp-accounting",
    "rdp": "Renyi divergences, by dp-accounting",
}
_SAMPLING = {
    "poisson": "each {unit} by a secret coin of its own (Poisson), probability {rate} a round",
    "all": "every {unit} in every round: nothing is amplified",
    "public": "by public numbers: counted as if every {unit} took part in every round",
    "fixed_size": "a fixed number without replacement, probability {rate} a round",
}
_ADJACENCY = {
    "add_remove": "one {unit} added or removed",
    "replace_one": "one {unit}'s data replaced by any other",
}


def sections_of(values: Mapping[str, Any]) -> list[Section]:
    """The report's sections, in order."""
    made = [
        _summary(values), _guarantee(values), _groups(values), _meaning(values), _rounds(values),
        _budget(values),
        _parties(values), _outside(values), _audits(values), _officer(values), _checking(values),
    ]  # fmt: skip
    return [section for section in made if section is not None]


def number(value: float | None, digits: int = 4) -> str:
    """A figure for people: ``-`` where there is none.

    Example:
        >>> number(0.123456), number(None), number(1e-5), number(float("inf"))
        ('0.1235', '-', '1e-05', 'infinite')
    """
    if value is None:
        return "-"
    if not math.isfinite(value):
        return "infinite"
    if isinstance(value, int) or float(value).is_integer():
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def upwards(value: float | None) -> str:
    """An epsilon for people, rounded up: never smaller than what was spent.

    Example:
        >>> upwards(1.99901), upwards(2.0), upwards(None), upwards(1e-7)
        ('2.000', '2.000', '-', '0.001')
    """
    if value is None or not math.isfinite(value):
        return number(value)
    exact = Decimal(repr(float(value)))
    return f"{exact.quantize(Decimal('0.001'), rounding=ROUND_CEILING)}"


def downwards(value: float | None, digits: int = 4) -> str:
    """A lower bound for people, rounded down: never larger than what was shown.

    Example:
        >>> downwards(1.99999), downwards(0.0), downwards(None)
        ('1.999', '0', '-')
    """
    if value is None or not math.isfinite(value) or value == 0:
        return number(value)
    exact = Decimal(repr(float(value)))
    unit = Decimal(1).scaleb(exact.adjusted() - digits + 1)
    return f"{float(exact.quantize(unit, rounding=ROUND_FLOOR)):.{digits}g}"


def _summary(values: Mapping[str, Any]) -> Section:
    run, data, dp = values["run"], values["data"], values["guarantee"]
    rounds = len(values["rounds"])
    owned = "" if data["unit"] == "record" else f"{data['unit']} "
    what = (
        f"{run['model']} was trained with {run['algorithm']} for {rounds} "
        f"round{'' if rounds == 1 else 's'} on the {data['name']} data: {data['records']:,} "
        f"{owned}records at {run['clients_asked']} {data['client_unit']}s."
    )
    blocks: list[Any] = [what]
    if run["mode"] == "simulation":
        blocks.append(Note(
            "Simulation: every secret was derived from a seed. Whoever knows the seed can remove "
            "the noise. The figures say what a run in secure mode would guarantee."))
    if dp is None:
        blocks.append(Note(
            "This run claims no differential privacy: the model may reveal single "
            f"{data['unit']}s. Nothing below bounds that."))
        return Section("Summary", tuple(blocks))
    if not rounds:
        blocks.append(Note("No round has been run: nothing was released yet, so nothing is lost."))
    blocks.append(
        f"Each {dp['unit']} is protected by differential privacy with epsilon "
        f"{upwards(dp['epsilon'])} at delta {dp['dp_delta']:g} against everyone who sees the "
        f"sums and the models of all {rounds} rounds, under the assumptions below.")
    budget = values["budget"]
    if budget is not None:
        label = f' (its budget labelled "{budget["label"]}")' if budget["label"] else ""
        since = (", since it was last reset,"
                 if any(e["kind"] == "reset" for e in budget["entries"]) else "")
        blocks.append(
            f"All runs on this population together{label}{since} have spent "
            f"{upwards(budget['spent'])} "
            f"of {number(budget['epsilon'])}.")
    return Section("Summary", tuple(blocks))


def _guarantee(values: Mapping[str, Any]) -> Section | None:
    dp, data, run = values["guarantee"], values["data"], values["run"]
    if dp is None:
        return None
    groups = dp.get("groups", {}).values()
    differ = len({own["sampling_rate"] for own in groups}) > 1
    words = {"unit": dp["unit"], "client": data["client_unit"],
             "rate": number(dp["sampling_rate"]) + (" or less, by group," if differ else "")}
    in_floats = dp["arithmetic"] != "integer"
    arithmetic = {
        "integer": "integers: what is drawn and summed is what is accounted, to the last bit",
        "float sums": "integer noise over values that were clipped and summed in floating point: "
                      "see the note",
    }.get(dp["arithmetic"], "floating point: see the note")
    rows = [
        ("Unit of privacy", dp["unit"]),
        ("Adjacency", _ADJACENCY[dp["adjacency"]].format(**words)),
        ("Mechanism", _MECHANISM.get(dp["mechanism"], dp["mechanism"])),
        ("Arithmetic", arithmetic),
        ("Who adds the noise", _TRUST[dp["trust"]].format(**words)),
        ("Noise multiplier", number(dp["noise_multiplier"])),
        ("Sensitivity: how far one may move the sum",
         f"{number(dp['sensitivity'])} integer units, rounding included"
         + (", in units of the moving bound" if dp["sensitivity_in_model_units"] is None else
            f", which is {number(dp['sensitivity_in_model_units'])} in the model's units")),
        ("Standard deviation of the summed noise, everyone answering",
         f"{number(dp['noise_stddev'])} integer units"),
        ("Noise shares that are counted on", f"{dp['shares_counted']}"
         + (f" of {run['clients_asked']}" if dp["trust"] == "distributed" else "")),
        ("Who takes part", _SAMPLING[dp["sampling"]].format(**words)),
        ("Epsilon, all rounds of this run", upwards(dp["epsilon"])),
        ("Delta", f"{dp['dp_delta']:g}"),
        ("Accountant", _ACCOUNTANT[dp.get("accountant", "pld")]),
        ("Charged for what integer noise differs from the accounted one",
         f"log-ratio {dp['log_ratio']:.2g} and total variation {dp['total_variation']:.2g} a "
         "round, inside epsilon and delta"),
    ]  # fmt: skip
    blocks: list[Any] = [Table(("What", "In this run"), tuple(rows))]
    if in_floats:
        blocks.append(Note(
            "Part of this mechanism is computed in floating point, whose values and noise do not "
            "have exactly the distribution that is accounted (Mironov 2012): low bits can give "
            "a record away. Use integer arithmetic throughout for real data."))
    return Section("The guarantee", tuple(blocks))


def _groups(values: Mapping[str, Any]) -> Section | None:
    dp = values["guarantee"]
    if dp is None or not dp.get("groups"):
        return None
    rows = tuple(
        (name, upwards(own["epsilon"]), number(own["epsilon_allowed"]),
         number(own["sampling_rate"]), f"{100 * own['l2_share']:.4g}%")
        for name, own in dp["groups"].items())
    head = ("Group", "Epsilon spent, all runs", "Epsilon allowed", "Drawn in a round",
            "Clipping bound, of the widest")
    return Section(f"Each {dp['unit']}'s own privacy, by group", (
        f"Groups of {dp['unit']}s allow different epsilons, each at delta {dp['dp_delta']:g}, and "
        "a round that any group's budget does not hold is refused. The figures above are those of "
        "the group that spends most.", Table(head, rows, frozenset({1, 2, 3, 4}))))


def _meaning(values: Mapping[str, Any]) -> Section | None:
    dp = values["guarantee"]
    if dp is None or not dp.get("explained"):
        return None
    rows = tuple((_percent(one), _percent(other)) for one, other in
                 zip(dp["false_alarms"], dp["detections"], strict=True))
    table = Table(("Where an attack may raise false alarms in", "it detects a person in at most"),
                  rows, frozenset({0, 1}))
    return Section("What it means for one person", (Points(tuple(dp["explained"])), table))


def _percent(share: float) -> str:
    """Rounded up: these are upper bounds."""
    return f"{math.ceil(round(share * 1e4, 4)) / 100:g}%"


def _rounds(values: Mapping[str, Any]) -> Section | None:
    rows = tuple(
        (str(r["round"]), str(r["clients"]), upwards(r["added"]), upwards(r["epsilon"]),
         number(r["noise_stddev"]), r["sum_digest"][:16], r["model_after"][:16])
        for r in values["rounds"])
    if not rows:
        return None
    head = ("Round", f"{values['data']['client_unit']}s".capitalize(), "Epsilon added",
            "Epsilon so far", "Noise in the sum, units", "Opened sum, SHA-256",
            "Model after, SHA-256")
    return Section("Round by round", (Table(head, rows, frozenset({0, 1, 2, 3, 4})),))


def _budget(values: Mapping[str, Any]) -> Section | None:
    budget = values["budget"]
    if budget is None:
        return None
    first = (
        f"One budget covers everything that is learned about these {budget['unit']}s: epsilon "
        f"{number(budget['epsilon'])} at delta {budget['dp_delta']:g}, over all runs. Spent: "
        f"{upwards(budget['spent'])}.")
    resets = [e for e in budget["entries"] if e["kind"] == "reset"]
    left = len(resets)  # how many resets are still to come
    by_run: dict[tuple[str, bool], list[dict]] = {}
    for entry in budget["entries"]:
        if entry["kind"] == "spend":
            by_run.setdefault((entry["run"], left > 0), []).append(entry)
        left -= entry["kind"] == "reset"
    blocks: list[Any] = [first]
    if by_run:
        blocks.append(Table(
            ("Run", "Releases", "First (UTC)", "Last (UTC)", "Epsilon after it"),
            tuple((run[:16] + (" (before a reset)" if old else ""),
                   str(len(found)), _minute(found[0]["time"]),
                   _minute(found[-1]["time"]), upwards(found[-1]["epsilon"]))
                  for (run, old), found in by_run.items()),
            frozenset({1, 4})))
    blocks += [Note(
        f"The budget was reset on {_minute(e['time'])} UTC by {e['by']}: {e['reason']}. What was "
        "released before stays released, and is not in what is said to be spent.") for e in resets]
    return Section("The budget of the population", tuple(blocks))


def _minute(time: str) -> str:
    return time[:16].replace("T", " ")


def _parties(values: Mapping[str, Any]) -> Section:
    threat, client = values["threat_model"], values["data"]["client_unit"]
    rows = (
        ("The server", threat["server"]), (f"A {client}", threat["client"]),
        ("A network eavesdropper", threat["eavesdropper"]),
        ("Who opens the sum", threat["opener"]),
    )  # fmt: skip
    blocks: list[Any] = [threat["opens"], Table(("Who", "Sees or does"), rows)]
    if threat["assumptions"]:
        blocks += ["This is assumed, and the guarantee does not hold without it:",
                   Points(tuple(threat["assumptions"]))]
    return Section("Who sees what, and who is trusted", tuple(blocks))


def _outside(values: Mapping[str, Any]) -> Section:
    outside = tuple(values["threat_model"]["outside"])
    if not outside:
        return Section("Outside the guarantee", ("Nothing else is released by this run.",))
    return Section("Outside the guarantee", (
        "These are computed from the data, and no guarantee covers them. Keep them among those "
        "who may see the data, or release them through a budget:", Points(outside)))


def _audits(values: Mapping[str, Any]) -> Section:
    audits = values.get("audits", ())
    if not audits:
        return Section("Audits", (
            "No audit was attached. An audit attacks the training and gives a lower bound on "
            "epsilon: it can find faults, and never proves that there are none.",))
    rows = tuple((f"{a['audited']}, rounds: {a['rounds']}", a["unit"], a["attack"],
                  downwards(a["epsilon"]), downwards(a["gaussian_epsilon"]),
                  f"{100 * a['confidence']:g}%",
                  "nothing" if a["claimed_epsilon"] is None else upwards(a["claimed_epsilon"]),
                  f"{a['dp_delta']:g}") for a in audits)
    table = Table(("Audited", "Unit", "Attack", "Epsilon is at least",
                   "The same, if the curve is a Gaussian's", "Confidence", "Claimed", "At delta"),
                  rows, frozenset({3, 4, 5, 6, 7}))
    claims = [a for a in audits if a["claimed_epsilon"] is not None]
    above = [a for a in claims
             if max(a["epsilon"], a["gaussian_epsilon"] or 0.0) > a["claimed_epsilon"]]
    blocks: list[Any] = [table]
    if len(claims) < len(audits):
        blocks.append(Note("Of some of what was audited no privacy is claimed, so that no lower "
                           "bound can contradict it."))
    if above:
        blocks.append(Note("An audit's lower bound lies above the claimed epsilon: the guarantee "
                           "does not hold as stated. Stop, and find the fault."))
    elif claims:
        blocks.append("No bound lies above the claimed epsilon. That is no proof of the claim.")
    return Section("Audits", tuple(blocks))


def _officer(values: Mapping[str, Any]) -> Section:
    data, run, dp = values["data"], values["run"], values["guarantee"]
    features = ", ".join(data["features"]) or "not named"
    if data["num_features"] > len(data["features"]):
        features += f" and {data['num_features'] - len(data['features'])} more"
    measures = ["data stays where it is: only updates leave a " + data["client_unit"]]
    if dp is not None:
        measures.append(f"differential privacy for each {dp['unit']}")
    if not run["readable"]:
        measures.append("single updates are hidden from the server (who opens the sum: above)")
    if run["aggregator"] == "untrusted":
        measures.append("every update is signed by its sender")
    known = (
        ("Data subjects and their number", f"{data['records']:,} records, each one {data['unit']}"),
        ("Categories of data", features),
        ("Source and licence of the data", data["card"].strip() or "not stated"),
        ("Technical measures (GDPR Art. 32; 45 CFR 164.312)", "; ".join(measures)),
        ("Minimisation (GDPR Art. 5(1)(c))", f"records stay at the {data['client_unit']}s; what "
         "leaves them is one vector of "
         f"{run['parameters']:,} numbers a {data['client_unit']} and round"),
    )  # fmt: skip
    given = values.get("context", {})
    asked = tuple((text, given.get(name) or "to be filled in") for name, text in CONTEXT.items())
    return Section("For the data protection officer", (
        "This page states facts about a computation. It is no legal opinion, and claims no "
        "compliance with any law: whether a model trained with a given epsilon still counts as "
        "personal data or protected health information is for you to judge.",
        Table(("Known from the run", ""), known), Table(("For you to state", ""), asked)))


def _checking(values: Mapping[str, Any]) -> Section:
    run, heads = values["run"], [r["ledger_head"] for r in values["rounds"] if r["ledger_head"]]
    rows = [("Run", run["id"]), ("fedjax_secure", run["release"]),
            ("Chain of stages", " > ".join(run["stages"]) or "none"),
            ("Selection", run["selection"]),
            ("Fewest messages in a sum", str(run["clients_needed"]))]
    if heads:
        rows.append(("Ledger's head after the last round", heads[-1]))
    note = ("Anyone who holds the run's ledger can execute it again and compare the digests above."
            if heads else "This run kept no ledger: the digests can be compared with its folder "
            "only.")
    return Section("How to check this report", (Table(("What", "Value"), tuple(rows)), note))
