"""Whole rounds with and without encryption, everything inside one compiled program.

    python tests/bench/bench_round.py                 50 clients a round, the MLP and the CNN
    python tests/bench/bench_round.py --clients 1000  1,000 clients x 209,662 parameters, end to end

The first is what `make bench-he` runs beside the schemes. The second (`make bench-round`) trains,
encrypts, sums and opens rounds of a thousand clients, with a trusted aggregator and with a key
holder that checks every client's signed ciphertext, beside the same rounds without encryption.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a program, it may find the sources itself
    root = Path(__file__).resolve().parents[2]
    sys.path[:0] = [str(root), str(root / "kernels"), str(Path(__file__).parent)]

import jax
import jax.numpy as jnp
import numpy as np
import workload
from report import Row, versions_of, write

import fedjax_secure as fs
from fedjax_kernels import modular, rlwe
from fedjax_secure.core import Setting, Signer, Spec, source
from fedjax_secure.core.randomness import Stream, device_keys
from fedjax_secure.he.packing import Packing, plan_packing
from fedjax_secure.training import Engine, Total

BITS = 20  # with 50 clients' carries a lane of 26 bits, as 16-bit values of 1,024 clients have it
L2_BOUND = 10.0
NUM_CLIENTS = 50
#: The fastest sets for the common-a kernel: the kernel's caller chooses.
SECRET_SETS = {"mlp": "rlwe-4096-90", "cnn": "rlwe-8192-180"}


class SecretKeyNoise:
    """The noise of sums in the secret-key form: one error a ciphertext; a NoiseModel."""

    def bits_needed(self, params: Any, num_summands: int, num_coefficients: int) -> int:
        return rlwe.noise_bits_needed(params, num_summands, num_coefficients, form="secret")

    def failure_log2(
        self, params: Any, num_summands: int, num_coefficients: int, noise_bits: int
    ) -> float:
        return rlwe.failure_log2(params, num_summands, num_coefficients, noise_bits, form="secret")

    def worst_case_bits(self, params: Any, num_summands: int) -> int:
        return rlwe.worst_case_noise(params, num_summands, form="secret").bit_length() + 1


class Round:
    """One system's round of local training: `run` does it once and returns the mean update."""

    def __init__(self, model: Any, data: Any, engine: Engine, encryption: str):
        self.model, self.data, self.engine = model, data, engine
        stages = []
        if encryption != "floats":
            stages = [fs.privacy.clip(L2_BOUND, unit="client"), fs.privacy.quantise(bits=BITS)]
        if encryption == "public key":
            stages.append(fs.he.encrypt(fs.he.public_key()))
        self.aggregation = fs.chain(*stages)
        clients = data.num_clients
        spec = Spec(
            dim=model.dim,
            num_clients=clients,
            num_records=len(data.y),
            denominator=float(clients),
            min_clients=clients,
            aggregator="semi-honest",
        )
        states, spec = self.aggregation.init(spec)
        roster = {name: Signer(os.urandom(32)).public_key for name in data.clients}
        self.setting = Setting(os.urandom(16), roster, clients, source(), aggregator="semi-honest")
        self.states, self.opener = self.aggregation.setup(states, spec, self.setting)
        self.indices = [data.rows(place) for place in range(clients)]
        self.everyone = tuple(range(clients))
        self.round = 0
        self.decode = jax.jit(self.aggregation.decode)

    def sink(self) -> Total:
        keys = device_keys([os.urandom(32) for _ in self.everyone])
        return Total(
            self.everyone, keys, self.states, self.aggregation.contribution, self.aggregation.add
        )

    def open(self, total: Any) -> Any:
        self.round += 1
        one = jax.tree.map(lambda part: jnp.asarray(part)[None], total)
        message = self.aggregation.to_wire(self.states, one, self.setting)[0]
        return self.opener.open_total(self.round, bytes(32), message, self.data.clients).total

    def run(self, params: Any) -> np.ndarray:
        work = self.engine.local_sgd(
            params, self.indices, learning_rate=workload.LEARNING_RATE, into=self.sink()
        )
        if np.asarray(work.nonfinite).any():
            raise ArithmeticError("a client's update is not finite: the figures mean nothing")
        mean, _, _ = self.decode(self.states, self.open(work.values))
        return np.asarray(mean)


