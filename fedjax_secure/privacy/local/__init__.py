"""Local privacy: people make their own values private before anything leaves them."""

from .category import Category
from .vector import Estimate, Vector, bounded, in_ball

__all__ = ["Category", "Estimate", "Vector", "bounded", "in_ball"]
