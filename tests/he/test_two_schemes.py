"""The same hospital sum through OpenFHE and through our kernels: two implementations that agree."""

from __future__ import annotations

import pytest

import fedjax_secure as fs
from fedjax_secure.core import PartyError, model_digest
from fedjax_secure.he.openfhe import env

pytestmark = [
    pytest.mark.openfhe,
    pytest.mark.skipif(env.find() is None,
                       reason=f"OpenFHE is not set up; run: {env.COMMAND}"),
]


def _plan(encryption):
    return fs.FederationPlan(rounds=2, dp_delta=1e-3, seed=9, encryption=encryption)


def _finish(plan, folder=None):
    with plan.build(folder) as federation:
        state = federation.init()
        for state, _ in federation.run(state, rounds=plan.rounds):
            pass
        sums = [record.sum_digest for record in federation.records]
        return model_digest(state.params), sums


def test_hospital_sums_and_models_are_the_same_through_both_and_in_the_clear():
    lattice, openfhe, off = (_finish(_plan(name)) for name in ("lattice", "openfhe", "off"))
    assert lattice == openfhe == off


def test_a_killed_party_is_named_and_the_run_goes_on_from_its_last_round(tmp_path):
    whole, _ = _finish(_plan("openfhe"))
    plan = _plan("openfhe")
    with plan.build(tmp_path) as federation:
        state = federation.init()
        rounds = federation.run(state, rounds=2)
        state, _ = next(rounds)
        federation._opener.close()  # what is left when the key holder's process is gone
        with pytest.raises(PartyError) as stopped:
            next(rounds)
        assert stopped.value.need and stopped.value.fix
        assert [record.round for record in federation.records] == [1]
    with plan.build(tmp_path) as federation:
        state = federation.init()
        assert state.round == 1
        for state, _ in federation.run(state, rounds=2):
            pass
        assert model_digest(state.params) == whole
        assert len(federation.budget.entries()) == 2


def test_a_key_holder_killed_after_clients_sent_takes_their_updates_once_more(tmp_path):
    whole, _ = _finish(_plan("openfhe"))
    plan = _plan("openfhe")
    with plan.build(tmp_path) as federation:
        opener, opened = federation._opener, federation._opener.open

        def killed(round, model, submissions):
            if round == 2:
                opener.close()
            return opened(round, model, submissions)

        opener.open = killed
        with pytest.raises(PartyError):
            for _ in federation.run(federation.init(), rounds=2):
                pass
    with plan.build(tmp_path) as federation:
        for state, _ in federation.run(federation.init(), rounds=2):  # noqa: B007
            pass
        assert model_digest(state.params) == whole
        assert len(federation.budget.entries()) == 2
        names = [event.name for event in federation.ledger.events()]
        assert names.count("RoundReopened") == 1
        assert names.count("UpdateSubmitted") == 4 + 4 + 4
