"""What is said to engines whose input is bad."""

from deltamem_agents import DeltaMemEngine, Message


def user(text: str) -> Message:
    return Message(role="user", content=text)


def goes_on(engine: DeltaMemEngine) -> None:
    assert engine.generate([user("hi")], session="other", max_new_tokens=2).snapshot is not None
