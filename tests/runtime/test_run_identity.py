"""What makes two runs the same run, and whose personal models one can ask for."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import ResumeError, SpecError
from fedjax_secure.data import FederatedDataset

CLIENTS = 3


@pytest.fixture(scope="module")
def data() -> FederatedDataset:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4 * CLIENTS, 2))
    offsets = np.arange(0, 4 * CLIENTS + 1, 4)
    return FederatedDataset(
        name="made up", clients=tuple(f"c{i}" for i in range(CLIENTS)), x=x,
        y=(x[:, 0] > 0).astype(np.int32), offsets=offsets, test_x=x,
        test_y=(x[:, 0] > 0).astype(np.int32), test_offsets=offsets, feature_names=("p", "q"),
        classes=("0", "1"))


def begun(model, data, algorithm, folder) -> int:
    with fs.Federation(model, data, algorithm, fs.chain(), seed=0, folder=folder) as made:
        return int(made.init().round)


def test_another_client_optimiser_is_another_run(data, tmp_path):
    model = fs.models.logistic_regression(data)

    def algorithm(rate):
        return fs.algorithms.fed_avg(1.0, client=optax.adam(rate))

    begun(model, data, algorithm(0.1), tmp_path)
    assert begun(model, data, algorithm(0.1), tmp_path) == 0  # the same settings, made anew
    with pytest.raises(ResumeError, match="clients' work"):
        begun(model, data, algorithm(0.2), tmp_path)


class Net(nn.Module):
    """Two layers with a choice between them, which no parameter and no name shows."""

    rectified: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(3)(x)
        return nn.Dense(2)(nn.relu(x) if self.rectified else nn.tanh(x))


def test_another_model_of_the_same_name_is_another_run(data, tmp_path):
    def model(rectified):
        return fs.models.from_flax(Net(rectified), data, name="net")

    algorithm = fs.algorithms.fed_sgd(optax.sgd(0.1))
    begun(model(True), data, algorithm, tmp_path)
    assert begun(model(True), data, algorithm, tmp_path) == 0
    with pytest.raises(ResumeError, match="clients' work"):
        begun(model(False), data, algorithm, tmp_path)


def test_personal_models_of_clients_that_do_not_exist_are_refused(data):
    model = fs.models.logistic_regression(data)
    simulation = fs.Simulation(model, data, fs.algorithms.ditto(0.1))
    state, _ = next(simulation.run(simulation.init(), rounds=1))
    personal = simulation.personal(state)
    assert personal([2, 0]).shape == (2, model.dim)
    for numbers in ([CLIENTS], [-1], np.array([True, False, True]), [0.5]):
        with pytest.raises(SpecError, match="client numbers from 0 to 2"):
            personal(numbers)
    other = fs.Simulation(model, data, fs.algorithms.ditto(0.1))
    with pytest.raises(SpecError, match="of another simulation"):
        other.personal(state)([0])


def test_clients_states_go_on_with_their_own_runs_model_only(data):
    model = fs.models.from_flax(Net(True), data, name="net")
    simulation = fs.Simulation(model, data, fs.algorithms.scaffold(0.1))
    first, _ = next(simulation.run(simulation.init(jax.random.key(1)), rounds=1))
    second, _ = next(simulation.run(simulation.init(jax.random.key(2)), rounds=1))
    with pytest.raises(SpecError, match="the state after round 1.*another run's"):
        next(simulation.run(first, rounds=2))
    on_the_host = jax.tree.map(np.asarray, second)._replace(round=1)
    state, report = next(simulation.run(on_the_host, rounds=2))
    assert (state.round, report.clients) == (2, CLIENTS)


def test_a_server_state_that_no_disk_keeps_is_refused_before_the_folder_is_taken(data, tmp_path):
    noisy = optax.chain(optax.add_noise(0.01, 0.5, 0), optax.sgd(1.0))
    algorithm = fs.algorithms.fed_avg(0.1, server=noisy)
    model, folder = fs.models.logistic_regression(data), tmp_path / "run"
    with pytest.raises(SpecError, match="a random key"):
        fs.Federation(model, data, algorithm, fs.chain(), seed=0, folder=folder)
    assert not folder.exists()
    simulation = fs.Simulation(model, data, algorithm)
    _, report = next(simulation.run(simulation.init(), rounds=1))
    assert report.round == 1


@pytest.mark.parametrize("made", [fs.Simulation, fs.Federation])
def test_parts_of_another_kind_are_refused(made, data):
    model, algorithm = fs.models.logistic_regression(data), fs.algorithms.fed_avg(0.1)
    chain, clip = fs.chain(), fs.privacy.clip(1.0)
    for parts, selection, says in (
            ((data, model, algorithm, chain), None, "the model first"),
            ((model, data, fs.algorithms.fed_avg, chain), None, "needs algorithm"),
            ((model, data, algorithm, [clip]), None, "needs aggregation"),
            ((model, data, algorithm, chain), fs.selection.uniform_clients, "needs selection"),
            ((model, data, algorithm, chain), "uniform", "needs selection")):
        with pytest.raises(SpecError, match=says):
            made(*parts, selection=selection)
