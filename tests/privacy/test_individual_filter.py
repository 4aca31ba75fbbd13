"""Renyi filters: exact sums of adaptive histories, random histories, and accounts on disk."""

from __future__ import annotations

import functools
import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_secure.core import BudgetError, SpecError
from fedjax_secure.privacy import Spend, compose
from fedjax_secure.privacy.accounting import renyi_of
from fedjax_secure.privacy.individual import (
    FilteredSum,
    RenyiFilter,
    RoundCost,
    best_order,
    concentration_for,
)

DP_DELTA = 1e-3


def discrete_gaussian(stddev: float, reach: int) -> np.ndarray:
    grid = np.arange(-reach, reach + 1)
    mass = np.exp(-(grid**2) / (2 * stddev**2))
    return mass / mass.sum()


def adaptive_history(epsilon: float, *, filtered: bool, rounds: int = 3) -> tuple[float, float]:
    """delta of an adaptive attack on one person, exactly, in both directions.

    Each round the person contributes as much as the filter lets through, or all where it is off,
    if the outputs so far are high, and next to nothing if they are low: the attacker steers by
    what was released. Outputs are enumerated; noise has stddev 5, the full contribution is 6.
    """
    stddev, full, reach = 5.0, 6, 40
    cost = RoundCost(noise_stddev=stddev, largest_norm=full)
    noise = dict(zip(range(-reach, reach + 1), discrete_gaussian(stddev, reach), strict=True))
    # Outputs are told to the attacker in full; to enumerate them, only their side of 3 decides
    # what comes next, so histories with equal sides go together: the ratio of each is exact.
    ratios: list[tuple[float, float]] = []

    def follow(accounts_spent: list[int], likely: list[tuple[float, float]], depth: int) -> None:
        if depth == rounds:
            ratios.extend(likely)
            return
        accounts = RenyiFilter(("person",), epsilons=epsilon, dp_delta=DP_DELTA)
        for number, square in enumerate(accounts_spent):
            accounts.charge("run", number, cost, np.array([square]))
        wanted = full if not likely or depth == 0 or follow.high else 1
        allowed = int(math.isqrt(int(accounts.bounds(cost)[0]))) if filtered else full
        value = min(wanted, allowed)
        for high in (False, True):
            step = []
            for output in range(-reach + full, reach + 1 - full):
                if (output >= 3) == high:
                    step.append((noise[output - value], noise[output]))
            joint = [(p * a, q * b) for p, q in likely for a, b in _merged(step)]
            follow.high = high
            follow([*accounts_spent, value**2] if filtered else [], _merged(joint), depth + 1)

    follow.high = True
    follow([], [(1.0, 1.0)], 0)
    p, q = np.array(ratios).T
    scale = math.exp(epsilon)
    return float(np.maximum(p - scale * q, 0).sum()), float(np.maximum(q - scale * p, 0).sum())


