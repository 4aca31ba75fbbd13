"""Who adds up: openers that make the sum themselves, in chunks, or a trusted aggregator."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import optax
import pytest

import fedjax_secure as fs
from fedjax_secure.core import OpeningError, SpecError, UpdateError, model_digest
from fedjax_secure.core.randomness import device_keys
from fedjax_secure.data import heart_disease
from fedjax_secure.runtime.storage import Journal

DATA = heart_disease()
CANDIDATES = fs.selection.Candidates(DATA.clients, DATA.offsets)
RATE = 0.2


def federation(tmp_path, *, encrypted=True, private=True, algorithm=None, rate=RATE, **options):
    stages = [fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=24)]
    budget = None
    if private:
        stages.append(fs.privacy.discrete_gaussian(2.0, missing_shares=1))
        budget = fs.privacy.Budget.open(
            DATA.population_fingerprint, DATA.unit, epsilon=50.0, dp_delta=1e-4,
            folder=tmp_path / "budget", label="simulation")
    if encrypted:
        stages.append(fs.he.encrypt(fs.he.public_key()))
    return fs.Federation(
        fs.models.logistic_regression(DATA), DATA,
        algorithm or fs.algorithms.fed_sgd(optax.sgd(0.5)), fs.chain(*stages),
        selection=fs.selection.poisson_records(rate), budget=budget, folder=tmp_path / "run",
        seed=7, **options)


def digests(run, rounds=2):
    with run:
        state, found = run.init(), []
        for state, record in run.run(state, rounds=rounds):
            found.append(record.model_after)
        assert model_digest(state.params).hex() == found[-1]
        assert all(count == 1 for count in run.traces.values()), run.traces
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    return digests(federation(tmp_path_factory.mktemp("whole")))


@pytest.mark.parametrize("clients", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_chunks_change_nothing(tmp_path, expected, clients):
    assert digests(federation(tmp_path, chunk_clients=clients)) == expected
    left = [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith("sent")]
    assert left == []


@pytest.mark.parametrize("encrypted", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_sum_inside_the_compiled_round_is_the_same(tmp_path, expected, encrypted):
    run = federation(tmp_path, encrypted=encrypted, aggregator="semi-honest")
    assert digests(run) == expected
    assert set(run.traces) == {"record_sums", "step"}
    assert [record.aggregator for record in run.records] == ["semi-honest"] * 2
    assert all(record.clients == tuple(sorted(DATA.clients)) for record in run.records)


def test_a_trusted_aggregator_is_stated(tmp_path):
    with federation(tmp_path, aggregator="semi-honest") as run:
        text = " ".join(run.threat_model().assumptions)
        assert "semi-honest aggregator" in text and "can have one hospital's ciphertext" in text
        assert "signed list" not in str(run.threat_model())
        assert "It opens what the server gives as the sum of" in run.threat_model().opener
    with federation(tmp_path / "other") as run:
        assert "semi-honest" not in " ".join(run.threat_model().assumptions)
        assert "It opens sums of" in run.threat_model().opener
        assert "the signed list of hospitals" in run.threat_model().server


def test_each_way_refuses_the_other_ways_messages(tmp_path):
    with federation(tmp_path / "a", aggregator="semi-honest") as run:
        with pytest.raises(OpeningError, match="needs the aggregator's sum"):
            run._opener.open(1, bytes(32), [])
    with federation(tmp_path / "b") as run:
        with pytest.raises(OpeningError, match="needs the clients' signed submissions"):
            run._opener.open_total(1, bytes(32), b"", DATA.clients)


def test_an_aggregators_sum_needs_enough_known_clients_once(tmp_path):
    run = federation(tmp_path, aggregator="semi-honest")
    with run:
        state = run.init()
        for state, _ in run.run(state, rounds=1):
            pass
        opener, total = run._opener, b"another"
        for names in (DATA.clients[:1], ("nobody", *DATA.clients), DATA.clients[:1] * 4):
            with pytest.raises(OpeningError, match="distinct clients of the roster"):
                opener.open_total(2, bytes(32), total, names)
        with pytest.raises(OpeningError, match="has not been opened"):
            opener.open_total(1, bytes(32), total, DATA.clients)
        with pytest.raises(OpeningError, match="the aggregator's sum"):
            opener.open_total(2, bytes(32), total, DATA.clients)


def test_a_round_that_was_interrupted_sends_the_same_sum(tmp_path, expected, monkeypatch):
    run = federation(tmp_path, aggregator="semi-honest")
    with run, monkeypatch.context() as patched:
        def stop(*_):
            raise KeyboardInterrupt

        patched.setattr(run, "_spend_round", stop)
        with pytest.raises(KeyboardInterrupt):
            next(run.run(run.init(), rounds=1))
    kept = (tmp_path / "run" / "sent-000001.msgpack").read_bytes()
    again = federation(tmp_path, aggregator="semi-honest")
    assert digests(again) == expected
    assert kept and again.traces["record_sums"] == 1  # the first round was not worked again


def _interrupted(run):
    def stop(*_):
        raise KeyboardInterrupt

    with run, pytest.raises(KeyboardInterrupt):
        run._spend_round = stop
        next(run.run(run.init(), rounds=1))


@pytest.mark.parametrize("aggregator", ["untrusted", "semi-honest"])
def test_what_clients_sent_is_not_opened_at_another_model(tmp_path, aggregator):
    _interrupted(federation(tmp_path, aggregator=aggregator))
    with federation(tmp_path, aggregator=aggregator) as run:
        state = run.init()
        moved = state._replace(params=jax.tree.map(lambda leaf: leaf + 1, state.params))
        with pytest.raises(fs.core.ResumeError, match="model that its clients answered"):
            next(run.run(moved, rounds=1))
        assert not run.budget.entries()
        next(run.run(state, rounds=1))


def test_a_sum_of_another_round_is_not_opened(tmp_path):
    _interrupted(federation(tmp_path, aggregator="semi-honest"))
    first = tmp_path / "run" / "sent-000001.msgpack"
    kept = first.read_bytes()
    with federation(tmp_path, aggregator="semi-honest") as run:
        rounds = run.run(run.init(), rounds=2)
        next(rounds)
        first.with_name("sent-000002.msgpack").write_bytes(kept)
        with pytest.raises(fs.core.ResumeError, match="a readable sent-000002.msgpack"):
            next(rounds)
        first.with_name("sent-000002.msgpack").write_bytes(b"\x01")
        with pytest.raises(fs.core.ResumeError, match="a readable sent-000002.msgpack"):
            next(run.run(run.init(), rounds=2))


def test_an_aggregators_sum_of_another_type_is_refused(tmp_path):
    with federation(tmp_path, aggregator="semi-honest") as run:
        for total, names in ((None, DATA.clients), (b"", (1, 2, 3))):
            with pytest.raises(OpeningError, match="a sum's bytes and the clients' ids"):
                run._opener.open_total(1, bytes(32), total, names)


def test_what_a_round_sent_shows_no_salts(tmp_path):
    with federation(tmp_path) as run:
        kept, real = [], run._journal.store_sent
        run._journal.store_sent = lambda *given: kept.append(real(*given)) or kept[0]
        next(run.run(run.init(), rounds=1))
    salts = [salt for _, salt in kept[0].submissions]
    assert len(salts) == 4 and not any(repr(salt) in repr(kept[0]) for salt in salts)


def test_a_scheme_of_the_host_is_refused_before_the_folder_is_taken(tmp_path):
    stages = (fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=24))

    def build(scheme):
        return fs.Federation(
            fs.models.logistic_regression(DATA), DATA, fs.algorithms.fed_sgd(optax.sgd(0.5)),
            fs.chain(*stages, fs.he.encrypt(scheme)), aggregator="semi-honest", seed=1,
            folder=tmp_path / "run")

    with pytest.raises(SpecError, match="whose scheme runs on the host"):
        build(fs.he.openfhe_bgv())
    assert not (tmp_path / "run").exists()
    build(fs.he.public_key()).close()


@pytest.mark.parametrize("options", [
    {}, {"chunk_clients": 1}, {"aggregator": "semi-honest"}])
def test_rounds_in_which_nobody_drew_a_record_compile_nothing_new(options):
    run = fs.Federation(
        fs.models.logistic_regression(DATA), DATA, fs.algorithms.fed_avg(0.1, local_epochs=2),
        fs.chain(), selection=fs.selection.poisson_records(0.002), seed=3, **options)
    with run:
        cohorts = [run.selection.draw(run.source, number, CANDIDATES, ())
                   for number in range(1, 5)]
        for _ in run.run(run.init(), rounds=4):
            pass
    drawn = [sum(map(len, cohort.indices)) for cohort in cohorts]
    assert 0 in drawn and any(drawn), drawn
    assert all(count == 1 for count in run.traces.values()), run.traces


@pytest.mark.parametrize("aggregator", ["untrusted", "semi-honest"])
def test_clients_without_records_still_add_their_noise(tmp_path, aggregator):
    with federation(tmp_path, aggregator=aggregator, rate=1e-6) as run:
        cohort = run.selection.draw(run.source, 1, CANDIDATES, ())
        assert not any(map(len, cohort.indices))
        next(run.run(run.init(), rounds=1))
        keys = device_keys([run.source.key("client", round=1, client=name)
                            for name in DATA.clients])
        shares, _ = run.aggregation.encode(run._states, keys, np.zeros((4, run.model.dim), "i4"))
        assert np.all(np.any(np.asarray(shares), axis=1))
        opened = run._opener.opened(1)
    total = np.asarray(shares).sum(axis=0, dtype=np.uint32) % np.uint32(run.spec.modulus)
    np.testing.assert_array_equal(opened.total, total)
    assert opened.clients == tuple(sorted(DATA.clients))


def test_a_full_disk_leaves_no_payloads(tmp_path):
    journal = Journal(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        with journal.sending(1) as outbox:
            outbox._file.close()
            outbox._file = open("/dev/full", "wb")
            outbox._file.write(b"payload")
            outbox.sync()
    assert not list(tmp_path.glob("sent-*"))
    journal.close()


def test_damaged_payloads_on_disk_are_not_sent(tmp_path, monkeypatch):
    with federation(tmp_path) as run, monkeypatch.context() as patched:
        def stop(*_):
            raise KeyboardInterrupt

        patched.setattr(run, "_spend_round", stop)
        with pytest.raises(KeyboardInterrupt):
            next(run.run(run.init(), rounds=1))
    path = tmp_path / "run" / "sent-000001.payloads"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with federation(tmp_path) as run:
        with pytest.raises(fs.core.ResumeError, match="needs the bytes that were written"):
            next(run.run(run.init(), rounds=1))


@pytest.mark.parametrize("aggregator", ["untrusted", "semi-honest"])
def test_values_that_are_not_finite_are_named_and_nothing_is_sent(tmp_path, aggregator):
    x = np.where(DATA.x == 0, np.float32(1e30), DATA.x)
    data = dataclasses.replace(DATA, x=x)
    run = fs.Federation(fs.models.logistic_regression(data), data, fs.algorithms.fed_avg(1e38),
                        fs.chain(), seed=1, aggregator=aggregator, folder=tmp_path)
    with run, pytest.raises(UpdateError, match="NaN or infinity from Cleveland"):
        next(run.run(run.init(), rounds=1))
    assert not list(tmp_path.glob("sent-*"))


def test_local_training_adds_up_alike(tmp_path):
    models = []
    for aggregator in ("untrusted", "semi-honest"):
        run = fs.Federation(
            fs.models.logistic_regression(DATA), DATA, fs.algorithms.fed_avg(0.1, local_epochs=2),
            fs.chain(), seed=1, aggregator=aggregator)
        with run:
            for state, record in run.run(run.init(), rounds=2):
                pass
        models.append(np.asarray(run.model.ravel(state.params)))
    np.testing.assert_allclose(models[0], models[1], atol=1e-6)  # floats, added in another order


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"aggregator": "honest"}, "aggregator \"untrusted\" or \"semi-honest\", got 'honest'"),
        ({"chunk_clients": 0}, "chunk_clients, a whole number of 1 or more, got 0"),
        ({"chunk_clients": 2.5}, "chunk_clients, a whole number of 1 or more, got 2.5"),
    ],
)
def test_refusals(tmp_path, options, message):
    with pytest.raises(SpecError, match=message):
        federation(tmp_path, **options)


def test_a_key_that_opens_fewer_rounds_is_refused_before_the_first(tmp_path):
    scheme = fs.he.threshold(2, 2, max_openings=2)
    chain = fs.chain(fs.privacy.clip(1.0, unit="record"), fs.privacy.quantise(bits=24),
                     fs.he.encrypt(scheme))
    with fs.Federation(
            fs.models.logistic_regression(DATA), DATA, fs.algorithms.fed_sgd(optax.sgd(0.5)), chain,
            folder=tmp_path, seed=1) as run:
        state = run.init()
        with pytest.raises(SpecError, match="opens 3 more rounds, got one that opens 2"):
            run.run(state, rounds=3)
        for state, _ in run.run(state, rounds=2):
            pass
        assert run._opener.rounds_left == 0
        with pytest.raises(SpecError, match="opens 1 more rounds"):
            run.run(state, rounds=3)


def test_a_ledger_needs_each_clients_message(tmp_path):
    ledger = fs.ledger.embedded(tmp_path / "ledger.log")
    with pytest.raises(SpecError, match="to record on the ledger"):
        federation(tmp_path, aggregator="semi-honest", ledger=ledger)


def test_another_aggregator_is_another_run(tmp_path):
    federation(tmp_path).close()
    with pytest.raises(fs.core.ResumeError, match="aggregator='untrusted'"):
        federation(tmp_path, aggregator="semi-honest")
