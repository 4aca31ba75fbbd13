"""What test_distributed runs: in one process of two devices, and in two processes of one each.

    python distributed_run.py FILE PORT PROCESS PARTS

joins the process at 127.0.0.1:PORT as number PROCESS of two, makes the same calls as the other, and
writes what it got to FILE (``.npz``). PARTS is "all", or "few" without the parts that take most of
the time to compile: noise in lanes, and clients' states.
"""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np


def results(parts: str) -> dict[str, np.ndarray]:
    """Simulations, evaluation, and the engine by itself, on all of JAX's two devices."""
    import fedjax_secure as fs
    from fedjax_secure.training import Engine, Rows, Total

    assert len(jax.devices()) == 2
    data = fs.data.synthetic(
        1.0, 1.0, num_clients=9, sizes=np.array([40, 9, 1, 70, 25, 33, 12, 5, 18]), seed=3)
    model = fs.models.mlp(data, hidden=(7,))
    half = fs.selection.poisson_clients(0.5)
    found = {}

    def simulate(name, algorithm, aggregation=None, **more):
        simulation = fs.Simulation(model, data, algorithm, aggregation, seed=5, **more)
        state, losses = simulation.init(), []
        for state, report in simulation.run(state, rounds=3):
            losses.append(report.loss)
        found[f"{name}: model"] = model.ravel(state.params)
        found[f"{name}: losses"] = np.array(losses)
        assert set(simulation.traces.values()) == {1}, simulation.traces
        return simulation, state

    simulation, state = simulate("floats", fs.algorithms.fed_avg(0.1, local_epochs=2),
                                 selection=half)
    scores = simulation.evaluate(state)
    found["evaluation"] = np.stack([scores.accuracy, scores.auc, scores.loss])
    if parts == "all":
        private = fs.chain(fs.privacy.clip(1.0), fs.privacy.quantise(bits=24),
                           fs.privacy.discrete_gaussian(1.0))
        simulate("noise in lanes", fs.algorithms.fed_avg(0.1), private, layout="lanes",
                 num_lanes=3)
        simulation, state = simulate("clients' states", fs.algorithms.ditto(0.1, lam=0.5),
                                     selection=half, chunk_clients=3)
        found["personal models"] = simulation.personal(state)(range(data.num_clients))

    engine = Engine(model, data, batch_size=8)
    indices = [data.rows(c) for c in range(data.num_clients)]
    indices[1] = indices[1][:0]
    params, everyone = model.init(jax.random.key(1)), tuple(range(data.num_clients))
    keys = np.arange(8 * data.num_clients, dtype=np.uint32).reshape(-1, 8)

    def encode(key, slot, gradient):
        return jnp.round(gradient * 1000).astype(jnp.int32) + (key[0] % 7).astype(jnp.int32)

    found["rows"] = engine.local_sgd(
        params, indices, learning_rate=0.1, into=Rows.of((3, 1, 0), 4)).values
    found["record sums"] = engine.record_sums(params, indices, keys, encode).values
    found["total"] = engine.record_sums(
        params, indices, keys, encode, into=Total(everyone, keys, {})).values
    return {name: np.asarray(value) for name, value in found.items()}


def refusals() -> None:
    """What one of several processes cannot do says so."""
    import fedjax_secure as fs

    data = fs.data.heart_disease()
    model = fs.models.logistic_regression(data)
    try:
        fs.Federation(model, data, fs.algorithms.fed_avg(0.1), fs.chain())
    except fs.core.SpecError as error:
        assert "one process" in str(error) and "fs.Simulation" in error.fix, error
    else:
        raise AssertionError("a federation ran in each of several processes")


if __name__ == "__main__":
    file, port, process, parts = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    assert jax.process_count() == 2
    refusals()
    np.savez(file, **results(parts))
