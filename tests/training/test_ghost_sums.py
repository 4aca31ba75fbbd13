"""Ghost clipping gives what clipping each record's own gradient gives, for every kind of layer."""

from __future__ import annotations

import warnings

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_secure.core.errors import SpecError
from fedjax_secure.models import (
    Conv,
    ConvReluPool,
    Embed,
    Lstm,
    char_lstm,
    emnist_cnn,
    from_flax,
    logistic_regression,
    mlp,
    resnet,
    sensor_cnn,
)
from fedjax_secure.training.contracts import Batch
from fedjax_secure.training.ghost import (
    GhostNotice,
    clipped_sum,
    coverage,
    ghost_sums,
    gradient_of_one,
    norm_margin,
)

TOKENS = 11


class _Layers(nn.Module):
    """Layers one after the other, with tanh between them, and a dense layer on the mean."""

    layers: tuple[nn.Module, ...]

    @nn.compact
    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x))
        return nn.Dense(3)(x.mean(tuple(range(1, x.ndim - 1))))


class _Scale(nn.Module):
    """A layer of a kind that nobody knows."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("by", nn.initializers.ones, x.shape[-1:]) ** 2


class _Raw(nn.Module):
    """A parameter beside layers."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x * self.param("by", nn.initializers.ones, x.shape[-1:]))


class _Tied(nn.Module):
    """An embedding that is used in a second way, which no call of the layer shows."""

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(TOKENS, 3, name="table")
        return table.attend(jnp.tanh(table(tokens)).mean(1))[:, :3]


class _Twice(nn.Module):
    """Layers whose parameters serve twice."""

    @nn.compact
    def __call__(self, x):
        dense, norm = nn.Dense(4), nn.LayerNorm()
        return nn.Dense(3)(norm(jnp.tanh(dense(norm(jnp.tanh(dense(x)))))))


class _Looped(nn.Module):
    """A layer inside a loop over time."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.RNN(nn.LSTMCell(5))(x)[:, -1])


class _RecordsLast(nn.Module):
    """Dense layers that see times along their first axis."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.Dense(4)(x.swapaxes(0, 1)).swapaxes(0, 1).mean(1))


class _Transformed(nn.Module):
    """A layer that computes with something else than the parameters at its path."""

    @nn.compact
    def __call__(self, x):
        squared = nn.map_variables(
            nn.Dense, "params", lambda tree: jax.tree.map(lambda p: 2 * p**2, tree), init=True
        )
        return nn.Dense(3)(jnp.tanh(squared(4)(x)))


