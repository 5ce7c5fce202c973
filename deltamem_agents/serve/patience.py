"""Clients that send the headers of a request too slowly are given up: uvicorn waits for them for ever."""

import asyncio
import json

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from deltamem_agents.serve.errors import ApiError

LATE = ApiError(408, "the headers did not come in time: send them faster", code="timeout")


def headers_within(seconds: float) -> type[asyncio.Protocol]:
    """The protocol of uvicorn, with so many seconds for the headers of each request."""

    class Within(_Impatient):
        patience = seconds

    return Within


class _Impatient(H11Protocol):
    """Counts from the connection's beginning, and then from the first bytes after an answer."""

    patience: float
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._late = self.loop.call_later(self.patience, self._give_up)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._late is None:
            self._late = self.loop.call_later(self.patience, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _stop(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _give_up(self) -> None:
        """Says why, if anything came at all, and closes the connection."""
        self._late = None
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            return
        if self.conn.trailing_data[0]:
            body = json.dumps(LATE.body).encode()
            headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            answer = h11.Response(status_code=LATE.status, headers=list(headers.items()))
            for event in (answer, h11.Data(body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
