"""A person's numbers, made private on their own device, and the means that follow."""

from __future__ import annotations

import math
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from fedjax_secure.core import Mechanism, Sampling, Spec, SpecError, Stage, chain
from fedjax_secure.core.randomness import device_keys
from fedjax_secure.core.ring import centre

from ..accounting import Spend, calibrate, compose
from ..clipping import clip
from ..noise import discrete_gaussian, discrete_laplace
from ..quantise import quantise

_BITS = 31
_SLACK = 1e-9


class Estimate(NamedTuple):
    """What many reports tell together.

    Attributes:
        mean: float64 [dim], the mean over the people, without bias but for what was clipped.
        standard_error: float64 [dim], from the reports' own spread.
        reports: how many there were.
    """

    mean: np.ndarray
    standard_error: np.ndarray
    reports: int


class Vector:
    """Bounded numbers of one person, made private before they leave the person.

    Made by :func:`bounded` or :func:`in_ball`. It is the very chain of stages that a federation
    runs with ``trust="local"`` (clip, round to integers, add all of the noise), for one person.

    Guarantees:
        Each report is (``epsilon``, ``dp_delta``)-differentially private for whatever the person's
        numbers are and might be (adjacency: replaced by any others). Noise is discrete and drawn
        exactly from a fresh 256-bit key; no float noise is used anywhere.
    """

    def __init__(self, stages: tuple[Stage, ...], dim: int, centre_of_range: float,
                 half_range: float | None, dp_delta: float):
        self.dim, self.dp_delta = dim, dp_delta
        self._centre, self._half = centre_of_range, half_range
        aggregation = chain(*stages)
        spec = Spec(dim=dim, num_clients=1, num_records=1, denominator=1.0,
                    sampling=Sampling("all", 1.0, "client"))
        self._states, self.spec = aggregation.init(spec)
        self._encode = jax.jit(aggregation.encode)

    @property
    def mechanism(self) -> Mechanism:
        """What the accountant takes one report for."""
        assert self.spec.mechanism is not None
        return self.spec.mechanism

    @property
    def epsilon(self) -> float:
        """What one report costs at ``dp_delta``; where that is 0, up to 2^-100 of the sampler."""
        if self.dp_delta == 0:
            return dict(self.mechanism.parameters)["epsilon"]
        return compose([self.spend("person")], self.dp_delta)

    @property
    def noise_stddev(self) -> float:
        """Standard deviation of one report's noise in each number, in the numbers' own units."""
        return self.spec.noise_stddev / self.spec.scale

    def privatise(self, value: ArrayLike, *, key: bytes | None = None) -> np.ndarray:
        """What the person sends.

        Args:
            value: the person's numbers, ``[dim]``, or one number where ``dim`` is 1. What lies
                outside of the bounds is moved to them.
            key: 32 secret bytes, used for nothing else; None takes fresh ones. Give one only in a
                simulation that repeats.

        Returns:
            int32 [dim], to be sent as it is.

        Raises:
            SpecError: numbers of another shape, or not finite. The message does not repeat them.
        """
        given = _numbers(value, "one person's numbers")
        return self.privatise_all(given.reshape(1, -1), keys=None if key is None else [key])[0]

    def privatise_all(self, values: ArrayLike, *, keys: list[bytes] | None = None) -> np.ndarray:
        """The same for many people at once, as a simulation needs it; each has a key of its own.

        Args:
            values: ``[people, dim]``.
            keys: one a person; None takes fresh ones.

        Returns:
            int32 [people, dim].

        Raises:
            SpecError: numbers of another shape, or not finite.
        """
        given = _numbers(values, f"numbers of shape [people, {self.dim}]")
        if given.ndim != 2 or given.shape[1] != self.dim or not np.isfinite(given).all():
            raise SpecError("local.Vector", need=f"finite numbers of shape [people, {self.dim}]",
                            found=f"shape {list(given.shape)}, or some that are not finite",
                            fix="Impute what is missing on the person's device.")
        secrets = [os.urandom(32) for _ in given] if keys is None else keys
        if len(secrets) != len(given):
            raise SpecError("local.Vector", need=f"{len(given)} keys", found=str(len(secrets)),
                            fix="Give each person a key of their own.")
        for secret in secrets:
            _need(isinstance(secret, bytes) and len(secret) == 32, "a key of 32 bytes",
                  "another", "Leave keys out for fresh ones.")
        # Shrunk to what float32 can square; bounds lie within. All of it is the person's alone.
        far = 1e18 if self._half is None else self._half
        moved = np.clip(given - self._centre, -far, far)
        elements, _ = self._encode(self._states, device_keys(secrets),
                                   jnp.asarray(moved, jnp.float32))
        return np.asarray(centre(elements, self.spec.modulus))

    def estimate(self, reports: ArrayLike) -> Estimate:
        """The mean over the people, from what they sent.

        Args:
            reports: ``[people, dim]`` integers, in any order.

        Raises:
            SpecError: reports of another shape, or fewer than two.
        """
        sent = np.asarray(reports)
        _need(sent.dtype.kind in "iuf" and bool(np.isfinite(sent).all()), "whole numbers, as they "
              "were sent", f"others, {sent.dtype}", "Stack what privatise(...) gave.")
        if sent.ndim != 2 or sent.shape[1] != self.dim or len(sent) < 2:
            raise SpecError("local.Vector", need=f"two or more reports of {self.dim} numbers",
                            found=f"shape {list(sent.shape)}", fix="Stack what was sent.")
        scaled = sent.astype(np.float64) / self.spec.scale
        return Estimate(scaled.mean(axis=0) + self._centre,
                        scaled.std(axis=0, ddof=1) / math.sqrt(len(sent)), len(sent))

    def spend(self, unit: str, *, rounds: int = 1) -> Spend:
        """What ``rounds`` reports cost one person: for a budget, or to compose with others."""
        return Spend(
            self.mechanism.noise_multiplier, 1.0, unit, rounds, "replace_one",
            self.mechanism.log_ratio, self.mechanism.total_variation, kind=self.mechanism.kind,
            parameters=self.mechanism.parameters)

    def __repr__(self) -> str:
        kind, stddev = self.mechanism.kind, self.noise_stddev
        return f"Vector(dim={self.dim}, {kind}, noise_stddev={stddev:.4g})"


