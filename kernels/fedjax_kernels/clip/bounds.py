"""What float32 can do to a norm and to a sum, as proved numbers."""

from __future__ import annotations

import math

#: What rows may be clipped to: far from what float32 cannot hold.
MIN_BOUND, MAX_BOUND = 1e-12, 1e12
_UNIT = 2.0**-24  # the largest relative error of one float32 operation


def parts_of(dim: int) -> int:
    """Into how many equal parts a row is split, so that short sums are added up.

    The divisor k of dim with the least k + dim / k, which is how many roundings a square can pass.
    """
    root = math.isqrt(dim)
    small = [k for k in range(1, root + 1) if dim % k == 0]
    return small[-1] if small else 1


def norm_slack(dim: int) -> float:
    """By how much less than the bound rows are scaled to, relatively, so that none exceeds it.

    Proof. Let u = 2^-24, k the number of parts of a row, m = dim / k, and c = (m + k) u / (1 -
    (m + k) u).
    (1) A part's sum of m squares, in any order, with or without fused multiply-adds, and then the
    sum of k parts, is at least (1 - c) times the exact sum of squares (Higham 2002, section 3.1),
    less what underflows: at most 2^-126 a square. A row that is scaled down has a norm of at least
    2^-40 (the least bound allowed), so that this is at most 2^-46 dim of its sum of squares.
    (2) sqrt(1 - c - d) >= 1 - (c + d) / 2 - (c + d)^2 / 2 for c + d <= 1/2; so the computed norm
    is at least that times the exact one, before its own rounding.
    (3) The root, the bound's own rounding to float32, the bound times 1 - slack, the quotient, and
    the product of the factor with a value are each within 2 u (XLA's CPU and GPU roots and
    quotients are within one unit in the last place), which is 10 u in all, and below 16 u with all
    products of these terms.
    Hence with slack = (c + d) / 2 + (c + d)^2 / 2 + 16 u, the vector of the float32 products of a
    row and its factor has at most the norm l2_bound in exact arithmetic.

    Args:
      dim: the length of a row, below 2^31; one that is a multiple of a number near its root has
        the least slack, about 2^-24 sqrt(dim).

    Returns:
      The slack: 2e-5 for 100,000; dim / 2^25 where dim is prime; 1 where nothing is proved, so
      that everything becomes zero.

    Example:
      >>> from fedjax_kernels import clip
      >>> clip.norm_slack(100_000) < 2.5e-5
      True

    Source: Higham 2002, "Accuracy and Stability of Numerical Algorithms", 2nd ed., section 3.1.
    """
    parts = parts_of(max(dim, 1))
    steps = (dim // parts + parts) * _UNIT
    if steps >= 0.25:
        return 1.0
    lost = steps / (1 - steps) + dim * 2.0**-46
    return lost / 2 + lost * lost / 2 + 16 * _UNIT


def summation_error(num_rows: int, l2_bound: float) -> float:
    """How far, in L2 norm, a float32 sum of clipped rows is from the exact sum of them.

    In any order of n rows, each coordinate is off by at most c = (n + 1) u / (1 - (n + 1) u) times
    the sum of the magnitudes there, the product with the factor included. Over all coordinates the
    norm of that is at most c times the sum of the rows' norms, n l2_bound.

    Args:
      num_rows: n.
      l2_bound: what the rows are clipped to.

    Returns:
      The bound; infinite from 2^22 rows on, where nothing is proved. Two sums that differ in one
      row are l2_bound plus twice this apart at most.

    Example:
      >>> from fedjax_kernels import clip
      >>> round(clip.summation_error(1000, 1.0), 3)
      0.06

    Source: as for `norm_slack`.
    """
    steps = (num_rows + 1) * _UNIT
    return steps / (1 - steps) * num_rows * l2_bound if steps < 0.25 else math.inf
