"""Votes with plausible deniability: each client answers truly only some of the time."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_kernels import randomised_response as kernel

from ...core import Mechanism, Spec, Stage, Static, Stream
from ...core.ring import centre
from ...core.stage import need
from .placing import Draws, noised

_NAME = "randomised_response"
_LARGEST_EPSILON = 30.0
_MOST_CHOICES = 1 << 16  # of the kernel


def randomised_response(epsilon: float) -> Stage:
    r"""Replace votes by random other ones, often enough that nobody can be held to theirs.

    For histograms of categories without any trust: which diagnosis, which setting, which of
    several models a client prefers. A client's vector is its vote among ``dim`` choices: the place
    of its largest value (a one-hot vector is a vote for its one). It sends a one-hot vector of
    integers: its vote with probability p, else one of the others, all alike. The server corrects
    the counts for that, without bias. For vectors of many votes at once, or gradients, use
    ``discrete_gaussian(..., trust="local")``.

    Args:
        epsilon: of each client's message, whatever it voted and might have voted.

    Returns:
        A stage that takes floats and is followed by nothing but encrypt(...), if by anything. It
        clips, rounds and noises at once: no other privacy stage is needed.

    Guarantees:
        Each message is epsilon-differentially private for its client's vote (adjacency: replaced
        by any other), against anyone who reads it. Probabilities are integers over 2^128, drawn
        from a keystream without any rounding; what they guarantee is what is accounted.

    Raises:
        SpecError: an epsilon that is not positive or is too small to tell votes apart, values that
            are not floats, or fewer than 2 or more than 65,536 choices.

    Example:
        >>> import fedjax_secure as fs
        >>> histogram = fs.chain(randomised_response(2.0))
        >>> spec = Spec(dim=3, num_clients=5, num_records=5, denominator=1.0)
        >>> states, spec = histogram.init(spec)
        >>> spec.adjacency, round(dict(spec.mechanism.parameters)["epsilon"], 6)
        ('replace_one', 2.0)

    Source:
        Warner 1965, "Randomized response"; Kairouz, Bonawitz, Ramage 2016, "Discrete distribution
        estimation under local privacy", section 3 (k-ary randomised response, its estimate).
    """
    number = isinstance(epsilon, int | float) and not isinstance(epsilon, bool)
    need(number and 1e-6 <= epsilon <= _LARGEST_EPSILON, _NAME,
         f"an epsilon from 1e-6 to {_LARGEST_EPSILON:g}", f"epsilon={epsilon!r}",
         "Give 1.0, for example.")

    def init(spec: Spec) -> tuple[Any, Spec]:
        need(spec.dtype == "float32" and spec.unit is None, _NAME,
             "float values that nothing has clipped or rounded",
             spec.dtype if spec.unit is None else f"values clipped per {spec.unit}",
             "Leave clip(...) and quantise(...) out: a vote needs neither.")
        need(not spec.rotated, _NAME, "a value for each choice", "a rotated vector, whose "
             "values are no choices", "Leave rotate() out.")
        need(2 <= spec.dim <= _MOST_CHOICES, _NAME, f"2 to {_MOST_CHOICES} choices",
             f"{spec.dim}", "Send a vector with a value for each choice.")
        made = kernel.response(epsilon, spec.dim)
        truth = made.truth_probability
        other = (1.0 - truth) / (spec.dim - 1)
        need(truth - other > 1e-6, _NAME, "an epsilon that tells votes apart",
             f"epsilon={epsilon!r}", "Raise epsilon.")
        clients = spec.num_clients
        spread = truth - other
        variance = max(truth * (1 - truth), other * (1 - other)) / spread**2
        mechanism = Mechanism(
            noise_multiplier=None, log_ratio=0.0, total_variation=0.0,
            rounded_unit_l2=math.sqrt(2.0), share_stddev=math.sqrt(variance), num_shares=1,
            kind="pure", parameters=(("epsilon", made.epsilon),), trust="local")
        changed = spec.replace(dtype="int32", unit="client", l2_bound=1.0, linf_bound=1.0)
        # A vote is 0 or 1: its part of a corrected count has a range of 1 / spread (Hoeffding).
        changed = noised(_NAME, changed, mechanism, Draws(1, clients),
                         tail_variance=0.25 / spread**2)
        # Counts, which are what is summed, go up to the number of clients.
        changed = changed.replace(modulus=1 << (2 * clients).bit_length())
        state = {"response": Static(made), "modulus": Static(changed.modulus),
                 "odds": Static((truth, other))}
        return state, changed

    def client(state: Any, stream: Stream, value: jax.Array) -> jax.Array:
        words = stream.words(kernel.WORDS_PER_ANSWER)[:, None]
        vote = jnp.argmax(value).astype(jnp.uint32)[None]
        sent = kernel.respond(state["response"].value, vote, words)
        return (jnp.arange(value.shape[0], dtype=jnp.uint32) == sent).astype(jnp.int32)

    def server(state: Any, total: jax.Array) -> tuple[jax.Array, Any, dict]:
        truth, other = state["odds"].value
        counts = centre(total, state["modulus"].value).astype(jnp.float32)
        votes = jnp.sum(counts)  # each message has one
        return (counts - votes * jnp.float32(other)) / jnp.float32(truth - other), state, {}

    return Stage(_NAME, init, client, server)
