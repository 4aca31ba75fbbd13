"""The registry's rules, by real execution, on every EVM that the ledger can use."""

from __future__ import annotations

import json

import eth_abi
import pytest

from fedjax_secure.core.errors import LedgerError
from fedjax_secure.ledger import machine as machines
from fedjax_secure.ledger.account import Account, keccak256
from fedjax_secure.ledger.contracts import build, registry
from fedjax_secure.ledger.machine import PyEvmMachine, PyrevmMachine, Reverted
from fedjax_secure.ledger.transaction import contract_address

NAMES = ("coordinator", "ana", "ben", "cleo")
PEOPLE = {n: Account.from_secret(keccak256(n.encode())) for n in NAMES}
COORDINATOR, ANA, BEN, CLEO = PEOPLE.values()


def word(number: int) -> bytes:
    return number.to_bytes(32, "big")


class Deployed:
    """A deployed registry with min_clients = 2."""

    def __init__(self, engine):
        self.machine = engine(77)
        code = registry.init_code(2, COORDINATOR.checkpoint_public_key)
        self.address = self.machine.deploy(COORDINATOR.address_bytes, code)

    def call(self, account, name, *args):
        data = registry.encode_call(name, *args)
        logs = self.machine.call(account.address_bytes, self.address, data)
        return [registry.decode_event(0, log) for log in logs]

    def refuses(self, reason, account, name, *args):
        with pytest.raises(Reverted) as caught:
            self.call(account, name, *args)
        assert caught.value.reason == f"registry: {reason}"

    def view(self, name, *args):
        data = registry.encode_call(name, *args)
        return registry.decode_result(name, self.machine.view(self.address, data))


@pytest.fixture(params=[PyrevmMachine, PyEvmMachine])
def engine(request):
    pytest.importorskip({PyrevmMachine: "pyrevm", PyEvmMachine: "eth"}[request.param])
    return request.param


@pytest.fixture
def deployed(engine):
    return Deployed(engine)


def test_the_shipped_artefact_is_what_the_source_compiles_to():
    pytest.importorskip("vyper")
    assert build.ARTEFACT.read_text() == build.compile_registry()


def test_every_reason_of_the_contract_has_a_fix():
    source = build.SOURCE.read_text()
    reasons = {part.split('"')[0] for part in source.split('"registry: ')[1:]}
    assert {f"registry: {reason}" for reason in reasons} == set(registry._REASONS)


def test_calls_are_encoded_as_another_implementation_does():
    abi = {i["name"]: i for i in json.loads(build.ARTEFACT.read_text())["abi"] if "name" in i}
    for name, args in {
        "submitUpdate": (3, word(9)),
        "commitment": (3, ANA.address),
        "confirmRound": (2**256 - 1, word(1)),
    }.items():
        kinds = [field["type"] for field in abi[name]["inputs"]]
        signature = f"{name}({','.join(kinds)})"
        expected = keccak256(signature.encode())[:4] + eth_abi.encode(kinds, args)
        assert registry.encode_call(name, *args) == expected


def test_deployment_sets_the_terms(deployed):
    assert deployed.address == contract_address(COORDINATOR.address_bytes, 0)
    assert deployed.view("COORDINATOR") == COORDINATOR.address
    assert deployed.view("MIN_CLIENTS") == 2
    assert deployed.view("CHECKPOINT_KEY") == COORDINATOR.checkpoint_public_key
    assert deployed.view("confirmed_rounds") == deployed.view("num_clients") == 0


@pytest.mark.parametrize(
    ("min_clients", "key", "reason"),
    [(0, word(1), "zero min_clients"), (1, word(0), "empty checkpoint key")],
)
def test_bad_terms_are_refused(engine, min_clients, key, reason):
    with pytest.raises(Reverted, match=reason):
        engine(77).deploy(COORDINATOR.address_bytes, registry.init_code(min_clients, key))


def test_register(deployed):
    deployed.refuses("empty key", ANA, "register", word(0))
    (event,) = deployed.call(ANA, "register", word(1))
    assert (event.name, dict(event.args)) == (
        "Registered",
        {"client": ANA.address, "submission_key": word(1)},
    )
    deployed.refuses("already registered", ANA, "register", word(1))
    deployed.refuses("already registered", ANA, "register", word(2))
    deployed.refuses("key in use", BEN, "register", word(1))
    deployed.call(BEN, "register", word(2))
    assert deployed.view("num_clients") == 2
    assert deployed.view("submission_key", BEN.address) == word(2)
    assert deployed.view("key_owner", word(1)) == ANA.address
    assert deployed.view("submission_key", CLEO.address) == word(0)


