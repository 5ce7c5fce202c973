"""Where two long lists are alike, in time that grows with their length and not with its square."""

from collections.abc import Sequence


def runs_at_end(said: Sequence[str], line: Sequence[str]) -> list[int]:
    """For each item of `said`: how many items up to it equal as many at the end of `line`.

    The Z-function of both lists, read backwards.
    """
    items: list[str | None] = [*reversed(line), None, *reversed(said)]
    lengths, left, right = [0] * len(items), 0, 0
    for place in range(1, len(items)):
        length = min(right - place, lengths[place - left]) if place < right else 0
        while place + length < len(items) and items[length] == items[place + length]:
            length += 1
        lengths[place] = length
        if place + length > right:
            left, right = place, place + length
    return lengths[len(line) + 1 :][::-1]


def runs_anywhere(said: Sequence[str], line: Sequence[str]) -> list[tuple[int, int]]:
    """For each item of `said`: how many items up to it equal as many anywhere in `line`, and where those end last.

    By the suffix automaton of `line`; its states are numbered in the order in which they were made.
    """
    following: list[dict[str, int]] = [{}]
    longest, links, last_ends = [0], [-1], [-1]
    last = 0
    for place, item in enumerate(line):
        state, at = len(longest), last
        following.append({})
        longest.append(longest[last] + 1)
        links.append(0)
        last_ends.append(place)
        while at >= 0 and item not in following[at]:
            following[at][item] = state
            at = links[at]
        if at >= 0:
            there = following[at][item]
            if longest[there] == longest[at] + 1:
                links[state] = there
            else:
                copy = len(longest)
                following.append(dict(following[there]))
                longest.append(longest[at] + 1)
                links.append(links[there])
                last_ends.append(-1)
                while at >= 0 and following[at].get(item) == there:
                    following[at][item] = copy
                    at = links[at]
                links[there] = links[state] = copy
        last = state
    for state in sorted(range(1, len(longest)), key=longest.__getitem__, reverse=True):
        last_ends[links[state]] = max(last_ends[links[state]], last_ends[state])
    found, at, length = list[tuple[int, int]](), 0, 0
    for item in said:
        while at > 0 and item not in following[at]:
            at = links[at]
            length = longest[at]
        if item in following[at]:
            at, length = following[at][item], length + 1
        found.append((length, last_ends[at]))
    return found
