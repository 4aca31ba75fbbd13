"""Every model: shapes, the flat view, the loss, and what is refused."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models import from_flax, logistic_regression, mlp

MODELS = {
    "linear, two classes": (logistic_regression(4, 2), 5),
    "linear, three classes": (logistic_regression(4, 3), 15),
    "mlp, two classes": (mlp(4, 2, hidden=(6,)), 4 * 6 + 6 + 6 + 1),
    "mlp, three classes": (mlp(4, 3, hidden=(6, 5)), 4 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3),
    "flax, two outputs": (from_flax(nn.Dense(2), 4, 2), 10),
}


@pytest.fixture(params=MODELS)
def model_and_dim(request):
    return MODELS[request.param]


def somewhere(model):
    """Parameters that are not at their start, so that gradients are not symmetric."""
    flat = np.random.default_rng(0).normal(size=model.dim).astype(np.float32)
    return model.unravel(jnp.asarray(flat)), flat


def records(model, count=7):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, model.num_features)).astype(np.float32)
    return x, rng.integers(0, model.num_classes, count).astype(np.int32)


def test_dim_and_flat_view(model_and_dim):
    model, dim = model_and_dim
    assert model.dim == dim
    params, flat = somewhere(model)
    np.testing.assert_array_equal(model.ravel(params), flat)
    start = model.init(jax.random.key(3))
    again = model.unravel(model.ravel(start))
    assert jax.tree.structure(again) == jax.tree.structure(start)
    jax.tree.map(np.testing.assert_array_equal, again, start)
    assert {leaf.dtype for leaf in jax.tree.leaves(start)} == {np.dtype("float32")}


def test_the_flat_order_is_that_of_sorted_leaves():
    model = mlp(2, 3, hidden=(4,))
    flat = jnp.arange(model.dim, dtype=jnp.float32)
    params = model.unravel(flat)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    assert paths == [
        "['Dense_0']['bias']", "['Dense_0']['kernel']",
        "['Dense_1']['bias']", "['Dense_1']['kernel']",
    ]  # fmt: skip
    np.testing.assert_array_equal(params["Dense_0"]["kernel"], [[4, 5, 6, 7], [8, 9, 10, 11]])


def test_the_loss_is_the_cross_entropy_of_the_probabilities(model_and_dim):
    model, _ = model_and_dim
    params, _ = somewhere(model)
    x, y = records(model)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        probabilities = np.asarray(model.probabilities(model.apply(params, x)))
        loss = np.asarray(model.loss(params, x, y))
    assert probabilities.shape == (7, model.num_classes) and loss.shape == (7,)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(loss, -np.log(probabilities[np.arange(7), y]), atol=1e-5)
    assert loss.dtype == np.float32


def test_gradients_are_those_of_a_finite_difference(model_and_dim):
    model, _ = model_and_dim
    params, flat = somewhere(model)
    x, y = records(model, 1)
    grad = model.ravel(jax.grad(lambda p: model.loss(p, x, y)[0])(params))
    at = jax.jit(lambda flat: model.loss(model.unravel(flat), x, y)[0])
    for i in range(model.dim):
        step = np.zeros(model.dim, np.float32)
        step[i] = 1e-2
        slope = (at(flat + step) - at(flat - step)) / 2e-2
        assert abs(slope - grad[i]) < 5e-3


def test_two_classes_have_one_logit():
    model = logistic_regression(4, 2)
    params, _ = somewhere(model)
    x, y = records(model)
    logits = np.asarray(model.apply(params, x), np.float64)[:, 0]
    assert model.apply(params, x).shape == (7, 1)
    want = np.log1p(np.exp(-np.where(y == 1, logits, -logits)))
    np.testing.assert_allclose(model.loss(params, x, y), want, rtol=1e-5)


def test_logistic_regression_starts_at_zero_and_an_mlp_does_not():
    assert not np.any(
        logistic_regression(4, 3).ravel(logistic_regression(4, 3).init(jax.random.key(0)))
    )
    model = mlp(4, 2)
    first, second = (model.ravel(model.init(jax.random.key(k))) for k in (0, 1))
    assert np.any(first) and np.any(first != second)


def test_a_dataset_gives_features_and_classes():
    class Data:
        feature_names = ("a", "b")
        classes = ("x", "y", "z")

    assert logistic_regression(Data()).dim == 9
    assert (mlp(Data()).num_features, mlp(Data()).num_classes) == (2, 3)


class _Normalised(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=True)(x))


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: logistic_regression(3), "the classes"),
        (lambda: logistic_regression(3, 1), "two classes"),
        (lambda: logistic_regression(0, 2), "at least one feature"),
        (lambda: logistic_regression("heart"), "a dataset or a number of features"),
        (lambda: mlp(3, 2, hidden=()), "hidden layers"),
        (lambda: mlp(3, 2, hidden=(0,)), "hidden layers"),
        (lambda: mlp(3, 2, hidden=32.5), "hidden layers"),
        (lambda: from_flax(nn.Dense(4), 3, 3), r"logits of shape \[records, 3\]"),
        (lambda: from_flax(_Normalised(), 3, 2), "parameters only"),
        (lambda: from_flax(nn.Dense(1, param_dtype=jnp.float16), 3, 2), "float32 parameters"),
        (lambda: mlp(3, 2).ravel({"w": np.zeros(3)}), "its own parameters"),
        (lambda: mlp(3, 2).ravel(mlp(4, 2).init(jax.random.key(0))), "its own parameters"),
        (lambda: mlp(3, 2).unravel(np.zeros(3, np.float32)), "a flat vector"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(SpecError, match=words) as error:
        make()
    assert error.value.fix
