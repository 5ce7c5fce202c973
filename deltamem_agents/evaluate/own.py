"""Episodes of your own for the recall table, checked for values that training has seen."""

from collections.abc import Sequence
from pathlib import Path

from deltamem_agents.errors import TrainingError
from deltamem_agents.evaluate.cases import Case
from deltamem_agents.train.episode import UNKNOWN, read_episodes
from deltamem_agents.train.facts import VALUES, Values

NAMED = 8
"""So many leaked values are named in the error."""


def own_cases(path: Path, values: Values, *, seen: bool = False, trained_on: Sequence[Path] = ()) -> list[Case]:
    """The episodes of a JSONL file, to be told live.

    Args:
        path: the file.
        values: what the generators draw from with this tokenizer.
        seen: whether values may be among those that training has seen: recall of them is easier.
        trained_on: more files of episodes that the adapter was trained on.

    Raises:
        TrainingError: the file is missing or malformed, has one episode only or something in its prompts, or holds
            values that training has seen.
    """
    episodes = read_episodes(path)
    if len(episodes) < 2:
        raise TrainingError(f"{path} holds {len(episodes)} episode, expected 2 or more: memories are swapped")
    shown = [number for number, episode in enumerate(episodes, 1) if episode.window or episode.exchanges]
    if shown:
        raise TrainingError(
            f"{path}: episode {shown[0]} has a window or exchanges, but here everything is told live and asked with "
            "nothing of it in the prompt: move those messages to earlier"
        )
    if not seen:
        known = _trained(values, trained_on)
        asked = {value for episode in episodes for value in episode.values if value != UNKNOWN}
        leaked = sorted(value for value in asked if value.lower() in known)
        if leaked:
            more = f" and {len(leaked) - NAMED} more" if len(leaked) > NAMED else ""
            raise TrainingError(
                f"{path} asks for {len(leaked)} of {len(asked)} values that training has seen: "
                f"{', '.join(map(repr, leaked[:NAMED]))}{more}. Expected values it never saw, or recall looks better "
                "than it is: take made-up names, numbers, or words of train/data/held_out_words.txt in their place; or "
                "say that they are seen (--seen), and the table says it too"
            )
    return [Case(episode) for episode in episodes]


def _trained(values: Values, files: Sequence[Path]) -> set[str]:
    """Values of the generators' lists and vocabulary, and of files of episodes, in lower case."""
    listed = {value.lower() for kind in VALUES.values() for value in kind}
    told = {value.lower() for file in files for episode in read_episodes(file) for value in episode.values}
    return listed | told | set(values.train_words)
