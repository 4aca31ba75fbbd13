"""Clients that clip what they send to norms of their own, before the chain has it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..core import Cohort, SpecError
from ..core.finite import all_finite
from ..training import ClientWork
from .algorithm import Algorithm

_NAME = "with_client_bounds"
_OWN = "client_bound"
#: Between them float32 squares neither vanish nor overflow.
_SMALLEST, _LARGEST = 1e-12, 1e12


def with_client_bounds(
    algorithm: Algorithm, client_bounds: Sequence[float] | np.ndarray
) -> Algorithm:
    """The same algorithm, each of whose clients clips all that it sends to a norm of its own.

    For clients that allow different epsilons: who wants more privacy sends less. See
    ``fs.privacy.individual.scale``, whose plan has the bounds, and whose budget charges each group.

    Args:
        algorithm: what clients do.
        client_bounds: ``[clients]``, in the dataset's order, 1e-12 to 1e12, in model units:
            ``plan.client_bounds(...)``. A client's bound must depend on that client alone.

    Returns:
        An :class:`Algorithm`. The chain's ``clip(l2_bound, unit="client")`` is still needed: it is
        what the noise is measured by, the widest group's bound.

    Guarantees:
        What a client hands to the chain, weight included, has a norm of at most its own bound, for
        every finite value; it is scaled as ``clip`` scales. Rounding comes after it: see
        ``IndividualPlan.client_bounds``.

    Raises:
        SpecError: bounds that are no such numbers; an algorithm that has such bounds already; when
            a federation is made, other than one bound for each client, or a chain that clips
            records.

    Example:
        >>> from fedjax_secure.algorithms import fed_avg
        >>> with_client_bounds(fed_avg(0.1), [0.5, 1.0]).client_bounds.tolist()
        [0.5, 1.0]

    Source:
        Boenisch, Muehl, Dziedzic, Rinberg, Papernot 2023, arXiv 2303.17046, the method Scale, with
        clients in the place of records.
    """
    if not isinstance(algorithm, Algorithm) or algorithm.client_bounds is not None:
        raise SpecError(
            _NAME, need="an algorithm whose clients have no bounds of their own yet",
            found=type(algorithm).__name__ if not isinstance(algorithm, Algorithm) else
            "one that has them", fix="Write with_client_bounds(fed_avg(0.1), bounds), once.")
    bounds = _checked(client_bounds)

    def work(model, aggregation) -> ClientWork:
        if aggregation.num_record_stages or any(s.record_clip for s in aggregation.stages):
            raise SpecError(
                _NAME, need="a chain that clips clients", found="one that clips records",
                fix="Use clip(..., unit='client'), or fed_sgd(..., record_bounds=...).")
        # The room of privacy takes seconds to import, which other algorithms can do without.
        from ..privacy.clipping.norms import scaled_down

        inner = algorithm.work(model, aggregation)

        def finish(shared, own, state, carry, done):
            result = inner.finish(shared, own, state, carry, done)
            flat = jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(result.value)])
            flat = flat.astype(jnp.float32)
            finite = all_finite(flat)
            clipped = scaled_down(jnp.where(finite, flat, 0.0), own[_OWN])
            bad = jnp.int32(0) if result.nonfinite is None else result.nonfinite
            if result.nonfinite is None and result.state is not None:
                bad = bad + (~all_finite(result.state)).astype(jnp.int32)
            return result._replace(value=clipped, nonfinite=bad + (~finite).astype(jnp.int32))

        return inner._replace(name=f"{inner.name}, clipped", finish=finish)

    def own(cohort: Cohort, keys: np.ndarray) -> dict[str, np.ndarray]:
        return {**algorithm.own(cohort, keys), _OWN: bounds}

    def bind(num_clients: int, denominator: float) -> Algorithm:
        return with_client_bounds(algorithm.for_federation(num_clients, denominator), bounds)

    # Settings are shown in reports: bounds tell clients' groups, of which not even a digest may.
    return algorithm._replace(
        settings=f"{algorithm.settings}, client_bounds".lstrip(", "), work=work, own=own,
        bind=None if algorithm.bind is None else bind, client_bounds=bounds)


def _checked(client_bounds: Sequence[float] | np.ndarray) -> np.ndarray:
    found = np.asarray(client_bounds)
    numbers = found.ndim == 1 and found.size and np.issubdtype(found.dtype, np.number)
    if not numbers or not np.all((found >= _SMALLEST) & (found <= _LARGEST)):
        raise SpecError(
            _NAME, need=f"client_bounds, a number from {_SMALLEST:g} to {_LARGEST:g} for "
            "each client", found=f"{found.dtype}{list(found.shape)}, or some that are not",
            fix="Give plan.client_bounds(...).")
    kept = found.astype(np.float32)
    kept.flags.writeable = False
    return kept
