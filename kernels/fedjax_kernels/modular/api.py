"""Exact modular arithmetic: checks the arguments and chooses an implementation.

Arrays are uint32 residues of shape ``[..., limb, n, batch]``, each below the prime of its limb.
Operands are broadcast over the last two axes, so a constant may be ``[limb, 1, 1]``.

`implementation` is None for the fastest that runs here; "xla"; "pallas" for the GPU kernel, which
needs compute capability 9.0 or newer; "pallas_interpret" for the same kernel in JAX's GPU
interpreter on any machine, slowly and with its checks; or "reference" for Python integers on the
host. All give the same bits, with x64 on or off. Every result is fully reduced.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from fedjax_kernels import mosaic
from fedjax_kernels.modular import reference, xla
from fedjax_kernels.modular.moduli import Moduli

Implementation = Literal["xla", "pallas", "pallas_interpret", "reference"] | None


def choose(
    implementation: str | None, xla_module: Any, reference_module: Any, supported: bool = True
) -> Any:
    """Picks the module that implements an operation; None means the fastest that runs here.

    The GPU kernels are the module `pallas` beside `xla_module`.

    Args:
        implementation: the name, or None.
        xla_module: the compiled version for every device.
        reference_module: Python integers on the host.
        supported: whether the GPU kernel takes this shape; if not, None means XLA.

    Raises:
        ValueError: the name is unknown, or the GPU kernel cannot run here.
    """
    if kernels := mosaic.kernels(implementation, xla_module.__package__, supported):
        return kernels
    if implementation in (None, "xla"):
        return xla_module
    if implementation == "reference":
        return reference_module
    raise ValueError(
        "implementation needs to be None, 'xla', 'pallas', 'pallas_interpret' or 'reference', "
        f"got {implementation!r}. Leave it out to use the fastest."
    )


def _run(name: str, implementation: Implementation, moduli: Moduli, *operands: Any) -> Any:
    for operand in operands:
        moduli.check_residues(name, operand)
    return getattr(choose(implementation, xla, reference), name)(*operands, moduli=moduli)


def add(a: Any, b: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Adds residues: a + b mod q.

    Args:
        a: [..., limb, n, batch] uint32, below q.
        b: the same, or broadcast against it.
        moduli: the primes.
        implementation: see the head of this file.

    Returns:
        [..., limb, n, batch] uint32, below q.

    Raises:
        ValueError: dtype or shape do not fit.

    Example:
        >>> import numpy as np
        >>> moduli = Moduli((17,), 8)
        >>> a, b = np.full((1, 1, 1), 16, np.uint32), np.full((1, 1, 1), 5, np.uint32)
        >>> int(add(a, b, moduli)[0, 0, 0])
        4
    """
    return _run("add", implementation, moduli, a, b)