class _Mixed(nn.Module):
    """Records less their batch's mean."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x - x.mean(0))


def _twice(function):
    return lambda *args, **settings: 2 * function(*args, **settings)


def _of(*layers, shape, dtype=None):
    return from_flax(_Layers(layers), shape, 3, name="layers", dtype=dtype)


FACTORIES = {
    "logistic_regression": lambda: logistic_regression(5, 2),
    "logistic_regression of 4": lambda: logistic_regression(5, 4),
    "mlp": lambda: mlp(6, 3, hidden=(7, 4)),
    "emnist_cnn": lambda: emnist_cnn((8, 8), 4),
    "emnist_cnn by lax": lambda: emnist_cnn((8, 8), 4, implementation="lax"),
    "emnist_cnn, odd": lambda: emnist_cnn((9, 7, 2), 4),
    "resnet8": lambda: resnet((8, 8, 3), 3, width=8),
    "sensor_cnn": lambda: sensor_cnn((16, 3), 3, channels=(4, 5)),
    "char_lstm": lambda: char_lstm(6, TOKENS, embedding=3, hidden=(4, 5)),
}
LAYERS = {
    "dense over time": lambda: _of(nn.Dense(4), nn.Dense(2, use_bias=False), shape=(5, 3)),
    "norms": lambda: _of(nn.LayerNorm(), nn.RMSNorm(), nn.GroupNorm(2), shape=(4, 6)),
    "norms without": lambda: _of(
        nn.LayerNorm(use_scale=False), nn.GroupNorm(2, use_bias=False), shape=(4, 4, 6)
    ),
    "strided": lambda: _of(Conv(4, strides=2, padding="SAME"), shape=(9, 8, 2)),
    "strided by lax": lambda: _of(
        Conv(4, strides=2, padding="SAME", implementation="lax"), shape=(9, 8, 2)
    ),
    "conv over time": lambda: _of(Conv(4, (3,), padding="SAME"), shape=(7, 2)),
    "winograd": lambda: _of(Conv(32, padding="SAME"), Conv(32), shape=(7, 6, 32)),
    "winograd and pool": lambda: _of(ConvReluPool(32, padding="SAME"), shape=(6, 4, 32)),
    "flax's conv": lambda: _of(nn.Conv(4, (3, 2), strides=2), shape=(7, 6, 2)),
    "lstm and embedding": lambda: _of(
        Embed(TOKENS, 3), Lstm(4), shape=(6,), dtype=jnp.int32
    ),
    "flax's embedding": lambda: _of(nn.Embed(TOKENS, 3), shape=(6,), dtype=jnp.int32),
    "layers twice": lambda: from_flax(_Twice(), 4, 3),
    "layers in a loop": lambda: from_flax(_Looped(), (4, 2), 3),
}  # fmt: skip


#: Their compilation takes several seconds each.
SLOW = {
    "emnist_cnn", "emnist_cnn by lax", "emnist_cnn, odd", "resnet8", "char_lstm", "norms without",
    "strided by lax", "winograd", "flax's conv", "lstm and embedding", "layers in a loop",
    "sensor_cnn", "logistic_regression",
}  # fmt: skip


def named(*names):
    """Names of models as parameters of a test; those that take long only where asked for."""
    marks = {name: [pytest.mark.slow] if name in SLOW else [] for name in names}
    return [pytest.param(name, marks=mark, id=name) for name, mark in marks.items()]


def batch_of(model, records, seed=0):
    rng = np.random.default_rng(seed)
    tokens = jax.eval_shape(model.init, jax.random.key(0))
    shape = (records, model.num_features)
    integer = any(
        "embedding" in jax.tree_util.keystr(path)
        for path, _ in jax.tree_util.tree_flatten_with_path(tokens)[0]
    )
    x = rng.integers(0, TOKENS, shape) if integer else rng.normal(size=shape)
    y = rng.integers(0, model.num_classes, records)
    return x.astype(np.int32 if integer else np.float32), y.astype(np.int32)


def params_of(model, seed=3):
    """Parameters of which none is zero or one, so that none is left out by chance."""
    rng, start = np.random.default_rng(seed), model.init(jax.random.key(seed))
    return jax.tree.map(lambda p: p + np.float32(0.1 * rng.normal(size=p.shape)),
                        jax.tree.map(np.asarray, start))


def rows_of(model, params, x, y):
    """Each record's gradient, made by itself: what everything here is compared with."""
    gradient = jax.grad(lambda p, x, y: model.loss(p, x[None], y[None])[0])
    one = jax.jit(lambda *given: model.ravel(gradient(*given)))
    return np.stack([np.asarray(one(params, *pair), np.float64)
                     for pair in zip(x, y, strict=True)])  # fmt: skip


def summed(model, **settings):
    def total(params, x, y, bound, valid):
        found = clipped_sum(model, params, x, y, bound, valid=valid, **settings)
        return found._replace(total=model.ravel(found.total))

    return jax.jit(total)


def close(found, wanted, scale):
    assert np.linalg.norm(np.asarray(found, np.float64) - wanted) <= 1e-6 * scale + 1e-30


