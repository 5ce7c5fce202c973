"""Conversations' memories: written by the engine as anybody's would be, kept in its store, and spoilt for controls."""

import hashlib

import torch

from deltamem_agents.engine import DeltaMemEngine
from deltamem_agents.evaluate.suites.conversation import Conversation
from deltamem_agents.state import MemoryState


class Memories:
    """Absorbs conversations, part by part, into sessions of the engine.

    The sessions stay in the engine's store: a run that goes on finds what is absorbed already.

    Args:
        engine: absorbs them.
        prefix: what the sessions' names begin with.
    """

    def __init__(self, engine: DeltaMemEngine, *, prefix: str) -> None:
        self._engine, self._prefix = engine, prefix
        self._lines: dict[str, list[str]] = {}
        self._known: dict[tuple[str, int], MemoryState] = {}
        self.empty = engine.model.zero_state()
        """A memory of nothing."""

    def after(self, conversation: Conversation) -> MemoryState:
        """The memory of the whole conversation."""
        return self.before(conversation, len(conversation.messages))

    def before(self, conversation: Conversation, position: int) -> MemoryState:
        """The memory just before the message at `position`, where a window begins; the same object every time."""
        name = self.session(conversation)
        if (name, position) not in self._known:
            self._known[name, position] = self._written_before(conversation, position)
        return self._known[name, position]

    def session(self, conversation: Conversation) -> str:
        """The name of a conversation's session: another text, another session."""
        told = hashlib.sha256("\n".join(m.digest() for m in conversation.messages).encode()).hexdigest()[:8]
        return f"{self._prefix}-{conversation.name}-{told}"

    def _written_before(self, conversation: Conversation, position: int) -> MemoryState:
        whole, left = 0, position
        while whole < len(conversation.parts) and left >= len(conversation.parts[whole]):
            left -= len(conversation.parts[whole])
            whole += 1
        if not left:
            return self._state(self._snapshots(conversation)[whole - 1]) if whole else self.empty
        engine, passing = self._engine, f"{self.session(conversation)}-passing"
        if engine.store.session(passing) is not None:  # left by a run that was killed
            engine.forget(passing)
        if whole:
            engine.session(self.session(conversation)).fork(passing, at=self._snapshots(conversation)[whole - 1])
        engine.absorb(conversation.parts[whole][:left], session=passing)
        state = engine.state(passing).to(engine.model.device)
        engine.forget(passing)
        return state

    def _snapshots(self, conversation: Conversation) -> list[str]:
        """The snapshots after each part."""
        name = self.session(conversation)
        if name not in self._lines:
            self._lines[name] = [
                self._engine.absorb(part, session=name, key=f"part {number}")
                for number, part in enumerate(conversation.parts)
            ]
        return self._lines[name]

    def _state(self, snapshot: str) -> MemoryState:
        data = self._engine.store.snapshot(snapshot).state
        return MemoryState.from_bytes(data, fingerprint=self._engine.fingerprint).to(self._engine.model.device)


def shuffled(state: MemoryState, *, seed: int) -> MemoryState:
    """The same numbers in each matrix, in a random order: as full as the memory, and nothing in it."""
    tensor = state.tensor
    random = torch.Generator().manual_seed(seed)
    matrices = tensor.reshape(-1, tensor.shape[-2] * tensor.shape[-1])
    order = torch.stack([torch.randperm(matrices.shape[1], generator=random) for _ in range(len(matrices))])
    return MemoryState(matrices.gather(1, order.to(tensor.device)).reshape(tensor.shape))
