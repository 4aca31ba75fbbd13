"""What the engine is given, looked at before anything is compiled or sent to a device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_secure.core.errors import SpecError
from fedjax_secure.training.contracts import ClientWork, Params, Rows, Sink, Total, TrainableModel


def sink_of(into: Sink | None, num_clients: int, *, with_states: bool) -> Sink:
    """A sink of known clients, with its room; a row of every client where none is given."""
    if into is None:
        return Rows.of(range(num_clients), num_clients)
    if not isinstance(into, Rows | Total):
        raise refused("a sink: Rows or Total", type(into).__name__, "Leave into= out.")
    clients = np.asarray(into.clients)
    known = not clients.size or (clients.min() >= 0 and clients.max() < num_clients)
    if not known or len(set(into.clients)) != len(into.clients):
        raise refused(
            f"distinct client numbers from 0 to {num_clients - 1}",
            "others, or one twice",
            "Number clients as the dataset does.",
        )
    if isinstance(into, Total):
        # Too few keys would not fail in a compiled program: the last would serve several.
        require_keys(np.asarray(into.keys), num_clients)
        room = (into.room or num_clients) if with_states else None
        into = into._replace(room=room)
    if into.room is not None and not len(into.clients) <= into.room:
        raise refused(
            f"at most {into.room} clients in a chunk of that many rows",
            str(len(into.clients)),
            "Make chunks smaller, or give them more rows.",
        )
    return into


def require_keys(keys: np.ndarray, num_clients: int) -> None:
    """Refuse keys that are not eight words a client."""
    if keys.shape != (num_clients, 8) or keys.dtype != np.uint32:
        raise refused(
            f"keys of shape [{num_clients}, 8] and dtype uint32",
            f"{keys.dtype}{list(keys.shape)}",
            "Give each client of the dataset eight 32-bit words of fresh randomness.",
        )


def require_encoder(encode_record: Any, dtype: np.dtype, dim: int, states: tuple) -> None:
    """Refuse an encoder of records that returns another shape or dtype than it should."""
    out = jax.eval_shape(
        encode_record,
        *states,
        jax.ShapeDtypeStruct((8,), jnp.uint32),
        jax.ShapeDtypeStruct((), jnp.uint32),
        jax.ShapeDtypeStruct((dim,), jnp.float32),
    )
    found = (getattr(out, "shape", None), getattr(out, "dtype", None))
    if found != ((dim,), dtype):
        raise refused(
            f"encode_record to return {dtype}[{dim}]",
            f"{found[1]}{list(found[0] or ())}",
            "Round the clipped gradient to integers, and keep its length.",
        )


def record_bounds_of(bounds: Any, records: int) -> np.ndarray:
    """Each record's bound as float32; refuses what is not a number of 0 or more for each."""
    bounds = np.asarray(bounds)
    numbers = np.issubdtype(bounds.dtype, np.number) and bounds.shape == (records,)
    if not numbers or not np.all(np.isfinite(bounds) & (bounds >= 0)):
        raise refused(
            f"record_bounds, {records} finite numbers of 0 or more, by row number",
            f"{bounds.dtype}{list(bounds.shape)}, or some that are not",
            "0 leaves a record out of the sum.",
        )
    return bounds.astype(np.float32)


def shares_of(share: np.ndarray | None, num_clients: int) -> np.ndarray | None:
    """Each client's share of its steps as float32, or None for all of them."""
    if share is None:
        return None
    share = np.asarray(share, np.float32)
    if share.shape != (num_clients,) or not np.all((share > 0) & (share <= 1)):
        raise refused(
            f"{num_clients} shares above 0 and up to 1",
            f"{list(share.shape)}, or values outside",
            "Give 1 for a client that completes its work.",
        )
    return share


def weights_of(weights: np.ndarray | None, num_clients: int) -> np.ndarray:
    """What each client's update is multiplied by, as float32; 1 where nothing is said."""
    weights = np.ones(num_clients) if weights is None else np.asarray(weights)
    if weights.shape != (num_clients,) or not np.all(np.isfinite(weights)):
        raise refused(
            f"{num_clients} finite weights",
            f"{list(weights.shape)} or some that are not finite",
            "Give one for each client of the dataset.",
        )
    return weights.astype(np.float32)


def require_own(own: Mapping[str, np.ndarray], num_clients: int) -> None:
    """Refuse clients' own numbers that have no row for each client."""
    for name, value in own.items():
        if np.shape(value)[:1] != (num_clients,):
            raise refused(
                f"own[{name!r}] with a row for each of {num_clients} clients",
                f"{list(np.shape(value))}",
                "Number clients as the dataset does.",
            )


def require_states(states: np.ndarray | None, work: ClientWork, num_clients: int) -> None:
    """Refuse states that do not fit what the work keeps of so many clients."""
    if (states is None) == (work.state_size > 0) or (
        states is not None and np.shape(states) != (num_clients, work.state_size)
    ):
        raise refused(
            f"states of shape [{num_clients}, {work.state_size}] for work `{work.name}`"
            if work.state_size
            else f"no states for work `{work.name}`, which keeps none",
            "none" if states is None else f"{list(np.shape(states))}",
            "Read them from where the last round's were kept, in the sink's order.",
        )


def float_params(model: TrainableModel, params: Params) -> Params:
    """A model's parameters as float32."""
    model.ravel(params)  # refuses the parameters of another model
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def refused(need: str, found: str, fix: str) -> SpecError:
    """The engine's refusal, to be raised."""
    return SpecError("the engine", need=need, found=found, fix=fix)