@pytest.mark.parametrize("name", named(*FACTORIES, *LAYERS))
def test_equals_clipping_each_record_by_itself(name):
    """Bounds that clip nobody, some and everybody; a batch with unused places; one record."""
    model = {**FACTORIES, **LAYERS}[name]()
    params, records = params_of(model), 5
    x, y = batch_of(model, records)
    found = coverage(model)
    assert found.complete and not found.one_by_one
    total = summed(model)
    rows = rows_of(model, params, x, y)
    norms = np.linalg.norm(rows, axis=1)
    for bound in (2 * norms.max(), float(np.median(norms)), norms.min() / 3):
        for valid in ([True] * 5, [True, True, True, False, False], [True] + [False] * 4):
            used = np.array(valid)
            out = total(params, x, y, bound, jnp.array(valid))
            weights = np.minimum(1, bound / norms) * used
            close(out.total, weights @ rows, np.linalg.norm(weights @ np.abs(rows)))
            np.testing.assert_allclose(out.norms, norms * used, rtol=1e-5)
            assert out.finite.all()


@pytest.mark.parametrize("name", named(*FACTORIES, *LAYERS))
def test_the_gradient_of_one_record_is_what_jax_says(name):
    model = {**FACTORIES, **LAYERS}[name]()
    params = params_of(model)
    x, y = batch_of(model, 2)
    one = jax.jit(lambda *given: model.ravel(gradient_of_one(model, *given)))
    for row, place in zip(rows_of(model, params, x, y), range(2), strict=True):
        found = one(params, x[place : place + 1], y[place : place + 1])
        close(found, row, np.linalg.norm(row))


@pytest.mark.parametrize("module, shape", [(_Raw(), 5), (_RecordsLast(), (5, 4)),
                                           (_Transformed(), 4)])  # fmt: skip
def test_the_gradient_of_one_record_needs_no_taps(module, shape):
    model = from_flax(module, shape, 3)
    params = params_of(model)
    x, y = batch_of(model, 1)
    found = jax.jit(lambda *given: model.ravel(gradient_of_one(model, *given)))(params, x, y)
    (row,) = rows_of(model, params, x, y)
    assert not coverage(model).complete and np.linalg.norm(row) > 0
    close(found, row, np.linalg.norm(row))


@pytest.mark.parametrize("name", named("mlp", "emnist_cnn", "flax's embedding", "char_lstm"))
def test_each_record_may_have_a_bound_of_its_own(name):
    model = {**FACTORIES, **LAYERS}[name]()
    params = params_of(model)
    x, y = batch_of(model, 4)
    rows = rows_of(model, params, x, y)
    norms = np.linalg.norm(rows, axis=1)
    bounds = norms * [0.1, 2.0, 0.0, 0.7]
    for method in ("ghost", "vmap"):
        out = summed(model, method=method)(params, x, y, jnp.float32(bounds), jnp.ones(4, bool))
        weights = np.minimum(1, bounds / norms)
        close(out.total, weights @ rows, np.linalg.norm(weights @ np.abs(rows)))


def test_layers_of_an_unknown_kind_are_worked_record_by_record_with_a_notice():
    model = _of(_Scale(), nn.Dense(2), shape=(4, 3))
    found = coverage(model)
    assert found.complete and found.one_by_one == ("layers_0 (_Scale)",)
    with pytest.warns(GhostNotice, match=r"layers_0 \(_Scale\)"):
        found.warn(model)
    _agrees(model)


@pytest.mark.parametrize(
    "module, shape, dtype, words",
    [
        (_Raw(), (4,), None, "by (used outside"),
        (_Tied(), (6,), jnp.int32, "table/embedding (used outside"),
        (_Transformed(), (4,), None, "kernel (used outside"),
        (nn.Dense(3, dot_general=_twice(jax.lax.dot_general)), (4,), None, "kernel (used outside"),
        (
            nn.Dense(3, promote_dtype=lambda *args, **_: [3 * a for a in args]),
            (4,), None, "kernel (used outside",
        ),
        (_RecordsLast(), (4, 2), None, "Dense_1/kernel (used outside"),
        (_RecordsLast(), (5, 2), None, "something else than records"),
        (_RecordsLast(), (3, 2), None, "something else than records"),
    ],
    ids=[
        "a raw parameter", "tied", "transformed", "another product", "another promotion",
        "times first", "of 5 times", "of 3 times",
    ],
)  # fmt: skip
def test_what_no_tap_covers_is_found_out_and_worked_by_vmap(module, shape, dtype, words):
    """A parameter that is used unseen would silently lack from the gradient."""
    model = from_flax(module, shape, 3, dtype=dtype)
    found = coverage(model)
    assert not found.complete and any(words in name for name in found.untapped), found
    with pytest.warns(GhostNotice, match="whole gradient is made by vmap"):
        found.warn(model)
    _agrees(model)