def _merged(pairs: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Outcomes of nearly equal log-ratio together: their hockey-stick divergence is the sum's."""
    together: dict[int, tuple[float, float]] = {}
    for p, q in pairs:
        key = round(math.log(p / q) * 50)
        a, b = together.get(key, (0.0, 0.0))
        together[key] = (a + p, b + q)
    return list(together.values())


def test_an_adaptive_attack_never_breaks_the_filters_promise():
    """And the same attack without the filter does: the check can fail."""
    for epsilon in (1.5, 3.0):
        assert max(adaptive_history(epsilon, filtered=True)) <= DP_DELTA
    assert max(adaptive_history(1.5, filtered=False)) > 5 * DP_DELTA


def test_sampled_rounds_keep_the_divergence_that_is_charged():
    """Two rounds with secret coins, the second as large as the first's output lets it: exactly."""
    order, rate, stddev, reach = 4.0, 0.3, 4.0, 60
    cost = RoundCost(noise_stddev=stddev, largest_norm=8, sampling_rate=rate, order=order)
    noise = discrete_gaussian(stddev, reach)

    def pair(value: int) -> tuple[np.ndarray, np.ndarray]:
        return (1 - rate) * noise + rate * np.roll(noise, value), noise

    first, bare = pair(5)
    divergences, charges = [], []
    for output, (p, q) in enumerate(zip(first, bare, strict=True)):
        value = 8 if output > reach + 2 else 2
        with_person, without = pair(value)
        inner = float(np.sum(with_person**order * without ** (1 - order)))
        divergences.append((p / q) ** order * q * inner)
        charges.append(cost.of(np.array([value**2]))[0])
    total = math.log(sum(divergences)) / (order - 1)
    worst = cost.of(np.array([25]))[0] + max(charges)
    assert total <= worst * (1 + 1e-9)
    assert total > cost.of(np.array([25]))[0]  # the second round does cost something


def test_costs_are_those_of_the_accountant():
    cost = RoundCost(noise_stddev=20.0, largest_norm=30.0, sampling_rate=0.2, order=8.0)
    squares = np.array([0, 1, 15**2, 30**2])
    exact = [0.0] + [float(renyi_of(Spend(20.0 / math.sqrt(s), 0.2, "person"), [8.0]).divergence[0])
                     for s in squares[1:]]
    assert np.all(cost.of(squares) >= np.array(exact) * (1 - 1e-12))
    assert cost.of(squares)[2:] == pytest.approx(exact[2:], rel=0.02)  # steps of the table
    unsampled = RoundCost(noise_stddev=20.0, largest_norm=30.0)
    assert unsampled.of(squares) == pytest.approx(squares / 800.0, rel=1e-12)


@given(st.floats(1e-6, 3.0), st.floats(0.5, 1e4), st.integers(1, 65535), st.booleans())
@settings(max_examples=40)
def test_what_a_budget_lets_through_never_costs_more_than_it(budget, stddev, norm, sampled):
    cost = RoundCost(noise_stddev=stddev, largest_norm=norm, sampling_rate=0.1 if sampled else 1.0,
                     order=6.0 if sampled else None)
    square = cost.norms_within(np.array([budget]))
    assert cost.of(square)[0] <= budget
    if not sampled and square[0] < norm**2:
        assert cost.of(square + 1)[0] > budget * (1 - 1e-9)


@settings(max_examples=40)
@given(st.data())
def test_no_history_takes_a_person_above_their_own_budget(data):
    """Random norms, attempts to exceed, noise that changes; sums in fractions."""
    epsilons = data.draw(st.lists(st.floats(0.05, 5.0), min_size=1, max_size=4))
    accounts = RenyiFilter([str(place) for place in range(len(epsilons))], epsilons=epsilons,
                           dp_delta=1e-5)
    spent = [Fraction(0)] * len(epsilons)
    for number in range(data.draw(st.integers(1, 12))):
        cost = RoundCost(noise_stddev=data.draw(st.floats(5.0, 500.0)), largest_norm=100.0)
        allowed = accounts.bounds(cost)
        wanted = np.array([data.draw(st.integers(0, 100**2)) for _ in epsilons])
        squares = wanted if data.draw(st.booleans()) else np.minimum(wanted, allowed)
        try:
            accounts.charge("run", number, cost, squares)
        except BudgetError as refused:
            assert np.any(squares > allowed)
            assert not any(f"{square}" in str(refused) for square in squares if square > 99)
            continue
        for place, square in enumerate(squares.tolist()):
            spent[place] += Fraction(square) / (2 * Fraction(cost.noise_stddev) ** 2)
    for place, epsilon in enumerate(epsilons):
        allowed = Fraction(concentration_for(epsilon, 1e-5))
        assert spent[place] <= allowed * (1 + Fraction(1, 10**12))
        assert accounts.epsilon_of(str(place)) <= epsilon * (1 + 1e-9)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 8.0])
def test_a_budgets_spend_is_its_epsilon(epsilon):
    plain = RenyiFilter(("a",), epsilons=epsilon, dp_delta=1e-5)
    assert compose(plain.public_spends("person").values(), 1e-5) == pytest.approx(epsilon, rel=1e-6)
    order = best_order(epsilon, dp_delta=1e-5, noise_stddev=100.0, largest_norm=100.0,
                       sampling_rate=0.1)
    sampled = RenyiFilter(("a",), epsilons=epsilon, dp_delta=1e-5, order=order)
    assert compose(sampled.public_spends("person").values(), 1e-5) == pytest.approx(
        epsilon, rel=1e-6)


def test_short_contributions_last_for_many_more_rounds():
    """A quarter of the norm costs a sixteenth; who is exhausted stays out, others go on."""
    accounts = RenyiFilter(("long", "short"), epsilons=1.0, dp_delta=1e-5)
    cost = RoundCost(noise_stddev=2000.0, largest_norm=100.0)
    taking_part = np.zeros(2, int)
    for number in range(2000):
        squares = np.minimum(accounts.bounds(cost), np.array([100**2, 25**2]))
        accounts.charge("run", number, cost, squares)
        taking_part += squares >= np.array([100**2, 25**2])
        if not squares.any():
            break
    assert 15.0 < taking_part[1] / taking_part[0] < 21.0  # whole rounds
    assert accounts.bounds(cost).tolist() == [0, 0]


