"""Federations with noise that is correlated over rounds: what is spent, kept, resumed, refused."""

from __future__ import annotations

import math

import jax
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import OpeningError, ResumeError, SpecError
from fedjax_secure.core.opening import Releases
from fedjax_secure.privacy import banded, correlated_noise, tree
from fedjax_secure.privacy.correlated.separation import Schema

CLIENTS, ASKED, APART, ROUNDS = 12, 3, 4, 8
STRATEGIES = {"tree": tree(rounds=ROUNDS),
              "banded": banded(rounds=ROUNDS, bands=APART, grid_bits=3)}


@pytest.fixture(scope="module")
def data(made_up_clients):
    return made_up_clients(CLIENTS)


def chain_of(strategy, *last, noise_multiplier=1.0):
    return fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=28, scale=128.0),
                    correlated_noise(noise_multiplier, strategy), *last)


def federation(data, strategy, folder, *last, seed=None, epsilon=5.0, algorithm=None, **options):
    budget = fs.privacy.Budget.open(
        data.population_fingerprint, data.client_unit, epsilon=epsilon, dp_delta=1e-5,
        label="simulation", folder=folder / "budget")
    options = {"selection": fs.selection.separated_clients(ASKED, separation=APART),
               "min_clients": 2, **options}
    return fs.Federation(
        fs.models.logistic_regression(data), data, algorithm or fs.algorithms.fed_avg(0.1),
        chain_of(strategy, *last), budget=budget, folder=folder / "run", seed=seed, **options)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_costs_one_gaussian_and_each_round_what_was_released_by_then(data, name, tmp_path):
    strategy = STRATEGIES[name]
    squares = strategy.squared_sensitivity(Schema.of(ROUNDS, APART, None))
    whole = fs.privacy.epsilon(noise_multiplier=1.0, sampling_rate=1, rounds=1, dp_delta=1e-5)
    made = federation(data, strategy, tmp_path, epsilon=whole * 1.0001)
    with made:
        records = []
        for state, record in made.run(made.init(), rounds=ROUNDS):
            records.append(record)
            assert state.stage_states == {}  # nothing of the noise is where users see it
        with pytest.raises(SpecError, match="8 rounds, for which the noise was planned"):
            made.run(state, rounds=ROUNDS + 1)
        assert "4 apart" in str(made.threat_model())
        assert "8 rounds together" in made.threat_model().guarantee
        told = made.privacy_facts().values()["guarantee"]
    assert told["epsilon"] == records[-1].dp["epsilon"] and told["noise_multiplier"] == (
        pytest.approx(1.0))
    assert fs.privacy.spent(records).epsilon == pytest.approx(records[-1].dp["epsilon"])
    for record, square in zip(records, squares, strict=True):
        by_then = fs.privacy.epsilon(noise_multiplier=math.sqrt(squares[-1] / square),
                                     sampling_rate=1, rounds=1, dp_delta=1e-5)
        assert record.dp["epsilon"] == pytest.approx(by_then, rel=1e-4)
        assert by_then <= record.dp["epsilon"] == pytest.approx(record.dp["budget_spent"])
        assert record.dp["trust"] == "central" and record.dp["planned_rounds"] == ROUNDS
    assert records[-1].dp["epsilon"] == pytest.approx(whole, rel=1e-6)
    taken: dict[str, int] = {}
    for record in records:
        assert all(record.round - taken.get(client, -APART) >= APART for client in record.clients)
        taken |= dict.fromkeys(record.clients, record.round)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_that_is_resumed_ends_as_one_that_is_not(data, name, tmp_path):
    """Seeded, in the clear, encrypted, and simulated: the same noise, and the same model."""
    ends = []
    for case, stops in (("whole", [ROUNDS]), ("parts", [3, 4, ROUNDS])):
        for stop in stops:
            made = federation(data, STRATEGIES[name], tmp_path / case, seed=3)
            with made:
                *_, (state, record) = made.run(made.init(), rounds=stop)
        ends.append(record.model_after)
    model, algorithm = fs.models.logistic_regression(data), fs.algorithms.fed_avg(0.1)
    simulation = fs.Simulation(
        model, data, algorithm, chain_of(STRATEGIES[name]), seed=3,
        selection=fs.selection.separated_clients(ASKED, separation=APART))
    state = simulation.init()
    for state, _ in simulation.run(state, rounds=4):
        pass
    again = fs.Simulation(
        model, data, algorithm, chain_of(STRATEGIES[name]), seed=3,
        selection=fs.selection.separated_clients(ASKED, separation=APART))
    for state, _ in again.run(state, rounds=ROUNDS):  # its noise is made again from the seed
        pass
    assert ends[0] == ends[1] == fs.core.model_digest(state.params).hex()


def test_secrets_stay_with_the_opener_and_a_resumed_run_needs_them(data, tmp_path):
    made = federation(data, STRATEGIES["banded"], tmp_path)
    with made:
        *_, (state, record) = made.run(made.init(), rounds=3)
    files = [path for path in (tmp_path / "run").rglob(Releases.FILE)]
    assert len(files) == 1 and files[0].stat().st_mode & 0o077 == 0
    keys = files[0].read_bytes()
    assert len(keys) == 3 * 32 + 32
    shown = repr(made) + repr(state) + record.to_json() + str(made.threat_model())
    assert not any(keys[i:i + 32].hex() in shown for i in range(0, 96, 32))
    files[0].unlink()
    lost = federation(data, STRATEGIES["banded"], tmp_path)
    with lost, pytest.raises(OpeningError, match="noise of 3 rounds before"):
        list(lost.run(lost.init(), rounds=4))
    files[0].write_bytes(keys[:40] + b"x" + keys[41:])
    damaged = federation(data, STRATEGIES["banded"], tmp_path)
    with damaged, pytest.raises(OpeningError, match="noise of 3 rounds before"):
        list(damaged.run(damaged.init(), rounds=4))
    files[0].write_bytes(keys)
    restored = federation(data, STRATEGIES["banded"], tmp_path)
    with restored:
        *_, (state, record) = restored.run(restored.init(), rounds=5)
    assert record.round == 5


