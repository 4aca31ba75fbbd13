"""A round is a chain of stages around one sum.

``Stage(name, init, client, server)`` is a NamedTuple of pure functions, as optax has
``GradientTransformation(init, update)``. :func:`chain` joins stages into an :class:`Aggregation`:
the client side runs first to last on each client's value, one sum is taken, and the server side
runs last to first. Where the unit of privacy is a record, the stages up to the one that rounds run
once per record, and the records' integers are summed inside the client.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from . import ring
from .errors import SpecError
from .finite import all_finite
from .opening import ClearOpener, Opener, Releases, Setting
from .randomness import Stream
from .spec import Spec

State = Any
States = dict[str, State]
_MEAN = "mean"


def _identity_server(state: State, total: jax.Array) -> tuple[jax.Array, State, dict]:
    return total, state, {}


class RecordClip(NamedTuple):
    """Records to be clipped and summed by the training engine, before any stage sees their sum.

    Attributes:
        l2_bound: of each record's gradient, in model units.
        batch_size: records whose gradients are computed together.
    """

    l2_bound: float
    batch_size: int


class Stage(NamedTuple):
    """One step that a client's value takes on its way into the sum, and back.

    Attributes:
        name: unique within a chain; keys the stage's state and its metrics.
        init: ``spec -> (state, spec)``. States what the stage needs (raises SpecError) and what it
            changes. Runs on the host before anything is traced.
        client: ``(state, stream, value [dim]) -> value``. Acts on ONE value; the chain vectorises.
        server: ``(state, total) -> (total, state, metrics)``. Metrics are scalars for the round's
            record: whatever they are computed from must be released already.
        per_record: the stage acts on one record's vector, so it and every stage up to the one that
            rounds run inside the training engine.
        rounds: the stage turns floats into integers; after it, records' vectors are summed.
        setup: ``(state, spec, setting) -> (state, opener)`` for a stage behind which only an
            opener can read the sum (encryption, masks): makes keys and the opener.
        to_wire: ``(state, payloads, setting) -> list[bytes]``, one message a client; None where
            the value is sent as plain little-endian words.
        add: ``(state, payload, payload) -> payload``, for a stage with ``setup`` whose payloads are
            added up inside a compiled round; None where only the opener can.
        release: ``(state, stream, total) -> total``: what whoever opens the sum does to it before
            anybody else sees it, with a key that is drawn once for a round (central noise).
        memory: ``(state, dim) -> pytree``: what ``release`` remembers before the first round, where
            it remembers anything; it is then ``(state, stream, total, memory) -> (total, memory)``.
            Only whoever opens sums knows it: see :class:`Releases`.
        carries: names of the entries of the state that ``server`` may change: they go from round
            to round with the model, and all clients of a round know them. The rest is fixed.
        record_clip: what the engine is to clip each record's gradient to; the stage's ``client``
            then takes their sum. It stands first, and a stage that rounds comes right behind it.
        width: ``dim -> dim``: how many values the client side makes of so many, where that is
            another number.
    """

    name: str
    init: Callable[[Spec], tuple[State, Spec]]
    client: Callable[[State, Stream, jax.Array], Any]
    server: Callable[[State, jax.Array], tuple[jax.Array, State, dict]] = _identity_server
    per_record: bool = False
    rounds: bool = False
    setup: Callable[[State, Spec, Setting], tuple[State, Opener]] | None = None
    to_wire: Callable[[State, Any, Setting], list[bytes]] | None = None
    add: Callable[[State, Any, Any], Any] | None = None
    release: Callable[..., Any] | None = None
    memory: Callable[[State, int], Any] | None = None
    carries: tuple[str, ...] = ()
    width: Callable[[int], int] | None = None
    record_clip: RecordClip | None = None


class Aggregation(NamedTuple):
    """A chain of stages, as pure functions around one sum.

    Attributes:
        stages: the chain's stages, client side first to last.
        num_record_stages: how many of them, from the first, run once per record.
        init: ``spec -> (states, spec)``: every refusal happens here, before tracing.
        setup: ``(states, spec, setting) -> (states, opener)``: keys, and who opens the sum.
        encode_record: ``(states, key [8], slot, vector [dim]) -> int32 [width]`` for one record.
        record_width: ``dim -> width`` of it.
        encode: ``(states, keys [clients, 8], values [clients, dim]) -> (elements, finite
            [clients])``: the client side after records were summed, up to what is summed: uint32
            ring elements, or floats where nothing is quantised. A value that is not finite is
            replaced by zero and reported.
        seal: ``(states, keys, elements) -> payloads``: what hides the elements, if the chain ends
            with such a stage; else the elements themselves.
        to_wire: ``(states, payloads, setting) -> list[bytes]``, one message a client.
        contribution: ``(states, key [8], value [dim]) -> (payload, finite)``: ``encode`` and
            ``seal`` of one client's value, for a round that adds payloads up as they are made.
        add: ``(states, payload, payload) -> payload``; None where a stage's payloads cannot be
            added inside a compiled round.
        reduce: ``(elements, alive [clients]) -> total``: the sum in the clear. An opener comes to
            the same total from the sealed payloads.
        release: ``(states, key [8], total) -> total``: the noise that whoever opens the sum adds
            before anybody else sees it, pure and jittable; None where no stage adds any. The
            opener that ``setup`` returns does it, with a fresh key, before it stores its result.
            Where ``memory`` is not None it is ``(states, key, total, memory) -> (total, memory)``.
        memory: ``(states, dim) -> pytree``: what ``release`` remembers before the first round; None
            where it remembers nothing.
        decode: ``(states, total) -> (mean [dim] float32, states, metrics)``.
        carried: ``states -> pytree``: the part that changes from round to round.
        with_carried: ``(states, carried) -> states``.
    """

    stages: tuple[Stage, ...]
    num_record_stages: int
    init: Callable[[Spec], tuple[States, Spec]]
    setup: Callable[[States, Spec, Setting], tuple[States, Opener]]
    encode_record: Callable[..., jax.Array]
    record_width: Callable[[int], int]
    encode: Callable[..., tuple[jax.Array, jax.Array]]
    seal: Callable[..., Any]
    to_wire: Callable[[States, Any, Setting], list[bytes]]
    contribution: Callable[..., tuple[Any, jax.Array]]
    add: Callable[[States, Any, Any], Any] | None
    reduce: Callable[..., jax.Array]
    release: Callable[..., Any] | None
    memory: Callable[[States, int], Any] | None
    decode: Callable[..., tuple[jax.Array, States, dict]]
    carried: Callable[[States], Any]
    with_carried: Callable[[States, Any], States]


def chain(*stages: Stage) -> Aggregation:
    """Join stages into the aggregation of a round.

    Args:
        *stages: in the order in which a client applies them. No stage at all is the plain mean.

    Returns:
        An :class:`Aggregation`.

    Raises:
        SpecError: two stages of one name, a per-record stage that is not first, records that are
            never rounded to integers, a stage behind an encryption, or one between an opener's
            noise and the sum.

    Example:
        >>> mean = chain()
        >>> spec = Spec(dim=2, num_clients=2, num_records=2, denominator=2.0)
        >>> states, _ = mean.init(spec)
        >>> elements, finite = mean.encode(states, np.zeros((2, 8), np.uint32),
        ...                                jnp.array([[1., 2.], [3., 4.]]))
        >>> mean.decode(states, mean.reduce(elements, jnp.ones(2, bool)))[0].tolist()
        [2.0, 3.0]
    """
    for stage in stages:
        if not isinstance(stage, Stage):
            raise SpecError(
                "chain", need="stages, one after the other, as fs.privacy.clip(1.0) gives them",
                found=type(stage).__name__, fix={
                    "list": "Write chain(*stages).", "tuple": "Write chain(*stages).",
                    "function": f"Call it: {getattr(stage, '__name__', '...')}(...).",
                }.get(type(stage).__name__, "Encryption schemes go into fs.he.encrypt(...)."))
    names = [stage.name for stage in stages]
    twice = [name for name in names if names.count(name) > 1]
    if twice or _MEAN in names:
        raise SpecError("chain", need=f"stages of different names, none called {_MEAN!r}",
                        found=str(names), fix=f"Keep one `{twice[0]}` in the chain." if twice else
                        "Give that stage another name.")
    split = _record_split(stages)
    _check_record_clip(stages)
    sealed = [stage.setup is not None for stage in stages]
    if any(sealed[:-1]):
        hides = names[sealed.index(True)]
        raise SpecError("chain", need=f"stage `{hides}` last, since only its opener reads the sum",
                        found=str(names), fix=f"Move `{hides}` to the end of the chain.")
    seal_stage = stages[-1] if sealed and sealed[-1] else None
    open_stages = stages[:-1] if seal_stage else stages
    releasing = [place for place, stage in enumerate(stages) if stage.release is not None]
    if releasing and releasing != [len(open_stages) - 1]:
        raise SpecError("chain", need=f"stage `{names[releasing[0]]}`, whose noise whoever opens "
                        "the sum adds to the sum, as the last that touches it", found=str(names),
                        fix="Put it right before encrypt(...), or last where there is none.")

    def init(spec: Spec) -> tuple[States, Spec]:
        states: States = {_MEAN: {"denominator": jnp.float32(spec.denominator)}}
        for stage in stages:
            states[stage.name], spec = stage.init(spec)
        states[_MEAN]["modulus"] = Static(spec.modulus)
        spec = _with_float_sums(spec)
        sampled = spec.sampling.unit if spec.sampling and spec.sampling.kind == "poisson" else None
        need(sampled in (None, spec.unit) or spec.unit is None, "clip",
             f"unit={sampled!r}, the unit that rounds sample", f"unit={spec.unit!r}",
             "Clip the same unit that the federation samples.")
        return states, spec

    def setup(states: States, spec: Spec, setting: Setting) -> tuple[States, Opener]:
        opener: Opener = ClearOpener(setting, spec)
        if seal_stage is not None and seal_stage.setup is not None:
            state, opener = seal_stage.setup(states[seal_stage.name], spec, setting)
            states = {**states, seal_stage.name: state}
        if releasing:
            compiled = jax.jit(lambda *arguments: release(states, *arguments))
            first = None if remembers is None else lambda dim: memory(states, dim)
            opener.release_through(Releases(compiled, first, setting.source, setting.folder))
        return states, opener

    def encode_record(states, key, slot, vector):
        for place, stage in enumerate(stages[:split]):
            vector = stage.client(states[stage.name], Stream(key, place, slot), vector)
        return vector

    def record_width(dim):
        for stage in stages[:split]:
            dim = dim if stage.width is None else stage.width(dim)
        return dim

    def encode_one(states, key, value):
        finite = all_finite(value)
        value = jnp.where(finite, value, jnp.zeros_like(value))
        modulus = states[_MEAN]["modulus"].value
        for place, stage in enumerate(open_stages[split:], start=split):
            value = stage.client(states[stage.name], Stream(key, place), value)
        return (value if modulus is None else ring.wrap(value, modulus)), finite

    def seal_one(states, key, element):
        if seal_stage is None:
            return element
        stream = Stream(key, len(stages) - 1)
        return seal_stage.client(states[seal_stage.name], stream, element)

    def encode(states, keys, values):
        # One client after another: a thousand clients' randomness side by side leaves the cache.
        return jax.lax.map(lambda pair: encode_one(states, *pair), (jnp.asarray(keys), values))

    def seal(states, keys, elements):
        return jax.lax.map(lambda pair: seal_one(states, *pair), (jnp.asarray(keys), elements))

    def contribution(states, key, value):
        element, finite = encode_one(states, key, value)
        return seal_one(states, key, element), finite

    def add(states, one, other):
        if seal_stage is not None and seal_stage.add is not None:
            return seal_stage.add(states[seal_stage.name], one, other)
        modulus = states[_MEAN]["modulus"].value
        return one + other if modulus is None else ring.wrap(one + other, modulus)

    def to_wire(states, payloads, setting):
        if seal_stage is not None and seal_stage.to_wire is not None:
            return seal_stage.to_wire(states[seal_stage.name], payloads, setting)
        rows = np.asarray(payloads)
        return [row.tobytes() for row in rows.astype(rows.dtype.newbyteorder("<"))]

    def reduce(elements, alive):
        kept = jnp.where(alive[:, None], elements, jnp.zeros_like(elements))
        return jnp.sum(kept, axis=0, dtype=elements.dtype)

    remembers = stages[releasing[0]].memory if releasing else None

    def release(states, key, total, *memory):
        place = len(open_stages) - 1
        stage = stages[place]
        if len(memory) != (remembers is not None):
            raise SpecError(f"stage `{stage.name}`", need="what its noise remembers of earlier "
                            "rounds", found="none", fix="Begin with Aggregation.memory(...), and "
                            "pass on what each round's release returns.")
        assert stage.release is not None
        total = stage.release(states[stage.name], Stream(key, place), total, *memory)
        if memory:
            total, after = total
        modulus = states[_MEAN]["modulus"].value
        total = total if modulus is None else ring.wrap(total, modulus)
        return (total, after) if memory else total

    def memory(states, dim):
        assert remembers is not None
        return remembers(states[stages[releasing[0]].name], dim)

    def carried(states):
        return {stage.name: {name: states[stage.name][name] for name in stage.carries}
                for stage in stages if stage.carries}

    def with_carried(states, changed):
        wanted = {stage.name: sorted(stage.carries) for stage in stages if stage.carries}
        given = {name: sorted(entries) for name, entries in dict(changed or {}).items()}
        if given != wanted:
            raise SpecError("the state's stage_states", need=f"{wanted or 'none'}, which this "
                            "chain's stages carry from round to round", found=f"{given or 'none'}",
                            fix="Begin with init(): the state is of another chain.")
        return {**states, **{name: {**states[name], **entries}
                             for name, entries in changed.items()}}

    def decode(states, total):
        after, metrics = dict(states), {}
        for stage in reversed(stages):
            total, after[stage.name], found = stage.server(states[stage.name], total)
            metrics |= {f"{stage.name}/{name}": value for name, value in found.items()}
        return total / states[_MEAN]["denominator"], after, metrics

    addable = seal_stage is None or seal_stage.add is not None
    return Aggregation(
        tuple(stages), split, init, setup, encode_record, record_width, encode, seal, to_wire,
        contribution, add if addable else None, reduce, release if releasing else None,
        None if remembers is None else memory, decode, carried, with_carried)


def _record_split(stages: tuple[Stage, ...]) -> int:
    """How many stages, from the first, run once per record."""
    per_record = [place for place, stage in enumerate(stages) if stage.per_record]
    if not per_record:
        return 0
    rounding = [place for place, stage in enumerate(stages) if stage.rounds]
    if not rounding or rounding[0] < per_record[-1]:
        raise SpecError(
            f"stage `{stages[per_record[0]].name}`",
            need="each record's vector rounded to integers before records are summed",
            found=str([stage.name for stage in stages]),
            fix="Put quantise(...) right after clip(..., unit='record').",
        )
    return rounding[0] + 1


def _check_record_clip(stages: tuple[Stage, ...]) -> None:
    """Sums of clipped records are rounded before anything else happens to them."""
    clips = [place for place, stage in enumerate(stages) if stage.record_clip is not None]
    if clips and not (clips == [0] and len(stages) > 1 and stages[1].rounds):
        raise SpecError(
            f"stage `{stages[clips[0]].name}`, whose records the engine clips and sums",
            need="to be the first, with quantise(...) right behind it",
            found=str([stage.name for stage in stages]),
            fix="Write fs.chain(clip(..., method='ghost'), quantise(...), ...), or method='exact'.",
        )


def _with_float_sums(spec: Spec) -> Spec:
    """Says in the mechanism what sums of records in floating point add to it."""
    mechanism = spec.mechanism
    if mechanism is None or not spec.float_sum_error:
        return spec
    kind = "float sums" if mechanism.arithmetic == "integer" else mechanism.arithmetic
    more = mechanism.total_variation + spec.rounding_failure
    return spec.replace(
        mechanism=dataclasses.replace(mechanism, arithmetic=kind, total_variation=more))


@jax.tree_util.register_static
class Static:
    """A constant of a stage's state that is known when a program is compiled.

    Example:
        >>> Static(16).value
        16
    """

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Static) and self.value == other.value

    def __hash__(self) -> int:
        return hash(self.value)

    def __repr__(self) -> str:
        return f"Static({self.value!r})"


def need(holds: bool, stage: str, need: str, found: str, fix: str) -> None:
    """Raise SpecError for a stage's requirement that does not hold."""
    if not holds:
        raise SpecError(f"stage `{stage}`", need=need, found=found, fix=fix)
