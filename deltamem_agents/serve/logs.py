"""Logs as lines of JSON, and plain ones for people. What was said, and whose memory it is, is never in them."""

import json
import logging
import re
import sys
from datetime import UTC, datetime

log = logging.getLogger("deltamem_agents.serve")


class JsonLines(logging.Formatter):
    """A record as one line: time, level, event, and the fields that came with it (`extra={"fields": …}`)."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


class PlainLines(logging.Formatter):
    """A record as a line for people: time, level, event and its fields; that of "ready" says how to begin.

    Args:
        url: where the server listens.
    """

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url

    def format(self, record: logging.LogRecord) -> str:
        """The line, and what belongs under it."""
        event, fields = record.getMessage(), dict(getattr(record, "fields", {}))
        under = []
        if event == "ready":
            fields["url"] = self._url
            under.append(f"open {self._url} in a browser, or use {self._url}/v1 as an OpenAI base URL")
        if record.exc_info:
            under.append(self.formatException(record.exc_info))
        time, level = datetime.fromtimestamp(record.created), record.levelname.lower()
        line = " ".join([f"{time:%H:%M:%S} {level} {event}", *(f"{name}={_plain(fields[name])}" for name in fields)])
        return "\n".join([line, *under])


def _plain(value: object) -> str:
    """A value as it is, or in quotes if it isn't of one word."""
    text = str(value)
    return text if re.fullmatch(r"[\w.,:/@{}+-]+", text, re.ASCII) else json.dumps(text)


def log_to_stderr(level: int = logging.INFO, *, url: str | None = None) -> None:
    """Has the server, and what runs it, log to stderr: as lines of JSON, or plain ones if it is a terminal's.

    Args:
        level: the least that is told.
        url: where a server listens that is started by hand; None: it isn't, and its lines are JSON.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(PlainLines(url) if url is not None and sys.stderr.isatty() else JsonLines())
    for name in ("deltamem_agents", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name == "uvicorn.error"
        logger.setLevel(level)
    for name in ("deltamem_agents", "uvicorn"):
        logging.getLogger(name).handlers = [handler]
