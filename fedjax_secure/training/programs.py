"""The engine's compiled programs: every client of a round, dealt to devices, into one sink."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from fedjax_secure.core.errors import SpecError
from fedjax_secure.core.finite import all_finite
from fedjax_secure.training.contracts import ClientResult, ClientWork, Done, Rows, Sink, Total
from fedjax_secure.training.layouts import Inputs, Program, lanes, ragged
from fedjax_secure.training.packing import Draw

AXIS = "devices"


def round_program(
    work: ClientWork,
    into: Sink,
    mesh: Mesh,
    *,
    num_clients: int,
    batch_size: int,
    capacity: int,
    num_lanes: int,
) -> Callable[..., Any]:
    """The program of a round, to be compiled.

    Args:
        work: what each client computes.
        into: where values go; of it the program keeps the kind and the functions only.
        mesh: the devices, one axis named `AXIS`.
        num_clients: of the dataset.
        batch_size: records in a batch.
        capacity: rows of a device, where values or states have rows.
        num_lanes: of the lanes layout; 0 for the ragged layout.

    Returns:
        ``(shared, own, share, x, y, sealing, packed draw, states) -> (values, nonfinite, steps,
        metrics, states)``, as `Engine.train` calls it.

    Raises:
        SpecError: while it is traced: a work whose results have other sizes than it says.
    """
    num_devices = mesh.devices.size
    several = jax.process_count() > 1

    def device(shared, own, share, x, y, sealing, draw, states):
        rows, client, begin, count, place, first = Draw.unpacked(
            draw, num_clients, num_devices * max(num_lanes, 1)
        )
        inputs = Inputs(shared, own, share, states, x, y, rows, client, begin, count, place)
        result = _result_of(work, inputs)
        kind = jnp.result_type(*(leaf.dtype for leaf in jax.tree.leaves(result.value)))

        def start():
            if isinstance(into, Rows):
                values = jnp.zeros((capacity, work.width), kind)
            elif into.contribution is None:
                values = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), result.value)
            else:
                payload = jax.eval_shape(
                    lambda key: into.contribution(sealing[1], key, jnp.zeros(work.width, kind)),
                    sealing[0][0],
                )[0]
                values = jax.tree.map(lambda p: jnp.zeros(p.shape, p.dtype), payload)
            metrics = {name: jnp.zeros(num_clients, m.dtype) for name, m in result.metrics.items()}
            integers = jnp.zeros(num_clients, jnp.int32)
            kept = jnp.zeros((capacity, work.state_size), jnp.float32)
            return values, integers, integers, metrics, kept

        def put(accumulator, c, place, result, trips):
            values, nonfinite, steps, metrics, kept = accumulator
            bad = jnp.int32(0) if result.nonfinite is None else result.nonfinite
            look = result.nonfinite is None and jnp.issubdtype(kind, jnp.floating)
            if isinstance(into, Rows):
                if look:
                    bad = (~all_finite(result.value)).astype(jnp.int32)
                values = _set_row(values, place, result.value)
            elif into.contribution is None:
                values = jax.tree.map(jnp.add, values, result.value)
            else:
                keys, states = sealing
                payload, finite = into.contribution(states, keys[c], _flat(result.value))
                values = into.add(states, values, payload)
                bad = bad + (~finite & (bad == 0)).astype(jnp.int32)
            if work.state_size:
                kept = _set_row(kept, place, result.state)
            metrics = {name: metrics[name].at[c].set(m) for name, m in result.metrics.items()}
            return values, nonfinite.at[c].set(bad), steps.at[c].set(trips), metrics, kept

        program = Program(work, batch_size, start, put)
        d = lax.axis_index(AXIS)
        if not num_lanes:
            out = ragged(program, inputs, first[d], first[d + 1])
        else:
            bins = lax.dynamic_slice(first, (d * num_lanes,), (num_lanes + 1,))
            out = lanes(program, inputs, bins, num_lanes)
        values, nonfinite, steps, metrics, kept = out
        # each client's numbers are set on one device and zero on the others: sums are exact
        nonfinite, steps, metrics = lax.psum((nonfinite, steps, metrics), AXIS)
        if isinstance(into, Total) and into.contribution is None:
            values = lax.psum(_flat(values), AXIS)
        elif isinstance(into, Total):
            values = _folded(values, into.add, sealing[1], num_devices)
        elif several:
            values = lax.all_gather(values, AXIS, tiled=True)
        if several:
            kept = lax.all_gather(kept, AXIS, tiled=True)
        return values, nonfinite, steps, metrics, kept

    split = P() if several else P(AXIS)
    # check_vma=False: with it, jax.grad inside the body would sum over devices by itself
    return jax.shard_map(
        device,
        mesh=mesh,
        in_specs=(P(), P(), P(), P(), P(), P(), P(), P(AXIS)),
        out_specs=(P() if isinstance(into, Total) else split, P(), P(), P(), split),
        check_vma=False,
    )


def _result_of(work: ClientWork, inputs: Inputs) -> ClientResult:
    """The shapes of one client's result."""

    def one():
        own, state = jax.tree.map(lambda part: part[0], inputs.own), inputs.states[0]
        carry = work.start(inputs.shared, own, state)
        done = Done(jnp.int32(0), tuple(jnp.int32(0) for _ in work.phases))
        return work.finish(inputs.shared, own, state, carry, done)

    result = jax.eval_shape(one)
    for what, parts, size in (
        ("values to send", result.value, work.width),
        ("values to keep", result.state, work.state_size),
    ):
        found = sum(leaf.size for leaf in jax.tree.leaves(parts))
        if found != size:
            raise SpecError(
                "the engine",
                need=f"{size} {what} of work `{work.name}`",
                found=f"{found}",
                fix="Make its width and state_size agree with what `finish` returns.",
            )
    return result


def _flat(value: Any) -> jax.Array:
    """A value's parts as one vector."""
    leaves = [leaf.reshape(-1) for leaf in jax.tree.leaves(value)]
    if len(leaves) == 1:
        return leaves[0]
    # Fused with what made the parts, XLA chooses among them element by element: three times slower.
    return jnp.concatenate(lax.optimization_barrier(leaves))


def _set_row(rows: jax.Array, place: jax.Array, value: Any) -> jax.Array:
    """Writes a value's parts, one after the other, into a row."""
    first = 0
    for leaf in jax.tree.leaves(value):
        part = leaf.reshape(1, -1).astype(rows.dtype)
        rows = lax.dynamic_update_slice(rows, part, (place, jnp.int32(first)))
        first += leaf.size
    return rows


def _folded(total: Any, add: Any, states: Any, num_devices: int) -> Any:
    """The devices' totals, added up in the devices' order on every device."""
    parts = jax.tree.map(lambda part: lax.all_gather(part, AXIS), total)
    total = jax.tree.map(lambda part: part[0], parts)
    for device in range(1, num_devices):
        total = add(states, total, jax.tree.map(lambda part, d=device: part[d], parts))
    return total
