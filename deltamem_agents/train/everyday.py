"""Everyday sentences that tell nothing worth keeping, composed: most of them are the speaker's own doings.

They look like facts, "I stayed in bed until noon" like "I live in Oslo", and are what a memory is mostly told: written,
they wear away what it holds.
"""

import random

_DEEDS = (
    ("stay", "stayed", "in bed with a book"), ("cook", "cooked", "something simple"),
    ("bake", "baked", "a loaf of bread"), ("watch", "watched", "the match at the pub"),
    ("tidy", "tidied", "the kitchen"), ("fold", "folded", "the laundry"), ("call", "called", "an old friend"),
    ("walk", "walked", "along the river"), ("ride", "rode", "my bike to the shops"),
    ("buy", "bought", "too many apples"), ("read", "read", "the paper from front to back"),
    ("paint", "painted", "the fence"), ("sort", "sorted", "a box of old photos"), ("water", "watered", "the plants"),
    ("fix", "fixed", "the bike's light"), ("drink", "drank", "too much tea"), ("eat", "ate", "soup from a tin"),
    ("sit", "sat", "on the balcony"), ("take", "took", "the long way round"), ("wait", "waited", "for the plumber"),
    ("look", "looked", "for my glasses"), ("write", "wrote", "a few postcards"),
    ("listen", "listened", "to the radio"), ("play", "played", "cards with the kids"), ("wash", "washed", "the car"),
    ("hang", "hung", "a picture on the wall"), ("carry", "carried", "boxes to the cellar"),
    ("stand", "stood", "in line for a ticket"), ("go", "went", "for a swim"), ("mow", "mowed", "the lawn"),
    ("peel", "peeled", "potatoes"), ("answer", "answered", "old letters"), ("throw", "threw", "out some old shoes"),
    ("order", "ordered", "a pizza"), ("practise", "practised", "a song"), ("feed", "fed", "the ducks"),
    ("sweep", "swept", "the stairs"), ("argue", "argued", "about the bill"), ("queue", "queued", "for stamps"),
    ("rearrange", "rearranged", "the furniture"), ("try", "tried", "a new recipe"),
    ("visit", "visited", "the flea market"), ("lose", "lost", "an umbrella"),
    ("miss", "missed", "the start of the film"), ("knit", "knitted", "half a scarf"),
    ("return", "returned", "a library book"), ("pick", "picked", "some berries"), ("iron", "ironed", "five shirts"),
)  # fmt: skip
_DONE = (
    "I", "I", "I", "We", "We just", "I only", "So I", "Yesterday I", "This morning I", "After work I",
    "On Sunday we", "Then I",
)  # fmt: skip
_PLANNED = (
    "I think I'll", "I should really", "Maybe I'll", "I might", "I was going to", "We wanted to", "I have to",
    "I'd love to", "Later I will", "I never manage to", "I forgot to", "I didn't want to",
    "I can't decide whether to", "Perhaps we should",
)  # fmt: skip
_AFTER = (
    "", "", "", " until noon", " again", " for an hour or two", " with my sister", " before it got dark",
    " all afternoon", " while it rained", " one of these days", " as I always do", ", it was rather nice",
    ", and that was my whole day", ", nothing special", " instead of working", " and then went to sleep",
    ", can you believe it?", " for no reason at all", ", what a waste of time", " in the evening",
    ", which took far too long", " on a day like this", ", more or less",
)  # fmt: skip
_SEEN = (
    "There was a programme about {} on the radio.", "I read that {} will cost more next year.",
    "Everybody talks about {} now.", "I saw something about {}, long but well made.", "Do you ever think about {}?",
    "A colleague went on and on about {}.", "I had no idea how much there is to know about {}.",
    "Somebody gave a talk about {} today.", "I keep dreaming of {}.",
)  # fmt: skip
_THINGS = (
    "lighthouses", "coffee", "steam engines", "owls", "butter", "the moon landing", "old bridges", "bus tickets",
    "glaciers", "honey", "castles", "sleep", "submarines", "pottery", "mushrooms", "school meals", "vinyl records",
    "rivers", "chess", "lightning", "roof tiles", "cheese", "tulips", "volcanoes", "street art", "weather balloons",
    "knots", "salt mines",
)  # fmt: skip


def everyday(rng: random.Random) -> str:
    """One sentence for training."""
    if rng.random() < 0.2:
        return rng.choice(_SEEN).format(rng.choice(_THINGS))
    now, past, what = rng.choice(_DEEDS)
    done = rng.random() < 0.6
    begun = f"{rng.choice(_DONE)} {past}" if done else f"{rng.choice(_PLANNED)} {now}"
    text = f"{begun} {what}{rng.choice(_AFTER)}"
    return text if text[-1] in "?!" else f"{text}."
