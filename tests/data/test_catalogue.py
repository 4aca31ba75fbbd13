"""Datasets by name: those of the package, and those that a user makes known."""

from __future__ import annotations

import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.core import DataError, model_digest
from fedjax_secure.data import catalogue


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(catalogue, "_MAKERS", dict(catalogue._MAKERS))
    monkeypatch.setattr(catalogue, "_PUBLIC", set(catalogue._PUBLIC))
    x = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    return fs.data.FederatedDataset(
        name="study", clients=("a", "b", "c"), x=x, y=(x[:, 0] > 0).astype(np.int32),
        offsets=[0, 20, 40, 60], test_x=x[:6], test_y=(x[:6, 0] > 0).astype(np.int32),
        test_offsets=[0, 2, 4, 6], feature_names=("p", "q", "r"), classes=("no", "yes"),
        population="a study")


def test_plans_and_forms_take_a_registered_dataset(study, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="register"):
        fs.data.load("study")
    fs.data.register("study", study)
    plan = fs.FederationPlan(data="study", rounds=2, expected_batch=20, seed=1, dp_delta=1e-3)
    assert plan.own_budget is False  # people's records have one budget, unless told otherwise
    assert fs.widgets.Dashboard(plan).form.plan == plan
    with plan.build() as federation:
        for state, _ in federation.run(federation.init(), rounds=2):
            pass
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(plan.code(), "plan", "exec"), names)
    names["federation"].close()
    assert model_digest(names["state"].params) == model_digest(state.params)


def test_leaving_public_data_leaves_its_own_budget(study):
    fs.data.register("study", lambda: study)
    fs.data.register("open_study", study, public=True)
    plan = fs.FederationPlan()
    assert plan.own_budget and not plan.replace(data="study").own_budget
    assert plan.replace(data="open_study").own_budget
    assert plan.replace(data="study", own_budget=True).own_budget


@pytest.mark.parametrize("name, dataset, words", [
    ("heart_disease", None, "a name of your own"), ("two words", None, "a name of your own"),
    (3, None, "a name of your own"), ("table", [1, 2], "a FederatedDataset"),
])
def test_bad_registrations_are_refused(study, name, dataset, words):
    with pytest.raises(DataError, match=words):
        fs.data.register(name, dataset if dataset is not None else study)


def _missing_file():
    raise FileNotFoundError("records.csv")


@pytest.mark.parametrize("loader, words", [
    (lambda: 42, "needs a FederatedDataset from the function registered as 'mine', got int"),
    (dict, "got dict"), (_missing_file, "'mine' to load its dataset, got FileNotFoundError"),
])
def test_a_loader_that_fails_is_named_and_marked_in_the_form(study, loader, words):
    fs.data.register("mine", loader)
    with pytest.raises(DataError, match=words):
        fs.data.load("mine")
    form = fs.widgets.PlanForm()
    form.set(data="mine")
    assert form.plan is None and words in form.errors["data"]
    form.set(data="heart_disease")
    assert form.plan is not None and not form.errors
