"""Sampling and kinds of mechanism against numerical truths that share no code with them."""

from __future__ import annotations

import itertools
import math

import dp_accounting
import numpy as np
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy import special, stats

from fedjax_secure.core.errors import SpecError
from fedjax_secure.privacy.accounting import Spend, compose, loss_of, renyi_of, total


def gaussian(multiplier=1.0, rate=0.5, count=1, **changes) -> Spend:
    return Spend(multiplier, rate, "client", count, **changes)


def skellam(l1, l2, variance, rate=1.0, count=1, **changes) -> Spend:
    return Spend(None, rate, "client", count, kind="skellam",
                 parameters={"l1": l1, "l2": l2, "variance": variance}, **changes)


def bounded(epsilon, dp_delta=None, rate=1.0, count=1, **changes) -> Spend:
    if dp_delta is None:
        return Spend(None, rate, "client", count, kind="pure", parameters={"epsilon": epsilon},
                     **changes)
    return Spend(None, rate, "client", count, kind="approximate",
                 parameters={"epsilon": epsilon, "dp_delta": dp_delta}, **changes)


# Cohorts of a fixed size, by integrating over the released value of every dataset of n units.

GRID = np.linspace(-22.0, 22.0, 8_001)
STEP = GRID[1] - GRID[0]


def density(values, cohort: int, stddev: float, grid=GRID) -> np.ndarray:
    """Of the noised sum of a cohort drawn without replacement, all cohorts equally likely."""
    sums = [sum(part) for part in itertools.combinations(values, cohort)]
    return np.mean([stats.norm.pdf(grid, s, stddev) for s in sums], axis=0)


def hockey_stick(p: np.ndarray, q: np.ndarray, epsilon: float) -> float:
    return float(np.maximum(p - math.exp(epsilon) * q, 0.0).sum()) * STEP


def true_epsilon(p: np.ndarray, q: np.ndarray, dp_delta: float) -> float:
    """Where both hockey sticks fall to dp_delta, by bisection."""
    low, high = 0.0, 60.0
    for _ in range(45):
        middle = 0.5 * (low + high)
        worst = max(hockey_stick(p, q, middle), hockey_stick(q, p, middle))
        low, high = (middle, high) if worst > dp_delta else (low, middle)
    return high


def neighbours(population: int, adjacency: str):
    """Pairs of datasets of values in [-1, 1]: all corner cases, and some inside."""
    for others in itertools.combinations_with_replacement((-1.0, 1.0, 0.3), population - 1):
        if adjacency == "replace_one":
            yield [*others, 1.0], [*others, -1.0]
            yield [*others, 0.5], [*others, -1.0]
        else:
            yield [*others, 1.0], list(others)
            yield [*others, -1.0], list(others)


@pytest.mark.parametrize("adjacency", ["replace_one", "add_remove"])
@pytest.mark.parametrize("population, cohort, stddev", [(2, 1, 1.0), (3, 1, 0.7), (3, 2, 1.5),
                                                        (4, 1, 2.0), (4, 2, 1.0)])
def test_fixed_size_is_the_worst_pair_of_datasets(population, cohort, stddev, adjacency):
    spend = gaussian(stddev, cohort / population, sampling="fixed_size", adjacency=adjacency)
    for dp_delta in (1e-2, 1e-5):
        accounted = compose([spend], dp_delta)
        worst = max(true_epsilon(density(one, cohort, stddev), density(other, cohort, stddev),
                                 dp_delta)
                    for one, other in neighbours(population, adjacency)
                    if len(other) >= cohort)
        assert worst <= accounted * (1 + 1e-3)
        assert accounted <= worst * (1 + 2e-3)  # and it is tight
        by_renyi = compose([spend], dp_delta, accountant="rdp")
        assert worst <= by_renyi <= 3 * worst + 3


@pytest.mark.parametrize("adjacency", ["replace_one", "add_remove"])
def test_two_fixed_size_rounds_by_integrating_over_both_releases(adjacency):
    # n = 2, m = 1: the worst pair released twice is a true lower bound of the composition.
    grid = np.linspace(-7.5, 7.5, 1201)
    step = grid[1] - grid[0]
    one = density([1.0, -1.0], 1, 1.0, grid)
    other = density([-1.0, -1.0], 1, 1.0, grid)
    p, q = np.outer(one, one), np.outer(other, other)
    spend = gaussian(1.0, 0.5, 2, sampling="fixed_size", adjacency=adjacency)
    for dp_delta in (1e-2, 1e-4):
        accounted = compose([spend], dp_delta)

        def delta(epsilon):
            return max(np.maximum(a - math.exp(epsilon) * b, 0.0).sum() * step**2
                       for a, b in ((p, q), (q, p)))

        assert delta(accounted) <= dp_delta * (1 + 1e-3)
        assert delta(0.9 * accounted) > dp_delta


