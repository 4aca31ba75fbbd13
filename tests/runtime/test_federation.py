"""Federations end to end on the four hospitals: what they promise and what they refuse."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import (
    BudgetError,
    ParameterError,
    ResumeError,
    SpecError,
    UpdateError,
    model_digest,
)
from fedjax_secure.runtime import baselines, comparison_table


def _plan(**changes):
    return fs.FederationPlan(**{"rounds": 3, "dp_delta": 1e-3, "seed": 5, **changes})


def _finish(plan, folder=None, rounds=None):
    with plan.build(folder) as federation:
        state = federation.init()
        for state, _ in federation.run(state, rounds=rounds or plan.rounds):
            pass
        return model_digest(state.params).hex(), federation.records


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One seeded run with everything on, kept open for looking at."""
    folder = tmp_path_factory.mktemp("finished")
    federation = _plan().build(folder)
    state = federation.init()
    for state, _ in federation.run(state, rounds=3):  # noqa: B007
        pass
    yield federation, state, folder
    federation.close()


def test_seeded_runs_repeat_byte_for_byte(finished):
    _, state, _ = finished
    again, _ = _finish(_plan())
    other, _ = _finish(_plan(seed=6))
    assert again == model_digest(state.params).hex() != other


def test_secure_runs_do_not_repeat():
    assert _finish(_plan(seed=None, rounds=1))[0] != _finish(_plan(seed=None, rounds=1))[0]


def test_everything_compiles_once(finished):
    federation, _, _ = finished
    assert federation.traces == {"record_sums": 1, "encode": 1, "seal": 1, "step": 1}


def test_records_say_what_happened(finished):
    federation, state, _ = finished
    assert [record.round for record in federation.records] == [1, 2, 3]
    for before, after in zip(federation.records, federation.records[1:], strict=False):
        assert after.model_before == before.model_after
    last = federation.records[-1]
    assert last.model_after == model_digest(state.params).hex()
    assert last.mode == "simulation" == last.dp["mode"]
    assert last.dp["unit"] == "patient" and last.dp["adjacency"] == "add_remove"
    assert last.dp["epsilon"] == pytest.approx(federation.budget.spent, rel=1e-3)
    assert last.dp["epsilon"] <= 3.0
    assert set(last.timings_seconds) == {"train", "privacy", "encrypt", "aggregate", "ledger"}
    assert last.bytes_per_client > 2 * 2048 * 52 // 8  # two components under rlwe-2048-52
    assert last.aggregator == "untrusted"
    assert set(last.metrics["accuracy"]) == set(federation.data.clients)
    assert any("accuracy" in text for text in last.outside_guarantee)
    assert "timings" in last.outside_guarantee
    assert json.loads(last.to_json())["round"] == 3


def test_the_ledger_verifies_offline_and_binds_the_models(finished):
    federation, state, folder = finished
    verdict = fs.ledger.verify(folder / "ledger.log", head=federation.ledger.head)
    assert verdict.ok, verdict.summary()
    assert federation.records[-1].ledger_head == federation.ledger.head
    for record in federation.records:
        assert federation.ledger.model_digest(record.round).hex() == record.model_after


def test_each_commitment_can_be_opened_by_its_client(finished):
    federation, _, folder = finished
    kept = [json.loads(line) for line in
            (folder / "run" / "commitments.jsonl").read_text().splitlines()]
    assert len(kept) == 3 * 4
    on_ledger = [event.args["commitment"] for event in federation.ledger.events()
                 if event.name == "UpdateSubmitted"]
    opened = [fs.ledger.commit(bytes.fromhex(row["statement"]), bytes.fromhex(row["salt"]))
              for row in kept]
    assert opened == on_ledger
    assert (folder / "run" / "commitments.jsonl").stat().st_mode & 0o077 == 0


def test_a_round_whose_files_were_removed_counts_again(tmp_path):
    plan = _plan(seed=None, rounds=2, encryption="off")
    _, _ = _finish(plan, tmp_path, rounds=1)
    for pattern in ("state-*", "opener/*", "records.jsonl"):
        for path in (tmp_path / "run").glob(pattern):
            path.unlink()
    (tmp_path / "ledger.log").unlink()
    (tmp_path / "ledger.log.checkpoint").unlink()
    with plan.build(tmp_path) as federation:
        _, record = next(federation.run(federation.init(), rounds=1))
        assert [entry.round for entry in federation.budget.entries()] == [1, 1]
        assert record.dp["epsilon"] == pytest.approx(federation.budget.spent)


