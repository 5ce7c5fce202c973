"""Logs as lines of JSON. What was said, and whose memory it is, is never in them."""

import json
import logging
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


def log_to_stderr(level: int = logging.INFO) -> None:
    """Has the server, and what runs it, log to stderr as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("deltamem_agents", "uvicorn", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], name == "uvicorn.error"
        logger.setLevel(level)
    for name in ("deltamem_agents", "uvicorn"):
        logging.getLogger(name).handlers = [handler]