def test_a_fixed_size_accounted_as_poisson_reports_too_little():
    """Trap 2: the same numbers, one dataset of 10 units, drawn 1 at a time."""
    stddev, dp_delta = 0.5, 1e-5
    truth = true_epsilon(density([-1.0] * 9 + [1.0], 1, stddev), density([-1.0] * 10, 1, stddev),
                         dp_delta)
    as_poisson = compose([gaussian(stddev, 0.1)], dp_delta)
    honest = compose([gaussian(stddev, 0.1, sampling="fixed_size", adjacency="replace_one")],
                     dp_delta)
    assert as_poisson < 0.5 * truth
    assert truth <= honest * (1 + 1e-3) and honest <= 1.01 * truth
    for count in (10, 100):
        poisson = compose([gaussian(1.0, 0.1, count)], dp_delta)
        for adjacency in ("add_remove", "replace_one"):
            fixed = gaussian(1.0, 0.1, count, sampling="fixed_size", adjacency=adjacency)
            assert compose([fixed], dp_delta) > 2 * poisson


def test_full_participation_is_full_whatever_the_sampling():
    plain = compose([gaussian(2.0, 1.0, 3)], 1e-5)
    assert compose([gaussian(2.0, 1.0, 3, sampling="fixed_size")], 1e-5) == plain
    assert compose([gaussian(2.0, 1.0, 3, sampling="truncated_poisson", population=9,
                             largest_cohort=4)], 1e-5) == plain
    assert compose([gaussian(2.0, 1.0, sampling="fixed_size"), gaussian(2.0, 1.0, 2)],
                   1e-5) == plain


def test_replacing_one_doubles_the_sensitivity_in_both_accountants():
    """Trap 1: dp-accounting's RDP accountant takes no notice of the relation."""
    event = dp_accounting.GaussianDpEvent(2.0)
    relations = dp_accounting.NeighboringRelation
    peers = [RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(1e-5)
             for relation in (relations.ADD_OR_REMOVE_ONE, relations.REPLACE_ONE)]
    assert peers[0] == peers[1]  # the trap
    replaced = gaussian(2.0, 1.0, adjacency="replace_one")
    by_renyi = compose([replaced], 1e-5, accountant="rdp")
    assert by_renyi == pytest.approx(
        RdpAccountant().compose(dp_accounting.GaussianDpEvent(1.0)).get_epsilon(1e-5), rel=1e-9)
    truth = true_epsilon(stats.norm.pdf(GRID, 1, 2), stats.norm.pdf(GRID, -1, 2), 1e-5)
    assert peers[1] < truth <= compose([replaced], 1e-5) * (1 + 1e-3) < by_renyi


@pytest.mark.parametrize("multiplier, size, count", [(2.0, 10, 20), (1.0, 5, 100), (4.0, 50, 5)])
def test_fixed_size_renyi_is_that_of_dp_accounting_at_the_doubled_sensitivity(
        multiplier, size, count):
    spend = gaussian(multiplier, size / 100, count, sampling="fixed_size",
                     adjacency="replace_one")
    peer = RdpAccountant(neighboring_relation=dp_accounting.NeighboringRelation.REPLACE_ONE)
    peer.compose(dp_accounting.SampledWithoutReplacementDpEvent(
        100, size, dp_accounting.GaussianDpEvent(multiplier / 2)), count)
    ours = compose([spend], 1e-5, accountant="rdp")
    assert ours == pytest.approx(peer.get_epsilon(1e-5), rel=1e-3)
    assert compose([spend], 1e-5) < ours  # the distribution is tighter


# Poisson cohorts that are cut


