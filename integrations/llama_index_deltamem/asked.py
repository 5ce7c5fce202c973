"""The question that a memory was asked messages for and had none to stamp: it leads to the memory in their stead."""

from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import dataclass

from llama_index.core.base.llms.types import ChatMessage

from llama_index_deltamem.messages import SessionStamp


@dataclass(slots=True)
class _Question:
    """Shared by the contexts that streams copy, so that an answer there closes it here."""

    text: str
    stamp: SessionStamp
    open: bool = True


_asked: ContextVar[_Question | None] = ContextVar("deltamem_asked", default=None)


def note_asked(question: str, stamp: SessionStamp) -> None:
    """Notes, for the code that runs on from here, whose memory goes with a question.

    Chat engines with a context ask for the history before they put the question. Where there is none, because the
    conversation begins anew, no message could carry the stamp to the LLM.
    """
    _asked.set(_Question(question, stamp))


def note_put(messages: Sequence[ChatMessage]) -> None:
    """Notes that messages were put: with a reply the question is answered, and leads nowhere any more."""
    asked = _asked.get()
    if asked is not None and any(message.role == "assistant" for message in messages):
        asked.open = False


def stamp_asked(messages: Sequence[ChatMessage]) -> SessionStamp | None:
    """The stamp that was noted for the question that ends these messages; None for any other call."""
    asked = _asked.get()
    if asked is None or not asked.open or not messages or messages[-1].content != asked.text:
        return None
    return asked.stamp
