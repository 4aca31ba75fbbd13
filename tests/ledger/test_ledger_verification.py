"""Offline verification: what it reports, and that no change of a log or checkpoint goes unseen."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import pytest

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger import Account, embedded, verify
from fedjax_secure.ledger.__main__ import main
from fedjax_secure.ledger.chain import Chain
from fedjax_secure.ledger.contracts import registry
from fedjax_secure.ledger.log import MAGIC, LogFile, checkpoint_path, scan
from fedjax_secure.ledger.transaction import Transaction, decode_transaction


def account(name: str) -> Account:
    return Account.from_secret(hashlib.sha256(name.encode()).digest())


COORDINATOR, ANA, BEN = map(account, ("coordinator", "ana", "ben"))


def key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A small log: deployment, two clients, an interrupted round and a confirmed one."""
    path = tmp_path_factory.mktemp("history") / "ledger"
    with embedded(path, chain_id=2**40) as ledger:
        ledger.open(COORDINATOR, min_clients=2)
        ledger.register(ANA, key("ana"))
        ledger.register(BEN, key("ben"))
        ledger.submit_update(ANA, 1, key("interrupted"))
        ledger.reopen_round(COORDINATOR, 1)
        for client in (ANA, BEN):
            ledger.submit_update(client, 1, key("update"))
        ledger.confirm_round(COORDINATOR, 1, key("model"))
    return path


@pytest.fixture
def copy(history, tmp_path):
    """A copy of the log without its checkpoint."""
    path = tmp_path / "ledger"
    path.write_bytes(history.read_bytes())
    return path


def heads(path):
    return [entry.root.hex() for entry in scan(path.read_bytes())]


def test_a_good_history(history):
    outcome = verify(history)
    assert outcome.ok and outcome.first_bad is None and outcome.reason == ""
    assert (outcome.entries, outcome.rounds_confirmed, outcome.clients) == (8, 1, 2)
    assert outcome.coordinator == COORDINATOR.address
    assert outcome.complete_to == 8 and outcome.head == heads(history)[-1]
    assert "history verified" in outcome.summary() and outcome.head in outcome.summary()
    assert outcome == verify(history, checkpoint=checkpoint_path(history))


def test_the_same_history_has_the_same_digests_and_another_has_others(history, tmp_path):
    with embedded(tmp_path / "other", chain_id=2**40) as ledger:
        ledger.open(COORDINATOR, min_clients=2)
        ledger.register(BEN, key("ben"))
        ledger.register(ANA, key("ana"))
        for client in (ANA, BEN):
            ledger.submit_update(client, 1, key("update"))
        ledger.confirm_round(COORDINATOR, 1, key("another model"))
    first, other = verify(history), verify(tmp_path / "other")
    assert other.ok
    assert first.events_digest != other.events_digest
    assert first.state_digest != other.state_digest


def flipped_positions(data):
    """Every byte outside the byte code, and a sample of those inside, which are all alike."""
    first = next(scan(data)).end
    inside = range(len(MAGIC) + 300, first - 300)
    return [p for p in range(len(data)) if p not in inside or p % 7 == 0]


def check_flips(path, positions):
    data = path.read_bytes()
    ends = [entry.end for entry in scan(data)]
    for position in positions:
        changed = bytearray(data)
        changed[position] ^= 1 + position % 255
        path.write_bytes(changed)
        outcome = verify(path)
        assert not outcome.ok
        assert outcome.first_bad == sum(end <= position for end in ends), position
        assert outcome.entries == outcome.first_bad and outcome.reason
    return ends


def test_any_flipped_byte_is_found_and_its_entry_is_named(copy):
    ends = check_flips(copy, flipped_positions(copy.read_bytes()))
    assert len(ends) == 8


@pytest.mark.slow
def test_every_flipped_byte_is_found_and_its_entry_is_named(copy):
    check_flips(copy, range(len(copy.read_bytes())))


def rewrite(path, raws, digests=None):
    """Writes a log with right frames and roots over the given transactions."""
    path.unlink(missing_ok=True)
    log = LogFile(path)
    for i, raw in enumerate(raws):
        log.append(digests[i] if digests else bytes(32), raw)
    log.close()


def parts(path):
    entries = list(scan(path.read_bytes()))
    return [e.raw for e in entries], [e.events_digest for e in entries]


def fails_at(path, index, match, **options):
    outcome = verify(path, **options)
    assert not outcome.ok and outcome.first_bad == index
    assert match in outcome.reason, outcome.reason
    assert outcome.reason in outcome.summary()
    with pytest.raises(LedgerError, match="undamaged log"):
        embedded(path)


def test_a_rewritten_log_with_right_roots_does_not_verify(copy):
    raws, digests = parts(copy)
    rewrite(copy, raws, digests)
    assert verify(copy).ok
    fake = digests[:3] + [bytes(32)] + digests[4:]
    rewrite(copy, raws, fake)
    fails_at(copy, 3, "events")
    rewrite(copy, raws[:1] + raws[2:], digests[:1] + digests[2:])
    fails_at(copy, 2, "nonce 0")
    rewrite(copy, raws + raws[-1:], digests + digests[-1:])
    fails_at(copy, 8, "nonce")
    swapped = [0, 1, 2, 4, 3, 5, 6, 7]
    rewrite(copy, [raws[i] for i in swapped], [digests[i] for i in swapped])
    fails_at(copy, 3, "nothing to reopen")
    rewrite(copy, raws[1:], digests[1:])
    fails_at(copy, 0, "deployment of the registry")


