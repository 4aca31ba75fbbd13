"""The embedded ledger: its calls, restarts, crashes, and every sequence of them."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger import Account, commit, embedded, verify
from fedjax_secure.ledger.account import parse_address
from fedjax_secure.ledger.contracts import registry
from fedjax_secure.ledger.log import checkpoint_path
from fedjax_secure.ledger.machine import GAS_LIMIT
from fedjax_secure.ledger.transaction import Transaction


def account(name: str) -> Account:
    return Account.from_secret(hashlib.sha256(name.encode()).digest())


def digest(text: object) -> bytes:
    return hashlib.sha256(repr(text).encode()).digest()


COORDINATOR, ANA, BEN, CLEO = map(account, ("coordinator", "ana", "ben", "cleo"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "ledger"


@pytest.fixture
def ledger(path):
    with embedded(path) as ledger:
        ledger.open(COORDINATOR, min_clients=2)
        yield ledger


def run_round(ledger, number):
    for client in (ANA, BEN):
        ledger.register(client, digest(client.address))
        ledger.submit_update(client, number, commit(digest(number), bytes(16)))
    return ledger.confirm_round(COORDINATOR, number, digest(("model", number)))


def test_a_federation_is_recorded_and_restored(path):
    with embedded(path, chain_id=99) as ledger:
        ledger.open(COORDINATOR, min_clients=2)
        assert (ledger.confirmed_rounds(), ledger.size, ledger.chain_id) == (0, 1, 99)
        receipt = run_round(ledger, 1)
        assert (receipt.index, receipt.sender) == (5, COORDINATOR.address)
        assert receipt.head == ledger.head and len(receipt.transaction_hash) == 64
        names = [event.name for event in ledger.events()]
        head, events = ledger.head, ledger.events()
    assert names == ["Registered", "UpdateSubmitted"] * 2 + ["RoundConfirmed"]
    with embedded(path) as ledger:
        assert (ledger.head, ledger.events(), ledger.notice) == (head, events, None)
        ledger.open(COORDINATOR, min_clients=2)
        assert ledger.head == head
        assert ledger.coordinator == COORDINATOR.address
        assert ledger.registered(ANA.address) and not ledger.registered(CLEO.address)
        assert ledger.submission_key(ANA.address) == digest(ANA.address)
        assert ledger.submission_key(CLEO.address) is None
        assert ledger.num_clients() == ledger.num_submissions(1) == 2
        assert ledger.commitment(1, BEN.address) == commit(digest(1), bytes(16))
        assert ledger.commitment(2, BEN.address) is None
        assert ledger.model_digest(1) == digest(("model", 1))
        assert ledger.model_digest(2) is None
        run_round(ledger, 2)
        assert ledger.confirmed_rounds() == 2


def test_repeated_calls_append_nothing(ledger):
    first = ledger.register(ANA, digest("key"))
    assert ledger.register(ANA, digest("key")) == first
    ledger.register(BEN, digest("other key"))
    submitted = ledger.submit_update(ANA, 1, digest("update"))
    assert ledger.submit_update(ANA, 1, digest("update")) == submitted
    ledger.submit_update(BEN, 1, digest("update"))
    confirmed = ledger.confirm_round(COORDINATOR, 1, digest("model"))
    size = ledger.size
    assert ledger.confirm_round(COORDINATOR, 1, digest("model")) == confirmed
    assert ledger.submit_update(ANA, 1, digest("update")) == submitted
    assert ledger.size == size and ledger.num_submissions(1) == 2
    with pytest.raises(LedgerError, match="open round"):
        ledger.confirm_round(COORDINATOR, 1, digest("another model"))
    with pytest.raises(LedgerError, match="not the coordinator"):
        ledger.confirm_round(ANA, 1, digest("model"))


def test_an_interrupted_round_is_reopened_on_record(ledger, path):
    for client in (ANA, BEN):
        ledger.register(client, digest(client.address))
    ledger.submit_update(ANA, 1, digest("first"))
    with pytest.raises(LedgerError, match="reopen_round") as caught:
        ledger.submit_update(ANA, 1, digest("second"))
    assert "registry: already submitted" in caught.value.found
    ledger.reopen_round(COORDINATOR, 1)
    assert (ledger.attempt(1), ledger.num_submissions(1)) == (2, 0)
    for client in (ANA, BEN):
        ledger.submit_update(client, 1, digest("second"))
    # What stood in the first attempt is no repeat in the second.
    with pytest.raises(LedgerError, match="already submitted"):
        ledger.submit_update(ANA, 1, digest("first"))
    event = ledger.confirm_round(COORDINATOR, 1, digest("model")).events[0]
    assert (event.args["attempt"], event.args["submissions"]) == (2, 2)
    reopened = [event.args for event in ledger.events() if event.name == "RoundReopened"]
    assert [dict(a) for a in reopened] == [{"round": 1, "attempt": 2, "discarded": 1}]
    assert verify(path, head=ledger.head).ok


def test_transactions_signed_elsewhere(ledger):
    to = parse_address(ledger.contract_address)
    data = registry.encode_call("register", digest("key"))
    good = Transaction(ledger.chain_id, 0, to, data, GAS_LIMIT)
    size, head = ledger.size, ledger.head

    def refused(match, raw):
        with pytest.raises(LedgerError, match=match):
            ledger.append(raw)
        assert (ledger.size, ledger.head) == (size, head)

    def signed(**changes):
        return Transaction(**{**vars(good), **changes}).sign(ANA)

    refused("chain id", signed(chain_id=ledger.chain_id + 1))
    refused("nonce 0", signed(nonce=1))
    refused("no fees", signed(max_fee_per_gas=1))
    refused("no fees", signed(value=1))
    refused("no fees", signed(gas_limit=GAS_LIMIT - 1))
    refused("call of the registry", signed(to=bytes(20)))
    refused("call of the registry", signed(to=b""))
    refused("registry accepts", signed(data=b"\1\2\3\4"))
    assert ledger.append(good.sign(ANA)).sender == ANA.address
    size, head = ledger.size, ledger.head
    refused("nonce 1", good.sign(ANA))  # replayed
    refused("key in use", good.sign(BEN))


def test_a_transaction_of_one_ledger_is_refused_by_another(tmp_path):
    with embedded(tmp_path / "a") as a, embedded(tmp_path / "b") as b:
        for each in (a, b):
            each.open(COORDINATOR, min_clients=1)
        assert a.contract_address == b.contract_address  # so the chain id must tell them apart
        to = parse_address(a.contract_address)
        call = registry.encode_call("register", digest("key"))
        raw = Transaction(a.chain_id, 0, to, call, GAS_LIMIT).sign(ANA)
        with pytest.raises(LedgerError, match="chain id"):
            b.append(raw)
        a.append(raw)


def test_it_must_be_opened_and_by_the_same_coordinator(path):
    with embedded(path) as ledger:
        for call in (
            ledger.confirmed_rounds,
            lambda: ledger.register(ANA, digest("key")),
            lambda: ledger.submit_update(ANA, 1, digest("update")),
            lambda: ledger.confirm_round(COORDINATOR, 1, digest("model")),
        ):
            with pytest.raises(LedgerError, match=r"Call ledger\.open"):
                call()
        with pytest.raises(LedgerError, match="min_clients of at least 1"):
            ledger.open(COORDINATOR, min_clients=0)
        assert ledger.size == 0
        ledger.open(COORDINATOR, min_clients=2)
    for coordinator, min_clients in ((ANA, 2), (COORDINATOR, 3)):
        with embedded(path) as ledger, pytest.raises(LedgerError, match="as it was opened"):
            ledger.open(coordinator, min_clients=min_clients)
    with pytest.raises(LedgerError, match="chain id"):
        embedded(path, chain_id=5)
    with pytest.raises(LedgerError, match="to be open"):
        ledger.append(b"")
    with embedded(path) as first, pytest.raises(LedgerError, match="only writer"):
        embedded(first.path)


@pytest.mark.parametrize("bad", [b"short", "0" * 32, None])
def test_values_of_the_wrong_form_are_refused(ledger, bad):
    for call in (
        lambda: ledger.register(ANA, bad),
        lambda: ledger.submit_update(ANA, 1, bad),
        lambda: ledger.confirm_round(COORDINATOR, 1, bad),
    ):
        with pytest.raises(LedgerError, match="32 bytes"):
            call()
    for round_number in (-1, 1.0, "1", True, 2**256):
        with pytest.raises(LedgerError, match="whole number"):
            ledger.submit_update(ANA, round_number, digest("update"))
    assert ledger.size == 1


def test_a_log_shorter_than_its_checkpoint_is_refused(ledger, path, tmp_path):
    short = path.read_bytes()
    run_round(ledger, 1)
    whole, note = path.read_bytes(), checkpoint_path(path).read_bytes()
    assert whole.startswith(short)
    other = tmp_path / "other"
    for data, found in (
        (short, "1 entries where the signed checkpoint has 6"),
        (whole[:-1], "5 entries where the signed checkpoint has 6"),
        (b"", "a checkpoint beside an empty log"),
    ):
        other.write_bytes(data)
        checkpoint_path(other).write_bytes(note)
        with pytest.raises(LedgerError, match=found):
            embedded(other)
    assert other.read_bytes() in (b"", b"fedjax_secure ledger 1\n")
    other.write_bytes(whole)
    checkpoint_path(other).write_bytes(note.replace(b"\n6\n", b"\n5\n"))
    with pytest.raises(LedgerError, match="bad checkpoint"):
        embedded(other)


def test_a_checkpoint_of_another_history_is_refused(tmp_path):
    for name in ("a", "b"):
        with embedded(tmp_path / name, chain_id=7) as ledger:
            ledger.open(COORDINATOR, min_clients=2)
            ledger.register(ANA, digest(name))
    checkpoint_path(tmp_path / "a").write_bytes(checkpoint_path(tmp_path / "b").read_bytes())
    with pytest.raises(LedgerError, match="another history"):
        embedded(tmp_path / "a")
    outcome = verify(tmp_path / "a")
    assert not outcome.ok and "not those that were signed" in outcome.reason


def test_a_disk_error_closes_the_ledger_and_loses_nothing(path, monkeypatch):
    ledger = embedded(path)
    ledger.open(COORDINATOR, min_clients=2)
    head = ledger.head

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedjax_secure.ledger.log.os.write", broken)
    with pytest.raises(LedgerError, match="No space left"):
        ledger.register(ANA, digest("key"))
    monkeypatch.undo()
    with pytest.raises(LedgerError, match="to be open"):
        ledger.register(ANA, digest("key"))
    ledger.close()
    with embedded(path) as ledger:
        assert ledger.head == head and not ledger.registered(ANA.address)
        ledger.open(COORDINATOR, min_clients=2)
        run_round(ledger, 1)


def test_a_batch_keeps_what_was_taken_before_an_error(ledger, path):
    with pytest.raises(LedgerError, match="not registered"), ledger.batch():
        ledger.register(ANA, digest("key"))
        ledger.submit_update(BEN, 1, digest("update"))
    assert ledger.registered(ANA.address)
    assert verify(path, head=ledger.head).ok


def test_threads_share_a_ledger(ledger, path):
    clients = [account(f"client {i}") for i in range(12)]

    def take_part(client):
        ledger.register(client, digest(client.address))
        ledger.submit_update(client, 1, digest("update"))

    threads = [threading.Thread(target=take_part, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ledger.num_submissions(1) == 12
    assert verify(path, head=ledger.head).ok


def _write_until_killed(path, pipe, slowly):
    """Appends rounds for ever and reports each receipt; writes seven bytes at a time if slowly."""
    if slowly:
        write = os.write

        def trickle(file, data):
            time.sleep(0.0005)
            return write(file, bytes(data[:7]))

        os.write = trickle
    with embedded(path) as ledger:
        ledger.open(COORDINATOR, min_clients=2)
        for number in range(ledger.confirmed_rounds() + 1, 10**6):
            if ledger.num_submissions(number):
                ledger.reopen_round(COORDINATOR, number)
            for client in (ANA, BEN):
                ledger.register(client, digest(client.address))
                ledger.submit_update(client, number, commit(digest("u"), os.urandom(16)))
            receipt = ledger.confirm_round(COORDINATOR, number, digest(number))
            pipe.send((receipt.index, receipt.head))


@pytest.mark.parametrize("slowly", [False, True])
def test_a_killed_writer_loses_nothing_that_it_reported(path, slowly):
    context = multiprocessing.get_context("spawn")
    torn = 0
    for attempt in range(3):
        receiver, sender = context.Pipe(duplex=False)
        writer = context.Process(target=_write_until_killed, args=(path, sender, slowly))
        writer.start()
        sender.close()
        last = receiver.recv()
        time.sleep(0.01 + 0.013 * attempt)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        try:
            while True:
                last = receiver.recv()
        except EOFError:
            receiver.close()
        with embedded(path) as ledger:
            torn += ledger.notice is not None
            assert ledger.size > last[0]
            assert ledger.confirmed_rounds() >= attempt + 1
        assert verify(path, head=last[1]).ok
    if slowly:
        assert torn  # nearly all of the writer's time lies inside an append


class AnyHistory(RuleBasedStateMachine):
    """Every sequence of calls and restarts gives what a plain model of the rules gives."""

    clients = [ANA, BEN, CLEO]

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "ledger"
        self.ledger = embedded(self.path)
        self.ledger.open(COORDINATOR, min_clients=2)
        self.keys, self.taken, self.models, self.attempts = {}, {}, [], {}
        self.size, self.heads, self.raws = 1, [self.ledger.head], []

    def expect(self, allowed, repeated, call, *args):
        if allowed or repeated:
            receipt = call(*args)
            self.size += not repeated
            if not repeated:
                self.heads.append(receipt.head)
        else:
            with pytest.raises(LedgerError):
                call(*args)

    @property
    def open_round(self):
        return len(self.models) + 1

    def attempt(self, number):
        return self.attempts.get(number, 1)

    @rule(client=st.sampled_from(clients), key=st.integers(1, 3))
    def register(self, client, key):
        repeated = self.keys.get(client) == key
        allowed = client not in self.keys and key not in self.keys.values()
        self.expect(allowed, repeated, self.ledger.register, client, digest(key))
        if allowed:
            self.keys[client] = key

    @rule(
        client=st.sampled_from(clients),
        offset=st.sampled_from([-1, 0, 0, 0, 1]),
        c=st.integers(1, 2),
    )
    def submit(self, client, offset, c):
        number = self.open_round + offset
        place = (number, self.attempt(number), client)
        repeated = self.taken.get(place) == c
        allowed = client in self.keys and offset == 0 and place not in self.taken
        self.expect(allowed, repeated, self.ledger.submit_update, client, number, digest(c))
        if allowed:
            self.taken[place] = c

    def submissions(self, number):
        return sum(place[:2] == (number, self.attempt(number)) for place in self.taken)

    @rule(
        signer=st.sampled_from([COORDINATOR, COORDINATOR, ANA]),
        offset=st.sampled_from([-1, 0, 0, 1]),
    )
    def confirm(self, signer, offset):
        number = self.open_round + offset
        real = signer is COORDINATOR
        repeated = real and offset == -1 and number > 0
        allowed = real and offset == 0 and self.submissions(number) >= 2
        model = digest(("model", number))
        self.expect(allowed, repeated, self.ledger.confirm_round, signer, number, model)
        if allowed:
            self.models.append(model)

    @rule(signer=st.sampled_from([COORDINATOR, COORDINATOR, BEN]))
    def reopen_round(self, signer):
        number = self.open_round
        allowed = signer is COORDINATOR and self.submissions(number) > 0
        self.expect(allowed, False, self.ledger.reopen_round, signer, number)
        if allowed:
            self.attempts[number] = self.attempt(number) + 1

    @rule(torn=st.binary(max_size=7), clean=st.booleans())
    def restart(self, torn, clean):
        if clean:
            self.ledger.close()
        else:
            self.ledger._log.close()  # as if killed: no last checkpoint
            with self.path.open("ab") as file:
                file.write(torn)
        self.ledger = embedded(self.path)
        assert (self.ledger.notice is not None) == bool(torn and not clean)
        self.ledger.open(COORDINATOR, min_clients=2)

    @precondition(lambda self: self.size > 3)
    @rule(data=st.data())
    def verify_a_known_head(self, data):
        head = data.draw(st.sampled_from(self.heads))
        outcome = verify(self.path, head=head)
        assert outcome.ok, outcome.reason
        assert (outcome.entries, outcome.clients) == (self.size, len(self.keys))
        assert outcome.rounds_confirmed == len(self.models)

    @invariant()
    def agrees(self):
        assert self.ledger.size == self.size and self.ledger.head == self.heads[-1]
        assert self.ledger.confirmed_rounds() == len(self.models)
        number = self.open_round
        assert self.ledger.attempt(number) == self.attempt(number)
        assert self.ledger.num_submissions(number) == self.submissions(number)
        for client in self.clients:
            c = self.taken.get((number, self.attempt(number), client))
            assert self.ledger.commitment(number, client.address) == (c and digest(c))
        for past, model in enumerate(self.models, 1):
            assert self.ledger.model_digest(past) == model

    def teardown(self):
        self.ledger.close()
        self.folder.cleanup()


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_a_log_that_was_removed_while_open_takes_nothing_and_leaves_no_checkpoint(ledger, path):
    path.unlink()
    checkpoint_path(path).unlink()
    with pytest.raises(LedgerError, match="removed or replaced"):
        ledger.register(ANA, digest("ana"))
    ledger.close()
    assert not path.exists() and not checkpoint_path(path).exists()
    with embedded(path) as fresh:  # the path is free for another federation
        fresh.open(COORDINATOR, min_clients=2)
        with pytest.raises(LedgerError, match="removed or replaced"), fresh.batch():
            path.rename(path.with_name("moved"))
            path.write_bytes(b"")
            fresh.register(ANA, digest("ana"))
