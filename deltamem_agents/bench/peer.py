"""What somebody has to be able to do to be measured beside this package."""

from collections.abc import Callable, Sequence

Prompts = Sequence[Sequence[int]]
"""Token ids of each session."""
Decode = Callable[[int], list[int]]
Start = Callable[[Prompts], Decode]
"""Feeds prompts, and gives what decodes so many tokens of each, greedily and together, and says their last ones."""