def test_a_round(deployed):
    for number, account in enumerate((ANA, BEN, CLEO), 1):
        deployed.refuses("not registered", account, "submitUpdate", 1, word(5))
        deployed.call(account, "register", word(number))
    for closed in (0, 2, 2**256 - 1):
        deployed.refuses("not the open round", ANA, "submitUpdate", closed, word(5))
    deployed.refuses("empty commitment", ANA, "submitUpdate", 1, word(0))
    (event,) = deployed.call(ANA, "submitUpdate", 1, word(5))
    assert (event.name, dict(event.args)) == (
        "UpdateSubmitted",
        {"round": 1, "attempt": 1, "client": ANA.address, "commitment": word(5)},
    )
    deployed.refuses("already submitted", ANA, "submitUpdate", 1, word(5))
    deployed.refuses("already submitted", ANA, "submitUpdate", 1, word(6))
    deployed.refuses("too few submissions", COORDINATOR, "confirmRound", 1, word(8))
    deployed.call(BEN, "submitUpdate", 1, word(5))
    for stranger in (ANA, CLEO):
        deployed.refuses("not the coordinator", stranger, "confirmRound", 1, word(8))
    deployed.refuses("empty model digest", COORDINATOR, "confirmRound", 1, word(0))
    deployed.refuses("not the open round", COORDINATOR, "confirmRound", 2, word(8))
    (event,) = deployed.call(COORDINATOR, "confirmRound", 1, word(8))
    assert (event.name, dict(event.args)) == (
        "RoundConfirmed",
        {"round": 1, "attempt": 1, "submissions": 2, "model_digest": word(8)},
    )
    deployed.refuses("not the open round", COORDINATOR, "confirmRound", 1, word(8))
    deployed.refuses("not the open round", CLEO, "submitUpdate", 1, word(5))
    deployed.refuses("not the open round", COORDINATOR, "reopenRound", 1)
    assert deployed.view("model_digest", 1) == word(8)
    assert deployed.view("num_submissions", 1) == 2
    assert deployed.view("num_submissions", 2) == 0


def test_an_interrupted_round_takes_each_resubmission_once(deployed):
    for number, account in enumerate((ANA, BEN), 1):
        deployed.call(account, "register", word(number))
    deployed.refuses("nothing to reopen", COORDINATOR, "reopenRound", 1)
    deployed.call(ANA, "submitUpdate", 1, word(5))
    deployed.refuses("not the coordinator", ANA, "reopenRound", 1)
    deployed.refuses("not the open round", COORDINATOR, "reopenRound", 2)
    (event,) = deployed.call(COORDINATOR, "reopenRound", 1)
    assert (event.name, dict(event.args)) == (
        "RoundReopened",
        {"round": 1, "attempt": 2, "discarded": 1},
    )
    assert deployed.view("num_submissions", 1) == 0
    assert deployed.view("commitment", 1, ANA.address) == word(0)
    deployed.refuses("nothing to reopen", COORDINATOR, "reopenRound", 1)
    deployed.call(ANA, "submitUpdate", 1, word(6))
    deployed.refuses("already submitted", ANA, "submitUpdate", 1, word(7))
    deployed.refuses("too few submissions", COORDINATOR, "confirmRound", 1, word(8))
    (event,) = deployed.call(BEN, "submitUpdate", 1, word(6))
    assert event.args["attempt"] == 2
    (event,) = deployed.call(COORDINATOR, "confirmRound", 1, word(8))
    assert (event.args["attempt"], event.args["submissions"]) == (2, 2)
    assert deployed.view("commitment", 1, ANA.address) == word(6)


def test_unknown_calls_and_views_that_write_are_refused(deployed):
    for data in (b"", b"\1\2\3\4", registry.encode_call("register", word(1))[:20]):
        with pytest.raises(Reverted):
            deployed.machine.call(ANA.address_bytes, deployed.address, data)
    with pytest.raises(Reverted):
        deployed.view("register", word(1))
    assert deployed.view("num_clients") == 0


def test_engines_agree():
    pytest.importorskip("pyrevm")
    pytest.importorskip("eth")
    both = Deployed(PyrevmMachine), Deployed(PyEvmMachine)
    calls = [
        (ANA, "register", word(1)),
        (ANA, "submitUpdate", 1, word(3)),
        (COORDINATOR, "reopenRound", 1),
        (ANA, "submitUpdate", 1, word(4)),
    ]
    for account, name, *args in calls:
        data = registry.encode_call(name, *args)
        logs = [d.machine.call(account.address_bytes, d.address, data) for d in both]
        assert logs[0] == logs[1] != ()


def test_without_an_engine_the_ledger_says_which_one_is_missing(monkeypatch):
    def missing(self, chain_id):
        raise ImportError

    monkeypatch.setattr(PyrevmMachine, "__init__", missing)
    monkeypatch.setattr(PyEvmMachine, "__init__", missing)
    with pytest.raises(LedgerError, match="pip install pyrevm"):
        machines.new_machine(77)
