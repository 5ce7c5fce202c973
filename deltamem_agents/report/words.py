"""How pages say things: sizes, shares, and what was said."""

import json

from jinja2 import Environment, PackageLoader, StrictUndefined

from deltamem_agents.messages import Message
from deltamem_agents.store import Entry


def templates(package: str) -> Environment:
    """The templates of a package, which escape whatever users have said, and know these words as filters."""
    environment = Environment(
        loader=PackageLoader(package), autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.filters |= {"bytes": size, "text": said, "percent": percent}
    return environment


def said(entry: Entry) -> str | None:
    """What a message said, calls of tools included; None where that is not kept."""
    if entry.text is None:
        return None
    message = Message.model_validate_json(entry.text)
    calls = (f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})" for call in message.tool_calls)
    return "\n".join(part for part in (message.content, *calls) if part)


def size(number: int) -> str:
    """Bytes, as "12.3 KB"."""
    if number < 1000:
        return f"{number} bytes"
    value, unit = (number / 1000, "KB") if number < 1_000_000 else (number / 1_000_000, "MB")
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"


def percent(share: float) -> str:
    """A share, as "12 %" or "0.4 %"."""
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.1f} %"
