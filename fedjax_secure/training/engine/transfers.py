"""To the devices and back: what all of them hold, what each holds, and what comes of a round."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from fedjax_secure.training.programs import AXIS


class Transfers:
    """Moves an engine's arrays between the host and its devices.

    Args:
        mesh: the engine's devices, along one axis.
        several: whether they belong to several processes.
    """

    def __init__(self, mesh: Mesh, *, several: bool):
        self._several, self._first = several, mesh.devices.flat[0]
        self._everywhere = NamedSharding(mesh, P())
        self._dealt = NamedSharding(mesh, P(AXIS))
        self._stateless: dict[int, jax.Array] = {}

        def in_order(values, rows, dealt):
            return jnp.where(dealt[:, None], values[rows], jnp.zeros((), values.dtype))

        self._ordered = jax.jit(in_order)

    def put(self, values: Any) -> Any:
        """The same values on every device, those of other processes included."""
        if not self._several:
            return jax.device_put(values, self._everywhere)

        def everywhere(value):
            # device_put refuses what lies on one process's device; and of what lies on the host
            # it compares all processes' copies, in each round.
            if isinstance(value, jax.Array) and value.sharding == self._everywhere:
                return value
            host = np.asarray(jnp.asarray(value))
            return jax.make_array_from_callback(host.shape, self._everywhere, host.__getitem__)

        return jax.tree.map(everywhere, values)

    def split(self, states: np.ndarray | None, rows: np.ndarray, room: int) -> jax.Array:
        """Clients' states, each in its row of the device that it was dealt to."""
        if states is None:
            if room not in self._stateless:
                self._stateless[room] = self._make_split(np.zeros((room, 0), np.float32))
            return self._stateless[room]
        kept = np.zeros((room, np.shape(states)[1]), np.float32)
        kept[rows] = states
        return self._make_split(kept)

    def _make_split(self, values: np.ndarray) -> jax.Array:
        return jax.make_array_from_callback(values.shape, self._dealt, lambda part: values[part])

    def local(self, values: Any) -> Any:
        """What every device has a copy of, on the first device of this process."""
        return jax.tree.map(lambda value: value.addressable_data(0), values)

    def fetch(self, values: jax.Array) -> np.ndarray:
        """On the host."""
        return np.asarray(self.local(values) if self._several else values)

    def in_order(self, values: jax.Array, rows: np.ndarray, dealt: np.ndarray, room: int):
        """The clients' rows in the sink's order; zeros for those who took no part."""
        values = self.local(values) if self._several else jax.device_put(values, self._first)
        places, used = np.zeros(room, np.int32), np.zeros(room, bool)
        places[: len(rows)], used[: len(rows)] = rows, dealt
        return self._ordered(values, places, used)
