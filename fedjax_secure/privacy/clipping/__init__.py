"""Bound how far one unit of privacy can move the sum."""

from .adaptive import adaptive_clip
from .flat import clip
from .layers import clip_layers

__all__ = ["adaptive_clip", "clip", "clip_layers"]