def test_a_lost_key_of_the_lattice_scheme_counts_the_round_again(tmp_path):
    # Killed right after the sum of round 1 was opened, then the key holder's folder is lost.
    plan = _plan(seed=None, rounds=3)
    with plan.build(tmp_path) as federation:
        with pytest.raises(KeyboardInterrupt):
            federation._confirm = _interrupt
            next(federation.run(federation.init(), rounds=2))
    shutil.rmtree(tmp_path / "run" / "opener")
    with plan.build(tmp_path) as federation:
        next(federation.run(federation.init(), rounds=1))
        assert [entry.round for entry in federation.budget.entries()] == [1, 1]


def test_two_copies_of_a_run_pay_for_what_each_releases(tmp_path):
    # Both copies finish the clients' work of round 2 before either of them pays for it.
    plan, budget = _plan(seed=None, rounds=2, encryption="off"), tmp_path / "one" / "budget"
    _finish(plan, tmp_path / "one", rounds=1)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    shutil.rmtree(tmp_path / "two" / "budget")
    (tmp_path / "two" / "budget").symlink_to(budget)  # the data's budget is one
    with plan.build(tmp_path / "one") as one, plan.build(tmp_path / "two") as two:
        pay = two._spend_round

        def after_the_other(*arguments):
            next(one.run(one.init(), rounds=2))
            pay(*arguments)

        two._spend_round = after_the_other
        with pytest.raises(fs.core.BudgetError):
            next(two.run(two.init(), rounds=2))
        assert [entry.round for entry in one.budget.entries()] == [1, 2]


def test_a_closed_federation_runs_no_round_and_pays_for_none(tmp_path):
    with _plan(rounds=3).build(tmp_path) as federation:
        rounds = federation.run(federation.init(), rounds=3)
        state, _ = next(rounds)
    for go_on in (lambda: next(rounds), lambda: federation.run(state, rounds=3)):
        with pytest.raises(ResumeError, match="a federation that is open, got one that was closed"):
            go_on()
    assert not list((tmp_path / "run").glob("sent-*"))
    assert [entry.round for entry in federation.budget.entries()] == [1]


def test_a_refusal_leaves_the_folder_free(tmp_path):
    data = fs.data.heart_disease()
    with pytest.raises(SpecError, match="batch_size >= 1"):
        _fed_avg(data, tmp_path, batch_size=2.5)
    _fed_avg(data, tmp_path, batch_size=2).close()


@pytest.mark.parametrize("wrong", ["3", 0, True, 2.5, 5])
def test_a_minimum_of_clients_is_a_whole_number_in_range(tmp_path, wrong):
    with pytest.raises(SpecError, match="min_clients, a whole number from 1 to num_clients=4"):
        _fed_avg(fs.data.heart_disease(), tmp_path, min_clients=wrong)


def test_a_denominator_is_a_number(tmp_path):
    with pytest.raises(SpecError, match="a positive public denominator, got denominator='x'"):
        _fed_avg(fs.data.heart_disease(), tmp_path, denominator="x")
    _fed_avg(fs.data.heart_disease(), tmp_path, denominator=np.float32(4)).close()


def test_a_folder_of_another_format_is_refused_in_words(tmp_path):
    _fed_avg(fs.data.heart_disease(), tmp_path).close()
    path = tmp_path / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(ResumeError, match="folder of format 3, got one of format 1, which release"):
        _fed_avg(fs.data.heart_disease(), tmp_path)
    path.write_text("[1]")
    with pytest.raises(ResumeError, match="a readable run.json"):
        _fed_avg(fs.data.heart_disease(), tmp_path)


def test_another_scheme_is_another_run(tmp_path):
    _plan(encryption="lattice").build(tmp_path).close()
    with pytest.raises(ResumeError, match="opener=.one key holder"):
        _plan(encryption="threshold").build(tmp_path)


def test_a_change_of_the_working_directory_changes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with _fed_avg(fs.data.heart_disease(), "run") as federation:
        rounds = federation.run(federation.init(), rounds=2)
        next(rounds)
        (tmp_path / "other").mkdir()
        monkeypatch.chdir(tmp_path / "other")
        state, _ = next(rounds)
    assert state.round == 2


