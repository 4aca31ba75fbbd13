"""Every model: shapes, the flat view, the loss, and what is refused."""

from __future__ import annotations

from functools import cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models import (
    char_lstm,
    emnist_cnn,
    from_flax,
    logistic_regression,
    mlp,
    resnet,
    sensor_cnn,
)

# Every factory, small: the model and its number of parameters, counted by hand.
MODELS = {
    "linear, two classes": (logistic_regression(4, 2), 5),
    "linear, three classes": (logistic_regression(4, 3), 15),
    "mlp, two classes": (mlp(4, 2, hidden=(6,)), 4 * 6 + 6 + 6 + 1),
    "mlp, three classes": (mlp(4, 3, hidden=(6, 5)), 4 * 6 + 6 + 6 * 5 + 5 + 5 * 3 + 3),
    "flax, two outputs": (from_flax(nn.Dense(2), 4, 2), 10),
    "emnist_cnn": (emnist_cnn((6, 6), 3), 320 + 18_496 + 64 * 128 + 128 + 128 * 3 + 3),
    "resnet": (resnet((4, 4, 1), 2, width=2, groups=2), 18 + 4 + 80 + 232 + 896 + 9),
    "sensor_cnn": (
        sensor_cnn((8, 2), 3, channels=(4, 5), window=3),
        (3 * 2 * 4 + 4) + (3 * 4 * 5 + 5) + (5 * 3 + 3),
    ),
    "char_lstm": (
        char_lstm(5, 4, embedding=2, hidden=(3, 3)),
        4 * 2 + 12 * (2 + 3 + 1) + 12 * (3 + 3 + 1) + (3 * 4 + 4),
    ),
}
TOKENS = {"char_lstm"}


#: Its compilation takes several seconds; what it has of its own is in the tests of gradients.
SLOW = {"resnet"}


@pytest.fixture(params=MODELS)
def model_and_dim(request):
    return MODELS[request.param]


@pytest.fixture(params=[
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS])
def model_of_few_layers(request):
    return MODELS[request.param][0]


@cache
def forward(model):
    """Compiled once for all tests: operation by operation a network takes a hundred times that."""

    @jax.jit
    def run(params, x, y):
        logits = model.apply(params, x)
        return logits, model.probabilities(logits), model.loss(params, x, y)

    return run


def summed_loss(model):
    return jax.value_and_grad(lambda flat, x, y: jnp.sum(model.loss(model.unravel(flat), x, y)))


@cache
def compiled_gradient(model):
    return jax.jit(summed_loss(model))


def somewhere(model):
    """Parameters that are not at their start, so that gradients are not symmetric."""
    flat = np.random.default_rng(0).normal(size=model.dim).astype(np.float32)
    flat *= min(1, (40 / model.dim) ** 0.5) if model.dim > 100 else 1
    return model.unravel(jnp.asarray(flat)), flat


def records(model, count=7):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(count, model.num_features)).astype(np.float32)
    if model.name in TOKENS:
        x = rng.integers(0, model.num_classes, x.shape).astype(np.int32)
    return x, rng.integers(0, model.num_classes, count).astype(np.int32)


def test_dim_and_flat_view(model_and_dim):
    model, dim = model_and_dim
    assert model.dim == dim
    params, flat = somewhere(model)
    np.testing.assert_array_equal(model.ravel(params), flat)
    start = model.init(jax.random.key(3))
    again = jax.jit(lambda params: model.unravel(model.ravel(params)))(start)
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
        _, probabilities, loss = map(np.asarray, forward(model)(params, x, y))
    assert probabilities.shape == (7, model.num_classes) and loss.shape == (7,)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(loss, -np.log(probabilities[np.arange(7), y]), atol=1e-5)
    assert loss.dtype == np.float32


