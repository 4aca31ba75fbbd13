"""What correlated noise is for: better models at equal privacy, without any sampling."""

from __future__ import annotations

import numpy as np
import pytest

import fedjax_secure as fs
from fedjax_secure.data import digits
from fedjax_secure.data.partitioners import iid
from fedjax_secure.privacy import banded, tree

CLIENTS, ASKED, APART, ROUNDS = 1400, 28, 50, 200


@pytest.mark.slow
def test_ftrl_and_bands_beat_independent_noise_at_equal_epsilon_on_digits():
    """1,400 clients of one digit each, four rounds a client, (4, 1e-4)-DP for a client, two seeds.

    Independent noise has the same schema, so the same four participations are counted.
    """
    data = iid(digits(), CLIENTS)
    model = fs.models.logistic_regression(data)
    noise = fs.privacy.calibrate(target_epsilon=4.0, dp_delta=1e-4, rounds=1, sampling_rate=1)
    accuracy = {}
    for name, strategy in (("independent", banded(rounds=ROUNDS, bands=1)),
                           ("tree", tree(rounds=ROUNDS)),
                           ("banded", banded(rounds=ROUNDS, bands=APART))):
        chain = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=30, scale=512.0),
                         fs.privacy.correlated_noise(noise, strategy))
        for seed in (0, 1):
            simulation = fs.Simulation(
                model, data, fs.algorithms.fed_avg(0.5), chain, seed=seed,
                selection=fs.selection.separated_clients(ASKED, separation=APART))
            for state, _ in simulation.run(simulation.init(), rounds=ROUNDS):
                pass
            scores = simulation.evaluate(state)
            held = scores.counts > 0
            accuracy.setdefault(name, []).append(
                float(np.average(scores.accuracy[held], weights=scores.counts[held])))
    print(accuracy)
    assert np.mean(accuracy["tree"]) > np.mean(accuracy["independent"]) + 0.05
    assert np.mean(accuracy["banded"]) > np.mean(accuracy["independent"]) + 0.05
