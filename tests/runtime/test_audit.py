"""Audits attack real chains and federations: honest ones stand, broken ones are caught.

Every broken variant is built of the real stages with one thing changed, and has a twin without
that change. Audits of chains have confidence 1 - 1e-8, so that all honest twins together fail with
a probability below 1e-6. One training run shows less, and is audited with confidence 0.95: an
honest twin would be refuted only if it were twice as easy to tell canaries apart as its noise
allows.
"""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import Sampling, Spec, SpecError, Stream
from fedjax_secure.core.randomness import host_words, source
from fedjax_secure.privacy.audit import one_run_bound, runs_bound
from fedjax_secure.privacy.quantise import stochastic_round
from fedjax_secure.runtime.auditing import canary_scores
from fedjax_secure.runtime.auditing.training_run import _leaving_out

SURE = 1 - 1e-8
EVERYONE = Sampling("all", 1.0, "client")


def few(**changes):
    return Spec(**{**dict(dim=6, num_clients=4, num_records=40, denominator=4.0,
                          sampling=EVERYONE), **changes})


def stages(noise_multiplier=1.0, *, unit="client", bits=20, **options):
    return (fs.privacy.clip(1.0, unit=unit), fs.privacy.quantise(bits=bits),
            fs.privacy.discrete_gaussian(noise_multiplier=noise_multiplier, **options))


def audited(*parts, spec=None, **options):
    return fs.audit_chain(fs.chain(*parts), few() if spec is None else spec,
                          **{**dict(runs=24_000, dp_delta=1e-2, confidence=SURE), **options})


@functools.cache
def honest():
    """The twin of most variants below."""
    result = audited(*stages())
    assert not result.refuted and result.epsilon > 1.0
    return result


def told(stage, **lies):
    """A stage that is planned for another value of some fields of the spec than is true."""

    def init(spec):
        false = {name: value(getattr(spec, name)) for name, value in lies.items()}
        state, after = stage.init(spec.replace(**false))
        return state, after.replace(
            min_clients=spec.min_clients, **{name: getattr(spec, name) for name in lies})

    return stage._replace(init=init)


# -- the chain: honest variants stand ------------------------------------------------------------


@pytest.mark.parametrize("unit", ["client", "record"])
def test_an_honest_chain_is_not_refuted_and_the_bound_comes_near(unit):
    result = audited(*stages(unit=unit), confidence=0.95, spec=few(
        sampling=Sampling("all", 1.0, unit)))
    assert not result.refuted and 0.6 < result.share <= 1.0
    assert result.epsilon <= result.gaussian_epsilon < result.claimed_epsilon
    assert result.claimed_epsilon == pytest.approx(
        fs.privacy.epsilon(noise_multiplier=1.0, sampling_rate=1.0, rounds=1, dp_delta=1e-2),
        rel=1e-3)
    assert (result.unit, result.method, result.canaries) == (unit, "many runs", 1)


@pytest.mark.slow
def test_rounds_compose_and_sampling_amplifies():
    """An amplification that is claimed and not there would be caught: see the last line."""
    poisson = few(sampling=Sampling("poisson", 0.25, "client"))
    sampled = audited(*stages(2.0), rounds=4, spec=poisson)
    assert not sampled.refuted and 0.0 < sampled.epsilon < sampled.claimed_epsilon
    assert sampled.gaussian_epsilon is None  # the claimed curve is no single Gaussian's
    # four rounds of everyone with noise 2 are one round with noise 1
    assert honest().epsilon > sampled.claimed_epsilon


@pytest.mark.slow
def test_repeated_one_run_audits_stay_below_the_claim_and_above_a_quarter_of_it():
    """200 audits at epsilon 8, each with confidence 0.95: at most 10 could be above on average."""
    noise = fs.privacy.calibrate(target_epsilon=8.0, dp_delta=1e-5, rounds=1, sampling_rate=1.0)
    spec = few(dim=300, num_clients=300, num_records=300, denominator=300.0)
    found = canary_scores(fs.chain(*stages(noise, bits=26)), spec, canaries=300, runs=200)
    bounds = np.array([one_run_bound(scores, coins, dp_delta=1e-5).epsilon
                       for scores, coins in zip(found.scores, found.included, strict=True)])
    assert np.all(bounds <= 8.0)
    assert np.median(bounds) > 0.25 * 8.0