def test_gradients_are_those_of_a_finite_difference(model_and_dim):
    """Along random directions, in which all parameters move."""
    model, _ = model_and_dim
    params, flat = somewhere(model)
    x, y = records(model, 2)
    at = compiled_gradient(model)
    grad = np.asarray(at(flat, x, y)[1], np.float64)
    assert np.isfinite(grad).all() and grad.any()
    rng = np.random.default_rng(2)
    for _ in range(8):
        way = rng.normal(size=model.dim)
        way = (way / np.linalg.norm(way)).astype(np.float32)
        above, below = (float(at(flat + by * way, x, y)[0]) for by in (1e-2, -1e-2))
        slope = (above - below) / 2e-2
        assert abs(slope - grad @ way) < 2e-2 + 5e-3 * np.linalg.norm(grad)


def test_records_do_not_affect_each_other(model_and_dim):
    model, _ = model_and_dim
    params, _ = somewhere(model)
    x, y = records(model)
    loss = lambda *given: forward(model)(*given)[2]  # noqa: E731
    together = loss(params, x, y)
    alone = [loss(params, x[i : i + 1], y[i : i + 1])[0] for i in range(2)]
    np.testing.assert_allclose(together[:2], alone, atol=1e-5, rtol=1e-5)
    others = np.concatenate([x[:2], x[:1], x[:1], x[:1], x[:1], x[:1]])
    np.testing.assert_allclose(loss(params, others, y)[:2], together[:2], atol=1e-5, rtol=1e-5)


