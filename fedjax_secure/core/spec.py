"""What is known about one client's value at a point of the chain, before anything is traced.

A frozen :class:`Spec` flows through the stages when a chain is built. Each stage states what it
needs and returns what it changed. The same object yields the event that the accountant composes
and the text that tells people who can see what, so these cannot disagree with the code that runs.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Literal

from .errors import SpecError
from .randomness import Mode
from .threat_model import ThreatModel, threat_model

if TYPE_CHECKING:
    from dp_accounting import DpEvent

DType = Literal["float32", "int32", "uint32", "ciphertext"]
Unit = Literal["record", "client"]
Adjacency = Literal["add_remove", "replace_one"]
Trust = Literal["distributed", "central", "local"]

#: Who makes the sum that is opened: the opener, from the clients' signed messages ("untrusted"), or
#: the aggregator, which is trusted to add them honestly ("semi-honest").
Aggregator = Literal["untrusted", "semi-honest"]

#: Probability that is treated as "never" where a bound on a random value is stated.
NEGLIGIBLE = 2.0**-40


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a round draws the units of privacy, and whether that amplifies privacy.

    Amplification by Poisson sampling needs each unit to toss a coin of its own that nobody who
    sees the models learns. Nothing else is accounted as sampled:

    - **fixed size**: a cohort of m out of n without replacement is no Poisson draw. Under adding
      or removing one unit its amplification is another, and accounting it as Poisson with rate
      m / n reports an epsilon that is too small. So it counts as if every unit always took part,
      which is always true: who takes part is drawn from numbers that no unit's data changes, and
      a unit that is removed still answers, with zero and its noise share, when it is drawn.
    - **public rules** (availability, deadlines, arrival times): for the same reason as if every
      unit took part.
    - **coins for another unit**: a coin for a client tells of all of its records at once, so it
      amplifies privacy for clients, not for records; and the other way round.

    Attributes:
        kind: ``"poisson"`` (each unit alone, with secret coins), ``"all"`` (everyone takes part)
            or ``"public"`` (some do, chosen by public numbers and by randomness for which no
            amplification is claimed).
        rate: the largest probability that a unit takes part, in (0, 1]; 1 unless ``"poisson"``.
        unit: what is drawn, ``"record"`` or ``"client"``.
        separation: rounds of one client are at least so far apart: who took part takes none in the
            next ``separation - 1`` rounds. 1 promises nothing.
        most_rounds: one client takes part in at most so many rounds of a run; None for any number.
        drops_out: whether clients that were drawn may be lost before they send anything, by chance
            that depends neither on data nor on who was drawn.

    Raises:
        SpecError: a rate outside (0, 1], or one below 1 where nothing is amplified; a separation or
            number of rounds below 1.

    Example:
        >>> Sampling("poisson", 0.1, "record").rate
        0.1
    """

    kind: Literal["poisson", "all", "public"]
    rate: float
    unit: Unit
    separation: int = 1
    most_rounds: int | None = None
    drops_out: bool = False

    def __post_init__(self):
        if self.separation < 1 or (self.most_rounds is not None and self.most_rounds < 1):
            raise SpecError(
                "sampling", need="separation and most_rounds of 1 or more",
                found=f"separation={self.separation}, most_rounds={self.most_rounds}",
                fix="Leave them out where a client may take part in any round.",
            )
        if not 0.0 < self.rate <= 1.0 or (self.kind != "poisson" and self.rate != 1.0):
            raise SpecError(
                "sampling", need="a rate above 0 and up to 1 (exactly 1 unless kind is 'poisson')",
                found=f"kind={self.kind!r}, rate={self.rate}",
                fix="Give the largest probability with which a unit takes part in one round.",
            )


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """The privacy mechanism of one round, as the accountant takes it.

    Attributes:
        noise_multiplier: standard deviation over sensitivity of the Gaussian that is accounted,
            already lowered for the discretisation (facts in ``docs/privacy.md``); None for other
            kinds, which are accounted by their parameters.
        log_ratio: bound, for one round, on ``|log|`` of the true over the accounted distribution.
        total_variation: statistical distance of one round's noise from the exact one.
        rounded_unit_l2: one unit's L2 sensitivity in integer units, rounding included.
        share_stddev: standard deviation of one draw of noise, integer units: of one client's share,
            of one client's whole noise (``"local"``), or of all of it (``"central"``).
        num_shares: how many draws the guarantee counts on; 1 unless noise is distributed.
        kind: what the accountant takes it for: ``"gaussian"``, ``"skellam"``, ``"pure"`` or another
            kind that ``fs.privacy.Spend`` knows.
        parameters: what that kind needs besides, sorted by name.
        trust: who is trusted with what. ``"distributed"``: nobody with a sum, each client adds a
            share of the noise. ``"central"``: whoever opens the sum, who adds all of the noise
            before anybody else sees it. ``"local"``: nobody, each client adds all of the noise that
            its own message needs.
        arithmetic: ``"integer"``, ``"float sums"`` where integer noise hides what was clipped and
            summed in floating point, or ``"float"`` where the noise is no better than that.
        schedule: empty where every round costs the same. Else the run is planned as a whole:
            ``noise_multiplier`` is that of all of its rounds together, and these are each round's
            share of their squared loss, ``1 / noise_multiplier^2``. It has so many rounds.
    """

    noise_multiplier: float | None
    log_ratio: float
    total_variation: float
    rounded_unit_l2: float
    share_stddev: float
    num_shares: int
    kind: str = "gaussian"
    parameters: tuple[tuple[str, float], ...] = ()
    trust: Trust = "distributed"
    arithmetic: Literal["integer", "float sums", "float"] = "integer"
    schedule: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spec:
    """What is known about one client's value at a point of the chain.

    Args:
        dim: number of values in an update.
        num_clients: how many clients a round asks.
        min_clients: how many distinct clients the sum needs before anyone opens it.
        num_records: how many records take part at the very most, over all clients.
        denominator: the public constant by which the sum is divided.
        sampling: how units are drawn each round, or None where no privacy is claimed.
        mode: ``"secure"`` or ``"seeded"``.
        unit_name: what one unit is called in texts (``"patient"``).
        client_name: what one client is called in texts (``"hospital"``).
        dtype: type of the value here: ``float32``, ``int32`` (integers that do not wrap),
            ``uint32`` (ring elements) or ``ciphertext``.
        unit: whose norm was clipped: ``"record"``, ``"client"`` or None.
        l2_bound, linf_bound: bounds of one clipped unit's vector, in units of ``1 / scale``.
        scale: integer units per model unit.
        moving_bound: whether units are clipped to a norm that changes from round to round; bounds
            and ``1 / scale`` are then in units of that norm, not of the model.
        modulus: size of the ring in which values are summed, or None.
        rotated: whether a random rotation mixes the vector's values.
        flatness: the largest value of a vector over its L2 norm, except with probability
            :data:`NEGLIGIBLE` a round; below 1 after a random rotation. It bounds how likely sums
            are to wrap, and nothing that privacy rests on.
        client_records: how many records one client has at the very most; None where it is not said.
        float_sum_error: where records' gradients are clipped and summed in floating point, before
            anything is rounded: how far a client's sum may be off, over the bound that each record
            is clipped to; 0 where each unit is rounded by itself. ``l2_bound`` includes it.
        rounding_failure: probability a round that ``l2_bound`` does not hold for the integers of
            such a sum.
        noise_stddev: standard deviation of the noise in the sum when every client answers.
        noise_tail_shape: ``(v, c)`` with which each value of that noise exceeds t in magnitude with
            probability at most ``2 exp(-t^2 / (2 (v + c t)))``.
        mechanism: what the accountant gets, once noise has been added.
        readable: whether the server may read ONE client's value.
        opener: who opens the sum, in words, and what is assumed of them.
        aggregator: ``"untrusted"``: who opens the sum makes it, from the clients' signed messages;
            ``"semi-honest"``: the aggregator makes it, and is trusted to have added what it got.

    Raises:
        SpecError: a count, bound or denominator that makes no sense.

    Example:
        >>> Spec(dim=10, num_clients=4, num_records=900, denominator=90.0).sum_terms
        4
    """

    dim: int
    num_clients: int
    num_records: int
    denominator: float
    min_clients: int = 1
    sampling: Sampling | None = None
    mode: Mode = "secure"
    unit_name: str = "record"
    client_name: str = "client"
    dtype: DType = "float32"
    unit: Unit | None = None
    l2_bound: float | None = None
    linf_bound: float | None = None
    scale: float = 1.0
    moving_bound: bool = False
    modulus: int | None = None
    rotated: bool = False
    flatness: float = 1.0
    client_records: int | None = None
    float_sum_error: float = 0.0
    rounding_failure: float = 0.0
    noise_stddev: float = 0.0
    noise_tail_shape: tuple[float, float] = (0.0, 0.0)
    mechanism: Mechanism | None = None
    readable: bool = True
    opener: str = ""
    aggregator: Aggregator = "untrusted"

    def __post_init__(self):
        checks = (
            (self.dim >= 1, "at least one value per update", f"dim={self.dim}"),
            (self.num_clients >= 1, "at least one client", f"num_clients={self.num_clients}"),
            (_is_whole(self.min_clients) and 1 <= self.min_clients <= self.num_clients,
             f"min_clients, a whole number from 1 to num_clients={self.num_clients}",
             f"min_clients={self.min_clients!r}"),
            (self.num_records >= 1, "at least one record", f"num_records={self.num_records}"),
            (isinstance(self.denominator, int | float) and math.isfinite(self.denominator)
             and self.denominator > 0,
             "a positive public denominator", f"denominator={self.denominator!r}"),
        )
        for holds, need, found in checks:
            if not holds:
                raise SpecError("Spec", need=need, found=found,
                                fix="Describe the federation that the chain will serve.")

    def replace(self, **changes) -> Spec:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    # -- what follows from the fields --------------------------------------------------------

    @property
    def adjacency(self) -> Adjacency:
        """The neighbouring relation: one unit added or removed.

        ``"replace_one"`` where each client protects its own message by itself: whoever reads the
        messages knows who sent one, so what is hidden is which of any two values it sent.
        """
        local = self.mechanism is not None and self.mechanism.trust == "local"
        return "replace_one" if local and self.unit == "client" else "add_remove"

    @property
    def sum_terms(self) -> int:
        """How many clipped units one sum may hold at most."""
        return self.num_records if self.unit == "record" else self.num_clients

    @property
    def most_drawn(self) -> int:
        """How many clipped units one sum holds, except with a probability of 2^-40 a round.

        All of them, unless they are drawn by coins of probability at most q: then the number is
        above n q + t with a probability of at most exp(-t^2 / (2 (n q (1 - q) + t / 3))), by
        Bernstein's inequality. (No privacy rests on it: a sum of more may wrap around its ring.)

        Example:
            >>> spec = Spec(dim=1, num_clients=1000, num_records=4000, denominator=200.0,
            ...             unit="client", sampling=Sampling("poisson", 0.2, "client"))
            >>> spec.sum_terms, spec.most_drawn
            (1000, 304)
        """
        drawn, count = self.sampling, self.sum_terms
        if drawn is None or drawn.kind != "poisson" or drawn.unit != (self.unit or "client"):
            return count
        log, variance = -math.log(NEGLIGIBLE), count * drawn.rate * (1.0 - min(drawn.rate, 0.5))
        room = log / 3.0 + math.sqrt((log / 3.0) ** 2 + 2.0 * variance * log)
        return min(count, math.ceil(count * drawn.rate + room))

    @property
    def unit_l2(self) -> float | None:
        """One unit's L2 sensitivity in the sum, in units of ``1 / scale``, rounding included."""
        return self.l2_bound

    def stddev_in_sum(self, num_clients: int) -> float:
        """Standard deviation of the noise in a sum of so many clients' values, integer units.

        Clients that drop out take their noise shares with them; ``missing_shares`` of a noise stage
        and ``min_clients`` keep this at or above what is accounted.

        Args:
            num_clients: whose values are in the sum.

        Example:
            >>> mechanism = Mechanism(1.0, 0.0, 0.0, 10.0, 5.0, num_shares=4)
            >>> spec = Spec(dim=1, num_clients=5, num_records=5, denominator=5.0,
            ...             mechanism=mechanism)
            >>> spec.stddev_in_sum(4), spec.stddev_in_sum(1)
            (10.0, 5.0)
        """
        if self.mechanism is None:
            return 0.0
        draws = 1 if self.mechanism.trust == "central" else num_clients
        return self.mechanism.share_stddev * math.sqrt(draws)

    def noise_tail(self, probability: float = NEGLIGIBLE) -> float:
        """A bound that all ``dim`` noise values keep, except with this probability.

        Solves ``t^2 / (2 (v + c t)) = log(2 dim / probability)`` of ``noise_tail_shape``. For a
        discrete Gaussian v is its variance parameter and c = 0 (Canonne, Kamath, Steinke 2020,
        Corollary 17).
        """
        variance, scale = self.noise_tail_shape
        if variance == 0.0:
            return 0.0
        log = math.log(2.0 * self.dim / probability)
        return scale * log + math.sqrt((scale * log) ** 2 + 2.0 * variance * log)

    def sum_linf_bound(self, probability: float = NEGLIGIBLE) -> float:
        """A bound on every value of the sum of `most_drawn` units, in units of ``1 / scale``."""
        if self.linf_bound is None:
            return math.inf
        return self.most_drawn * self.linf_bound + self.noise_tail(probability)

    def error_bound(self, probability: float = NEGLIGIBLE) -> float:
        """How far a decoded value may be from the exact clipped mean, in model units.

        (In units of the round's norm, where that moves.)

        Rounding moves each clipped unit's value by less than one integer unit, noise by
        :meth:`noise_tail`, and float32 arithmetic by a relative 2^-20 of the largest sum.
        Holds except with the given probability. Infinite where nothing bounds the values.
        """
        if self.l2_bound is None:
            return math.inf
        rounding = float(self.sum_terms) if self.dtype != "float32" else 0.0
        if rounding and self.rotated:
            # Turned back, the roundings are mixed with weights of norm 1 (Hoeffding).
            rounding = math.sqrt(rounding / 2.0 * math.log(2.0 * self.dim / probability))
        largest = self.sum_terms * self.l2_bound
        units = rounding + self.noise_tail(probability) + 2.0**-20 * largest
        return units / self.scale / self.denominator

    @property
    def sampling_rate(self) -> float:
        """The probability with which the accountant takes a unit to be drawn each round.

        1 unless the units that were clipped are themselves drawn by Poisson sampling. Where each
        client's own message is what is protected, coins for clients hide nothing from its reader.
        """
        drawn = self.sampling
        if self.adjacency == "replace_one":
            return 1.0
        if drawn is None or drawn.kind != "poisson" or drawn.unit != (self.unit or drawn.unit):
            return 1.0
        return drawn.rate

    def dp_event(self) -> DpEvent | None:
        """One round's event for dp-accounting; None where the chain claims no privacy.

        The Gaussian's noise multiplier is the accounted one of :class:`Mechanism`, whose slack
        terms have no event of their own: ``fs.privacy.Spend`` adds them. Kinds that dp-accounting
        has no event for give its ``UnsupportedDpEvent``: ``fs.privacy.compose`` accounts them.
        """
        if self.mechanism is None or self.sampling is None:
            return None
        import dp_accounting

        event: DpEvent = dp_accounting.UnsupportedDpEvent()
        if self.mechanism.kind == "gaussian":
            assert self.mechanism.noise_multiplier is not None
            event = dp_accounting.GaussianDpEvent(self.mechanism.noise_multiplier)
        if self.sampling_rate < 1.0:
            return dp_accounting.PoissonSampledDpEvent(self.sampling_rate, event)
        return event

    def threat_model(self, outside: tuple[str, ...] = ()) -> ThreatModel:
        """Who sees what under this chain, in sentences.

        Args:
            outside: figures computed from data that leave a client outside the guarantee.
        """
        return threat_model(self, outside)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