@pytest.mark.slow
def test_several_runs_of_several_canaries_count_together():
    result = audited(*stages(), canaries=4, runs=400, confidence=0.95, dp_delta=1e-5)
    assert (result.method, result.canaries, result.runs) == ("one run", 4, 400)
    assert not result.refuted and result.epsilon > 0.5


# -- the chain: broken variants are caught --------------------------------------------------------


def test_noise_for_the_mean_added_to_the_sum_is_caught():
    """facts: noise of one scale on a value of the other is wrong by the cohort's size."""
    clip, quantise, noise = stages()
    assert not honest().refuted
    assert audited(clip, quantise, told(noise, l2_bound=lambda bound: bound / 4.0)).refuted


def test_a_missing_share_is_caught_and_one_that_was_planned_for_is_not():
    """Two of four clients drop out, and the sum is opened all the same."""
    assert audited(*stages(), missing_clients=2).refuted
    planned = audited(*stages(missing_shares=2), missing_clients=2)
    assert not planned.refuted and planned.claimed_epsilon == pytest.approx(2.32, abs=0.01)


def test_shares_sized_for_more_clients_than_there_are_are_caught():
    clip, quantise, noise = stages()
    assert not honest().refuted
    assert audited(clip, quantise, told(noise, num_clients=lambda count: 4 * count)).refuted


@pytest.mark.slow
def test_noise_for_half_of_the_sensitivity_is_caught():
    clip, quantise, noise = stages()
    assert not honest().refuted
    assert audited(clip, quantise, told(noise, l2_bound=lambda bound: bound / 2.0)).refuted


@pytest.mark.parametrize(
    "wrong", ["doubled", pytest.param("forgotten", marks=pytest.mark.slow)])
def test_a_forgotten_or_doubled_clip_is_stopped_by_the_check_on_the_integers(wrong):
    """No row above the bound leaves quantise, whatever came before it: the guarantee stands, and
    without that check the audit sees it."""
    clip, quantise, noise = stages()
    wrong = clip._replace(client={"forgotten": lambda state, stream, value: value,
                                  "doubled": fs.privacy.clip(2.0).client}[wrong])

    def unchecked(state, stream, value):
        scaled = value * jnp.float32(state["scale"].value)
        return stochastic_round(stream.words(value.shape[0]), scaled)

    assert not audited(wrong, quantise, noise).refuted
    assert audited(wrong, quantise._replace(client=unchecked), noise).refuted
    assert not audited(clip, quantise._replace(client=unchecked), noise).refuted


def test_noise_from_a_key_that_does_not_change_is_caught():
    clip, quantise, noise = stages()

    def stuck(state, stream, value):
        return noise.client(state, Stream(jnp.zeros(8, jnp.uint32), stream.stage), value)

    assert audited(clip, quantise, noise._replace(client=stuck), runs=2000).refuted


@pytest.mark.slow
def test_noise_that_is_too_large_is_no_privacy_fault_but_shows():
    """The other way round, noise for the sum added to the mean, costs accuracy only."""
    clip, quantise, noise = stages()
    large = audited(clip, quantise, told(noise, l2_bound=lambda bound: bound * 2.0))
    assert not large.refuted and large.share < 0.6 * honest().share


