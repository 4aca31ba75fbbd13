"""The static picture and the lines behind it, from records alone."""

from __future__ import annotations

import io

import pytest
from PIL import Image, ImageChops

import fedjax_secure as fs
from fedjax_secure.widgets import picture
from fedjax_secure.widgets.chart import AccuracyChart, curves
from fedjax_secure.widgets.facts import size, timings


def record(number, clients=("a", "b"), epsilon=None, value=0.7, **changes):
    accuracy = {client: value + 0.01 * number for client in clients}
    return fs.RoundRecord(**{**dict(
        run="00", round=number, mode="simulation", clients=tuple(clients), model_before="",
        model_after="cd" * 32, sum_digest="", metrics={"accuracy": accuracy, "auc": accuracy},
        dp={} if epsilon is None else {"epsilon": epsilon, "dp_delta": 1e-5},
        outside_guarantee=("accuracy",), timings_seconds={"train": 0.01 * number, "ledger": 0.02},
        bytes_per_client=1000, ledger_head="ef" * 32), **changes})


def opened(png):
    return Image.open(io.BytesIO(png)).convert("RGB")


@pytest.mark.parametrize("records", [
    [], [record(1)], [record(n, epsilon=0.1 * n) for n in range(1, 6)],
    [record(n, clients=[f"client {k}" for k in range(40)], epsilon=1.0) for n in (1, 2)],
    [record(1, metrics={}, timings_seconds={}, ledger_head="", outside_guarantee=())],
    [record(1, metrics={"accuracy": {"a": None, "b": float("nan"), "c": 0.5}})],
    [record(1, clients=["a client with a very long name indeed"], value=0.0)],
    [record(1, metrics={"accuracy": {"a": 0.5}, "auc": {"a": None, "b": None}})],
    [record(1, clients=["$x^$", r"\frac{$$", "<b>$", "two\nlines"])],
], ids=["none", "one", "five", "forty clients", "bare", "gaps", "long name", "no AUC", "odd names"])
@pytest.mark.parametrize("target", [None, 2.0])
def test_every_kind_of_run_has_a_picture(records, target):
    image = opened(picture(records, target_epsilon=target, title="A run"))
    assert image.width >= 1200 and image.height >= 700
    assert len(image.getcolors(maxcolors=1 << 20)) > 50


def test_the_picture_shows_the_target_and_repeats():
    records = [record(n, epsilon=0.1 * n) for n in range(1, 6)]
    with_target = picture(records, target_epsilon=2.0)
    assert with_target == picture(records, target_epsilon=2.0)
    assert ImageChops.difference(opened(with_target), opened(picture(records))).getbbox()


def test_lines_are_the_records_values_and_their_mean():
    records = [record(1), record(2, metrics={"accuracy": {"a": 0.5, "b": None}}),
               record(3, metrics={"accuracy": {"a": 0.5, "b": 0.7}, "mean_accuracy": 0.65})]
    lines = {line["name"]: line["values"] for line in curves(records, "accuracy")}
    assert lines["a"] == [0.71, 0.5, 0.5] and lines["b"] == [0.71, None, 0.7]
    assert lines["mean"] == pytest.approx([0.71, 0.5, 0.65])
    assert curves(records, "f1") == []


def test_many_clients_are_drawn_as_their_mean_and_it_says_so():
    chart = AccuracyChart()
    chart.show([record(1, clients=[str(k) for k in range(30)])], total_rounds=5)
    figure = chart.figures["accuracy"]
    assert [line["name"] for line in figure["lines"]] == ["mean"]
    assert "mean of 30 clients" in figure["note"]


def test_timings_are_medians_and_totals():
    rows = {row["part"]: row for row in timings([record(1), record(2), record(9)])}
    assert rows["train"]["median"] == pytest.approx(0.02)
    assert rows["train"]["total"] == pytest.approx(0.12)


@pytest.mark.parametrize("count, text", [(0, "0 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"),
                                         (7e12, "7000.0 GB")])
def test_sizes_are_for_people(count, text):
    assert size(count) == text