def test_a_round_of_too_few_clients_is_refused_before_it_is_paid_for(tmp_path):
    plan = _plan(rounds=1)
    with plan.build(tmp_path) as federation:
        draw = federation._rounds.selection.draw

        def few(*arguments):
            return draw(*arguments)._replace(alive=np.arange(4) < 1)

        federation._rounds.selection = federation._rounds.selection._replace(draw=few)
        with pytest.raises(fs.core.OpeningError, match="at least 3 clients that take part, got 1"):
            next(federation.run(federation.init(), rounds=1))
        assert not federation.budget.entries() and not list((tmp_path / "run").glob("sent-*"))
        federation._rounds.selection = federation._rounds.selection._replace(draw=draw)
        _, record = next(federation.run(federation.init(), rounds=1))
    assert len(record.clients) == 4


def test_a_plan_of_many_rounds_has_a_key_that_opens_them():
    plan = _plan(encryption="threshold", rounds=300, private=False)
    assert "fs.he.threshold(2, 3, max_openings=300)" in plan.code()
    with plan.build() as federation:
        assert federation._opener.rounds_left == 300
    assert "fs.he.threshold(2, 3))" in plan.replace(rounds=256).code()


def _fed_avg(data, folder, *, batch_size=32, **options):
    return fs.Federation(
        fs.models.logistic_regression(data), data,
        fs.algorithms.fed_avg(0.1, batch_size=batch_size), fs.chain(), folder=folder, **options)


def test_a_confirmed_round_whose_sum_was_lost_is_not_run_again(tmp_path):
    plan = _plan(rounds=2)
    with plan.build(tmp_path) as federation:
        with pytest.raises(KeyboardInterrupt):
            federation._journal.finish = _interrupt
            next(federation.run(federation.init(), rounds=2))
    for path in (tmp_path / "run" / "opener").glob("*"):
        path.unlink()
    with _plan(rounds=2, seed=None).build(tmp_path / "other") as other:
        lost = other._opener
        with plan.build(tmp_path) as federation:
            federation._opener = lost  # of another key
            with pytest.raises(ResumeError, match="the ledger has confirmed"):
                next(federation.run(federation.init(), rounds=2))


def _interrupt(*_):
    raise KeyboardInterrupt


def test_another_server_optimiser_is_another_run(tmp_path):
    _finish(_plan(seed=None, rounds=2, encryption="off"), tmp_path, rounds=1)
    with pytest.raises(ResumeError, match="server's step"):
        _plan(seed=None, rounds=2, encryption="off", learning_rate=0.25).build(tmp_path)
    simulations = [_plan(rounds=1, encryption="off", learning_rate=rate).build()
                   for rate in (0.5, 0.25)]
    assert simulations[0].run_id != simulations[1].run_id
    for federation in simulations:
        federation.close()


def test_a_seeded_run_never_spends_from_the_datas_own_budget(tmp_path):
    data = fs.data.heart_disease()
    budget = fs.privacy.Budget.open(data.population_fingerprint, "patient", epsilon=1.0,
                                    dp_delta=1e-3, folder=tmp_path)
    with pytest.raises(BudgetError, match="a budget of its own, with a label"):
        fs.Federation(*_parts(data), selection=fs.selection.poisson_records(0.2), budget=budget,
                      seed=1)


def test_a_changed_model_is_not_run_on(tmp_path):
    with _plan(rounds=2, encryption="off").build() as federation:
        state, _ = next(federation.run(federation.init(), rounds=1))
        changed = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
        with pytest.raises(ResumeError, match="the model that round 1 ended with"):
            federation.run(changed, rounds=2)


def test_epsilon_one_works_at_the_default_scale():
    _, records = _finish(_plan(rounds=2, target_epsilon=0.2, encryption="off"))
    assert records[-1].dp["epsilon"] <= 0.2


def test_two_runs_of_one_federation_do_not_release_a_round_twice():
    with _plan(rounds=2).build() as federation:
        state = federation.init()
        first, second = federation.run(state, rounds=2), federation.run(state, rounds=2)
        next(first)
        with pytest.raises(ResumeError, match="after round 1"):
            next(second)
        assert [entry.round for entry in federation.budget.entries()] == [1]


def test_a_finished_run_has_nothing_left_to_do_and_goes_on_when_asked(tmp_path):
    plan = _plan(rounds=2)
    short, _ = _finish(plan, tmp_path, rounds=1)
    with plan.build(tmp_path) as federation:
        state = federation.init()
        assert state.round == 1 and model_digest(state.params).hex() == short
        assert [record.round for _, record in federation.run(state, rounds=1)] == []
        with pytest.raises(BudgetError):
            federation.run(state, rounds=9)
        assert [record.round for _, record in federation.run(state, rounds=2)] == [2]
        with pytest.raises(ResumeError, match="after round 2"):
            federation.run(state, rounds=3)


