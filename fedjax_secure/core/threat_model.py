"""Who sees what under a chain, and what is assumed of whom, in sentences made from its Spec."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .spec import Mechanism, Spec


@dataclasses.dataclass(frozen=True)
class ThreatModel:
    """Who sees what, in sentences.

    ``str()`` gives the whole text, one statement a line.
    """

    opens: str
    server: str
    client: str
    eavesdropper: str
    opener: str
    guarantee: str
    assumptions: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    client_name: str = "client"

    def __str__(self) -> str:
        lines = [
            self.opens,
            f"The server sees {self.server}",
            f"A {self.client_name} sees {self.client}",
            f"A network eavesdropper sees {self.eavesdropper}",
            f"The sum is opened by {self.opener}",
            f"Guarantee: {self.guarantee}",
        ]
        lines += [f"Assumed: {text}" for text in self.assumptions]
        lines += [f"Outside the guarantee: {text}" for text in self.outside]
        return "\n".join(line for line in lines if line)


def threat_model(spec: Spec, outside: tuple[str, ...]) -> ThreatModel:
    """Who sees what under a chain that ends with this Spec.

    Args:
        spec: what the chain's stages left behind.
        outside: figures computed from data that leave a client outside the guarantee.
    """
    client = spec.client_name
    opens = ("Simulation on one machine: this process sees everything. The sentences below hold "
             f"when each {client} runs in its own place.")
    if spec.mode == "seeded":
        opens += (" Seeded: whoever knows the seed knows every secret drawn from it, such as coins,"
                  " noise and keys; every epsilon is a simulation's.")
    server, wire, opener = _who_sees(spec)
    guarantee, assumptions = _guarantee(spec)
    return ThreatModel(
        opens=opens, server=server, eavesdropper=wire, opener=opener, guarantee=guarantee,
        client=f"its own {spec.unit_name}s and each new model.",
        assumptions=(*_assumed_of_messages(spec), *assumptions), outside=tuple(outside),
        client_name=client,
    )


def _who_sees(spec: Spec) -> tuple[str, str, str]:
    """What the server and an eavesdropper see, and who opens the sum."""
    client = spec.client_name
    trust = spec.mechanism.trust if spec.mechanism else None
    central = (" Whoever opens the sum (of several key holders: whoever puts their answers "
               "together) sees it without noise, and adds the noise before anybody else sees it.")
    if spec.readable:
        under = {"distributed": f", under that {client}'s noise share only", "central":
                 ", without noise", "local": f", which that {client} has noised by itself",
                 None: ""}[trust]
        server = f"each {client}'s own update{under}."
        wire = (f"each {client}'s update, unless the transport is encrypted, as the server does.")
        opener = spec.opener or "the server itself, which reads every update."
    else:
        senders = (f"the signed list of {client}s" if spec.aggregator == "untrusted" else
                   f"which {client}s sent them")
        server = (f"ciphertexts, {senders}, the opened sum and each new model;"
                  f" never one {client}'s update.")
        wire = "ciphertexts and their sizes, who sent them and when, and the new model."
        opener = spec.opener
    if trust == "central":
        opener = opener.rstrip(".") + "." + central
    return server, wire, opener


def _assumed_of_messages(spec: Spec) -> list[str]:
    """What is assumed of records and of what clients send, noise or not."""
    client, unit = spec.client_name, spec.unit_name
    found = [f"no {unit} is in two {client}s."] if spec.unit == "record" else []
    found.append(f"the number of {unit}s, their split and the expected batch are public constants.")
    if spec.aggregator == "semi-honest" and not spec.readable:
        found.append(
            f"semi-honest aggregator: the server adds the {client}s' ciphertexts as they come, and "
            f"has that sum opened and no other; one that cheats can have one {client}'s ciphertext "
            "opened. No message is signed or kept.")
    if not spec.readable:
        found.append(
            f"no {client} sees another's ciphertext before it has committed to its own: one that "
            "deviates could cancel the others' values and noise out of the sum.")
        found.append(
            f"each {client} encrypts its own value, and as planned: one that does not, together "
            "with whoever sees the sums, could learn single updates, and the key that opens them "
            "all.")
    return found


def _guarantee(spec: Spec) -> tuple[str, list[str]]:
    """The guarantee of differential privacy in a sentence, and what it assumes."""
    client, unit, mechanism = spec.client_name, spec.unit_name, spec.mechanism
    if mechanism is None:
        return f"no differential privacy: the models may reveal single {unit}s.", []
    name = unit if spec.unit == "record" else client
    pairs = (f"one {name} added or removed" if spec.adjacency == "add_remove" else
             f"one {name}'s value replaced by any other")
    text = (f"differential privacy for each {name} (adjacency: {pairs}), {_strength(mechanism)}, "
            f"sampling rate {spec.sampling_rate:.4g} a round, against anyone who ")
    assumed = []
    if mechanism.trust == "local":
        text += (f"reads the {client}s' messages, the server too, whatever the other {client}s "
                 "do.")
        assumed.append(f"each {client} clips, rounds and adds all of its noise as the protocol "
                       "says.")
    elif mechanism.trust == "central":
        text += ("sees the noised sums and the models: not against whoever opens the sum, who "
                 "sees it without noise.")
        assumed.append(f"each {client} clips and rounds as the protocol says.")
        assumed.append("central trust: whoever opens the sum adds the noise as planned, once a "
                       "round, and shows nobody the sum without it.")
    else:
        missing = spec.num_clients - mechanism.num_shares
        text += "sees the sums and the models" + (
            f", with up to {missing} noise share{'s' if missing > 1 else ''} missing or known "
            f"to the attacker (each {client} knows its own)." if missing else
            f", if every share is added and none is known: not against a {client}, which knows "
            "its own.")
        assumed.append(f"each {client} clips, rounds and adds its noise share as the "
                       "protocol says.")
        if spec.unit == "client":
            assumed.append(f"a {client} that is removed still adds its noise share, and the "
                           f"counts of other {client}s' {unit}s are public.")
    if spec.float_sum_error > 0:
        assumed.append(
            f"float sums: each {client} clips and adds its {unit}s' gradients in floating point "
            f"and rounds their sum; no {unit}'s own integers are made or checked. The error of the "
            f"sums is bounded, and charged as {200 * spec.float_sum_error:.2g}% of the clipping "
            f"bound. That a {unit}'s own numbers are the same to the last bit whichever other "
            f"{unit}s share its batch is assumed of the machine.")
    if mechanism.arithmetic == "float":
        assumed.append("floating point behaves like real numbers, which it does not: float noise "
                       "and float sums leave gaps that can give a unit away (Mironov 2012).")
    sampling = spec.sampling
    if sampling and sampling.kind == "poisson" and sampling.unit == "record":
        assumed.append(f"nobody but the {client} learns which {unit}s a round drew.")
    elif sampling and sampling.kind == "poisson" and mechanism.trust != "local":
        share = (f", and every {client} adds its noise share, drawn or not"
                 if mechanism.trust == "distributed" else "")
        assumed.append(f"nobody who sees the sums and the models learns which {client}s a round "
                       f"drew{share}.")
    elif sampling and sampling.kind == "public":
        assumed.append(f"which {client}s a round draws depends on no {unit}; the draw "
                       "amplifies nothing.")
    if sampling and sampling.drops_out:
        assumed.append(f"whether a {client} drops out of a round depends on no {unit}, and not on "
                       "what was drawn.")
    if sampling and mechanism.schedule:
        most = "" if sampling.most_rounds is None else f", {sampling.most_rounds} at most"
        assumed.append(f"rounds of one {client} are at least {sampling.separation} apart{most}; "
                       "the federation refuses others.")
    return text, assumed


def _strength(mechanism: Mechanism) -> str:
    of_what = "each message" if mechanism.trust == "local" else "the sum"
    if mechanism.schedule:
        of_what = f"the sums of {len(mechanism.schedule)} rounds together"
    if mechanism.kind == "gaussian":
        return f"noise multiplier {mechanism.noise_multiplier:.4g} on {of_what}"
    parameters = dict(mechanism.parameters)
    if mechanism.kind == "skellam":
        times = math.sqrt(parameters["variance"]) / parameters["l2"]
        return f"Skellam noise of {times:.4g} times the sensitivity on {of_what}"
    return f"epsilon {parameters.get('epsilon', math.nan):.4g} a round for {of_what}"