@pytest.mark.parametrize("adjacency", ["add_remove", "replace_one"])
@pytest.mark.parametrize("largest", [8, 12, 40])
def test_a_cut_cohort_costs_what_dp_accounting_says_and_more_than_an_uncut_one(largest, adjacency):
    spend = gaussian(1.0, 0.1, 10, sampling="truncated_poisson", population=100,
                     largest_cohort=largest, adjacency=adjacency)
    relation = {"add_remove": "ADD_OR_REMOVE_ONE", "replace_one": "REPLACE_ONE"}[adjacency]
    peer = PLDAccountant(dp_accounting.NeighboringRelation[relation], 1e-3)
    peer.compose(dp_accounting.TruncatedSubsampledGaussianDpEvent(100, 0.1, largest, 1.0), 10)
    assert compose([spend], 1e-4) == pytest.approx(peer.get_epsilon(1e-4), rel=1e-3)
    uncut = compose([gaussian(1.0, 0.1, 10, adjacency=adjacency)], 1e-4)
    assert compose([spend], 1e-4) >= uncut * (1 - 1e-3)
    if largest == 8:
        assert compose([spend], 1e-4) > 1.3 * uncut
    with pytest.raises(SpecError, match="pld"):
        compose([spend], 1e-4, accountant="rdp")


def test_a_cut_cohort_that_does_not_say_where_is_refused():
    with pytest.raises(SpecError, match="population.*truncated"):
        gaussian(sampling="truncated_poisson", largest_cohort=10)
    with pytest.raises(SpecError, match="largest_cohort"):
        gaussian(sampling="truncated_poisson", population=10)
    with pytest.raises(SpecError, match="truncated_poisson"):
        gaussian(largest_cohort=10)
    with pytest.raises(SpecError, match="full participation"):
        gaussian(sampling="shuffled")


def test_sampling_without_a_theorem_is_refused():
    for spend in (lambda **how: skellam(4, 2, 40, 0.5, **how),
                  lambda **how: bounded(0.3, rate=0.5, **how)):
        with pytest.raises(SpecError, match="full participation"):
            spend(adjacency="replace_one")
    with pytest.raises(SpecError, match="full participation"):
        bounded(0.3, rate=0.5, sampling="fixed_size")
    with pytest.raises(SpecError, match="pld"):
        compose([gaussian(2.0, 0.1, adjacency="replace_one")], 1e-5, accountant="rdp")


# Skellam noise, by sums over its pmf


def skellam_log_pmf(variance: float, reach: int) -> np.ndarray:
    x = np.arange(-reach, reach + 1)
    return np.log(special.ive(np.abs(x), variance))


