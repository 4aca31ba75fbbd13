"""How one device goes through its clients: one after the other, or many side by side in lanes.

Both layouts run the same `ClientWork` to the same results, up to the last bits of floats.

- **ragged**: a loop over clients, and inside it loops over each client's batches, with trip counts
  that are data. Nothing is padded. The right layout where one step fills a core.
- **lanes**: a fixed number of lanes, each with clients of its own packed end to end, and one step
  of every lane at a time. The right layout where one step leaves an accelerator idle. A lane whose
  clients are finished waits for the longest, so deal with many more clients than lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_secure.training.contracts import Batch, ClientWork, Done


class Program(NamedTuple):
    """What a layout needs to build a device's program.

    Attributes:
        work: one client's work.
        batch_size: records in a batch.
        start: ``() -> accumulator``, where values go.
        put: ``(accumulator, client, place, ClientResult) -> accumulator``.
    """

    work: ClientWork
    batch_size: int
    start: Callable[[], Any]
    put: Callable[..., Any]


class Inputs(NamedTuple):
    """What a device's program reads: see `Draw` for the arrays of the draw."""

    shared: Any
    own: Any
    share: jax.Array | None
    states: jax.Array
    x: jax.Array
    y: jax.Array
    rows: jax.Array
    client: jax.Array
    begin: jax.Array
    count: jax.Array
    place: jax.Array


def ragged(program: Program, inputs: Inputs, first: jax.Array, last: jax.Array) -> Any:
    """Clients ``first`` to ``last`` of the draw, one after the other."""
    work, batch_size = program.work, program.batch_size

    def one(j, accumulator):
        c, place = inputs.client[j], inputs.place[j]
        start, count = inputs.begin[j], inputs.count[j]
        own, state = _of_client(inputs, c, place)
        carry, steps = work.start(inputs.shared, own, state), []
        for phase, trips in zip(
            work.phases, _trips(work, count, inputs.share, c, batch_size), strict=True
        ):

            def step(t, carry, phase=phase):
                batch = _batch(inputs, start, count, t, phase.passes, batch_size)
                return phase.step(inputs.shared, own, carry, batch)

            carry = lax.fori_loop(jnp.int32(0), trips, step, carry)
            steps.append(trips)
        done = Done(count, tuple(steps))
        result = work.finish(inputs.shared, own, state, carry, done)
        return program.put(accumulator, c, place, result, sum(steps, jnp.int32(0)))

    return lax.fori_loop(first, last, one, program.start())