@pytest.mark.slow
@pytest.mark.parametrize("rounded", ["before", "after"])
def test_rounding_after_the_sum_is_caught(rounded):
    """Others' sum lies just below a half everywhere: one unit of norm 4 moves each of 1,024 rounded
    values by one, 32 in all. Where each unit is rounded before, its norm is what is accounted."""
    spec = few(dim=1024, num_clients=1, num_records=1, denominator=1.0)
    clip, quantise = fs.privacy.clip(1.0), fs.privacy.quantise(bits=20, scale=4.0)
    noise = fs.privacy.discrete_gaussian(noise_multiplier=1.0)
    others = jnp.full(1024, 0.499)
    unit = jnp.full(1024, 4.0 / 32.0)
    _, spec = clip.init(spec)
    state, spec = quantise.init(spec)
    # rounding after the sum goes with the belief that one unit moves it by its own norm
    believed = spec if rounded == "before" else spec.replace(l2_bound=4.0)
    noise_state, planned = noise.init(believed)

    def run(key, present):
        if rounded == "after":
            total = jnp.round(others + unit * present).astype(jnp.int32)
        else:
            one, rest = (quantise.client(state, Stream(key, 1, slot), value / 4.0)
                         for slot, value in ((0, unit * present), (1, others)))
            total = one + jnp.round(others).astype(jnp.int32) + 0 * rest
        return jnp.mean(noise.client(noise_state, Stream(key, 2), total))

    keys = jnp.asarray(host_words(source(0).key("runs"), 8 * 4000).reshape(4000, 8))
    present = np.arange(4000) % 2 == 0
    scores = np.asarray(jax.jit(lambda: jax.lax.map(lambda pair: run(*pair),
                                                    (keys, jnp.asarray(present, jnp.float32))))())
    bound = runs_bound(scores[present], scores[~present], dp_delta=1e-2, confidence=SURE)
    claimed = fs.privacy.epsilon(noise_multiplier=planned.mechanism.noise_multiplier,
                                 sampling_rate=1.0, rounds=1, dp_delta=1e-2)
    assert (bound.epsilon > claimed) == (rounded == "after")


# -- whole federations ----------------------------------------------------------------------------


def pairs(clients, features):
    """Clients with two records each."""
    random = np.random.default_rng(0)
    return fs.data.FederatedDataset(
        name="pairs", clients=[f"c{number}" for number in range(clients)],
        x=random.normal(size=(2 * clients, features)), y=random.integers(0, 2, 2 * clients),
        offsets=2 * np.arange(clients + 1), test_x=np.zeros((0, features)), test_y=[],
        test_offsets=np.zeros(clients + 1, int), classes=("no", "yes"),
        feature_names=[f"f{number}" for number in range(features)])


MANY = pairs(400, 400)


def clients_federation(*parts):
    return fs.Simulation(fs.models.logistic_regression(MANY), MANY, fs.algorithms.fed_avg(0.1),
                         fs.chain(*parts))


def records_federation(*parts, data=MANY, selection=None):
    return fs.Simulation(fs.models.logistic_regression(data), data,
                         fs.algorithms.fed_sgd(optax.sgd(0.1)), fs.chain(*parts),
                         selection=selection)


def test_one_training_run_of_clients_shows_a_quarter_of_epsilon_8():
    noise = fs.privacy.calibrate(target_epsilon=8.0, dp_delta=1e-5, rounds=3, sampling_rate=1.0)
    result = fs.audit(clients_federation(*stages(noise, bits=26)), rounds=3, canaries=400)
    assert not result.refuted and result.share > 0.25 and result.rounds == 3
    assert result.claimed_epsilon == pytest.approx(8.0, abs=0.01)
    assert "every round's released sum" in result.attack
    assert "fed_avg of logistic_regression on pairs" in result.audited


def test_one_training_run_of_clients_catches_noise_for_the_mean():
    """Seen in the first and the last model alone; a tenth of the mean's fault is left."""
    clip, quantise, noise = stages(1.0, bits=26)
    broken = clients_federation(clip, quantise, told(noise, l2_bound=lambda bound: bound / 40.0))
    result, twin = (fs.audit(run, rounds=1, canaries=400, view="black_box") for run in (
        broken, clients_federation(clip, quantise, noise)))
    assert result.refuted and not twin.refuted and twin.epsilon > 0.5
    assert twin.claimed_epsilon == pytest.approx(result.claimed_epsilon)


@pytest.mark.parametrize("places", [2, 1])
def test_a_batch_that_is_cut_off_is_caught(places):
    """A buffer with room for one record of each client: a record that is there pushes its
    neighbour out, and the sum moves by twice the bound."""
    everyone = fs.selection.all_records()

    def draw(secrets, round, candidates, state):
        cohort = everyone.draw(secrets, round, candidates, state)
        return cohort._replace(indices=tuple(np.sort(rows)[:places] for rows in cohort.indices))

    run = records_federation(*stages(1.0, unit="record", bits=28), data=pairs(1500, 1500),
                             selection=everyone._replace(draw=draw))
    result = fs.audit(run, rounds=1, canaries=1500, background="opposed")
    assert result.refuted == (places == 1)
    assert result.unit == "record" and "others push the other way" in result.attack