def shifted_pair(variance: float, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """log pmf of Skellam noise shifted by `shift`, and of noise around 0, on a common range."""
    reach = int(14 * math.sqrt(variance) + 40)
    noise = skellam_log_pmf(variance, reach + shift)
    return noise[:-2 * shift], noise[shift:-shift]


def exact_renyi(log_p: np.ndarray, log_q: np.ndarray, order: float) -> float:
    return special.logsumexp(order * log_p + (1 - order) * log_q) / (order - 1)


@pytest.mark.parametrize("variance", [4.0, 25.0, 400.0])
@pytest.mark.parametrize("shifts", [(1,), (3,), (1, 1, 1, 1), (2, 1, 0, 3)])
@pytest.mark.parametrize("order", [2, 3, 5, 10])
def test_the_skellam_curve_bounds_the_exact_divergence(variance, shifts, order):
    exact = sum(exact_renyi(*shifted_pair(variance, s), order) for s in shifts if s)
    l1, l2 = sum(shifts), math.sqrt(sum(s * s for s in shifts))
    step = skellam(l1, l2, variance)
    bound = renyi_of(step, [order]).divergence[0]
    assert exact <= bound * (1 + 1e-9)
    if variance >= 25 * max(order, l1):
        assert bound <= 1.1 * exact
    doubled = renyi_of(skellam(l1, l2, variance, adjacency="replace_one"), [order])
    assert doubled.divergence[0] == pytest.approx(
        renyi_of(skellam(2 * l1, 2 * l2, variance), [order]).divergence[0])


@pytest.mark.parametrize("variance, shift, rate", [(25.0, 1, 0.1), (100.0, 5, 0.3), (9.0, 2, 0.01)])
def test_sampled_skellam_bounds_both_directions_of_the_exact_divergence(variance, shift, rate):
    log_p, log_q = shifted_pair(variance, shift)
    mixed = np.logaddexp(math.log(rate) + log_p, math.log1p(-rate) + log_q)
    orders = np.array([2.0, 3.0, 4.0, 8.0])
    bound = renyi_of(skellam(shift, shift, variance, rate), orders).divergence
    for order, limit in zip(orders, bound, strict=True):
        exact = [exact_renyi(mixed, log_q, order), exact_renyi(log_q, mixed, order)]
        assert max(exact) <= limit * (1 + 1e-9)
        assert exact[1] <= exact[0] * (1 + 1e-12)  # the reflection's theorem
    assert bound[0] <= 1.6 * exact_renyi(mixed, log_q, 2.0)
    between = renyi_of(skellam(shift, shift, variance, rate), [2.5, 3.0]).divergence
    assert between[0] == between[1]


@pytest.mark.parametrize("adjacency", ["replace_one", "add_remove"])
def test_skellam_noise_on_cohorts_of_a_fixed_size(adjacency):
    variance, rate = 64.0, 0.25
    log_far, log_near = shifted_pair(variance, 4)  # a unit of l1 = l2 = 2, replaced
    mixed = np.logaddexp(math.log(rate) + log_far, math.log1p(-rate) + log_near)
    step = skellam(2, 2, variance, rate, sampling="fixed_size", adjacency=adjacency)
    for order in (2, 3, 6):
        bound = renyi_of(step, [order]).divergence[0]
        for pair in ((mixed, log_near), (log_near, mixed)):
            assert exact_renyi(*pair, order) <= bound
        unsampled = renyi_of(skellam(4, 4, variance), [order]).divergence[0]
        assert bound < unsampled


def test_the_pairs_of_two_outcomes_that_bound_the_reverse_direction():
    # Mironov, Talwar, Zhang 2019, Theorem 5, for a pair that a reflection swaps: P=(1,r), Q=(r,1).
    q = np.linspace(0.0, 1.0, 41)[:, None, None]
    r = np.exp(np.linspace(0.0, 12.0, 49))[None, :, None]
    order = np.array([1.01, 1.5, 2.0, 3.0, 10.0, 30.0])[None, None, :]
    a, b = 1 - q + q * r, 1 - q + q / r
    forth = np.logaddexp(order * np.log(a), np.log(r) + order * np.log(b))
    back = np.logaddexp((1 - order) * np.log(a), np.log(r) + (1 - order) * np.log(b))
    assert (forth >= back - 1e-9).all()


def test_skellam_epsilon_is_a_guarantee():
    variance, shift = 36.0, 3
    log_p, log_q = shifted_pair(variance, shift)
    p, q = np.exp(log_p), np.exp(log_q)
    for dp_delta in (1e-3, 1e-6):
        result = total([skellam(shift, shift, variance)], dp_delta)
        assert result.accountant == "rdp"
        assert np.maximum(p - math.exp(result.epsilon) * q, 0).sum() <= dp_delta
        assert np.maximum(p - math.exp(0.6 * result.epsilon) * q, 0).sum() > dp_delta
    with pytest.raises(SpecError, match='"rdp"'):
        compose([skellam(shift, shift, variance)], 1e-5, accountant="pld")


def test_many_units_of_variance_make_skellam_gaussian():
    wide = skellam(1000, 100, 1e6, 0.1, 50)
    near = gaussian(10.0, 0.1, 50)
    assert compose([wide], 1e-5) == pytest.approx(compose([near], 1e-5, accountant="rdp"), rel=5e-3)


# Mechanisms known by (epsilon, dp_delta) alone, against the exact pair of randomised response


def response(epsilon: float, fails: float) -> tuple[np.ndarray, np.ndarray]:
    right = math.exp(epsilon) / (1 + math.exp(epsilon))
    one = np.array([fails, (1 - fails) * right, (1 - fails) * (1 - right), 0.0])
    return one, one[::-1]


def exact_delta(p: np.ndarray, q: np.ndarray, rounds: int, epsilon: float) -> float:
    many_p, many_q = p, q
    for _ in range(rounds - 1):
        many_p, many_q = (np.multiply.outer(many_p, p).ravel(),
                          np.multiply.outer(many_q, q).ravel())
    return max(np.maximum(many_p - math.exp(epsilon) * many_q, 0).sum(),
               np.maximum(many_q - math.exp(epsilon) * many_p, 0).sum())


@pytest.mark.parametrize("epsilon, fails", [(0.5, None), (0.5, 1e-3), (2.0, 1e-6), (0.03, None)])
@pytest.mark.parametrize("rate", [1.0, 0.3])
@pytest.mark.parametrize("rounds", [1, 4])
def test_bounded_mechanisms_are_their_randomised_response(epsilon, fails, rate, rounds):
    p, q = response(epsilon, fails or 0.0)
    mixed = (1 - rate) * q + rate * p
    spend = bounded(epsilon, fails, rate, rounds)
    for dp_delta in (0.05, 0.01):
        for accountant in ("pld", "rdp"):
            result = compose([spend], dp_delta, accountant=accountant)
            assert exact_delta(mixed, q, rounds, result) <= dp_delta * (1 + 1e-9)
        tight = compose([spend], dp_delta)
        if tight > 0.01:
            assert exact_delta(mixed, q, rounds, tight * (1 - 2e-3) - 2e-4) > dp_delta


@pytest.mark.parametrize("fails", [None, 1e-4])
@pytest.mark.parametrize("rounds", [1, 3])
def test_bounded_mechanisms_on_a_fixed_size_cohort(fails, rounds):
    # A mechanism that answers by the drawn unit's bit, from 4 units of which one is replaced.
    p, q = response(1.0, fails or 0.0)
    mixed = 0.75 * q + 0.25 * p
    spend = bounded(1.0, fails, 0.25, rounds, sampling="fixed_size", adjacency="replace_one")
    for dp_delta in (0.1, 0.02, 0.005):
        for accountant in ("pld", "rdp"):
            result = compose([spend], dp_delta, accountant=accountant)
            assert exact_delta(mixed, q, rounds, result) <= dp_delta * (1 + 1e-9)
    if rounds == 1:
        tight = compose([spend], 0.02)
        assert exact_delta(mixed, q, 1, tight - 2e-3) > 0.02


def test_bounded_mechanisms_agree_with_dp_accounting():
    peer = PLDAccountant(value_discretization_interval=1e-4)
    peer.compose(dp_event.DiscreteLaplaceDpEvent(0.1, 2), 30)
    assert peer.get_epsilon(1e-5) <= compose([bounded(0.2, count=30)], 1e-5)
    rdp = RdpAccountant().compose(dp_accounting.LaplaceDpEvent(5.0), 30)
    assert rdp.get_epsilon(1e-5) <= compose([bounded(0.2, count=30)], 1e-5, accountant="rdp")
    response_event = dp_accounting.RandomizedResponseDpEvent(2 / (1 + math.exp(0.2)), 2)
    relation = dp_accounting.NeighboringRelation.REPLACE_ONE
    peer = PLDAccountant(relation, 1e-4)
    for _ in range(30):
        peer.compose(response_event)
    ours = bounded(0.2, count=30, adjacency="replace_one")
    assert compose([ours], 1e-5) == pytest.approx(peer.get_epsilon(1e-5), rel=1e-3)
    peer = RdpAccountant(neighboring_relation=relation).compose(response_event, 30)
    assert compose([ours], 1e-5, accountant="rdp") == pytest.approx(
        peer.get_epsilon(1e-5), rel=1e-3)


# Mixtures of kinds


def test_a_mixture_takes_the_accountant_that_serves_all():
    parts = [gaussian(2.0, 0.1, 5), bounded(0.2, 1e-7), skellam(60, 10, 400.0, 0.5)]
    assert total(parts[:2], 1e-5).accountant == "pld"
    mixed = total(parts, 1e-5)
    assert mixed.accountant == "rdp"
    alone = [compose([part], 1e-5, accountant="rdp") for part in parts]
    assert max(alone) < mixed.epsilon < sum(alone)
    # A failure probability above dp_delta leaves no guarantee, in either accountant.
    for accountant in ("pld", "rdp"):
        assert compose([bounded(0.2, 1e-6, count=20)], 1e-5, accountant=accountant) == math.inf
    nothing_serves = [gaussian(2.0, 0.1, adjacency="replace_one"),
                      skellam(60, 10, 400.0, adjacency="replace_one")]
    with pytest.raises(SpecError, match="budgets of their own"):
        total(nothing_serves, 1e-5)


def test_renyi_curves_are_vectorised_and_add_up():
    orders = np.array([1.5, 2.0, 7.3, 64.0])
    step = gaussian(2.0, 1.0)
    np.testing.assert_allclose(renyi_of(step, orders).divergence, orders / 8)
    for step in (gaussian(2.0, 0.1), skellam(5, 2, 50.0, 0.1), bounded(0.4, rate=0.2)):
        curve = renyi_of(step, orders).divergence
        assert curve.shape == orders.shape and (np.diff(curve) >= 0).all()
        np.testing.assert_allclose(curve, [renyi_of(step, [o]).divergence[0] for o in orders])
    assert loss_of(skellam(5, 2, 50.0), 1e-3) is None