def test_training_inside_a_loop_lowers_the_loss(model_of_few_layers):
    model = model_of_few_layers
    x, y = records(model, 12)
    start = model.init(jax.random.key(1))

    @jax.jit
    def train(params, steps):
        def step(_, params):
            grads = jax.grad(lambda p: model.loss(p, x, y).mean())(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

        params = jax.lax.fori_loop(0, steps, step, params)
        return model.loss(params, x, y).mean()

    before, after = train(start, 0), train(start, 40)
    assert np.isfinite(after) and after < before - 0.01


def test_gradients_over_lanes_of_parameters(model_of_few_layers):
    """Packed lanes: vmap over parameters and records gives what each lane gives alone."""
    model = model_of_few_layers
    flats = np.stack([somewhere(model)[1] * np.float32(scale) for scale in (1.0, 0.5)])
    x, y = records(model, 4)
    x, y = x.reshape(2, 2, -1), y.reshape(2, 2)
    _, together = jax.jit(jax.vmap(summed_loss(model)))(flats, x, y)
    assert together.shape == (2, model.dim)
    for lane in range(2):
        _, alone = compiled_gradient(model)(flats[lane], x[lane], y[lane])
        np.testing.assert_allclose(np.asarray(together)[lane], alone, atol=1e-4, rtol=1e-3)


def test_pixels_are_divided_by_255_and_other_numbers_are_taken_as_they_are(model_and_dim):
    model, _ = model_and_dim
    params, _ = somewhere(model)
    rng = np.random.default_rng(3)
    y = np.zeros(7, np.int32)
    run = lambda x: forward(model)(params, x, y)  # noqa: E731
    if model.name in TOKENS:
        x = rng.integers(0, model.num_classes, (7, model.num_features)).astype(np.int32)
        same = {np.uint8: x, np.float32: x}
    else:
        pixels = rng.integers(0, 256, (7, model.num_features)).astype(np.uint8)
        x = (pixels / np.float32(255)).astype(np.float32)
        same = {np.uint8: pixels}
        whole = np.ones((7, model.num_features), np.int32)
        np.testing.assert_allclose(run(whole)[0], run(whole.astype(np.float32))[0], atol=1e-6)
    for dtype, other in same.items():
        logits, _, loss = run(other.astype(dtype))
        np.testing.assert_allclose(logits, run(x)[0], atol=1e-6)
        assert loss.dtype == np.float32


def test_known_numbers_of_parameters():
    """Reddi et al. 2021 for both; He et al. 2016 have 0.27M for 20 layers of CIFAR-10."""
    assert emnist_cnn((28, 28, 1), 62).dim == 1_206_590
    assert char_lstm(80, 90).dim == 820_522
    assert resnet((32, 32, 3), 10, depth=20).dim == 269_722


def test_the_emnist_cnn_is_the_one_of_flaxs_layers():
    class Theirs(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(32, (3, 3), padding="VALID")(x))
            x = nn.relu(nn.Conv(64, (3, 3), padding="VALID")(x))
            x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
            x = nn.relu(nn.Dense(128)(x))
            return nn.Dense(5)(x)

    ours, theirs = emnist_cnn((12, 12), 5), from_flax(Theirs(), (12, 12, 1), 5)
    x, y = records(ours, 3)
    params = theirs.init(jax.random.key(4))
    assert ours.dim == theirs.dim
    gradients = [
        jax.jit(jax.value_and_grad(lambda p, m=m: m.loss(p, x, y).sum()))(params)
        for m in (ours, theirs)
    ]
    (loss, got), (their_loss, want) = gradients
    np.testing.assert_allclose(loss, their_loss, rtol=1e-5)
    np.testing.assert_allclose(ours.ravel(got), theirs.ravel(want), atol=1e-4)


def test_a_loss_of_ones_own():
    hinge = lambda logits, y: jax.nn.relu(1 - logits[:, 0] * (2 * y - 1))  # noqa: E731
    model = from_flax(nn.Dense(1), 4, 2, loss=hinge)
    params, _ = somewhere(model)
    x, y = records(model)
    z = np.asarray(model.apply(params, x))[:, 0]
    np.testing.assert_allclose(model.loss(params, x, y), np.maximum(0, 1 - z * (2 * y - 1)))


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


def test_a_dataset_gives_shape_and_dtype():
    class Data:
        feature_names = tuple(map(str, range(36)))
        classes = ("x", "y", "z")
        shape = (6, 6)
        x = np.zeros((0, 36), np.uint8)

    assert emnist_cnn(Data()).shape == (6, 6, 1) and mlp(Data()).shape == ()
    Data.x, Data.shape = np.zeros((0, 36), np.int32), ()
    model = from_flax(nn.Sequential([nn.Embed(4, 3), lambda x: x.mean(1), nn.Dense(3)]), Data())
    assert model.apply(model.init(jax.random.key(0)), np.ones((2, 36), np.int32)).shape == (2, 3)
    assert char_lstm(Data(), vocabulary=9, hidden=(2,)).num_features == 36
    assert from_flax(nn.Sequential([lambda x: x.mean((1, 2)), nn.Dense(3)]), (6, 6, 1), 3).dim == 6


class _Dropout(nn.Module):
    deterministic: bool | None = None

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.Dropout(0.5, deterministic=self.deterministic)(x))