def test_poisson_sampled_records_are_not_refuted():
    run = records_federation(*stages(0.8, unit="record", bits=26),
                             selection=fs.selection.poisson_records(0.3))
    result = fs.audit(run, rounds=5)
    assert result == fs.audit(run, rounds=5)  # the same seed, the same result
    assert not result.refuted and 0.1 < result.epsilon < result.claimed_epsilon
    assert result.gaussian_epsilon is None


def test_without_noise_everything_shows():
    result = fs.audit(clients_federation(*stages()[:2]), rounds=1, canaries=400)
    assert result.claimed_epsilon == np.inf and result.epsilon > 3.0
    natural = fs.audit(clients_federation(), rounds=1, canary="mislabelled")
    assert natural.canaries == 200 and natural.epsilon > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("view", ["white_box", "black_box"])
def test_mislabelled_records_under_noise(view):
    data = fs.data.heart_disease()
    run = fs.Simulation(fs.models.logistic_regression(data), data,
                        fs.algorithms.fed_sgd(optax.sgd(0.5)),
                        fs.chain(*stages(1.0, unit="record", bits=24)))
    result = fs.audit(run, rounds=2, canary="mislabelled", view=view)
    assert not result.refuted and "all others train as they are" in result.attack
    assert result.unit == "patient"


def test_a_federation_is_audited_without_its_encryption_and_its_budget():
    data = fs.data.heart_disease()
    budget = fs.privacy.Budget.open(data.population_fingerprint, data.unit, epsilon=3.0,
                                    dp_delta=1e-5, label="simulation")
    with fs.Federation(
            fs.models.logistic_regression(data), data, fs.algorithms.fed_sgd(optax.sgd(0.5)),
            fs.chain(*stages(4.0, unit="record", bits=24), fs.he.encrypt(fs.he.public_key())),
            budget=budget, seed=0) as federation:
        result = fs.audit(federation, rounds=2, runs=2)
    assert not result.refuted and (result.canaries, result.runs) == (31, 2)
    assert "encrypt" not in result.audited and budget.spent == 0.0
    json.dumps(result.to_dict())


# -- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("options, said", [
    ({"rounds": 0}, "rounds and runs"),
    ({"rounds": 1, "runs": 0}, "rounds and runs"),
    ({"rounds": 1, "canary": "poison"}, 'canary "gradient" or "mislabelled"'),
    ({"rounds": 1, "view": "grey"}, 'view "white_box" or "black_box"'),
    ({"rounds": 1, "background": "loud"}, 'background "real"'),
    ({"rounds": 1, "canaries": 10_000}, "1 to 400 canaries"),
])
def test_an_audit_refuses_what_makes_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        fs.audit(clients_federation(*stages(bits=26)), **options)


@pytest.mark.parametrize("options, said", [
    ({"canaries": 5}, "1 to 4 canaries"),
    ({"runs": 3}, "runs of 16 or more"),
    ({"missing_clients": 4}, "missing_clients from 0 to 3"),
    ({"background": "loud"}, 'background "silent" or "opposed"'),
])
def test_an_audit_of_a_chain_refuses_what_makes_no_sense(options, said):
    with pytest.raises(SpecError, match=said):
        audited(*stages(), **options)


def test_records_drawn_by_group_keep_their_groups_when_some_are_left_out():
    selection = fs.selection.poisson_records_by_group(
        np.repeat([0, 1], 500), (0.0, 1.0), mean_rate=0.5)
    absent = np.arange(0, 1000, 2)
    people = fs.selection.Candidates(("a",), np.array([0, 1000]))
    cohort = _leaving_out(selection, absent).draw(source(0), 1, people, ())
    assert cohort.indices[0].tolist() == list(range(501, 1000, 2))