def test_accounts_outlive_the_process_and_count_a_release_once(tmp_path):
    path = tmp_path / "owner" / "accounts"
    people = {"persons": ("ann", "bob"), "epsilons": (0.5, 2.0), "dp_delta": 1e-5, "path": path}
    cost = RoundCost(noise_stddev=1000.0, largest_norm=50.0)
    first = RenyiFilter(**people)
    first.charge("run", 1, cost, np.array([2500, 100]))
    assert path.stat().st_mode & 0o077 == 0  # nobody else may read it
    again = RenyiFilter(**people)
    again.charge("run", 1, cost, np.array([2500, 100]))
    assert again.epsilon_of("ann") == first.epsilon_of("ann") > again.epsilon_of("bob") > 0
    with pytest.raises(BudgetError, match="norms on file"):
        again.charge("run", 1, cost, np.array([2500, 101]))
    before = first.epsilon_of("ann")
    again.charge("run", 1, cost, np.array([2500, 100]), attempt=1)
    assert again.epsilon_of("ann") == first.epsilon_of("ann") > before
    for changed in ({"epsilons": (0.6, 2.0)}, {"persons": ("ann", "eve")}, {"dp_delta": 1e-6}):
        with pytest.raises(BudgetError, match="was made with"):
            RenyiFilter(**{**people, **changed})
    content = bytearray(path.read_bytes())
    for place in itertools.chain([0], range(40, len(content), 97)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BudgetError, match="damaged"):
            RenyiFilter(**people)


def test_two_processes_that_share_accounts_see_each_others_charges(tmp_path):
    people = {"persons": ("ann",), "epsilons": 0.5, "dp_delta": 1e-5, "path": tmp_path / "a"}
    cost = RoundCost(noise_stddev=1000.0, largest_norm=100.0)
    both = [RenyiFilter(**people), RenyiFilter(**people)]
    squares, rounds = np.array([50**2]), 0
    with pytest.raises(BudgetError, match="own budget"):
        for rounds in range(1000):
            both[rounds % 2].charge("run", rounds, cost, squares)
    alone = RenyiFilter(**{**people, "path": None})
    for number in range(rounds):
        alone.charge("run", number, cost, squares)
    assert rounds > 1 and alone.epsilon_of("ann") == both[0].epsilon_of("ann") <= 0.5
    assert both[0].bounds(cost).tolist() == both[1].bounds(cost).tolist()
    (tmp_path / "a").unlink()
    for one in both:  # nothing is known of what was spent: nothing more may be
        with pytest.raises(BudgetError, match="Restore"):
            one.bounds(cost)


def test_a_refused_round_is_charged_to_nobody_and_tells_nothing(tmp_path):
    accounts = RenyiFilter(("ann", "bob"), epsilons=(0.01, 5.0), dp_delta=1e-5)
    cost = RoundCost(noise_stddev=100.0, largest_norm=90.0)
    with pytest.raises(BudgetError) as refused:
        accounts.charge("run", 1, cost, np.array([8100, 64]))
    assert not any(word in str(refused.value) for word in ("ann", "bob", "8100", "64"))
    assert accounts.epsilon_of("ann") == accounts.epsilon_of("bob") == 0.0
    accounts.charge("run", 2, cost, np.array([0, 64]))
    assert repr(accounts) == "RenyiFilter(2 people, dp_delta=1e-05)"
    assert accounts.target_of("bob") == 5.0


def test_what_a_filter_refuses():
    cost = RoundCost(noise_stddev=100.0, largest_norm=90.0)
    accounts = RenyiFilter(("a", "b"), epsilons=1.0, dp_delta=1e-5)
    for squares in ([1], [1, -1], [1, 8101]):
        with pytest.raises(SpecError):
            accounts.charge("run", 1, cost, np.array(squares))
    with pytest.raises(SpecError, match="order"):
        accounts.bounds(RoundCost(noise_stddev=9.0, largest_norm=9.0, sampling_rate=0.5, order=8.0))
    for wrong in ({"persons": ("a", "a")}, {"persons": ()}, {"epsilons": 0.0}, {"dp_delta": 0.0},
                  {"epsilons": 0.001, "order": 1.5}):
        with pytest.raises(SpecError):
            RenyiFilter(**{"persons": ("a",), "epsilons": 1.0, "dp_delta": 1e-5, **wrong})
    for wrong in ({"noise_stddev": 0.0}, {"sampling_rate": 0.5}, {"sampling_rate": 1.5},
                  {"order": 1.0}, {"largest_norm": 2.0**40},
                  {"sampling_rate": 0.5, "order": 2.5}):
        with pytest.raises(SpecError):
            RoundCost(**{"noise_stddev": 1.0, "largest_norm": 1.0, **wrong})
    with pytest.raises(BudgetError, match="account"):
        accounts.epsilon_of("c")