class CommonA(Round):
    """The seeded form with one `a` for all clients: a kernel, which no scheme of `he` offers.

    Every client has a secret of its own, and `a` is fresh each round. Here the secrets' sum is
    formed in the clear; without a secure sum of secrets this protects nothing.
    """

    def __init__(self, model: Any, data: Any, engine: Engine):
        super().__init__(model, data, engine, "common a")
        clients = data.num_clients
        self.packing: Packing = plan_packing(
            SECRET_SETS[model.name],
            dim=model.dim,
            modulus=1 << BITS,
            max_summands=clients,
            noise=SecretKeyNoise(),
        )
        params = self.packing.params

        @jax.jit
        def secret(key):
            return rlwe.generate_secret(params, Stream(key, 0).words(2 * params.ring_degree))

        made = [secret(device_keys([os.urandom(32)])[0]) for _ in self.everyone]
        self.secrets = jax.tree.map(lambda *parts: jnp.stack(parts), *made)
        self.sum_of_secrets = rlwe.SecretKey(
            jax.jit(partial(_sum_residues, params=params))(self.secrets.s)
        )
        self.expand = jax.jit(
            lambda key: rlwe.expand_uniform(
                params,
                Stream(key, 0).words(rlwe.uniform_words_needed(params, self.num_polynomials)),
            )
        )
        self.decrypt = jax.jit(
            lambda total, a, secret: (
                rlwe.decrypt_secret(params, secret, total, a, self.packing.encoding).lanes
            )
        )

    @property
    def num_polynomials(self) -> int:
        return self.packing.num_polynomials

    def sink(self) -> Total:
        # The key that the engine hands over carries the client's number; keys lie in the states.
        keys = np.zeros((len(self.everyone), 8), np.uint32)
        keys[:, 0] = self.everyone
        self.a = self.expand(device_keys([os.urandom(32)])[0])
        states = {
            "chain": self.states,
            "keys": device_keys([os.urandom(32) for _ in self.everyone]),
            "secrets": self.secrets,
            "a": self.a,
        }
        return Total(self.everyone, keys, states, self._contribution, self._add)

    def _contribution(self, states: Any, key: Any, value: Any) -> tuple[Any, Any]:
        place, params = key[0], self.packing.params
        own = states["keys"][place]
        element, finite = self.aggregation.contribution(states["chain"], own, value)
        secret = jax.tree.map(lambda part: part[place], states["secrets"])
        words = Stream(own, 99).words(rlwe.secret_words_needed(params, self.num_polynomials))
        message = self.packing.pack(element)
        return rlwe.encrypt_secret(params, secret, message, states["a"], words), finite

    def _add(self, states: Any, one: Any, other: Any) -> Any:
        return modular.add(one, other, self.packing.params.moduli)

    def open(self, total: Any) -> Any:
        lanes = self.decrypt(total, self.a, self.sum_of_secrets)
        return self.packing.unpack(np.asarray(lanes), len(self.everyone))


def _sum_residues(stacked: Any, *, params: Any) -> Any:
    return modular.sum_residues(stacked, params.moduli)


def measure(*, quick: bool = False) -> list[Row]:
    """CPU time of rounds of 50 clients, the systems in turns, as rows of the metric "round".

    Systems: "plain" has the same chain without encryption (clip, quantise, sum in the ring);
    "plain, floats" adds up float updates; "common a" and "public key" encrypt. Every round's opened
    mean is compared with that of "plain" to the quantiser's precision.
    """
    rows = []
    for name, repeats in (("mlp", 3 if quick else 7), ("cnn", 1 if quick else 3)):
        data, model = workload.images(NUM_CLIENTS), workload.network(name)
        engine = Engine(model, data, batch_size=workload.BATCH_SIZE)
        params = model.init(jax.random.key(0))
        systems: dict[str, Round] = {
            "plain, floats": Round(model, data, engine, "floats"),
            "plain": Round(model, data, engine, "none"),
            "common a": CommonA(model, data, engine),
            "public key": Round(model, data, engine, "public key"),
        }
        means = {system: round_.run(params) for system, round_ in systems.items()}  # compiles
        for system, mean in means.items():
            error = float(np.abs(mean - means["plain"]).max())
            if not error < 2 * 4 * L2_BOUND * NUM_CLIENTS / (1 << BITS):
                raise ArithmeticError(f"{name}, {system}: {error} away from the plain round")
        timings: dict[str, list[float]] = {system: [] for system in systems}
        for _ in range(repeats):
            for system, round_ in systems.items():
                started = time.process_time()
                round_.run(params)
                timings[system].append((time.process_time() - started) * 1e3)
        case = (
            f"{name}, {model.dim:,} parameters, {NUM_CLIENTS} clients, {len(data.y):,} images, "
            f"{len(jax.devices())} devices"
        )
        rows += [
            Row.of(case, system, "round", samples, "ms CPU") for system, samples in timings.items()
        ]
    return rows


#: Who adds up, and whether it is encrypted: each is measured in a process of its own.
WAYS = (
    ("semi-honest", False),
    ("semi-honest", True),
    ("untrusted", False),
    ("untrusted", True),
)
SYSTEMS = {
    ("semi-honest", False): "trusted aggregator, not encrypted",
    ("semi-honest", True): "trusted aggregator, encrypted",
    ("untrusted", False): "signed messages, not encrypted",
    ("untrusted", True): "signed messages, encrypted",
}
FIGURES = {
    "cpu_seconds": ("round", "s CPU"),
    "seconds": ("round", "s"),
    "peak_gib": ("peak memory", "GiB"),
    "message_bytes": ("message", "bytes a client"),
}


