"""The form: what is typed becomes a plan, or an error in its place."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_secure as fs
from fedjax_secure.core import ParameterError
from fedjax_secure.widgets.form import FIELDS

NUMBERS = [field.name for field in FIELDS if field.kind != "choice" and field.name != "seed"]
PLANS = st.builds(
    fs.FederationPlan,
    model=st.sampled_from(["logistic_regression", "mlp"]), rounds=st.integers(1, 500),
    target_epsilon=st.floats(0.01, 50), dp_delta=st.floats(1e-9, 1e-3),
    expected_batch=st.integers(1, 700), l2_bound=st.floats(1e-3, 1e3),
    learning_rate=st.floats(1e-4, 10),
    encryption=st.sampled_from(["lattice", "threshold", "openfhe", "off"]),
    private=st.booleans(), seed=st.none() | st.integers(0, 2**64 - 1), own_budget=st.booleans(),
    missing_shares=st.integers(0, 3))


@given(PLANS)
@settings(max_examples=40)
def test_a_plan_survives_the_form(plan):
    form = fs.widgets.PlanForm(plan)
    assert form.errors == {}
    for field in dataclasses.fields(plan):
        want, got = getattr(plan, field.name), getattr(form.plan, field.name)
        assert got == (pytest.approx(want, rel=1e-11) if isinstance(want, float) else want)


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["", "many", "-1", "nan", "1e999", "0x10"])
def test_a_bad_number_is_marked_in_its_field_and_gives_no_plan(name, text):
    form = fs.widgets.PlanForm()
    form.set(**{name: text})
    assert list(form.errors) == [name]
    assert f"`{name}` needs" in form.errors[name] and "Change" in form.errors[name]
    assert form.plan is None


def test_every_bad_field_is_marked_at_once_and_each_heals_alone():
    form = fs.widgets.PlanForm()
    form.set(rounds="2.5", l2_bound="wide", target_epsilon="0")
    assert set(form.errors) == {"rounds", "l2_bound", "target_epsilon"}
    form.set(rounds="3")
    assert set(form.errors) == {"l2_bound", "target_epsilon"}
    form.set(l2_bound="2", target_epsilon=" 1.5 ")
    assert form.errors == {}
    assert (form.plan.rounds, form.plan.l2_bound, form.plan.target_epsilon) == (3, 2.0, 1.5)


def test_a_batch_larger_than_the_data_is_an_error_of_its_field():
    form = fs.widgets.PlanForm()
    form.set(expected_batch="100000")
    assert "training records" in form.errors["expected_batch"]
    assert form.plan is None


def test_a_seed_counts_only_in_a_seeded_simulation():
    form = fs.widgets.PlanForm()
    form.set(seed="nonsense")
    assert form.plan.seed is None and "seed" in form.unused
    form.set(randomness="seeded")
    assert "`seed` needs a whole number" in form.errors["seed"]
    form.set(seed="7")
    assert form.plan.seed == 7 and "seed" not in form.unused


def test_privacy_off_makes_its_settings_void():
    form = fs.widgets.PlanForm()
    assert "target_epsilon" not in form.unused
    form.set(private="off")
    assert {"target_epsilon", "dp_delta", "missing_shares"} <= set(form.unused)
    assert form.plan.private is False


def test_what_the_form_cannot_take_is_refused():
    with pytest.raises(ParameterError, match="needs a FederationPlan, got a dict"):
        fs.widgets.PlanForm({"rounds": 3})
    with pytest.raises(ParameterError, match="got epsilon"):
        fs.widgets.PlanForm().set(epsilon="2")


def test_every_control_has_a_label_and_help():
    names = [field.name for field in FIELDS]
    assert len(set(names)) == len(names)
    assert set(names) - {"randomness"} == {
        field.name for field in dataclasses.fields(fs.FederationPlan)}
    for field in FIELDS:
        assert field.label and field.help.endswith(".")
