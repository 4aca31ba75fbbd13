"""Where the engine puts what it computes: rows of some clients, or one running total."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_secure.core.errors import SpecError
from fedjax_secure.data import FederatedDataset
from fedjax_secure.models import logistic_regression
from fedjax_secure.training import Engine, Rows, Total

OFFSETS = np.array([0, 5, 9, 17, 30])
KEYS = np.arange(32, dtype=np.uint32).reshape(4, 8)


def engine(batch_size=4):
    random = np.random.default_rng(3)
    data = FederatedDataset(
        name="made", clients=tuple("abcd"), x=random.normal(size=(30, 3)),
        y=random.integers(0, 2, 30), offsets=OFFSETS, test_x=np.zeros((0, 3)),
        test_y=np.zeros(0, int), test_offsets=np.zeros(5, int), feature_names=("p", "q", "r"),
        classes=("0", "1"))
    return Engine(logistic_regression(data), data, batch_size=batch_size)


def start(made):
    params = made.model.init(jax.random.key(1))
    indices = [made.dataset.rows(c) for c in range(4)]
    indices[1] = indices[1][:0]  # the second client drew no record
    return params, indices


def sealed(states, key, value):
    return {"value": value, "key": key.astype(jnp.float32), "count": jnp.int32(1)}, jnp.bool_(True)


def add(states, one, other):
    return jax.tree.map(jnp.add, one, other)


def total_of(clients, keys=KEYS):
    return Total(clients, keys, {}, sealed, add)


@pytest.mark.parametrize("clients", [(0, 1, 2, 3), (1,), (3, 1), ()])
def test_a_total_is_the_sum_of_the_rows_with_each_clients_own_key(clients):
    made = engine()
    params, indices = start(made)
    rows = made.local_sgd(params, indices, learning_rate=0.1).values
    found = made.local_sgd(params, indices, learning_rate=0.1, into=total_of(clients))
    expected = np.asarray(rows)[list(clients)].sum(axis=0)
    np.testing.assert_allclose(found.values["value"], expected, atol=1e-6)
    np.testing.assert_array_equal(found.values["key"], KEYS[list(clients)].sum(axis=0))
    assert int(found.values["count"]) == len(clients)  # also those without records


def test_rows_of_a_chunk_are_the_rows_of_all():
    made = engine()
    params, indices = start(made)
    rows = np.asarray(made.local_sgd(params, indices, learning_rate=0.1).values)
    for chunk in ((0, 1, 2), (3,), (2, 0), (1,), ()):
        found = made.local_sgd(params, indices, learning_rate=0.1, into=Rows.of(chunk, 3)).values
        np.testing.assert_array_equal(np.asarray(found)[: len(chunk)], rows[list(chunk)])
        assert not np.any(np.asarray(found)[len(chunk):])
    assert made.traces == {"local_sgd": 2}  # one for four rows, one for three


@pytest.mark.parametrize("sink", [Rows.of((1, 2), 2), total_of((1, 2))])
def test_empty_epochs_compile_nothing_new(sink):
    made = engine()
    params, indices = start(made)
    for orders in (indices, [rows[:0] for rows in indices]):
        epochs = [np.stack([rows, rows]) for rows in orders]
        made.local_sgd(params, epochs, learning_rate=0.1, into=sink)
    assert made.traces == {"local_sgd": 1}


@pytest.mark.parametrize(
    ("sink", "words"),
    [
        (total_of((2, 3), KEYS[:2]), r"keys of shape \[4, 8\] .* got uint32\[2, 8\]"),
        (total_of((2, 3), KEYS.astype("i4")), r"dtype uint32, got int32\[4, 8\]"),
        (total_of((2, 2)), "distinct client numbers from 0 to 3"),
        (Rows.of((4,), 2), "distinct client numbers from 0 to 3"),
        (Rows.of((0, 1, 2), 2), "at most 2 clients in a chunk"),
        ("rows", "a sink: Rows or Total, got str"),
    ],
)
def test_bad_sinks_are_refused(sink, words):
    made = engine()
    params, indices = start(made)
    with pytest.raises(SpecError, match=words):
        made.local_sgd(params, indices, learning_rate=0.1, into=sink)
