"""The privacy report says what ran, in three forms, and nothing that is secret."""

from __future__ import annotations

import dataclasses
import html.parser
import json
import math

import msgpack
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import ParameterError
from fedjax_secure.privacy.audit import AuditResult
from fedjax_secure.privacy.reporting.document import Note, Points, Section, Table, as_markdown
from fedjax_secure.privacy.reporting.sections import CONTEXT, number, upwards

DATA = fs.data.heart_disease()
MODEL = fs.models.logistic_regression(DATA)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A federation after three rounds with noise, a reset of its budget before the last."""
    home = tmp_path_factory.mktemp("report")
    budget = fs.privacy.Budget.open(
        DATA.population_fingerprint, DATA.unit, epsilon=3.0, dp_delta=1e-3, folder=home,
        label="simulation")
    chain = fs.chain(
        fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=20),
        fs.privacy.discrete_gaussian(1.2, missing_shares=1))
    run = fs.Federation(
        MODEL, DATA, fs.algorithms.fed_sgd(optax.sgd(0.5)), chain, budget=budget, seed=0,
        selection=fs.selection.poisson_records(0.1), folder=home / "run")
    state = run.init()
    for _ in run.run(state, rounds=2):
        pass
    with run:
        yield run


class Parser(html.parser.HTMLParser):
    """Counts elements, and refuses what closes out of order."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.links = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_figures_are_those_of_the_records_and_the_budget(finished):
    values = fs.privacy.report(finished).values
    records, budget = finished.records, finished.budget
    assert values["guarantee"]["epsilon"] == records[-1].dp["epsilon"] > 0
    assert values["budget"]["spent"] == budget.spent
    assert [r["epsilon"] for r in values["rounds"]] == [r.dp["epsilon"] for r in records]
    assert sum(r["added"] for r in values["rounds"]) == pytest.approx(records[-1].dp["epsilon"])
    assert len(values["budget"]["entries"]) == len(budget.entries()) == 2
    mechanism = finished.spec.mechanism
    assert values["guarantee"]["noise_multiplier"] == mechanism.noise_multiplier
    assert values["guarantee"]["sensitivity"] == mechanism.rounded_unit_l2
    assert values["run"]["mode"] == "simulation"


def test_three_forms_say_the_same(finished, tmp_path):
    found = fs.privacy.report(finished, context={"purpose": "predict <heart> disease | all"})
    page = found.save(tmp_path / "deep" / "report.html").read_text()
    text = found.save(tmp_path / "report.md").read_text()
    again = fs.privacy.PrivacyReport.from_json(found.save(tmp_path / "report.json").read_text())
    assert again.values == found.values and again.html() == page and str(again) == text
    parser = Parser()
    parser.feed(page)
    assert not parser.open and not parser.links
    assert parser.seen.count("h2") == text.count("\n## ") == len(found.sections)
    assert "predict &lt;heart&gt; disease | all" in page
    assert r"predict \<heart\> disease \| all" in text
    epsilon = upwards(finished.records[-1].dp["epsilon"])
    assert f"epsilon {epsilon} at delta 0.001" in page and f"epsilon {epsilon} at delta" in text


def test_simulation_and_assumptions_stand_in_it(finished):
    text = str(fs.privacy.report(finished))
    assert "Simulation: every secret was derived from a seed" in text
    for sentence in (*finished.threat_model().assumptions, *finished.threat_model().outside):
        assert " ".join(sentence.split())[:40] in text.replace("\\", "")
    assert "claims no compliance with any law" in text
    assert text.count("to be filled in") == len(CONTEXT)


def test_no_secret_is_in_it(finished, tmp_path):
    secrets = msgpack.unpackb((finished._journal.folder / "secrets.msgpack").read_bytes())
    found = fs.privacy.report(finished)
    pages = found.html() + found.markdown() + found.json()

    def values(part):
        if isinstance(part, dict):
            for name, value in part.items():
                if name != "run":  # the run's id is public
                    yield from values(value)
        elif isinstance(part, bytes):
            yield part

    known = list(values(secrets))
    assert len(known) > len(DATA.clients)
    assert not any(secret.hex() in pages for secret in known)