def test_a_convolution_of_the_users_own_is_not_replaced():
    own = _twice(jax.lax.conv_general_dilated)
    model = _of(nn.Conv(4, (2,), conv_general_dilated=own), shape=(5, 2))
    assert coverage(model).one_by_one == ("layers_0 (Conv)",)
    _agrees(model)


def test_one_token_under_two_numbers_has_one_gradient():
    """Counted as two, a record's gradient would seem shorter by up to a root of two."""
    model = LAYERS["flax's embedding"]()
    params = params_of(model)
    x = jnp.array([[-1, TOKENS - 1] * 3, [0, -TOKENS, 0, 1, 1 - TOKENS, 2]], jnp.int32)
    y = jnp.array([0, 1], jnp.int32)
    out = summed(model)(params, x, y, 0.01, jnp.ones(2, bool))
    rows = rows_of(model, params, x, y)
    np.testing.assert_allclose(out.norms, np.linalg.norm(rows, axis=1), rtol=1e-5)


def test_a_model_that_mixes_records_is_refused():
    """One record would act through the gradients of all others: nothing would be bounded."""
    mixed = from_flax(_Mixed(), 4, 3)
    with pytest.raises(SpecError, match="no record's loss depends on other records"):
        ghost_sums(mixed, 1.0)
    over_records = from_flax(_of_norm(reduction_axes=(0,)), 4, 3)
    with pytest.raises(SpecError, match="no record's loss depends on other records"):
        ghost_sums(over_records, 1.0)
    for name in ("mlp", "dense over time", "norms", "flax's embedding"):
        ghost_sums({**FACTORIES, **LAYERS}[name](), 1.0)


def _of_norm(**settings):
    return nn.Sequential([nn.LayerNorm(**settings), nn.Dense(3)])


def test_a_model_without_taps_is_worked_by_vmap():
    import dataclasses

    model = dataclasses.replace(mlp(4, 3), tapped=None)
    assert coverage(model).untapped == ("the model, whose loss has no taps",)
    _agrees(model)


def test_another_loss_is_not_differentiated_by_taps_of_the_first():
    import dataclasses

    plain = mlp(4, 3)
    squared = dataclasses.replace(plain, loss=lambda p, x, y: plain.loss(p, x, y) ** 2 + x[:, 0])
    assert coverage(plain).complete and not coverage(squared).complete
    _agrees(squared)
    params = params_of(plain)
    x, y = batch_of(plain, 1)
    (row,) = rows_of(squared, params, x, y)
    found = jax.jit(lambda *given: plain.ravel(gradient_of_one(squared, *given)))(params, x, y)
    close(found, row, np.linalg.norm(row))


def _agrees(model):
    params = params_of(model)
    x, y = batch_of(model, 4)
    rows = rows_of(model, params, x, y)
    norms = np.linalg.norm(rows, axis=1)
    bound = float(np.median(norms))
    out = summed(model)(params, x, y, bound, jnp.ones(4, bool))
    weights = np.minimum(1, bound / norms)
    close(out.total, weights @ rows, np.linalg.norm(weights @ np.abs(rows)))


def test_models_that_are_covered_give_no_notice():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        coverage(FACTORIES["emnist_cnn"]()).warn(None)