def sub(a: Any, b: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Subtracts residues: a - b mod q. Arguments, result and errors as in :func:`add`."""
    return _run("sub", implementation, moduli, a, b)


def neg(a: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Negates residues: -a mod q. Arguments, result and errors as in :func:`add`."""
    return _run("neg", implementation, moduli, a)


def mul(a: Any, b: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Multiplies two variable residues: a * b mod q, by two Montgomery reductions.

    Where one operand serves many products, :func:`to_montgomery` once and
    :func:`mul_montgomery` each time cost half.

    Arguments, result and errors as in :func:`add`.

    Source: P. Montgomery, "Modular multiplication without trial division", Math. Comp. 44 (1985).
    """
    return _run("mul", implementation, moduli, a, b)


def to_montgomery(a: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Takes residues into Montgomery form: a * 2^32 mod q. Errors as in :func:`add`."""
    return _run("to_montgomery", implementation, moduli, a)


def from_montgomery(a: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Takes residues out of Montgomery form: a * 2^-32 mod q. Errors as in :func:`add`."""
    return _run("from_montgomery", implementation, moduli, a)


def mul_montgomery(a: Any, b: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Multiplies a by b, where b is in Montgomery form: a * b * 2^-32 mod q.

    Arguments, result and errors as in :func:`add`.
    """
    return _run("mul_montgomery", implementation, moduli, a, b)


def mul_constant(
    a: Any, constant: Any, moduli: Moduli, *, implementation: Implementation = None
) -> Any:
    """Multiplies by a constant known before compilation: a * w mod q, by Shoup's method.

    Args:
        a: [..., limb, n, batch] uint32. Any 32-bit value is allowed, not only residues.
        constant: NumPy array [limb, n or 1, batch or 1] of residues below q.
        moduli: the primes.
        implementation: see the head of this file.

    Returns:
        [..., limb, n, batch] uint32, below q.

    Raises:
        ValueError: dtype or shape do not fit, or a constant is not below its prime.

    Source: D. Harvey, arXiv 1205.2926, section 3 (after Shoup's NTL).
    """
    moduli.check_residues("mul_constant", a)
    constant = np.asarray(constant)
    moduli.check_residues("mul_constant", constant)
    quotient = moduli.shoup(constant)
    return choose(implementation, xla, reference).mul_constant(a, constant, quotient, moduli=moduli)


def reduce(a: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Reduces any 32-bit values: a mod q.

    Args:
        a: [..., limb, n, batch] uint32 of any value. A limb axis of length 1 is broadcast.
        moduli: the primes.
        implementation: see the head of this file.

    Returns:
        [..., limb, n, batch] uint32, below q.

    Raises:
        ValueError: dtype or shape do not fit.

    Source: P. Barrett, CRYPTO 1986, with the quotient of one 32-bit word.
    """
    a = _one_or_all_limbs("reduce", a, np.uint32, moduli)
    return choose(implementation, xla, reference).reduce(a, moduli=moduli)


def reduce_words(words: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Reduces wide integers given as 32-bit words: sum_i words[i] * 2^(32 i) mod q.

    With W uniformly random words the result is uniform up to a statistical distance below
    q / 2^(32 W): 2^-66 for W = 3.

    Args:
        words: [W, ..., limb, n, batch] uint32, least significant word first.
        moduli: the primes.
        implementation: see the head of this file.

    Returns:
        [..., limb, n, batch] uint32, below q.

    Raises:
        ValueError: dtype or shape do not fit.
    """
    if np.ndim(words) < 4:
        raise ValueError(
            f"reduce_words needs words of shape [W, ..., limb, n, batch], got {np.shape(words)}. "
            "Put the words on the first axis."
        )
    moduli.check_residues("reduce_words", words)
    return choose(implementation, xla, reference).reduce_words(words, moduli=moduli)


def from_signed(a: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Lifts small signed integers to residues of every prime.

    Args:
        a: [..., n, batch] int32, any value.
        moduli: the primes.
        implementation: see the head of this file.

    Returns:
        [..., limb, n, batch] uint32, below q.

    Raises:
        ValueError: not int32, or fewer than two axes.
    """
    if getattr(a, "dtype", None) != np.int32 or np.ndim(a) < 2:
        raise ValueError(
            "from_signed needs int32 of shape [..., n, batch], got "
            f"{getattr(a, 'dtype', type(a))} of shape {list(np.shape(a))}. Convert it first."
        )
    return choose(implementation, xla, reference).from_signed(a, moduli=moduli)


def sum_residues(a: Any, moduli: Moduli, *, implementation: Implementation = None) -> Any:
    """Sums residues over the leading axis, exactly, for up to 65,536 summands.

    Halves of 16 bits are summed apart, so nothing overflows 32 bits before the reduction.

    Args:
        a: [K, ..., limb, n, batch] uint32, below q (any value below 2^32 is summed rightly).
        moduli: the primes.
        implementation: see the head of this file.

    Returns:
        [..., limb, n, batch] uint32, below q. Zeros for K = 0.

    Raises:
        ValueError: dtype or shape do not fit, or K > 65,536.
    """
    moduli.check_residues("sum_residues", a)
    if np.ndim(a) < 4 or np.shape(a)[0] > 1 << 16:
        raise ValueError(
            "sum_residues needs shape [K, ..., limb, n, batch] with K <= 65536, got "
            f"{list(np.shape(a))}. Sum in blocks and add the block sums."
        )
    return choose(implementation, xla, reference).sum_residues(a, moduli=moduli)


def _one_or_all_limbs(where: str, a: Any, dtype: Any, moduli: Moduli) -> Any:
    shape = np.shape(a)
    if len(shape) >= 3 and shape[-3] == 1 and getattr(a, "dtype", None) == dtype:
        return a
    moduli.check_residues(where, a)
    return a