def lanes(program: Program, inputs: Inputs, first: jax.Array, num_lanes: int) -> Any:
    """The clients between ``first[l]`` and ``first[l + 1]`` in lane l, all lanes side by side."""
    work, batch_size = program.work, program.batch_size
    ends = first[1:]

    class Lane(NamedTuple):
        j: jax.Array  # its client's place in the draw
        t: jax.Array  # steps that this client has taken
        carry: Any

    def of(j):
        j = jnp.minimum(j, inputs.client.shape[0] - 1)  # beyond the last: computed, never used
        c, place = inputs.client[j], inputs.place[j]
        own, state = _of_client(inputs, c, place)
        trips = _trips(work, inputs.count[j], inputs.share, c, batch_size)
        return j, c, place, own, state, trips

    def begin(j):
        _, _, _, own, state, _ = of(j)
        return work.start(inputs.shared, own, state)

    def advance(j, t, carry):
        j, _, _, own, _, trips = of(j)
        before = jnp.int32(0)
        for phase, count in zip(work.phases, trips, strict=True):
            inside = (t >= before) & (t < before + count)
            number = jnp.where(inside, t - before, jnp.int32(0))
            batch = _batch(
                inputs, inputs.begin[j], inputs.count[j], number, phase.passes, batch_size
            )
            stepped = phase.step(inputs.shared, own, carry, batch)
            carry = _choose(inside, stepped, carry)
            before = before + count
        return carry

    def finish(lane, number, accumulator):
        carry = jax.tree.map(lambda part: part[number], lane.carry)
        j, c, place, own, state, trips = of(lane.j[number])
        done = Done(inputs.count[j], tuple(trips))
        result = work.finish(inputs.shared, own, state, carry, done)
        return program.put(accumulator, c, place, result, sum(trips, jnp.int32(0)))

    def busy(loop):
        lane, _ = loop
        return jnp.any(lane.j < ends)

    def turn(loop):
        lane, accumulator = loop
        fresh = (lane.t == 0) & (lane.j < ends)
        carry = lax.cond(
            jnp.any(fresh),
            lambda: _choose(fresh, jax.vmap(begin)(lane.j), lane.carry),
            lambda: lane.carry,
        )
        carry = jax.vmap(advance)(lane.j, lane.t, carry)
        t = lane.t + 1
        trips = jax.vmap(lambda j: sum(of(j)[-1], jnp.int32(0)))(lane.j)
        ready = (t >= trips) & (lane.j < ends)  # also a client without steps takes one turn
        lane = Lane(lane.j, t, carry)

        def put(number, accumulator):
            return lax.cond(
                ready[number], lambda a: finish(lane, number, a), lambda a: a, accumulator
            )

        accumulator = lax.cond(
            jnp.any(ready),
            lambda a: lax.fori_loop(0, num_lanes, put, a),
            lambda a: a,
            accumulator,
        )
        step = ready.astype(jnp.int32)
        return Lane(lane.j + step, jnp.where(ready, jnp.int32(0), t), carry), accumulator

    shapes = jax.eval_shape(begin, jnp.int32(0))
    carry = jax.tree.map(lambda part: jnp.zeros((num_lanes, *part.shape), part.dtype), shapes)
    lane = Lane(first[:-1], jnp.zeros(num_lanes, jnp.int32), carry)
    _, accumulator = lax.while_loop(busy, turn, (lane, program.start()))
    return accumulator


def _of_client(inputs: Inputs, c: jax.Array, place: jax.Array) -> tuple[Any, jax.Array]:
    return jax.tree.map(lambda part: part[c], inputs.own), inputs.states[place]


def _trips(work: ClientWork, count, share, c, batch_size: int) -> list[jax.Array]:
    """How many steps each phase takes."""
    per_pass = (count + jnp.int32(batch_size - 1)) // jnp.int32(batch_size)
    trips = []
    for phase in work.phases:
        whole = jnp.int32(phase.passes) * per_pass
        if share is not None and phase.partial:
            part = jnp.ceil(whole.astype(jnp.float32) * share[c]).astype(jnp.int32)
            whole = jnp.where(share[c] < 1, part, whole)
        trips.append(whole)
    return trips


def _batch(inputs: Inputs, start, count, t, passes: int, batch_size: int) -> Batch:
    """One batch of a client's pass.

    An unused place repeats the batch's first row: masked by a zero weight, a record of another
    client whose gradient is not finite would still spoil this one's (0 * NaN is NaN).
    """
    first = t * jnp.int32(batch_size)
    if passes > 1:
        per_pass = (count + jnp.int32(batch_size - 1)) // jnp.int32(batch_size)
        number = t // jnp.maximum(per_pass, 1)
        first = (t - number * per_pass) * jnp.int32(batch_size)
        start = start + number * count
    place = first + jnp.arange(batch_size, dtype=jnp.int32)
    chosen = lax.dynamic_slice(inputs.rows, (start + first,), (batch_size,))
    valid = place < count
    chosen = jnp.where(valid, chosen, chosen[0])
    return Batch(inputs.x[chosen], inputs.y[chosen], valid, first, t, chosen)


def _choose(condition: jax.Array, chosen: Any, other: Any) -> Any:
    def pick(a, b):
        shape = condition.shape + (1,) * (jnp.ndim(a) - condition.ndim)
        return jnp.where(condition.reshape(shape), a, b)

    return jax.tree.map(pick, chosen, other)