def test_a_kill_after_the_noise_was_drawn_repeats_no_release(data, tmp_path, monkeypatch):
    """The noised sum was not stored: the same messages get the same noise, paid once."""
    from fedjax_secure.core.opening import OnceOpener

    made = federation(data, STRATEGIES["tree"], tmp_path)
    with made:
        list(made.run(made.init(), rounds=2))
        with monkeypatch.context() as broken:
            broken.setattr(OnceOpener, "_store", lambda *_: (_ for _ in ()).throw(OSError("full")))
            with pytest.raises(OSError, match="full"):
                list(made.run(made.init(), rounds=3))
    path = next((tmp_path / "run").rglob(Releases.FILE))
    before = path.read_bytes()
    again = federation(data, STRATEGIES["tree"], tmp_path)
    with again:
        *_, (_, record) = again.run(again.init(), rounds=4)
        entries = [entry.round for entry in again.budget.entries()]
    after = path.read_bytes()
    assert before[:96] == after[:96] and len(after) == len(before) + 32
    assert record.round == 4 and entries == [1, 2, 3, 4]


def test_a_round_whose_messages_were_lost_is_not_released_twice(data, tmp_path):
    made = federation(data, STRATEGIES["banded"], tmp_path)
    with made:
        list(made.run(made.init(), rounds=2))
        spend, _ = made.budget.entries()[-1].spend, None
        made.budget.spend(made.run_id, 3, spend, attempt=77)  # by messages that are no more
        with pytest.raises(ResumeError, match="correlated"):
            list(made.run(made.init(), rounds=3))


def test_a_client_that_would_break_the_separation_is_refused(data, tmp_path):
    """By the federation's own records: a state that was tampered with opens nothing."""
    made = federation(data, STRATEGIES["banded"], tmp_path)
    with made:
        *_, (state, record) = made.run(made.init(), rounds=1)
        forgotten = state._replace(selection=jax.tree.map(np.zeros_like, state.selection))
        eager = fs.selection.separated_clients(CLIENTS, separation=1)
        made._rounds.selection = made.selection._replace(draw=eager.draw)
        with pytest.raises(SpecError, match=r"at least 4 rounds ago.*last in round 1"):
            list(made.run(forgotten, rounds=2))
        made.records.clear()
        with pytest.raises(SpecError, match="the clients of the 1 rounds before"):
            list(made.run(state, rounds=2))


@pytest.mark.parametrize("selection, said", [
    (fs.selection.uniform_clients(3), "at least 4 apart"),
    (fs.selection.separated_clients(3, separation=3), "at least 4 apart"),
    (fs.selection.poisson_clients(0.3, everyone_answers=True), "secret coins"),
], ids=lambda value: getattr(value, "name", ""))
def test_selections_that_promise_too_little_are_refused(data, selection, said, tmp_path):
    with pytest.raises(SpecError, match=said):
        federation(data, STRATEGIES["banded"], tmp_path, selection=selection)


def test_everyone_in_every_round_is_counted_as_that(data, tmp_path):
    """Trees take any schema: twelve clients in each of eight rounds is the worst of all."""
    made = federation(data, STRATEGIES["tree"], tmp_path, selection=fs.selection.all_records())
    sensitivity = STRATEGIES["tree"].sensitivity()
    assert sensitivity**2 == pytest.approx(8 * (1 + 2 + 4 + 8))
    assert made.spec.mechanism.share_stddev > made.spec.l2_bound * sensitivity
    made.close()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_servers_that_add_up_are_dp_ftrl(data, tmp_path, momentum):
    """theta_t = theta_0 + lr v_t, v_t = momentum v_{t-1} + s_t, s_t the noised running total."""
    rate, totals = 0.5, []
    algorithm = fs.algorithms.fed_avg(0.1, server=optax.sgd(rate, momentum=momentum))
    made = federation(data, STRATEGIES["tree"], tmp_path, seed=1, algorithm=algorithm)
    with made:
        state = made.init()
        first = np.asarray(made.model.ravel(state.params), np.float64)
        for state, _ in made.run(state, rounds=ROUNDS):
            total = made._opener.opened(state.round).total
            mean, _, _ = made.aggregation.decode(made._states, total)
            totals.append(np.asarray(mean, np.float64))
    velocity = np.zeros_like(first)
    for running in np.cumsum(totals, axis=0):
        velocity = momentum * velocity + running
    np.testing.assert_allclose(np.asarray(made.model.ravel(state.params)), first + rate * velocity,
                               rtol=1e-4, atol=1e-5)


def test_it_goes_under_encryption(data, tmp_path):
    ends = []
    for case, last in (("clear", ()), ("sealed", (fs.he.encrypt(fs.he.public_key()),))):
        made = federation(data, STRATEGIES["banded"], tmp_path / case, *last, seed=5)
        with made:
            *_, (state, _) = made.run(made.init(), rounds=2)
        ends.append(np.asarray(made.model.ravel(state.params)))
    # Where the noise stands in the chain is part of its key, so it is the same.
    np.testing.assert_array_equal(*ends)