def bounded(low: float, high: float, *, epsilon: float, dim: int = 1,
            levels: int = 1024) -> Vector:
    """Numbers that each lie between two public bounds: discrete Laplace noise, no delta.

    For one number or a few: the noise grows with their number.

    Args:
        low, high: public bounds of each number, in its own units.
        epsilon: of one report of all ``dim`` numbers.
        dim: how many numbers a person has.
        levels: integer steps between ``low`` and ``high``, rounded up to a power of two; numbers
            are rounded to steps at random, without bias.

    Returns:
        A :class:`Vector`.

    Raises:
        SpecError: bounds or levels that make no sense, or noise that has no room.

    Example:
        >>> age = bounded(20, 80, epsilon=1.0)
        >>> report = age.privatise(63)  # on the person's own device
        >>> report.shape, report.dtype, round(age.epsilon, 6)
        ((1,), dtype('int32'), 1.0)

    Source:
        Ghosh, Roughgarden, Sundararajan 2012, "Universally Utility-Maximizing Privacy Mechanisms".
    """
    ordered = all(isinstance(bound, int | float) and math.isfinite(bound) for bound in (low, high))
    _need(ordered and low < high, "bounds low < high", f"{low!r}, {high!r}", "Give public bounds.")
    _need(1e-9 <= high - low <= 1e9, "bounds 1e-9 to 1e9 apart", f"{high - low:g}",
          "Give the numbers in another unit.")
    _need_number("epsilon", epsilon)
    _need_sizes(dim, levels)
    half = (high - low) / 2.0
    radius = half * math.sqrt(dim) * (1 + 1e-6)  # of the box's corners, float32 included
    stages = (clip(radius), quantise(bits=_BITS, scale=_step_count(levels, 2 * half)),
              discrete_laplace(float(epsilon), trust="local"))
    return Vector(stages, dim, low + half, half, 0.0)


def in_ball(l2_bound: float, *, dim: int, epsilon: float, dp_delta: float,
            levels: int = 1024) -> Vector:
    """A vector of bounded L2 norm: discrete Gaussian noise.

    For many numbers at once, such as an embedding or a gradient.

    Args:
        l2_bound: the largest norm that passes unchanged.
        dim: how many numbers a person has.
        epsilon, dp_delta: of one report.
        levels: integer steps in ``l2_bound``, rounded up to a power of two.

    Returns:
        A :class:`Vector`.

    Raises:
        SpecError: values out of range, or noise that has no room.

    Example:
        >>> embedding = in_ball(1.0, dim=16, epsilon=4.0, dp_delta=1e-6)
        >>> embedding.privatise(np.full(16, 0.25)).shape, embedding.epsilon <= 4.0
        ((16,), True)

    Source:
        Canonne, Kamath, Steinke 2020, "The Discrete Gaussian for Differential Privacy".
    """
    _need_number("l2_bound", l2_bound)
    _need(1e-9 <= l2_bound <= 1e9, "an l2_bound from 1e-9 to 1e9", f"{l2_bound!r}",
          "Give the numbers in another unit.")
    _need_sizes(dim, levels)
    multiplier = calibrate(target_epsilon=epsilon, dp_delta=dp_delta, rounds=1, sampling_rate=1.0,
                           adjacency="replace_one", log_ratio=_SLACK)
    stages = (clip(l2_bound), quantise(bits=_BITS, scale=_step_count(levels, l2_bound)),
              discrete_gaussian(multiplier, trust="local"))
    return Vector(stages, dim, 0.0, None, dp_delta)


def _numbers(values: ArrayLike, need: str) -> np.ndarray:
    """float64; what is no number is refused without being repeated, cause and all."""
    try:
        given = np.asarray(values)
        if given.dtype.kind in "biuf":
            return given.astype(np.float64)
    except (TypeError, ValueError):
        pass
    raise SpecError("local.Vector", need=need, found="something else",
                    fix="Give integers or floats, coded on the person's device.")


def _step_count(levels: int, width: float) -> float:
    """Integer units per unit of the numbers: a power of two with at least so many levels."""
    return 2.0 ** math.ceil(math.log2(levels / width))


def _need_sizes(dim: int, levels: int) -> None:
    for name, value, most in (("dim", dim, 1 << 20), ("levels", levels, 1 << 15)):
        whole = isinstance(value, int) and not isinstance(value, bool)
        _need(whole and 1 <= value <= most, f"{name}, a whole number from 1 to {most}",
              repr(value), "Give for example 1024 levels.")


def _need_number(name: str, value: object) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    _need(number and math.isfinite(value), f"{name}, a positive number", repr(value),
          "Give 1.0, for example.")


def _need(holds: bool, need: str, found: str, fix: str) -> None:
    if not holds:
        raise SpecError("a local report", need=need, found=found, fix=fix)