def test_forged_transactions_are_named(copy):
    raws, digests = parts(copy)
    last = decode_transaction(raws[-1]).transaction
    forgeries = {
        "not the coordinator": Transaction(**{**vars(last), "nonce": 3}).sign(ANA),
        "chain id": Transaction(**{**vars(last), "chain_id": 5}).sign(COORDINATOR),
        "nonce": Transaction(**{**vars(last), "nonce": 7}).sign(COORDINATOR),
        "EIP-1559": raws[-1][:-1],
    }
    for match, raw in forgeries.items():
        rewrite(copy, [*raws[:-1], raw], digests)
        fails_at(copy, 7, match)


def test_another_contract_is_refused(copy):
    raws, digests = parts(copy)
    deploy = decode_transaction(raws[0]).transaction
    code = bytearray(deploy.data)
    code[100] ^= 1
    forged = Transaction(**{**vars(deploy), "data": bytes(code)}).sign(COORDINATOR)
    rewrite(copy, [forged], digests)
    fails_at(copy, 0, "deployment of the registry")


def test_a_state_that_its_events_do_not_give_is_found(copy, monkeypatch):
    view = Chain.view

    def lying(self, name, *args):
        value = view(self, name, *args)
        return key("other model") if name == "model_digest" else value

    monkeypatch.setattr(Chain, "view", lying)
    outcome = verify(copy)
    assert (outcome.ok, outcome.first_bad) == (False, 7)
    assert "RoundConfirmed" in outcome.reason


def test_entries_missing_at_the_end_are_found_by_a_head_or_the_checkpoint(copy, history):
    data, known = copy.read_bytes(), heads(copy)
    ends = [entry.end for entry in scan(data)]
    for kept in range(1, 8):
        copy.write_bytes(data[: ends[kept - 1]])
        alone = verify(copy)
        assert alone.ok and alone.complete_to == 0 and "unknown" in alone.summary()
        outcome = verify(copy, head=known[-1])
        assert not outcome.ok and outcome.first_bad == kept and "missing" in outcome.reason
        outcome = verify(copy, checkpoint=checkpoint_path(history))
        assert not outcome.ok and outcome.first_bad == kept and "missing" in outcome.reason
        grown = verify(history, head=known[kept - 1].upper())
        assert grown.ok and grown.complete_to == 8
    for cut in range(len(MAGIC), ends[0], 97):
        copy.write_bytes(data[:cut])
        assert verify(copy).first_bad == 0


def test_only_a_head_or_the_checkpoint_vouches_for_the_order_of_entries(copy, history):
    raws, digests = parts(copy)
    swapped = [0, 1, 2, 3, 4, 6, 5, 7]  # the updates of two clients
    rewrite(copy, [raws[i] for i in swapped], [digests[i] for i in swapped])
    outcome = verify(copy)
    assert outcome.ok and outcome.complete_to == 0
    assert "completeness: unknown" in outcome.summary()
    assert not verify(copy, head=heads(history)[-1]).ok
    assert not verify(copy, checkpoint=checkpoint_path(history)).ok


def test_a_head_vouches_for_a_prefix(copy):
    outcome = verify(copy, head=heads(copy)[4])
    assert outcome.ok and outcome.complete_to == 5
    assert "3 newer entries are not" in outcome.summary()


def test_every_byte_of_the_checkpoint_counts(copy, history):
    note = checkpoint_path(history).read_bytes()
    for position in range(0, len(note), 3):
        changed = bytearray(note)
        changed[position] ^= 1 << (position % 8)
        checkpoint_path(copy).write_bytes(changed)
        outcome = verify(copy)
        assert not outcome.ok and outcome.first_bad is None
        assert "checkpoint is bad" in outcome.reason
    assert "every entry replays" in outcome.summary()


def test_what_cannot_be_read_is_refused(tmp_path, copy):
    with pytest.raises(LedgerError, match="the log at"):
        verify(tmp_path / "missing")
    with pytest.raises(LedgerError, match="the checkpoint at"):
        verify(copy, checkpoint=tmp_path / "missing")
    for head in ("", "00", "g" * 64):
        with pytest.raises(LedgerError, match="64 hexadecimal"):
            verify(copy, head=head)
    for empty in (b"", MAGIC, MAGIC[:5]):
        copy.write_bytes(empty)
        assert verify(copy).first_bad == 0 and not verify(copy).ok


def test_the_command_line(copy, history, capsys):
    assert main(["verify", str(history)]) == 0
    assert "history verified" in capsys.readouterr().out
    data = bytearray(copy.read_bytes())
    data[-40] ^= 1
    copy.write_bytes(data)
    assert main(["verify", str(copy)]) == 1
    assert "first bad entry: 7" in capsys.readouterr().err
    assert main(["verify", str(history), "--head", "0" * 64]) == 1
    assert "first bad entry: 8" in capsys.readouterr().err
    assert main(["verify", str(history) + "-missing"]) == 1
    assert "needs the log" in capsys.readouterr().err


def test_the_module_runs(history):
    command = [sys.executable, "-m", "fedjax_secure.ledger", "verify", str(history)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("history verified")


def test_the_registry_is_what_the_package_ships(history):
    deploy = decode_transaction(parts(history)[0][0]).transaction
    assert deploy.data == registry.init_code(2, COORDINATOR.checkpoint_public_key)
