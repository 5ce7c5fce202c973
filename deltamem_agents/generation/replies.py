"""What a reader sees of a reply that may call tools, while it comes."""

from collections.abc import Callable


class CallGate:
    """Passes a reply's text on as it comes, up to its first tool call.

    Args:
        trigger: the text that opens a call.
        emit: called with each new piece of text.
    """

    def __init__(self, trigger: str, emit: Callable[[str], None]) -> None:
        self._trigger, self._emit = trigger, emit
        self._text, self._shown = "", 0

    def push(self, piece: str) -> None:
        """Adds text; what may become a call, and the blanks before it, wait."""
        self._text += piece
        at = self._text.find(self._trigger, self._shown)
        if at < 0:
            most = min(len(self._trigger), len(self._text) - self._shown)
            at = len(self._text) - next((n for n in range(most, 0, -1) if self._text.endswith(self._trigger[:n])), 0)
        self._show(len(self._text[:at].rstrip()))

    def finish(self, content: str) -> None:
        """Shows what is left of the reply's content, once it is known what was a call."""
        if content.startswith(self._text[: self._shown]):
            self._text = content
            self._show(len(content))

    def _show(self, end: int) -> None:
        start, self._shown = self._shown, max(self._shown, end)
        if self._shown > start:
            self._emit(self._text[start : self._shown])
