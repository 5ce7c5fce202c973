"""Prefill and decode over rows with their own memories and KV caches."""

from deltamem_agents.generation.decode import FinishReason, Lane, Sampler, TextStream, decode
from deltamem_agents.generation.options import GenerationOptions
from deltamem_agents.generation.rows import Batch, Piece, Row, can_batch, feed

__all__ = [
    "Batch",
    "FinishReason",
    "GenerationOptions",
    "Lane",
    "Piece",
    "Row",
    "Sampler",
    "TextStream",
    "can_batch",
    "decode",
    "feed",
]
