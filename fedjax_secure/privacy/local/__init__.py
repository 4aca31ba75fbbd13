"""Local privacy: people make their own values private before anything leaves them.

Example:
    >>> from fedjax_secure.privacy.local import Category
    >>> smoking = Category(("never", "former", "current"), epsilon=1.0)
    >>> smoking.privatise("never") in ("never", "former", "current")  # the truth, or not
    True
"""

from .category import Category
from .vector import Estimate, Vector, bounded, in_ball

__all__ = ["Category", "Estimate", "Vector", "bounded", "in_ball"]