def many(num_clients: int, rounds: int, folder: Path | None) -> None:
    """Rounds of many clients through `fs.Federation`; writes the page "round".

    The first round of each way compiles and is left out.
    """
    case, rows = "", []
    for aggregator, encrypted in WAYS:
        command = [
            sys.executable,
            __file__,
            "--clients",
            str(num_clients),
            "--rounds",
            str(rounds),
            "--way",
            aggregator,
            str(int(encrypted)),
        ]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = [json.loads(line) for line in done.stdout.splitlines()]
        case = found[0]["case"]
        for name, (metric, unit) in FIGURES.items():
            samples = [line[name] for line in found[1:]]
            rows.append(Row.of(case, SYSTEMS[aggregator, encrypted], metric, samples, unit))

    def median(way: tuple[str, bool]) -> float:
        return (
            next(row.median for row in rows if (row.system, row.unit) == (SYSTEMS[way], "s CPU"))
            or 0.0
        )

    ratios = {
        f"{name}_encrypted_over_plain": float(f"{median((way, True)) / median((way, False)):.4g}")
        for name, way in (("trusted_aggregator", "semi-honest"), ("signed_messages", "untrusted"))
    }
    keep = {"folder": folder} if folder else {}
    path = write(
        "round",
        title="Rounds of many clients, encrypted and not",
        about=[
            f"{case}: each client trains the MLP 784-200-200-62 for one epoch on its own synthetic "
            "images (log-normal sizes, mean 100), clips its update, rounds it to integers modulo "
            f"2^{BITS} and encrypts it under `fs.he.public_key()`; the sum is opened and the model "
            "steps. Figures are of whole rounds of `fs.Federation`, evaluation included, after a "
            "first one that compiles.",
            'With a trusted aggregator (`aggregator="semi-honest"`) ciphertexts are added inside '
            "the compiled program. With signed messages (the default) they leave it in chunks, are "
            "signed and written to disk, and the key holder reads, checks and adds up every one. "
            "Peak memory is that of the whole process, data included.",
        ],
        rows=rows,
        ratios=ratios,
        versions=versions_of("jax", "jaxlib", "numpy"),
        **keep,
    )
    print(path.with_suffix(".md").read_text(encoding="utf-8"))


def one_way(num_clients: int, rounds: int, aggregator: Any, encrypted: bool) -> None:
    """The rounds of one way, a line of JSON each."""
    data, model = workload.images(num_clients), workload.network("mlp")
    stages = [fs.privacy.clip(L2_BOUND, unit="client"), fs.privacy.quantise(bits=BITS)]
    if encrypted:
        stages.append(fs.he.encrypt(fs.he.public_key()))
    run = fs.Federation(
        model,
        data,
        fs.algorithms.fed_avg(workload.LEARNING_RATE, batch_size=workload.BATCH_SIZE),
        fs.chain(*stages),
        aggregator=aggregator,
        seed=0,
    )
    with run:
        state = run.init()
        started = time.perf_counter(), time.process_time()
        for state, record in run.run(state, rounds=rounds):
            figures = {
                "case": f"{num_clients:,} clients x {model.dim:,} parameters, {len(data.y):,} "
                f"images, {len(jax.devices())} devices",
                "seconds": time.perf_counter() - started[0],
                "cpu_seconds": time.process_time() - started[1],
                "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
                "message_bytes": record.bytes_per_client,
            }
            print(json.dumps(figures), flush=True)
            print(
                f"{aggregator}, encrypted={encrypted}, round {record.round}: {figures}, "
                f"{dict(record.timings_seconds)}",
                file=sys.stderr,
            )
            started = time.perf_counter(), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=0, help="clients of the long benchmark")
    parser.add_argument("--rounds", type=int, default=3, help="its rounds, the first left out")
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help="where the page goes, instead of docs")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    arguments = parser.parse_args()
    if arguments.clients < 0 or arguments.clients == 1 or arguments.rounds < 2:
        parser.error("needs --clients of 2 or more and --rounds of 2 or more")
    if arguments.way:
        aggregator, encrypted = arguments.way
        one_way(arguments.clients, arguments.rounds, aggregator, encrypted == "1")
    elif arguments.clients:
        many(arguments.clients, arguments.rounds, arguments.folder)
    else:
        for row in measure(quick=arguments.quick):
            print(
                f"{row.case}: {row.system}: {row.median:,.0f} {row.unit} "
                f"({row.min:,.0f} to {row.max:,.0f})"
            )


if __name__ == "__main__":
    main()