@pytest.mark.parametrize("method", ["ghost", "vmap"])
@pytest.mark.parametrize("name", named("mlp", "emnist_cnn", "flax's embedding"))
def test_a_record_that_is_not_finite_adds_exactly_zero_and_is_reported(name, method):
    model = {**FACTORIES, **LAYERS}[name]()
    params = params_of(model)
    x, y = batch_of(model, 4)
    bad = x.copy()
    bad[2] = TOKENS + 5 if x.dtype == np.int32 else np.nan
    total = summed(model, method=method)
    out = total(params, bad, y, 0.5, jnp.ones(4, bool))
    others = total(params, x, y, 0.5, jnp.array([True, True, False, True]))
    assert out.finite.tolist() == [True, True, False, True]
    np.testing.assert_array_equal(out.total, others.total)


@pytest.mark.parametrize("method", ["ghost", "vmap"])
def test_norms_of_very_large_and_small_gradients(method):
    """Squares of 1e25 overflow float32 and those of 1e-25 vanish; norms do neither."""
    model = logistic_regression(3, 2)
    params = model.init(jax.random.key(0))
    x = jnp.array([[3e18, 4e18, 0], [3e-5, 4e-5, 0], [3e25, 4e25, 0]], jnp.float32)
    out = summed(model, method=method)(params, x, jnp.zeros(3, jnp.int32), 1.0, jnp.ones(3, bool))
    # the sigmoid's derivative is 1/2 at zero, the bias's input is 1
    np.testing.assert_allclose(out.norms[:2], [2.5e18, np.hypot(2.5e-5, 0.5)], rtol=1e-6)
    assert out.finite.tolist()[:2] == [True, True]


@pytest.mark.parametrize("method", ["ghost", "vmap"])
@pytest.mark.parametrize("large", [8e37, 9e37, 2e38, 3.4e38])
def test_the_largest_floats_are_not_taken_for_small_ones(large, method):
    """From 2^126 on, a reciprocal is flushed to zero, and so would be the norm."""
    model = logistic_regression(3, 2)
    params = model.init(jax.random.key(0))
    x = jnp.array([[large, 0, 0], [0, 0, 1], [large, large, -large]], jnp.float32)
    out = summed(model, method=method)(params, x, jnp.zeros(3, jnp.int32), 1.0, jnp.ones(3, bool))
    assert out.finite.tolist() == [False, True, False]
    assert np.linalg.norm(np.asarray(out.total, np.float64)) <= 1


@pytest.mark.parametrize(
    "name", named("mlp", "emnist_cnn", "char_lstm", "flax's embedding", "norms")
)
def test_no_clipped_record_is_longer_than_bound_and_margin(name):
    model = {**FACTORIES, **LAYERS}[name]()
    margin = norm_margin(model)
    assert 0 < margin < 1e-4
    x, y = batch_of(model, 64, seed=5)
    total = summed(model)
    for seed in range(4):
        params = params_of(model, seed)
        for record in range(0, 64, 8):
            bounds = np.zeros(64, np.float32)
            bounds[record] = np.float32(1e-2 * (1 - margin))
            out = total(params, x, y, jnp.asarray(bounds), jnp.ones(64, bool))
            assert np.linalg.norm(np.asarray(out.total, np.float64)) <= 1e-2
            assert float(out.norms[record]) > 1e-2


def test_the_margin_is_small_for_arrays_of_any_size():
    """A prime number of values cannot be cut into rows of equal length."""
    model = logistic_regression(200_003, 2)  # a prime
    margin = norm_margin(model)
    assert 0 < margin < 1e-4
    x, y = batch_of(model, 3)
    params, only = model.init(jax.random.key(0)), jnp.array([True, False, False])
    out = summed(model)(params, x, y, 0.1 * (1 - margin), only)
    assert 0.0999 < np.linalg.norm(np.asarray(out.total, np.float64)) <= 0.1