def test_a_folder_serves_one_process_and_one_run(tmp_path):
    plan = _plan(rounds=2)
    with plan.build(tmp_path):
        with pytest.raises(Exception, match="another"):
            plan.build(tmp_path)
    with pytest.raises(ResumeError, match="seed"):
        _plan(rounds=2, seed=6).build(tmp_path)


def test_the_datas_budget_is_shared_by_all_runs_and_refuses_before_anything_runs(tmp_path):
    plan = _plan(seed=None, own_budget=False, rounds=2)
    _, records = _finish(plan, tmp_path / "a")
    assert records[-1].mode == "secure" and records[-1].dp["label"] == ""
    with plan.build(tmp_path / "b") as federation:
        state = federation.init()
        with pytest.raises(BudgetError) as refused:
            federation.run(state, rounds=2)
        assert federation.records == [] and "epsilon" in str(refused.value)
    simulated, _ = _finish(_plan(own_budget=False, rounds=2), tmp_path / "c")
    assert simulated  # a seeded run spends from a budget of its own


def test_a_budget_of_other_data_is_refused(tmp_path):
    data = fs.data.heart_disease()
    budget = fs.privacy.Budget.open("other", "patient", epsilon=1.0, dp_delta=1e-3,
                                    folder=tmp_path)
    with pytest.raises(BudgetError, match="other data"):
        fs.Federation(*_parts(data), selection=fs.selection.poisson_records(0.2), budget=budget)


def _parts(data, **changes):
    aggregation = fs.chain(fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=24),
                           fs.privacy.discrete_gaussian(1.0))
    parts = {"algorithm": fs.algorithms.fed_sgd(optax.sgd(0.5)), "aggregation": aggregation}
    parts.update(changes)
    return fs.models.logistic_regression(data), data, parts["algorithm"], parts["aggregation"]


def test_parts_that_do_not_fit_are_refused_before_tracing():
    data = fs.data.heart_disease()
    with pytest.raises(SpecError, match="one step a round"):
        fs.Federation(*_parts(data, algorithm=fs.algorithms.fed_avg(0.1)))
    with pytest.raises(SpecError, match="a budget to spend from"):
        fs.Federation(*_parts(data), selection=fs.selection.poisson_records(0.2))
    with pytest.raises(SpecError, match="above 0 and below 1"):
        fs.selection.poisson_records(1.5)


def _two_clients(scale):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    x[20:] *= scale
    return fs.data.FederatedDataset(
        name="two", clients=("calm", "wild"), x=x, y=(x[:, 0] > 0).astype(np.int32),
        offsets=[0, 20, 40], test_x=x[:4], test_y=[0, 1, 0, 1], test_offsets=[0, 2, 4],
        feature_names=("a", "b", "c"), classes=("no", "yes"))


def test_a_run_that_diverges_names_the_client_and_keeps_the_last_good_round():
    data = _two_clients(1e30)
    model = fs.models.logistic_regression(data)
    federation = fs.Federation(model, data, fs.algorithms.fed_avg(1e38), fs.chain(), seed=0)
    state = federation.init()
    with pytest.raises(UpdateError, match=r"round 1 .* infinity from wild"):
        for state, _ in federation.run(state, rounds=2):  # noqa: B007
            pass
    assert state.round == 0 and federation.records == []
    federation.close()


def test_record_clipping_survives_gradients_of_any_size():
    data = _two_clients(1e30)
    rate = 0.5
    aggregation = fs.chain(fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=24))
    with fs.Federation(
            fs.models.logistic_regression(data), data, fs.algorithms.fed_sgd(optax.sgd(0.1)),
            aggregation, selection=fs.selection.poisson_records(rate), seed=0) as federation:
        state = federation.init()
        for state, _ in federation.run(state, rounds=2):
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.params))


def test_a_client_of_any_name_has_an_account_of_its_own(tmp_path):
    data = _two_clients(1.0)
    data = fs.data.FederatedDataset(**{
        **{name: getattr(data, name) for name in ("name", "x", "y", "offsets", "test_x", "test_y",
                                                  "test_offsets", "feature_names", "classes")},
        "clients": ("coordinator", "a/b")})
    with fs.Federation(fs.models.logistic_regression(data), data, fs.algorithms.fed_avg(0.1),
                       fs.chain(), ledger=fs.ledger.embedded(tmp_path / "log"),
                       seed=0) as federation:
        for _ in federation.run(federation.init(), rounds=1):
            pass
        senders = {event.args["client"] for event in federation.ledger.events()
                   if event.name == "UpdateSubmitted"}
        assert len(senders) == 2 and federation.ledger.coordinator not in senders


