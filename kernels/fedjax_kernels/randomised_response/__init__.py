"""Randomised response over k values, with exact integer probabilities."""

from __future__ import annotations

from fedjax_kernels.randomised_response.api import WORDS_PER_ANSWER, Response, respond, response

__all__ = ["WORDS_PER_ANSWER", "Response", "respond", "response"]