@pytest.mark.parametrize("name", named("mlp", "emnist_cnn", "resnet8", "char_lstm"))
def test_a_records_term_has_the_same_bits_at_every_place(name):
    """What the guarantee of the ghost path assumes of a machine: see the guide to DP-SGD."""
    model, records = FACTORIES[name](), {"mlp": 13, "emnist_cnn": 24}.get(name, 16)
    params = params_of(model)
    one_x, one_y = batch_of(model, 1, seed=9)
    total = summed(model)
    terms, norms = set(), set()
    for place in range(0, records, 3):
        x, y = batch_of(model, records, seed=place)
        x[place], y[place] = one_x[0], one_y[0]
        bounds = jnp.zeros(records).at[place].set(0.1)
        out = total(params, x, y, bounds, jnp.ones(records, bool))
        terms.add((np.asarray(out.total) + 0.0).tobytes())
        norms.add(float(out.norms[place]))
    assert len(terms) == len(norms) == 1


def test_a_records_term_has_the_same_bits_at_the_last_places_of_any_batch():
    """Of a hundred records the last ones' values are left over by loops over whole vectors."""
    model = _of(nn.Dense(13), nn.LayerNorm(), shape=(5, 9))
    params, size, rng = params_of(model), 100, np.random.default_rng(3)
    work = ghost_sums(model, 0.1, batch_size=size, with_record_bounds=True)

    @jax.jit
    def term(x, y, place):
        shared = {"params": params, "record_bounds": jnp.zeros(size).at[place].set(0.1)}
        rows = jnp.arange(size)
        batch = Batch(x, y, jnp.ones(size, bool), jnp.int32(0), jnp.int32(0), rows)
        carry = work.phases[0].step(shared, {}, work.start(shared, {}, None), batch)
        return model.ravel(work.finish(shared, {}, None, carry, None).value)

    for _ in range(12):
        x, y = rng.normal(size=(size, 45)).astype(np.float32), np.zeros(size, np.int32)
        terms = set()
        for place in (0, 1, 50, 95, 96, 97, 98, 99):
            moved = rng.normal(size=x.shape).astype(np.float32)
            moved[place] = x[0]
            terms.add((np.asarray(term(moved, y, place)) + 0.0).tobytes())
        assert len(terms) == 1


@pytest.mark.parametrize("name", named("layers", "mlp", "emnist_cnn"))
def test_a_records_term_has_the_same_bits_in_every_lane(name):
    """Accelerators work on many clients side by side, each in its lane."""
    models = {**FACTORIES, "layers": lambda: _of(nn.Dense(13), nn.LayerNorm(), shape=(5, 9))}
    model, size, lanes, rng = models[name](), 20, 3, np.random.default_rng(4)
    params = params_of(model)
    work = ghost_sums(model, 0.1, batch_size=size, with_record_bounds=True)

    @jax.jit
    @jax.vmap
    def term(x, y, place):
        shared = {"params": params, "record_bounds": jnp.zeros(size).at[place].set(0.1)}
        batch = Batch(x, y, jnp.ones(size, bool), jnp.int32(0), jnp.int32(0), jnp.arange(size))
        carry = work.phases[0].step(shared, {}, work.start(shared, {}, None), batch)
        return model.ravel(work.finish(shared, {}, None, carry, None).value)

    record = rng.normal(size=model.num_features).astype(np.float32)
    terms = set()
    for places in ((0, 7, 15), (16, 18, 19), (5, 5, 5), (19, 0, 1)):
        x = rng.normal(size=(lanes, size, model.num_features)).astype(np.float32)
        for lane, place in enumerate(places):
            x[lane, place] = record
        found = term(x, np.zeros((lanes, size), np.int32), np.array(places))
        terms |= {(row + 0.0).tobytes() for row in np.asarray(found)}
    assert len(terms) == 1


def test_an_unknown_method_is_refused():
    model = mlp(3, 2)
    with pytest.raises(SpecError, match="method 'ghost' or 'vmap'"):
        clipped_sum(
            model, model.init(jax.random.key(0)), jnp.ones((1, 3)), jnp.zeros(1, jnp.int32), 1.0,
            method="rows",
        )  # fmt: skip