def test_another_dataset_is_named_without_its_digest(tmp_path):
    plan = _plan(rounds=2, encryption="off")
    _finish(plan, tmp_path, rounds=1)
    other = fs.data.heart_disease(seed=1)
    with pytest.raises(ResumeError, match="certain data") as refused:
        fs.Federation(*_parts(other), selection=fs.selection.poisson_records(0.2), seed=5,
                      budget=fs.privacy.Budget.open(
                          other.population_fingerprint, "patient", epsilon=3.0, dp_delta=1e-3,
                          folder=tmp_path / "b", label="simulation"), folder=tmp_path / "run")
    assert other.fingerprint not in str(refused.value)


def test_a_mean_without_stages_is_plain_federated_sgd():
    data = fs.data.heart_disease()
    model = fs.models.logistic_regression(data)
    with fs.Federation(model, data, fs.algorithms.fed_sgd(optax.sgd(0.5)), fs.chain(),
                       seed=0) as federation:
        start = federation.init()
        for state, _ in federation.run(start, rounds=1):
            moved = np.asarray(model.ravel(state.params))

    def loss(flat):
        return model.loss(model.unravel(flat), data.x, data.y).mean()

    flat = model.ravel(start.params)
    expected = flat - 0.5 * jax.grad(loss)(flat)
    np.testing.assert_allclose(moved, expected, atol=1e-6)


def test_privacy_learns_almost_as_well_as_no_privacy():
    # At a generous epsilon the noise is small: held-out accuracy is that of the baselines, give or
    # take the binomial spread of 185 patients (3.5 points at one standard deviation).
    _, records = _finish(_plan(rounds=40, target_epsilon=20.0, encryption="off"))
    data = fs.data.heart_disease()
    table = comparison_table(baselines(fs.models.logistic_regression(data), data, rounds=40))
    everyone = table[table["client"] == "all"].iloc[0]
    assert records[-1].metrics["mean_accuracy"] > everyone["accuracy, federated"] - 0.06
    assert list(table["client"]) == [*data.clients, "all"]


@pytest.mark.parametrize("model, encryption", [
    ("logistic_regression", "lattice"), ("logistic_regression", "threshold"), ("mlp", "off"),
    pytest.param("logistic_regression", "off", marks=pytest.mark.slow),
    pytest.param("mlp", "lattice", marks=pytest.mark.slow),
    pytest.param("mlp", "threshold", marks=pytest.mark.slow),
])
def test_the_plans_code_does_what_the_plan_does(tmp_path, monkeypatch, model, encryption):
    plan = _plan(rounds=1, model=model, encryption=encryption)
    digest, _ = _finish(plan)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(plan.code(), "plan", "exec"), names)
    names["federation"].close()
    assert model_digest(names["state"].params).hex() == digest


@pytest.mark.parametrize("changes, words", [
    ({"rounds": 0}, "`rounds` needs a whole number"), ({"rounds": 2.5}, "`rounds`"),
    ({"target_epsilon": -1.0}, "`target_epsilon` needs a number from"),
    ({"target_epsilon": float("nan")}, "`target_epsilon`"), ({"dp_delta": 0.5}, "`dp_delta`"),
    ({"data": "titanic"}, "one of heart_disease"), ({"model": "cnn"}, "`model`"),
    ({"encryption": "rot13"}, "lattice, threshold, openfhe, off"),
    ({"private": "yes"}, "True or False"),
    ({"seed": -3}, "`seed`"), ({"expected_batch": True}, "`expected_batch`"),
])
def test_a_plan_refuses_bad_settings_by_name(changes, words):
    with pytest.raises(ParameterError, match=words):
        fs.FederationPlan(**changes)


def test_a_plan_refuses_what_does_not_suit_the_data():
    with pytest.raises(ParameterError, match="fewer than the 735 training records"):
        fs.FederationPlan(expected_batch=735).build()
    with pytest.raises(ParameterError, match="less than one over the 735 training records"):
        fs.FederationPlan(dp_delta=0.01).build()
    with pytest.raises(ParameterError, match="settings among"):
        fs.FederationPlan().replace(epsilon=3)
