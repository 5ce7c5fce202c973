"""Prefill and decode over rows with their own memories and KV caches."""

from deltamem_agents.generation.constraints import Constraint, constrain, reply_grammar
from deltamem_agents.generation.decode import Decoder, FinishReason, Lane, Sampler, TextStream, decode
from deltamem_agents.generation.logprobs import ScoredText, TokenLogprob, scored
from deltamem_agents.generation.options import GenerationOptions
from deltamem_agents.generation.prefill import Prefill, Prompt
from deltamem_agents.generation.replies import CallGate
from deltamem_agents.generation.rows import Batch, Piece, Row, can_batch, feed, rewound

__all__ = [
    "Batch",
    "CallGate",
    "Constraint",
    "Decoder",
    "FinishReason",
    "GenerationOptions",
    "Lane",
    "Piece",
    "Prefill",
    "Prompt",
    "Row",
    "Sampler",
    "ScoredText",
    "TextStream",
    "TokenLogprob",
    "can_batch",
    "constrain",
    "decode",
    "feed",
    "reply_grammar",
    "rewound",
    "scored",
]