class _Statistics(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(1)(nn.BatchNorm()(x))


class _Data:
    feature_names = tuple("abcd")
    classes = ("x", "y")
    x = np.zeros((0, 4), np.float64)


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
        (lambda: from_flax(_Statistics(), 3, 2), "without batch statistics"),
        (lambda: from_flax(_Dropout(), 3, 2), "no randomness"),
        (lambda: from_flax(_Dropout(deterministic=False), 3, 2), "no randomness"),
        (lambda: from_flax(lambda x: x, 3, 2), "flax.linen module"),
        (lambda: from_flax(nn.Dense, 3, 2), "the class Dense"),
        (lambda: from_flax(nnx.Linear(3, 2, rngs=nnx.Rngs(0)), 3, 2), "flax.nnx module"),
        (lambda: from_flax(nn.Sequential([nn.relu]), 2, 2), "no parameters"),
        (lambda: from_flax(nn.Conv(2, (3, 3, 3)), (4, 4), 2), "logits of shape|takes float32"),
        (lambda: from_flax(nn.Embed(4, 2), 3, 2), "a module that takes float32"),
        (lambda: from_flax(nn.Dense(2), 3, 2, shape=(2, 2)), "a record's shape of 3"),
        (lambda: from_flax(nn.Dense(2), _Data()), "float32, uint8 or int32"),
        (lambda: from_flax(nn.Dense(2), 3, 2, loss=lambda z, y: z.mean()), "one float32 for each"),
        (lambda: emnist_cnn(784, 62), "records of shape"),
        (lambda: emnist_cnn((5, 5), 62), "at least 6 x 6"),
        (lambda: emnist_cnn(784, 62, shape=(28, 27)), "a record's shape of 784"),
        (lambda: resnet((8, 8, 3), 10, depth=9), "a depth of 8"),
        (lambda: resnet((8, 8, 3), 10, width=12), "groups divide"),
        (lambda: sensor_cnn((3, 9), 6), "4 times or more"),
        (lambda: sensor_cnn((8, 9), 6, window=0), "one or more layers"),
        (lambda: sensor_cnn(72, 6), "records without a shape"),
        (lambda: char_lstm(80, 90, hidden=()), "sizes of 1 or more"),
        (lambda: char_lstm(_Data()), "int32 token numbers"),
        (lambda: mlp(3, 2).apply(mlp(3, 2).init(jax.random.key(0)), np.ones(3)), "x of shape"),
        (lambda: mlp(3, 2).ravel({"w": np.zeros(3)}), "its own parameters"),
        (lambda: mlp(3, 2).ravel(mlp(4, 2).init(jax.random.key(0))), "its own parameters"),
        (lambda: mlp(3, 2).unravel(np.zeros(3, np.float32)), "a flat vector"),
    ],
)
def test_what_is_refused(make, words):
    with pytest.raises(SpecError, match=words) as error:
        make()
    assert error.value.fix


class _Careless(nn.Module):
    """Fits one record, by chance, and no more."""

    way: str

    @nn.compact
    def __call__(self, x, train=None):
        if self.way == "flattened":
            return nn.Dense(3)(x.reshape(1, -1))
        return nn.Dense(3)(x).mean(0, keepdims=True)


class _Training(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


@pytest.mark.parametrize(
    ("words", "module", "settings"),
    [
        ("a module that takes float32 of shape", _Careless("flattened"), {}),
        ("for 3 records", _Careless("mean"), {}),
        ("called with the records alone", _Training(), {}),
        ("a shape of whole numbers", nn.Dense(3), {"shape": 28}),
        ("a shape of whole numbers", nn.Dense(3), {"shape": "ab"}),
        ("a shape of whole numbers", nn.Dense(3), {"shape": (2.0, 2.0)}),
        ("a loss of jax functions", nn.Dense(3), {"loss": lambda logits: logits}),
        ("a loss of jax functions", nn.Dense(3), {"loss": "mse"}),
        ("a loss of jax functions", nn.Dense(3), {"loss": lambda a, y: np.asarray(a).sum(1)}),
        ("records of float32, uint8 or int32", nn.Dense(3), {"dtype": "foo"}),
        ("names or their number", nn.Dense(3), {"classes": 3.0}),
        ("names or their number", nn.Dense(3), {"classes": "abc"}),
    ],
)
def test_slips_are_refused_when_the_model_is_made(words, module, settings):
    with pytest.raises(SpecError) as error:
        from_flax(module, 4, **{"classes": 3, **settings})
    assert words in str(error.value), error.value


@pytest.mark.parametrize("name", MODELS)
def test_no_records_give_no_logits(name):
    model, _ = MODELS[name]
    params, _ = somewhere(model)
    one = jax.eval_shape(model.apply, params, np.zeros((1, model.num_features), np.float32))
    nothing = np.zeros((0, model.num_features), np.float32)
    logits, probabilities, loss = forward(model)(params, nothing, np.zeros(0, np.int32))
    assert logits.shape == (0, one.shape[1]) and probabilities.shape == (0, model.num_classes)
    assert loss.shape == (0,)