def test_a_run_without_privacy_says_so():
    with fs.Federation(MODEL, DATA, fs.algorithms.fed_avg(0.1), fs.chain(), seed=0) as run:
        before = fs.privacy.report(run)
        for _ in run.run(run.init(), rounds=1):
            pass
        after = fs.privacy.report(run)
    for found, rounds in ((before, 0), (after, 1)):
        assert found.values["guarantee"] is None and len(found.values["rounds"]) == rounds
        assert "claims no differential privacy" in str(found)
        assert "reads every update" in str(found)
        assert "The guarantee" not in [section.title for section in found.sections]


def test_a_reset_is_told(finished):
    finished.budget.reset(reason="the ethics board agreed", by="A. Person")
    text = str(fs.privacy.report(finished))
    assert "since it was last reset" in text and "(before a reset)" in text
    assert "reset on" in text and "the ethics board agreed" in text and "A. Person" in text


def audited(**changes):
    return dataclasses.replace(AuditResult(
        audited="<script>", unit="patient", attack="all sums", method="one run", canaries=10,
        runs=1, rounds=1, evidence="9 of 10", epsilon=0.4, claimed_epsilon=1.0, dp_delta=1e-5,
        confidence=0.95), **changes)


def test_audits_are_judged(finished):
    fine = fs.privacy.report(finished, audits=[audited()])
    assert "No bound lies above" in str(fine) and "does not hold as stated" not in str(fine)
    assert "<script>" not in fine.html()
    for above in ({"epsilon": 1.5}, {"gaussian_epsilon": 1.5}):
        broken = str(fs.privacy.report(finished, audits=[audited(), audited(**above)]))
        assert "does not hold as stated" in broken and "No bound lies" not in broken
    nothing = fs.privacy.report(finished, audits=[audited(claimed_epsilon=math.inf)])
    assert "no privacy is claimed" in str(nothing) and "No bound lies" not in str(nothing)
    assert str(fs.privacy.PrivacyReport.from_json(nothing.json())) == str(nothing)
    with pytest.raises(ParameterError, match="results of audits"):
        fs.privacy.report(finished, audits=["fine"])


def test_a_real_audit_is_listed(finished):
    four = fs.core.Spec(dim=8, num_clients=4, num_records=4, denominator=4.0,
                        sampling=fs.core.Sampling("all", 1.0, "client"))
    chain = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=20),
                     fs.privacy.discrete_gaussian(noise_multiplier=1.0))
    result = fs.audit_chain(chain, four, runs=200, dp_delta=1e-2)
    found = fs.privacy.report(finished, audits=[result])
    assert "crafted vectors" in found.html()
    assert fs.privacy.PrivacyReport.from_json(found.json()).values == found.values


def test_arithmetic_and_sampling_are_told_as_they_are_accounted(finished):
    values = fs.privacy.report(finished).values
    assert "to the last bit" in str(fs.privacy.PrivacyReport(values))
    values["guarantee"]["arithmetic"] = "float sums"
    text = str(fs.privacy.PrivacyReport(values))
    assert "to the last bit" not in text and "Mironov 2012" in text
    facts = finished.privacy_facts()
    coins = dataclasses.replace(facts, spec=dataclasses.replace(
        facts.spec, sampling=fs.core.Sampling("poisson", 0.5, "client")))
    assert coins.values()["guarantee"]["sampling"] == "public"


def test_refusals(finished, tmp_path):
    with pytest.raises(ParameterError, match=r"a federation.*got Spec.*fs\.Federation"):
        fs.privacy.report(finished.spec)
    with pytest.raises(ParameterError, match="'purpos'"):
        fs.privacy.report(finished, context={"purpos": "x"})
    found = fs.privacy.report(finished)
    with pytest.raises(ParameterError, match=r"\.html, \.md or \.json.*'report\.pdf'"):
        found.save(tmp_path / "report.pdf")
    for text in ("", "{}", '{"format": "other"}', json.dumps({"format": 3}), "[1]"):
        with pytest.raises(ParameterError, match="as report.json"):
            fs.privacy.PrivacyReport.from_json(text)


def test_markdown_tables_are_whole():
    table = Table(("a|b", "n"), (("x\ny", "1"), ("`z`", "2")), frozenset({1}))
    text = as_markdown("T", [Section("S", (Note("mind"), Points(("p",)), table, "end"))])
    assert text.splitlines()[8:] == [
        "| a\\|b | n |", "| --- | ---: |", "| x y | 1 |", "| \\`z\\` | 2 |", "", "end"]


def test_epsilons_are_rounded_up():
    assert upwards(0.1234) == "0.124" and upwards(0.123) == "0.123"
    assert upwards(float("inf")) == "infinite" and number(12345.0) == "12,345"
