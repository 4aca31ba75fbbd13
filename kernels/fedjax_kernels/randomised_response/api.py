"""Randomised response: tell the truth, or another value, with probabilities that are integers."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from fedjax_kernels.inversion.table import exp_of_minus, real_number
from fedjax_kernels.randomised_response import reference, xla

Implementation = Literal["xla", "reference"]
WORDS_PER_ANSWER = 4
MAX_VALUES = 1 << 16
MAX_EPSILON = 30.0
_PRECISION = 256


@dataclasses.dataclass(frozen=True)
class Response:
    """The probabilities of one randomised response, made by `response`. Static: no array in it.

    Attributes:
      num_values: k.
      lies: of 2^64 equally likely draws, how many give another value than the true one.
    """

    num_values: int
    lies: int

    @property
    def truth_probability(self) -> float:
        """Of the true value, rounded."""
        return 1 - self.lies / 2**64

    @property
    def epsilon(self) -> float:
        """What the integers guarantee, rounded up: local, pure, for one answer.

        The true value comes out with 2^64 - lies of 2^64, each other one with at least
        lies * floor(2^64 / (k - 1)) of 2^128.
        """
        least = Fraction(self.lies * (2**64 // (self.num_values - 1)), 2**128)
        most = Fraction(self.lies * -(-(2**64) // (self.num_values - 1)), 2**128)
        ratio = max(1 - Fraction(self.lies, 2**64), most) / least
        return math.log(ratio) * (1 + 2.0**-50) + 2.0**-51  # above both roundings of the logarithm


def response(epsilon: float, num_values: int = 2) -> Response:
    """The randomised response that is epsilon-DP and tells the truth most often.

    With two values it flips a bit with probability 1 / (1 + e^epsilon).

    Guarantees: every output is at most e^epsilon times as likely under one true value as under
      another, exactly: probabilities are integers over 2^128, and lies are rounded up.

    Args:
      epsilon: 1e-6 to 30, of one answer.
      num_values: k, from 2 to 65,536; values are 0, ..., k - 1.

    Returns:
      The probabilities, for `respond`.

    Raises:
      ValueError: an argument is outside its range.

    Example:
      >>> from fedjax_kernels import randomised_response
      >>> coin = randomised_response.response(1.0)
      >>> round(coin.truth_probability, 4), coin.epsilon <= 1.0
      (0.7311, True)

    Source: Warner 1965; Kairouz, Bonawitz, Ramage 2016, "Discrete Distribution Estimation under
      Local Privacy" (arXiv 1602.07387), section 2 (k values).
    """
    number, found = real_number(epsilon)
    if not 1e-6 <= number <= MAX_EPSILON:
        raise ValueError(
            f"randomised_response.response: `epsilon` needs a number from 1e-06 to "
            f"{MAX_EPSILON:g}, got {found}. Give the epsilon of one answer."
        )
    whole = isinstance(num_values, int | np.integer) and not isinstance(num_values, bool)
    if not whole or not 2 <= num_values <= MAX_VALUES:
        raise ValueError(
            f"randomised_response.response: `num_values` needs a whole number from 2 to "
            f"{MAX_VALUES}, got {num_values!r}. Group rare values."
        )
    others = int(num_values) - 1
    high = Fraction(exp_of_minus(Fraction(number), _PRECISION)[1], 1 << _PRECISION)
    # P(one other) >= e^-epsilon P(truth): lies * floor(2^64 / others) >= q 2^64 (2^64 - lies).
    each = 2**64 // others
    lies = math.ceil(high * 2**128 / (each + high * 2**64))
    made = Response(int(num_values), lies)
    # The float of epsilon is rounded up; one more lie in 2^64 pays for it.
    while made.epsilon > number:
        made = Response(made.num_values, made.lies + max(1, made.lies >> 50))
    return made


def respond(
    made: Response,
    values: Array | np.ndarray,
    words: Array | np.ndarray,
    *,
    implementation: Implementation | None = None,
) -> Array:
    """Answers for values: each is kept, or replaced by another one.

    Guarantees: with uniform independent words, an answer is `made.epsilon`-differentially private.
      The time and the memory addresses do not depend on values or words. A value outside 0, ...,
      k - 1 is taken modulo k, so that it cannot come out.

    Args:
      made: from `response`.
      values: `[n] uint32`, secret, each below k.
      words: `[4, n] uint32`, uniform and secret.
      implementation: "xla", "reference" (Python integers, not traceable), or None for the fastest.

    Returns:
      `[n] uint32`, each below k.

    Raises:
      ValueError: if a type, a shape, a dtype or the implementation's name is wrong.

    Example:
      >>> import numpy as np
      >>> from fedjax_kernels import chacha, randomised_response
      >>> words = chacha.keystream(chacha.key_from_bytes(bytes(32)), np.zeros(3, np.uint32), 4000)
      >>> coin = randomised_response.response(3.0, num_values=10)
      >>> truth = np.full(1000, 7, np.uint32)
      >>> answers = randomised_response.respond(coin, truth, words.reshape(4, 1000))
      >>> 600 < int((answers == 7).sum()) < 760
      True

    Source: as for `response`.
    """
    if not isinstance(made, Response):
        raise ValueError(
            f"respond: `made` needs a Response, got {type(made).__name__}. "
            "Make one with randomised_response.response(epsilon, num_values)."
        )
    for name, array, rows in (("values", values, ()), ("words", words, (WORDS_PER_ANSWER,))):
        shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", type(array).__name__)
        fits = shape is not None and len(shape) == len(rows) + 1 and shape[:-1] == rows
        if not fits or dtype != jnp.uint32:
            wanted = "uint32[4, n]" if rows else "uint32[n]"
            raise ValueError(
                f"respond: `{name}` needs {wanted}, "
                f"got {dtype}{list(shape) if shape is not None else ''}. Convert it first."
            )
    if values.shape[0] != words.shape[1]:
        raise ValueError(
            f"respond: `words` needs a column a value, got {words.shape[1]} for {values.shape[0]}. "
            "Take 4 * n words of a keystream and reshape them."
        )
    settings = {"num_values": made.num_values, "lies": made.lies}
    if implementation in (None, "xla"):
        return xla.respond(jnp.asarray(values), jnp.asarray(words), **settings)
    if implementation != "reference":
        raise ValueError(
            f'respond: `implementation` needs None, "xla" or "reference", got {implementation!r}. '
            "Leave it out for the fastest one."
        )
    if any(isinstance(value, Tracer) for value in (values, words)):
        raise ValueError(
            'respond: implementation="reference" needs concrete arrays, got traced ones. '
            'Use implementation="xla" under jit or vmap.'
        )
    return jnp.asarray(reference.respond(np.asarray(values), np.asarray(words), **settings))
