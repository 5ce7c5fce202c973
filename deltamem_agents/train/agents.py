"""What surrounds facts in an agent's life: prompts that describe tools, and turns in which a tool is called."""

import random
from typing import NamedTuple

from deltamem_agents.backbone.calls import hermes_prompt
from deltamem_agents.backbone.tools import Tool
from deltamem_agents.messages import Message, ToolCall
from deltamem_agents.train.attributes import Split


class _Known(NamedTuple):
    """A tool with what it is called for: `{}` stands for the argument."""

    name: str
    does: str
    argument: str
    values: tuple[str, ...]
    requests: tuple[str, ...]
    results: tuple[str, ...]


_TOOLS: dict[Split, tuple[_Known, ...]] = {
    "train": (
        _Known("search", "Searches the web.", "words", ("tax forms", "the opera", "bus fares", "old maps"),
               ("Look up {} for me.", "Search for {}."), ("3 results for {}", "nothing found for {}")),
        _Known("calculator", "Computes an expression.", "expression", ("12 * 7", "91 / 13", "45 + 18", "30 - 4"),
               ("What is {}?", "Compute {}, please."), ("84", "7", "63", "26", "{} = 26")),
        _Known("calendar", "Lists what is planned on a day.", "day", ("today", "tomorrow", "on Friday", "next week"),
               ("What have I planned {}?", "Am I free {}?"), ("no entries", "2 entries: dentist, call with a client")),
        _Known("stock", "How many of an article are left.", "article", ("chairs", "lamps", "printers", "boxes"),
               ("How many {} are left?", "Do we have {}?"), ("{}: 14 left", "0", '{{"article": "{}", "left": 3}}')),
        _Known("route", "Finds a way.", "to", ("the station", "the airport", "the office", "the harbour"),
               ("How do I get to {}?", "Find a way to {}."), ("22 minutes by bus", "to {}: 4 km, turn left twice")),
        _Known("news", "Headlines of a section.", "section", ("business", "science", "local", "world"),
               ("What is new in {}?", "Read me the {} news."), ("no headlines", "{}: the council meets again")),
        _Known("metric", "Metric units.", "length", ("5 miles", "3 yards", "20 inches", "2 feet"),
               ("How much is {} in metric units?", "And {} in metric?"), ("8.05 km", "2.74 m", "50.8 cm", "0.61 m")),
        _Known("timer", "Sets a timer.", "minutes", ("5", "10", "15", "45"),
               ("Wake me in {} minutes.", "Set a timer of {} minutes."), ("ok", "timer set: {} min", "done")),
        _Known("dutch", "Says it in Dutch.", "word", ("thank you", "goodbye", "please", "excuse me"),
               ("How do you say {} in Dutch?", "And {} in Dutch?"), ("no entry for {}", "dank je", "alsjeblieft")),
        _Known("roads", "Whether a road is clear.", "road", ("A1", "A7", "the ring", "the bridge"),
               ("How is it on {}?", "Is {} open?"), ("{}: clear", "jam of 3 km on {}", "closed till noon")),
    ),
    "test": (
        _Known("currency", "Exchange rates.", "pair", ("EUR/USD", "EUR/CHF"),
               ("What is the rate of {}?",), ("{}: 1.08", "no rate for {}")),
        _Known("library", "Whether a book is in.", "title", ("the atlas", "the old guide"),
               ("Is {} in?",), ("{} is out until Monday", "2 copies of {}")),
    ),
}  # fmt: skip


def tool_prompt(rng: random.Random, split: Split) -> str:
    """Describes one to three tools as an agent's system prompt does, some 130 to 300 tokens."""
    known = _TOOLS[split]
    tools = [
        Tool(
            name=tool.name,
            description=tool.does,
            parameters={
                "type": "object",
                "properties": {tool.argument: {"type": "string"}},
                "required": [tool.argument],
            },
        )
        for tool in rng.sample(known, rng.randint(1, min(3, len(known))))
    ]
    return hermes_prompt(tools)


def tool_turn(rng: random.Random, split: Split) -> tuple[Message, ...]:
    """A request, the call it leads to, the tool's result, and what the assistant says of it."""
    tool = rng.choice(_TOOLS[split])
    value, call = rng.choice(tool.values), f"call_{rng.randrange(16**8):08x}"
    result = rng.choice(tool.results).format(value)
    return (
        Message(role="user", content=rng.choice(tool.requests).format(value)),
        Message(
            role="assistant",
            content="",
            tool_calls=(ToolCall(name=tool.name, arguments={tool.argument: value}, id=call),),
        ),
        Message(role="tool", content=result, tool_call_id=call),
        Message(role="assistant", content=f"It says: {result}."),
    )