# -- sums -----------------------------------------------------------------------------------------


def sums(people: int = 3, **changes) -> FilteredSum:
    return FilteredSum(**{
        "persons": [str(place) for place in range(people)], "epsilons": 3.0, "dp_delta": 1e-5,
        "l2_bound": 1.0, "dim": 4, "noise_multiplier": 20.0, **changes})


@functools.cache
def two_people() -> FilteredSum:
    return sums(people=2, scale=64.0)


@settings(max_examples=40)
@given(st.data())
def test_integers_are_within_what_each_person_has_left(data):
    """Vectors of any length and direction, bounds of any size: exact squared norms."""
    made = two_people()
    size = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1e300, -1.7e308, -1e-300])
    vectors = np.array([[data.draw(size) for _ in range(4)] for _ in range(2)])
    allowed = np.array([data.draw(st.integers(0, 66**2)) for _ in range(2)])
    integers = made._rounded(vectors, allowed, bytes(range(32)))
    assert np.all((integers**2).sum(axis=1) <= allowed)
    lengths = np.minimum([math.hypot(*vector) for vector in vectors], 1e9)
    vectors = np.clip(vectors, -1e9, 1e9)
    short = (lengths * 64 + 2 < np.sqrt(allowed) * (1 - 1e-9)) & (lengths <= 1)
    assert np.all(np.abs(integers - vectors * 64)[short] < 1)


def test_sums_are_unbiased_and_noise_is_as_wide_as_said():
    """400 releases of equal vectors; means within 5.5 standard errors (false alarms 1e-6)."""
    made = sums(epsilons=50.0, noise_multiplier=40.0)
    vectors = np.array([[0.5, -0.5, 0.1, 0.0]] * 3)
    keys = [bytes([number % 256, number // 256]) + bytes(30) for number in range(400)]
    found = np.array([made.release("run", number, vectors, key=key)
                      for number, key in enumerate(keys)])
    spread = made.cost.noise_stddev / 1024.0
    assert np.all(np.abs(found.mean(axis=0) - 3 * vectors[0]) < 5.5 * spread / 20)
    assert found.std() == pytest.approx(spread, rel=0.1)
    assert made.release("other", 0, vectors, key=keys[0]).tolist() == found[0].tolist()


def test_who_is_spent_adds_nothing_and_others_go_on():
    made = sums(people=2, epsilons=(0.3, 30.0), noise_multiplier=5.0, dim=1)
    totals = [made.release("run", number, np.array([[1.0], [-1.0]])) for number in range(60)]
    left = made.accounts.bounds(made.cost)
    assert left[0] < 16 < left[1]  # only the data owner may look
    assert made.accounts.epsilon_of("0") <= 0.3 < made.accounts.epsilon_of("1") <= 30.0
    # The first person soon adds nothing, so the mean of the last 50 is about -1 (noise 5 / 7).
    assert abs(np.mean(totals[10:]) + 1.0) < 5.5 * 5.0 / math.sqrt(50)


def test_a_release_costs_a_public_budget_its_target():
    made = sums(epsilons=(1.0, 1.0, 2.0))
    spends = made.public_spends("patient", most_rounds=1000)
    assert {target: compose([spend], 1e-5) for target, spend in spends.items()} == pytest.approx(
        {1.0: 1.0, 2.0: 2.0}, rel=1e-6)


def test_what_a_filtered_sum_refuses(tmp_path):
    for wrong in ({"l2_bound": 0.0}, {"noise_multiplier": -1.0}, {"dim": 0}, {"scale": 1e9},
                  {"scale": 1e-9, "noise_multiplier": 0.01}):
        with pytest.raises(SpecError):
            sums(**wrong)
    made = sums(path=tmp_path / "accounts")
    with pytest.raises(SpecError, match="shape"):
        made.release("run", 1, np.zeros((2, 4)))
    vectors = np.full((3, 4), np.nan)
    vectors[0] = 0.25
    assert np.isfinite(made.release("run", 1, vectors)).all()
    assert made.accounts.epsilon_of("1") == 0.0 < made.accounts.epsilon_of("0")
    with pytest.raises(BudgetError, match="on file"):
        made.release("run", 1, np.full((3, 4), 0.4))
    # Whole integers are rounded to themselves, so norms are the same; noise would not be.
    same = np.full((3, 4), 0.125)
    made.release("run", 2, same)
    spent = made.accounts.epsilon_of("1")
    with pytest.raises(BudgetError, match="on file"):
        made.release("run", 2, same)
    made.release("run", 2, same, attempt=1)
    assert made.accounts.epsilon_of("1") > spent
